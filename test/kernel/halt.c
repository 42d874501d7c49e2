/* SPDX-License-Identifier: MIT */
/*
 * Preloaded into snapmerge on the lab's side of the wall, to stop it where
 * the lab wants: SIGINT at the n-th sync (LAB_INT=n), the orderly stop, or
 * SIGKILL before the n-th write or sync (LAB_KILL=n), the death that nobody
 * sees coming.  LAB_COUNT=FILE records how many of both a whole run makes.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long syncs, calls;

static long asked(const char *name)
{
	const char *s = getenv(name);

	return s ? atol(s) : 0;
}

static void count_call(void)
{
	if (atomic_fetch_add(&calls, 1) + 1 == asked("LAB_KILL"))
		kill(getpid(), SIGKILL);
}

static void count_sync(void)
{
	count_call();
	if (atomic_fetch_add(&syncs, 1) + 1 == asked("LAB_INT"))
		kill(getpid(), SIGINT);
}

__attribute__((destructor)) static void record(void)
{
	const char *path = getenv("LAB_COUNT");
	FILE *f = path ? fopen(path, "w") : NULL;

	if (!f)
		return;
	fprintf(f, "%ld %ld\n", atomic_load(&syncs), atomic_load(&calls));
	fclose(f);
}

int fsync(int fd)
{
	count_sync();
	return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
	count_sync();
	return (int)syscall(SYS_fdatasync, fd);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
	count_call();
	return syscall(SYS_pwrite64, fd, buf, len, at);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at)
{
	count_call();
	return syscall(SYS_pwrite64, fd, buf, len, at);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
	count_call();
	return syscall(SYS_pwritev, fd, iov, n, at, 0L);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int n, off64_t at)
{
	count_call();
	return syscall(SYS_pwritev, fd, iov, n, at, 0L);
}
