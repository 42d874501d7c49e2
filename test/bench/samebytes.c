/* SPDX-License-Identifier: MIT */
/*
 * samebytes A B: cmp for large images.  Compares every byte, holes as zeros,
 * but reads from the medium, two blocks at a time: around the page cache, which
 * would cost cmp most of its time, and which the benchmark wants to find empty.
 * Exit: 0 equal, 1 different, 2 an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK	((size_t)4 << 20)
#define ALIGN	((size_t)4096)
#define THREADS 2

static const char *const *paths;
static int fds[2];
static off_t size;
static atomic_llong next_block;
static atomic_llong difference; /* offset of one, or -1 */

static void die(const char *path, int error)
{
	fprintf(stderr, "samebytes: %s: %s\n", path, strerror(error));
	exit(2);
}

/* Around the page cache, where the file system lets us. */
static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);

	if (fd < 0 && errno == EINVAL)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(path, errno);
	return fd;
}

static off_t size_of(int side)
{
	struct stat st;

	if (fstat(fds[side], &st))
		die(paths[side], errno);
	return st.st_size;
}

static void read_block(int side, unsigned char *buf, off_t offset, size_t len)
{
	/* A direct read takes whole sectors, the last one beyond the end. */
	size_t whole = (len + ALIGN - 1) / ALIGN * ALIGN;
	size_t done = 0;
	ssize_t got;

	while (done < len) {
		got = pread(fds[side], buf + done, whole - done,
			    offset + (off_t)done);
		if (got <= 0)
			die(paths[side], got ? errno : EIO);
		done += (size_t)got;
	}
}

static off_t first_of(const unsigned char *a, const unsigned char *b)
{
	off_t at = 0;

	while (a[at] == b[at])
		at++;
	return at;
}

static void *compare(void *buffers)
{
	unsigned char *a = buffers, *b = a + BLOCK;

	while (difference < 0) {
		off_t offset = (off_t)next_block++ * (off_t)BLOCK;
		size_t len = BLOCK;

		if (offset >= size)
			break;
		if (size - offset < (off_t)len)
			len = (size_t)(size - offset);
		read_block(0, a, offset, len);
		read_block(1, b, offset, len);
		if (memcmp(a, b, len))
			difference = (long long)(offset + first_of(a, b));
	}
	return NULL;
}

static void compare_all(void)
{
	pthread_t threads[THREADS];
	void *buffers;
	int error;

	for (int i = 0; i < THREADS; i++) {
		error = posix_memalign(&buffers, ALIGN, 2 * BLOCK);
		if (!error)
			error = pthread_create(&threads[i], NULL, compare,
					       buffers);
		if (error)
			die("a thread", error);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fputs("usage: samebytes A B\n", stderr);
		return 2;
	}
	paths = (const char *const *)argv + 1;
	for (int side = 0; side < 2; side++)
		fds[side] = open_file(paths[side]);
	size = size_of(0);
	if (size != size_of(1)) {
		printf("%s and %s differ in size\n", paths[0], paths[1]);
		return 1;
	}
	difference = -1;
	compare_all();
	if (difference >= 0)
		printf("%s and %s differ at byte %lld\n", paths[0], paths[1],
		       (long long)difference);
	return difference >= 0;
}
