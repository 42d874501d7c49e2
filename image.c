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
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
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
#define CLONE	    _IOW(0x94, 9, int)
#define DISCARD	    _IO(0x12, 119)

/* glibc's ioctl() takes any request as it is, musl's wants an int. */
#ifdef __GLIBC__
#define REQUEST(r) (r)
#else
#define REQUEST(r) ((int)(r))
#endif

/* Bytes that image_copy() moves at once. */
#define COPY_BUFFER (4 << 20)

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
		     const char *verb, uint64_t len, uint64_t offset)
{
	error_set(err, ERROR_SYSTEM, sys, img->path,
		  "cannot %s %" PRIu64 " bytes at offset %" PRIu64, verb, len,
		  offset);
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

static int in_use(struct error *err, const struct image *img)
{
	return error_set(err, ERROR_BUSY, 0, img->path,
			 "in use: another snapmerge or a virtual machine holds "
			 "a lock on it");
}

/* Ask for, or take, an open-file-description lock; len 0: to the end. */
static int lock_range(const struct image *img, int command, short type,
		      off_t start, off_t len, struct error *err)
{
	struct flock lock = { .l_type = type,
			      .l_whence = SEEK_SET,
			      .l_start = start,
			      .l_len = len };

	if (fcntl(img->fd, command, &lock)) {
		if (errno == EAGAIN || errno == EACCES)
			return in_use(err, img);
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot lock");
	}
	if (command == F_OFD_GETLK && lock.l_type != F_UNLCK)
		return in_use(err, img);
	return 0;
}

/*
 * Hold a regular file as use demands. QEMU locks byte 100 + n of an image for
 * reading where it uses permission n, and byte 200 + n where it does not let
 * others have it; permission 1 is to write. The lock of one who shares is off
 * those bytes but for saying the same.
 */
static int lock_file(const struct image *img, enum image_use use,
		     struct error *err)
{
	switch (use) {
	case IMAGE_WRITE:
		return lock_range(img, F_OFD_SETLK, F_WRLCK, 0, 0, err);
	case IMAGE_PROBE:
		return lock_range(img, F_OFD_GETLK, F_WRLCK, 0, 0, err);
	case IMAGE_SHARE:
		if (lock_range(img, F_OFD_SETLK, F_RDLCK, 0, 100, err) ||
		    lock_range(img, F_OFD_SETLK, F_RDLCK, 201, 1, err))
			return -1;
		return lock_range(img, F_OFD_GETLK, F_WRLCK, 101, 1, err);
	default:
		return 0;
	}
}

static int open_checked(struct image *img, const struct stat *before, int flags,
			struct error *err)
{
	struct stat st;

	/* Looking leaves no trace, where the file is ours. */
	img->fd = open(img->path, flags | O_NOATIME);
	if (img->fd < 0 && errno == EPERM)
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
static int settle_device(struct image *img, enum image_use use,
			 struct error *err)
{
	int read_only = 0;

	if (ioctl(img->fd, REQUEST(BLKGETSIZE64), &img->size))
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot get the size");
	/* Some kernels let one open it for writing all the same. */
	if (use == IMAGE_WRITE &&
	    (ioctl(img->fd, REQUEST(BLKROGET), &read_only) || read_only))
		return error_set(err, ERROR_SYSTEM, EROFS, img->path,
				 "cannot open for writing");
	if (ioctl(img->fd, REQUEST(BLKFLSBUF), 0)) {
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
	int flags = O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK;
	struct stat st;

	img->bypass_fd = open(img->path, flags | O_NOATIME);
	if (img->bypass_fd < 0 && errno == EPERM)
		img->bypass_fd = open(img->path, flags);
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
	if (use != IMAGE_PEEK && img->is_device)
		flags |= O_EXCL;
	if (open_checked(img, &st, flags, err))
		goto fail;
	if (img->is_device ? settle_device(img, use, err)
			   : lock_file(img, use, err))
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

/* Leave O_DIRECT mode; whether the descriptor was in it. */
static bool leave_direct(const struct image *img)
{
	int flags = fcntl(img->fd, F_GETFL);

	return flags >= 0 && (flags & O_DIRECT) &&
	       !fcntl(img->fd, F_SETFL, flags & ~O_DIRECT);
}

/*
 * Whether to try again: EINVAL may be O_DIRECT's, for an unaligned tail or on a
 * file system that refuses it late. Another thread may have left that mode in
 * between, hence one more try in any case.
 */
static bool refused_direct(const struct image *img, bool *retried)
{
	bool again = errno == EINVAL && (leave_direct(img) || !*retried);

	*retried = true;
	return again;
}

int image_read(const struct image *img, void *buf, size_t len, uint64_t offset,
	       struct error *err)
{
	bool retried = false;
	uint8_t *at = buf;

	while (len) {
		ssize_t n = pread(img->fd, at, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && refused_direct(img, &retried))
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

/* Drop what the range touches; of a page that it shares, all. Up to 64 KiB. */
static void forget_range(const struct image *img, uint64_t offset, uint64_t len)
{
	const uint64_t largest_page = UINT64_C(1) << 16;
	uint64_t first = offset / largest_page;
	uint64_t end = (offset + len) / largest_page + 1;

	posix_fadvise(img->fd, (off_t)(first * largest_page),
		      (off_t)((end - first) * largest_page),
		      POSIX_FADV_DONTNEED);
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
	forget_range(img, offset, len);
	if (image_read(img, at, len, offset, err))
		return -1;
	forget_range(img, offset, len);
	return 0;
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
		if (n < 0 && refused_direct(img, &retried))
			continue;
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

uint64_t image_hole(const struct image *img, uint64_t offset, uint64_t len)
{
	uint64_t end = offset + len, holes = 0;

	while (!img->is_device && offset < end) {
		off_t data = lseek(img->fd, (off_t)offset, SEEK_DATA);
		off_t hole;

		if (data < 0 && errno != ENXIO)
			break;
		if (data < 0 || (uint64_t)data >= end) /* no more data */
			return holes + (end - offset);
		holes += (uint64_t)data - offset;
		hole = lseek(img->fd, data, SEEK_HOLE);
		if (hole < 0)
			break;
		offset = (uint64_t)hole;
	}
	return holes;
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
		result = ioctl(dst->fd, REQUEST(CLONE_RANGE), &range);
	} while (result && errno == EINTR);
	return result ? errno : 0;
}

/* The very file that is open, whatever its path names by now. */
static int open_again(const struct image *img, int flags)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", img->fd);
	return open(path, flags | O_CLOEXEC);
}

int image_can_clone(const struct image *dst, const struct image *src,
		    uint64_t granule)
{
	struct image probe = *dst;
	struct statvfs fs;
	int sys;

	if (fstatvfs(dst->fd, &fs))
		return errno;
	if (!fs.f_bsize || granule % fs.f_bsize)
		return EINVAL;
	/* From the end of src to the end of src: nothing; but by a writer. */
	if (!(fcntl(dst->fd, F_GETFL) & O_ACCMODE)) {
		probe.fd = open_again(dst, O_WRONLY);
		if (probe.fd < 0)
			return errno;
		sys = clone_range(&probe, 0, src, src->size, 0);
		close(probe.fd);
		return sys;
	}
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

static int punch(const struct image *img, uint64_t offset, uint64_t len)
{
	return fallocate(img->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 (off_t)offset, (off_t)len);
}

int image_can_discard(const struct image *img)
{
	/* Behind the end of the file there is nothing to lose. */
	if (img->is_device || !punch(img, img->size, IMAGE_ALIGNMENT))
		return 0;
	return errno;
}

int image_discard(const struct image *img, uint64_t offset, uint64_t len,
		  struct error *err)
{
	uint64_t range[2] = { offset, len };
	int result;

	if (img->is_device) { /* whole sectors, whatever their size is */
		range[0] = (offset + IMAGE_ALIGNMENT - 1) / IMAGE_ALIGNMENT *
			   IMAGE_ALIGNMENT;
		range[1] = (offset + len) / IMAGE_ALIGNMENT * IMAGE_ALIGNMENT;
		if (range[0] >= range[1])
			return 0;
		range[1] -= range[0];
	}
	do {
		result = img->is_device
				 ? ioctl(img->fd, REQUEST(DISCARD), range)
				 : punch(img, offset, len);
	} while (result && errno == EINTR);
	if (!result || (img->is_device && errno == EOPNOTSUPP))
		return 0;
	return failed_at(err, img, errno, "discard", len, offset);
}

uint64_t image_free_space(const struct image *img)
{
	struct statvfs fs;

	if (img->is_device || fstatvfs(img->fd, &fs))
		return UINT64_MAX;
	return (uint64_t)fs.f_bavail * fs.f_frsize;
}

/* --- images of our own --- */

/* Make what happened to names in path's directory durable. */
static int sync_directory(const char *path, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char *dir = slash ? strndup(path, (size_t)(slash - path) + 1)
			  : strdup(".");
	int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int result = fd < 0 ? -1 : fsync(fd);

	if (result)
		error_set(err, ERROR_SYSTEM, errno, path,
			  "cannot sync its directory");
	if (fd >= 0)
		close(fd);
	free(dir);
	return result;
}

/* Left over by a run that was killed, if nobody holds it. */
static int open_partial(struct image *img, struct error *err)
{
	int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
	struct stat st, named;

	/* Published already, but for the loss of this name: that other stays */
	if (!lstat(img->partial, &st) && S_ISREG(st.st_mode) && st.st_nlink > 1)
		unlink(img->partial);
	img->fd = open(img->partial, flags, 0600);
	if (img->fd < 0)
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot create");
	if (lock_file(img, IMAGE_WRITE, err))
		return -1;
	/* Published by another between our opening and our locking it. */
	if (fstat(img->fd, &st) || lstat(img->partial, &named) ||
	    !same_inode(&st, &named) || st.st_nlink > 1)
		return in_use(err, img);
	if (ftruncate(img->fd, 0) || ftruncate(img->fd, (off_t)img->size))
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot make it %" PRIu64 " bytes long",
				 img->size);
	return 0;
}

int image_create(struct image *img, const char *path, uint64_t size,
		 struct error *err)
{
	static const char suffix[] = ".snapmerge-partial";
	size_t len = strlen(path) + sizeof(suffix);
	struct stat st;

	*img = (struct image){ .path = path,
			       .fd = -1,
			       .bypass_fd = -1,
			       .size = size,
			       .partial = malloc(len) };
	if (!img->partial)
		return error_set(err, ERROR_SYSTEM, ENOMEM, path,
				 "cannot create");
	snprintf(img->partial, len, "%s%s", path, suffix);
	if (!lstat(path, &st)) {
		error_set(err, ERROR_SYSTEM, EEXIST, path, "cannot create");
		goto fail;
	}
	if (!open_partial(img, err))
		return 0;
fail:
	free(img->partial);
	img->partial = NULL;
	if (img->fd >= 0)
		close(img->fd);
	img->fd = -1;
	return -1;
}

/* Not over what is there; where that cannot be said, by way of two names. */
static int rename_new(const char *from, const char *to)
{
#ifdef RENAME_NOREPLACE
	if (!renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE))
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
#endif
	if (link(from, to))
		return -1;
	unlink(from);
	return 0;
}

int image_publish(struct image *img, struct error *err)
{
	if (image_sync(img, err))
		return -1;
	if (rename_new(img->partial, img->path))
		return error_set(err, ERROR_SYSTEM, errno, img->path,
				 "cannot create");
	free(img->partial);
	img->partial = NULL;
	return sync_directory(img->path, err);
}

void image_abandon(struct image *img)
{
	struct error ignored;

	if (img->partial)
		unlink(img->partial);
	free(img->partial);
	img->partial = NULL;
	image_close(img, &ignored);
}

/* The next stretch of data at or after offset, [*data, *end); false: none. */
static bool next_data(const struct image *src, uint64_t offset, uint64_t *data,
		      uint64_t *end)
{
	off_t at = src->is_device ? (off_t)offset
				  : lseek(src->fd, (off_t)offset, SEEK_DATA);
	off_t hole = -1;

	if (at < 0 && errno == ENXIO)
		return false;
	*data = at < 0 ? offset : (uint64_t)at;
	if (!src->is_device && at >= 0)
		hole = lseek(src->fd, at, SEEK_HOLE);
	*end = hole < 0 ? src->size : (uint64_t)hole;
	return true;
}

/* Copy, or with src NULL zero, the range [offset, end) by way of buf. */
static int copy_range(const struct image *dst, const struct image *src,
		      uint64_t offset, uint64_t end, uint8_t *buf,
		      bool (*stop)(void *context), void *context,
		      struct error *err)
{
	while (offset < end) {
		size_t len = end - offset < COPY_BUFFER ? (size_t)(end - offset)
							: COPY_BUFFER;
		struct iovec iov = { buf, len };

		if (stop(context))
			return 1;
		if (src && image_read_medium(src, buf, len, offset, err))
			return -1;
		if (!src)
			memset(buf, 0, len);
		if (image_write(dst, &iov, 1, offset, err))
			return -1;
		image_start_writeback(dst);
		offset += len;
	}
	return 0;
}

int image_copy(const struct image *dst, const struct image *src, bool share,
	       bool (*stop)(void *context), void *context, struct error *err)
{
	uint64_t offset = 0, data, end;
	uint8_t *buf;
	int result = 0;

	if (share && !dst->is_device &&
	    !ioctl(dst->fd, REQUEST(CLONE), src->fd))
		return 0;
	buf = aligned_alloc(IMAGE_ALIGNMENT, COPY_BUFFER);
	if (!buf)
		return error_set(err, ERROR_SYSTEM, ENOMEM, dst->path,
				 "cannot copy");
	while (!result && offset < src->size) {
		if (!next_data(src, offset, &data, &end))
			data = end = src->size;
		if (dst->is_device)
			result = copy_range(dst, NULL, offset, data, buf, stop,
					    context, err);
		if (!result)
			result = copy_range(dst, src, data, end, buf, stop,
					    context, err);
		offset = end;
	}
	free(buf);
	return result;
}
