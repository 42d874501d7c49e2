/* SPDX-License-Identifier: MIT */
/*
 * Helper of the kernel lab, one static binary for both sides of the machine's
 * wall.  It fills devices, makes reproducible changes through a snapshot and
 * its origin, watches a snapshot-merge target and counts the exceptions that
 * are left in a store.  It shares nothing with cowstore.c: what it knows of
 * the format is written down here a second time, on purpose.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SECTOR	512U
#define LONGEST 136U /* sectors of the longest single change */
#define ALIGN	4096U

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "labtool: %s: %s\n", what, strerror(errno));
	exit(1);
}

static _Noreturn void usage(void)
{
	fputs("usage: labtool fill FILE BYTES SEED\n"
	      "       labtool number FILE BYTES WORD\n"
	      "       labtool scribble SEED COUNT SNAPSHOT [ORIGIN]\n"
	      "       labtool chunks SEED COUNT RUN CHUNK_BYTES DEVICE\n"
	      "       labtool wait NAME LEFT SECTORS_PER_CHUNK SECONDS\n"
	      "       labtool halt NAME LEFT SECTORS_PER_CHUNK SECONDS\n"
	      "       labtool live COW\n",
	      stderr);
	exit(2);
}

static uint64_t number(const char *s)
{
	char *end;
	uint64_t n;

	errno = 0;
	n = strtoull(s, &end, 10);
	if (errno || end == s || *end)
		usage();
	return n;
}

/* splitmix64: small, seedable with anything, and the same everywhere. */
static uint64_t seed;

static uint64_t next(void)
{
	uint64_t z = seed += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static void randomise(unsigned char *buf, size_t len)
{
	for (size_t i = 0; i < len; i += sizeof(uint64_t)) {
		uint64_t r = next();

		memcpy(buf + i, &r, sizeof(r));
	}
}

static unsigned char *buffer(size_t len)
{
	void *p;

	errno = posix_memalign(&p, ALIGN, len);
	if (errno)
		die("memory");
	return p;
}

static int open_for(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0666);

	if (fd < 0)
		die(path);
	return fd;
}

static uint64_t size_of(int fd, const char *path)
{
	struct stat st;
	uint64_t n;

	if (fstat(fd, &st) < 0)
		die(path);
	if (!S_ISBLK(st.st_mode))
		return (uint64_t)st.st_size;
	if (ioctl(fd, BLKGETSIZE64, &n) < 0)
		die(path);
	return n;
}

static void put(int fd, const void *buf, size_t len, uint64_t at)
{
	if (pwrite(fd, buf, len, (off_t)at) != (ssize_t)len)
		die("write");
}

static int fill(char **arg)
{
	uint64_t left = number(arg[1]), at = 0;
	size_t step = 1 << 20;
	unsigned char *buf = buffer(step);
	int fd = open_for(arg[0], O_WRONLY | O_CREAT | O_TRUNC);

	seed = number(arg[2]);
	for (; left; left -= step, at += step) {
		if (step > left)
			step = (size_t)left;
		randomise(buf, (step + 7) / 8 * 8);
		put(fd, buf, step, at);
	}
	free(buf);
	return close(fd);
}

/* Every sector says which it is: easy to read in a dump, and to compress. */
static int number_sectors(char **arg)
{
	uint64_t sectors = number(arg[1]) / SECTOR;
	FILE *f = fopen(arg[0], "w");
	char word[64], sector[SECTOR];

	if (!f)
		die(arg[0]);
	for (uint64_t i = 0; i < sectors; i++) {
		size_t len = (size_t)snprintf(word, sizeof(word), "%.32s %llu|",
					      arg[2], (unsigned long long)i);

		for (size_t at = 0; at < SECTOR; at++)
			sector[at] = word[at % len];
		fwrite(sector, 1, SECTOR, f);
	}
	return fclose(f);
}

/*
 * Changes of one sector to LONGEST, at any sector, half of them through the
 * origin when there is one.  O_DIRECT, because the page cache would round
 * everything up to a page and no chunk would ever be changed in part.
 */
static int scribble(char **arg, int args)
{
	static const unsigned lengths[] = { 1, 1, 3, 8, 8, 32, LONGEST };
	unsigned char *buf = buffer(LONGEST * SECTOR);
	uint64_t count = number(arg[1]), sectors;
	int fd[2];

	seed = number(arg[0]);
	fd[0] = open_for(arg[2], O_WRONLY | O_DIRECT);
	fd[1] = args == 4 ? open_for(arg[3], O_WRONLY | O_DIRECT) : fd[0];
	sectors = size_of(fd[0], arg[2]) / SECTOR;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t len = lengths[next() % 7];
		uint64_t at = next() % (sectors - len + 1);

		randomise(buf, (size_t)len * SECTOR);
		put(fd[next() & 1], buf, (size_t)len * SECTOR, at * SECTOR);
	}
	/* The last sector always: an origin may end inside a chunk. */
	randomise(buf, SECTOR);
	put(fd[0], buf, SECTOR, (sectors - 1) * SECTOR);
	free(buf);
	return fsync(fd[0]) || fsync(fd[1]);
}

/*
 * COUNT whole chunks in runs of RUN.  The device is cut into slots of two
 * runs each, which are used in random order, first half only: so no two runs
 * touch, and RUN 1 leaves the kernel's merge nothing to gather.
 */
static int chunks(char **arg)
{
	uint64_t count = number(arg[1]), run = number(arg[2]);
	uint64_t bytes = run * number(arg[3]), slots, pending = 0;
	unsigned char *buf = buffer((size_t)bytes);
	int fd = open_for(arg[4], O_WRONLY);
	uint64_t *order;

	seed = number(arg[0]);
	slots = size_of(fd, arg[4]) / bytes;
	slots = slots > 1 ? slots / 2 : slots;
	if (slots < count / run) {
		errno = ENOSPC;
		die(arg[4]);
	}
	order = calloc(slots, sizeof(*order));
	if (!order)
		die("memory");
	for (uint64_t i = 0; i < slots; i++) {
		uint64_t j = next() % (i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	for (uint64_t i = 0; i < count / run; i++) {
		randomise(buf, (size_t)bytes);
		put(fd, buf, (size_t)bytes, order[i] * 2 * bytes);
		pending += bytes;
		/*
		 * Written back in groups: the kernel sorts inside a group, and
		 * a group per commit keeps the making of a store quick.
		 */
		if (pending >= 512 << 10) {
			if (fdatasync(fd) < 0)
				die(arg[4]);
			pending = 0;
		}
	}
	free(order);
	free(buf);
	return fsync(fd);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

union request {
	struct dm_ioctl io;
	char room[16384];
};

/* Ask device mapper itself, without the time that starting dmsetup takes. */
static void ask(int control, unsigned long command, const char *name,
		union request *r)
{
	memset(r, 0, sizeof(*r));
	r->io.version[0] = DM_VERSION_MAJOR;
	r->io.data_size = sizeof(*r);
	r->io.data_start = sizeof(r->io);
	r->io.flags = DM_NOFLUSH_FLAG;
	snprintf(r->io.name, sizeof(r->io.name), "%s", name);
	if (ioctl(control, command, r) < 0)
		die(name);
}

/*
 * Until at most LEFT exceptions remain: each costs the store one chunk beside
 * the metadata, so their number is what the two figures differ by.  To halt is
 * to take the device away there and then: a machine under load could finish a
 * merge while a program is being started.
 */
static int watch(char **arg, bool halt)
{
	int control = open_for("/dev/mapper/control", O_RDWR);
	uint64_t left = number(arg[1]), chunk = number(arg[2]);
	double end = now() + (double)number(arg[3]);
	const struct timespec pause = { .tv_nsec = 1000000 };
	union request r;
	const char *line;

	do {
		unsigned long long used, total, meta;

		ask(control, DM_TABLE_STATUS, arg[0], &r);
		line = r.room + r.io.data_start + sizeof(struct dm_target_spec);
		if (sscanf(line, "%llu/%llu %llu", &used, &total, &meta) != 3)
			break;
		if (used - meta <= left * chunk) {
			if (halt)
				ask(control, DM_DEV_REMOVE, arg[0], &r);
			return 0;
		}
		nanosleep(&pause, NULL);
	} while (now() < end);
	fprintf(stderr, "labtool: %s: gave up at \"%s\"\n", arg[0], line);
	return 1;
}

static uint64_t le(const unsigned char *p, int bytes)
{
	uint64_t n = 0;

	while (bytes--)
		n = n << 8 | p[bytes];
	return n;
}

static int live(char **arg)
{
	int fd = open_for(arg[0], O_RDONLY);
	unsigned char head[16];
	uint64_t chunk, area, found = 0;
	unsigned char *buf;

	if (pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head))
		die(arg[0]);
	chunk = le(head + 12, 4) * SECTOR;
	if (le(head, 4) != 0x70416e53 || !chunk) {
		errno = EINVAL;
		die(arg[0]);
	}
	buf = buffer((size_t)chunk);
	for (area = 1;; area += chunk / 16 + 1) {
		if (pread(fd, buf, (size_t)chunk, (off_t)(area * chunk)) !=
		    (ssize_t)chunk)
			break;
		for (uint64_t i = 0; i < chunk; i += 16, found++)
			if (!le(buf + i + 8, 8))
				goto out;
	}
out:
	printf("%llu\n", (unsigned long long)found);
	free(buf);
	return close(fd);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	char **arg = argv + 2;
	int args = argc - 2;

	if (!strcmp(what, "fill") && args == 3)
		return fill(arg) != 0;
	if (!strcmp(what, "number") && args == 3)
		return number_sectors(arg) != 0;
	if (!strcmp(what, "scribble") && (args == 3 || args == 4))
		return scribble(arg, args) != 0;
	if (!strcmp(what, "chunks") && args == 5)
		return chunks(arg) != 0;
	if (!strcmp(what, "wait") && args == 4)
		return watch(arg, false);
	if (!strcmp(what, "halt") && args == 4)
		return watch(arg, true);
	if (!strcmp(what, "live") && args == 1)
		return live(arg) != 0;
	usage();
}
