/*
 * fuzz_merge.c - whole merges of small pairs whose table is any bytes
 *
 * libFuzzer harness. The input is the header's and the first areas' bytes of a
 * store with plausible sizes. What is refused must be left as it was. What is
 * merged must read as the view that the independent builder computes from the
 * bytes alone, its table must be empty, and nothing else of the COW may have
 * changed. An undo store must take it back.
 */
#include "../builder.h"
#include "../pair.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define ORIGIN_SIZE 20000u
#define MAX_COW	    65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool truth)
{
	if (!truth)
		abort();
}

static void put(int fd, const uint8_t *bytes, size_t len)
{
	require(!ftruncate(fd, 0) && pwrite(fd, bytes, len, 0) == (ssize_t)len);
}

static void get(int fd, uint8_t *bytes, size_t len)
{
	struct stat st;

	require(!fstat(fd, &st) && (size_t)st.st_size == len &&
		pread(fd, bytes, len, 0) == (ssize_t)len);
}

/* A sound header of the chunk size wanted, unless the input brings its own. */
static void sound_header(uint8_t *cow, uint8_t shift)
{
	static const uint8_t header[] = { 0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0,
					  1,	0,    0,    0,	  0, 0, 0, 0 };

	memcpy(cow, header, sizeof(header));
	cow[12] = (uint8_t)(1u << shift);
}

/* Data everywhere, and the input where a table can be. */
static size_t make_cow(uint8_t *cow, const uint8_t *data, size_t size)
{
	size_t len = 2048 + (data[0] * 256u) % (MAX_COW - 2048);
	uint8_t shift = data[1] % 4;
	size_t chunk = (size_t)512 << shift, at = 16, used = 0;

	for (size_t i = 0; i < len; i++)
		cow[i] = (uint8_t)(i / 512 * 7 + i);
	memset(cow, 0, chunk);
	data += 2;
	size -= 2;
	if (size >= 16 && data[0] == 0x53)
		at = 0;
	else
		sound_header(cow, shift);
	if (!at)
		memcpy(cow, data, 16), used = 16;
	for (at = chunk; at + chunk <= len && used < size;
	     at += (chunk / 16 + 1) * chunk) {
		size_t n = size - used < chunk ? size - used : chunk;

		memset(cow + at, 0, chunk);
		memcpy(cow + at, data + used, n);
		used += n;
	}
	return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char origin_path[] = "/dev/shm/snapmerge-fuzz-origin.XXXXXX";
	static char cow_path[] = "/dev/shm/snapmerge-fuzz-cow.XXXXXX";
	static uint8_t origin[ORIGIN_SIZE], view[ORIGIN_SIZE],
		after[ORIGIN_SIZE], cow[MAX_COW], cow_after[MAX_COW];
	static int ofd = -1, cfd = -1;
	struct pair pair = { .origin = origin_path, .cow = cow_path };
	size_t len;

	if (size < 3)
		return 0;
	if (ofd < 0) {
		ofd = mkstemp(origin_path);
		cfd = mkstemp(cow_path);
	}
	len = make_cow(cow, data, size);
	for (size_t i = 0; i < sizeof(origin); i++)
		origin[i] = (uint8_t)(i / 512 * 3 + 128);
	put(ofd, origin, sizeof(origin));
	put(cfd, cow, len);
	pair.options.batch_size = 1 + data[0] * 64u;
	pair.options.verify = data[1] & 16;
	pair.options.skip_identical = data[1] & 32;
	pair.options.discard = data[1] & 64;
	pair.workers = 2;
	if (pair_merge(&pair)) {
		require(pair.error.kind == ERROR_REFUSED);
		get(ofd, after, sizeof(after));
		get(cfd, cow_after, len);
		require(!memcmp(origin, after, sizeof(after)) &&
			!memcmp(cow, cow_after, len));
		return 0;
	}
	require(view_of(origin, sizeof(origin), cow, len, view) >= 0);
	get(ofd, after, sizeof(after));
	get(cfd, cow_after, len);
	require(!memcmp(view, after, sizeof(after)));
	require(view_of(origin, sizeof(origin), cow_after, len, view) == 0);
	for (size_t i = 0; i < len; i++)
		require(cow[i] == cow_after[i] || !cow_after[i]);
	return 0;
}
