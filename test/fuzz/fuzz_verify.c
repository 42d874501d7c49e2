/*
 * fuzz_verify.c - opening, verifying and listing whatever bytes there are
 *
 * libFuzzer harness. The first four bytes choose the COW's size, up to 16 MiB
 * of holes behind the data; the rest is the COW. Nothing may be written, and
 * what is found must not exceed what the table could hold.
 */
#include "../../cowstore.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sum {
	uint64_t runs, exceptions;
};

static void add_run(void *context, const struct run *run)
{
	struct sum *sum = context;

	sum->runs++;
	sum->exceptions += run->length;
}

static void require(bool truth)
{
	if (!truth)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char path[] = "/dev/shm/snapmerge-fuzz-verify.XXXXXX";
	static struct findings found;
	static int fd = -1;
	struct sum sum = { 0 };
	struct cowstore store;
	struct error err;
	struct image cow;
	uint32_t extra;

	if (size < sizeof(extra))
		return 0;
	if (fd < 0)
		fd = mkstemp(path);
	memcpy(&extra, data, sizeof(extra));
	data += sizeof(extra);
	size -= sizeof(extra);
	extra &= (16u << 20) - 1;
	require(fd >= 0 && !ftruncate(fd, 0) &&
		pwrite(fd, data, size, 0) == (ssize_t)size &&
		!ftruncate(fd, (off_t)size + extra));
	require(!image_open(&cow, path, IMAGE_PEEK, &err));
	if (!cowstore_open(&store, &cow, true, &err)) {
		require(!cowstore_verify(&store, (uint64_t)extra << 9, &found,
					 &err));
		require(!cowstore_runs(&store, 0, UINT64_MAX, add_run, &sum,
				       &err));
		require(sum.exceptions == store.exceptions);
		require(sum.runs == store.runs);
		require(store.exceptions < cow.size / 16);
	} else {
		require(err.kind == ERROR_REFUSED && *err.what);
	}
	image_close(&cow, &err);
	return 0;
}
