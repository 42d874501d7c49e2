/* SPDX-License-Identifier: MIT */
/*
 * readmeta CHUNK-BYTES COW: the plain loop that the verification of a table is
 * measured against.  Reads the metadata chunks of a store one after the other
 * through the page cache, up to the first that is not full, and does nothing
 * with them.  Prints how many it read.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENTRY 16u /* bytes of an exception: old chunk, new chunk */

/* Whether the last entry of an area is in use: its new chunk is not 0. */
static int is_full(const unsigned char *area, size_t chunk)
{
	for (size_t i = chunk - ENTRY / 2; i < chunk; i++)
		if (area[i])
			return 1;
	return 0;
}

/* How many areas were read, or -1. */
static long long read_areas(int fd, unsigned char *area, size_t chunk)
{
	uint64_t stride = (uint64_t)(chunk / ENTRY + 1) * chunk;
	uint64_t offset = chunk;
	long long areas = 0;
	ssize_t got;

	do {
		got = pread(fd, area, chunk, (off_t)offset);
		if (got < 0)
			return -1;
		if ((size_t)got < chunk)
			return areas;
		areas++;
		offset += stride;
	} while (is_full(area, chunk));
	return areas;
}

int main(int argc, char **argv)
{
	size_t chunk = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	unsigned char *area = chunk < ENTRY ? NULL : malloc(chunk);
	long long areas = -1;
	int fd;

	if (!area) {
		fputs("usage: readmeta CHUNK-BYTES COW\n", stderr);
		return 2;
	}
	fd = open(argv[2], O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		areas = read_areas(fd, area, chunk);
	if (areas < 0)
		fprintf(stderr, "readmeta: %s: %s\n", argv[2], strerror(errno));
	else
		printf("%lld areas\n", areas);
	free(area);
	return areas < 0 || fflush(stdout) ? 1 : 0;
}
