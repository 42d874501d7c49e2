/*
 * image.c - files and block devices
 *
 * Knows how to hold an image alone, how to read and write it whole in spite of
 * short transfers and signals, around the page cache where that is possible,
 * and how to make it durable. Knows nothing of what the bytes mean.
 */
#include "image.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "offsets must have 64 bits");

/*
 * From the kernel's <linux/fs.h>, whose headers a libc need not bring along.
 */
struct clone_range {
	int64_t src_fd;
	uint64_t src_offset;
	uint64_t src_length; /* 0: to the end of the source */
	uint64_t dst_offset;
};
#define CLONE_RANGE _IOW(0x94, 13, struct clone_range)

int error_set(struct error *err, enum error_kind kind, int sys,
	      const char *path, const char *fmt, ...)
{
	va_list ap;

	*err = (struct error){ .kind = kind, .sys = sys, .path = path };
	va_start(ap, fmt);
	vsnprintf(err->what, sizeof(err->what), fmt, ap);
	va_end(ap);
	return -1;
}

static int failed_at(struct error *err, const struct image *img, int sys,
		     const char *verb, size_t len, uint64_t offset)
{
	error_set(err, ERROR_SYSTEM, sys, img->path,
		  "cannot %s %zu bytes at offset %" PRIu64, verb, len, offset);
	err->has_offset = true;
	err->offset = offset;
	return -1;
}

/* One device, or one file, by whatever names. */
static bool same_inode(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool image_same(const char *a, const char *b)
{
	struct stat sa, sb;

	return !stat(a, &sa) && !stat(b, &sb) && same_inode(&sa, &sb);
}

/*
 * The name of the loop device that st backs, written to name, or false. A
 * backing file that is out of this mount namespace's sight is not found.
 */
static bool backs_loop_device(const struct stat *st, char *name, size_t size)
{
	DIR *dir = opendir("/sys/block");
	const struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir))) {
		char path[4096];
		struct stat backing;
		ssize_t len;
		int fd;

		if (strncmp(entry->d_name, "loop", 4) != 0)
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/loop/backing_file",
			 entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue; /* not attached */
		len = read(fd, path, sizeof(path) - 1);
		close(fd);
		if (len <= 1)
			continue;
		path[len - 1] = '\0'; /* the newline */
		if (stat(path, &backing) || !same_inode(st, &backing))
			continue;
		snprintf(name, size, "%s", entry->d_name);
		found = true;
	}
	if (dir)
		closedir(dir);
	return found;
}

/*
 * Hold a regular file as use demands. A write lock needs a descriptor that can
 * write, so a probe asks whether it would be granted and takes a read lock.
 */
static int lock_file(const struct image *img, enum image_use use,
		     struct error *err)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	bool taken = false;

	if (use == IMAGE_PROBE) {
		if (fcntl(img->fd, F_OFD_GETLK, &lock))
			goto fail;
		taken = lock.l_type != F_UNLCK;
		lock = (struct flock){ .l_type = F_RDLCK,
				       .l_whence = SEEK_SET };
	}
	if (!taken && !fcntl(img->fd, F_OFD_SETLK, &lock))
		return 0;
	if (taken || errno == EAGAIN || errno == EACCES)
		return error_set(err, ERROR_BUSY, 0, img->path,
				 "in use: another snapmerge or a virtual "
				 "machine holds a lock on it");
fail:
	return error_set(err, ERROR_SYSTEM, errno, img->path, "cannot lock");
}

static int open_checked(struct image *img, const struct stat *before, int flags,
			struct error *err)
{
	struct stat st;

	if (img->is_device && (flags & O_ACCMODE) != O_RDONLY)
		flags |= O_EXCL;
	img->fd = open(img->path, flags);
	if (img->fd < 0 && errno == EBUSY)
		return error_set(err, ERROR_BUSY, 0, img->path,
				 "in use: mounted, or held by device mapper or "
				 "another program");
	if (img->fd < 0)
		return error_set(
			err, ERROR_SYSTEM, errno, img->path, "cannot open%s",
			(flags & O_ACCMODE) == O_RDWR ? " for writing" : "");
	if (fstat(img->fd, &st))
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot stat");
	if (!same_inode(before, &st))
		return error_set(err, ERROR_SYSTEM, 0, img->path,
				 "was replaced while it was opened");
	img->size = (uint64_t)st.st_size;
	return 0;
}

/* What device mapper wrote is on the device, not in the node's page cache. */
static int settle_device(struct image *img, struct error *err)
{
	if (ioctl(img->fd, BLKGETSIZE64, &img->size))
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot get the size");
	if (ioctl(img->fd, BLKFLSBUF, 0)) {
		/* Only root may; others can drop what is clean. */
		if (errno != EACCES && errno != EPERM)
			return error_set(err, ERROR_SYSTEM, errno, img->path,
					 "cannot flush the page cache");
		image_forget(img);
	}
	return 0;
}

/*
 * A second descriptor for reads around the page cache. It takes no part in
 * locks, and an image whose file system refuses it does without.
 */
static void open_bypass(struct image *img, const struct stat *before)
{
	struct stat st;

	img->bypass_fd = open(img->path,
			      O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
	if (img->bypass_fd >= 0 &&
	    (fstat(img->bypass_fd, &st) || !same_inode(before, &st))) {
		close(img->bypass_fd);
		img->bypass_fd = -1;
	}
}

int image_open(struct image *img, const char *path, enum image_use use,
	       struct error *err)
{
	int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	struct error ignored;
	struct stat st;
	char loop[256];

	*img = (struct image){ .path = path, .fd = -1, .bypass_fd = -1 };
	/* Opening some character devices has effects: look first. */
	if (stat(path, &st))
		return error_set(err, ERROR_SYSTEM, errno, path, "cannot open");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, ERROR_SYSTEM, 0, path,
				 "neither a regular file nor a block device");
	img->is_device = S_ISBLK(st.st_mode);
	if (use != IMAGE_PEEK && backs_loop_device(&st, loop, sizeof(loop)))
		return error_set(err, ERROR_BUSY, 0, path,
				 "in use: attached to /dev/%s", loop);
	flags |= use == IMAGE_WRITE ? O_RDWR : O_RDONLY;
	if (use == IMAGE_PROBE && img->is_device)
		flags |= O_EXCL;
	if (open_checked(img, &st, flags, err))
		goto fail;
	if (img->is_device ? settle_device(img, err)
			   : use != IMAGE_PEEK && lock_file(img, use, err))
		goto fail;
	open_bypass(img, &st);
	return 0;
fail:
	image_close(img, &ignored);
	return -1;
}

int image_close(struct image *img, struct error *err)
{
	int fd = img->fd;

	if (img->bypass_fd >= 0)
		close(img->bypass_fd);
	img->fd = img->bypass_fd = -1;
	if (fd >= 0 && close(fd) && errno != EINTR)
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot close");
	return 0;
}

int image_read(const struct image *img, void *buf, size_t len, uint64_t offset,
	       struct error *err)
{
	uint8_t *at = buf;

	while (len) {
		ssize_t n = pread(img->fd, at, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return failed_at(err, img, n ? errno : ENODATA, "read",
					 len, offset);
		at += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int image_read_medium(const struct image *img, void *buf, size_t len,
		      uint64_t offset, struct error *err)
{
	uint8_t *at = buf;

	while (len && img->bypass_fd >= 0) {
		ssize_t n = pread(img->bypass_fd, at, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EINVAL)
			break; /* alignment: the page cache takes the rest */
		if (n <= 0)
			return failed_at(err, img, n ? errno : ENODATA, "read",
					 len, offset);
		at += n;
		len -= (size_t)n;
		offset += (uint64_t)n;
	}
	if (!len)
		return 0;
	posix_fadvise(img->fd, (off_t)offset, (off_t)len, POSIX_FADV_DONTNEED);
	if (image_read(img, at, len, offset, err))
		return -1;
	posix_fadvise(img->fd, (off_t)offset, (off_t)len, POSIX_FADV_DONTNEED);
	return 0;
}

/* Leave O_DIRECT mode; whether the descriptor was in it. */
static bool leave_direct(const struct image *img)
{
	int flags = fcntl(img->fd, F_GETFL);

	return flags >= 0 && (flags & O_DIRECT) &&
	       !fcntl(img->fd, F_SETFL, flags & ~O_DIRECT);
}

static size_t total(const struct iovec *iov, int count)
{
	size_t sum = 0;

	while (count--)
		sum += iov++->iov_len;
	return sum;
}

int image_write(const struct image *img, struct iovec *iov, int count,
		uint64_t offset, struct error *err)
{
	bool retried = false;

	while (count) {
		ssize_t n = pwritev(img->fd, iov, count, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		/*
		 * EINVAL may be O_DIRECT's: an unaligned tail, or a file system
		 * that refuses it late. Another thread may have left that mode
		 * in between, hence one retry in any case.
		 */
		if (n < 0 && errno == EINVAL &&
		    (leave_direct(img) || !retried)) {
			retried = true;
			continue;
		}
		if (n <= 0)
			return failed_at(err, img, n ? errno : ENOSPC, "write",
					 total(iov, count), offset);
		offset += (uint64_t)n;
		while (count && (size_t)n >= iov->iov_len) {
			n -= (ssize_t)iov->iov_len;
			iov++;
			count--;
		}
		if (n) {
			iov->iov_base = (uint8_t *)iov->iov_base + n;
			iov->iov_len -= (size_t)n;
		}
	}
	return 0;
}

void image_write_direct(const struct image *img)
{
	int flags = fcntl(img->fd, F_GETFL);

	if (flags >= 0)
		fcntl(img->fd, F_SETFL, flags | O_DIRECT);
}

void image_start_writeback(const struct image *img)
{
	/* This flag alone neither waits for errors nor swallows them. */
	sync_file_range(img->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

int image_sync(const struct image *img, struct error *err)
{
	if (fdatasync(img->fd))
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot sync");
	return 0;
}

void image_forget(const struct image *img)
{
	posix_fadvise(img->fd, 0, 0, POSIX_FADV_DONTNEED);
}

void image_prefetch(const struct image *img, uint64_t offset, uint64_t len)
{
	posix_fadvise(img->fd, (off_t)offset, (off_t)len, POSIX_FADV_WILLNEED);
}

static int clone_range(const struct image *dst, uint64_t dst_offset,
		       const struct image *src, uint64_t src_offset,
		       uint64_t len)
{
	struct clone_range range = {
		.src_fd = src->fd,
		.src_offset = src_offset,
		.src_length = len,
		.dst_offset = dst_offset,
	};
	int result;

	do {
		result = ioctl(dst->fd, CLONE_RANGE, &range);
	} while (result && errno == EINTR);
	return result ? errno : 0;
}

int image_can_clone(const struct image *dst, const struct image *src)
{
	/* From the end of src to the end of src: nothing. */
	return clone_range(dst, 0, src, src->size, 0);
}

int image_clone(const struct image *dst, uint64_t dst_offset,
		const struct image *src, uint64_t src_offset, uint64_t len,
		struct error *err)
{
	int sys = clone_range(dst, dst_offset, src, src_offset, len);

	switch (sys) {
	case 0:
		return 0;
	case EINVAL:
	case EOPNOTSUPP:
	case ENOTTY:
	case EXDEV:
	case ETXTBSY:
		return 1;
	default:
		return failed_at(err, dst, sys, "share", len, dst_offset);
	}
}
