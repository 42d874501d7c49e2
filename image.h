/*
 * image.h - the two sides of a merge as the system sees them
 *
 * An image is a regular file or a block device: its size, who else uses it,
 * and the handful of ways in which it is read, written and made durable.
 * Offsets and lengths are bytes throughout.
 *
 * The error type lives here because this is the lowest room.
 */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum error_kind {
	ERROR_SYSTEM,  /* I/O, memory, no such file */
	ERROR_REFUSED, /* what is on the disk is not what it must be */
	ERROR_BUSY     /* somebody else uses it */
};

/*
 * Filled once, where the fact is known, and passed up unchanged.
 * path is borrowed from the image (or the command line) and may be NULL.
 */
struct error {
	enum error_kind kind;
	int sys; /* an errno value, or 0 */
	const char *path;
	bool has_offset;
	uint64_t offset;
	char what[256];
};

/*
 * Fill *err and return -1. The text is lower case, without the path, without
 * strerror and without a full stop.
 */
int error_set(struct error *err, enum error_kind kind, int sys,
	      const char *path, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));

/* What the caller is going to do, hence what it must hold. */
enum image_use {
	IMAGE_PEEK,  /* read, without a lock: tolerates any other user */
	IMAGE_PROBE, /* read, refused wherever IMAGE_WRITE would be */
	IMAGE_SHARE, /* read, together with other readers, but no writer */
	IMAGE_WRITE  /* read and write, alone */
};

struct image {
	const char *path; /* borrowed from the caller of image_open() */
	int fd;
	int bypass_fd; /* O_DIRECT and read-only, or -1 */
	bool is_device;
	uint64_t size;
	char *partial; /* the name of a created file until it is published */
};

/* Memory for reads and writes is best aligned to this many bytes. */
#define IMAGE_ALIGNMENT 4096

/*
 * Open the regular file or block device at path, which must outlive *img.
 *
 * IMAGE_WRITE takes an open-file-description write lock over the whole of a
 * regular file (it collides with QEMU's image locks and with itself) and opens
 * a device with O_EXCL; both last until image_close(). IMAGE_PROBE takes no
 * lock but finds out whether it could. IMAGE_SHARE locks out snapmerge and QEMU
 * only where they would write; a device it opens with O_EXCL. Except under
 * IMAGE_PEEK, a file or device that backs a loop device is refused too. A
 * device's page cache is written back and dropped, because device mapper goes
 * around it.
 *
 * Nothing is created, truncated or changed. 0, or -1 and *err: ERROR_BUSY if
 * in use, else ERROR_SYSTEM. On failure *img is closed.
 */
int image_open(struct image *img, const char *path, enum image_use use,
	       struct error *err);

/*
 * Close *img; harmless on one that is closed already. Durability is not its
 * business: what matters was synced before. -1 and *err if close() fails.
 */
int image_close(struct image *img, struct error *err);

/*
 * Whether two paths lead to one file, or to one device. False if either cannot
 * be looked up: opening it will say why.
 */
bool image_same(const char *a, const char *b);

/*
 * Read exactly len bytes at offset through the page cache. Short transfers
 * and EINTR are continued; an end of file on the way is an error. The caller
 * stays inside size. 0, or -1 and *err with the offset that failed.
 */
int image_read(const struct image *img, void *buf, size_t len, uint64_t offset,
	       struct error *err);

/*
 * The same from the medium itself: by O_DIRECT where buf, len and offset allow
 * it, else through the page cache, which is asked to forget them. What this
 * process has written and not synced is seen as well.
 */
int image_read_medium(const struct image *img, void *buf, size_t len,
		      uint64_t offset, struct error *err);

/*
 * Write exactly the bytes of iov[0 .. count) at offset, which together stay
 * inside size. iov is used up. Short transfers and EINTR are continued. Not
 * durable before image_sync(). 0, or -1 and *err with the offset that failed.
 */
int image_write(const struct image *img, struct iovec *iov, int count,
		uint64_t offset, struct error *err);

/*
 * Ask that writes go around the page cache from now on. A hint: where the file
 * system or the alignment forbids it, writes use the page cache. Not while
 * another thread writes to *img.
 */
void image_write_direct(const struct image *img);

/* Start writing back what the page cache holds; durability is not implied. */
void image_start_writeback(const struct image *img);

/*
 * Make every completed write durable, device caches included. A failure is
 * final: the kernel may have dropped the dirty pages, and a second call would
 * wrongly succeed. 0, or -1 and *err.
 */
int image_sync(const struct image *img, struct error *err);

/* Start reading len bytes at offset into the page cache. A hint. */
void image_prefetch(const struct image *img, uint64_t offset, uint64_t len);

/* Let the page cache forget what is clean. A hint. */
void image_forget(const struct image *img);

/*
 * How many of len bytes at offset lie in holes, so that writing there needs
 * new blocks. 0 for devices, and where the file system cannot tell.
 */
uint64_t image_hole(const struct image *img, uint64_t offset, uint64_t len);

/*
 * Whether blocks of src can be shared with dst in pieces of granule bytes:
 * regular files of one file system that knows how, and whose blocks are not
 * larger. Asks by sharing nothing; changes nothing. 0, or the errno value that
 * says why not.
 */
int image_can_clone(const struct image *dst, const struct image *src,
		    uint64_t granule);

/*
 * Share len bytes of src at src_offset with dst at dst_offset. Not durable
 * before image_sync(). 0; 1 if this range cannot be shared (alignment, file
 * system) and nothing was changed; -1 and *err.
 */
int image_clone(const struct image *dst, uint64_t dst_offset,
		const struct image *src, uint64_t src_offset, uint64_t len,
		struct error *err);

/*
 * Whether image_discard() can give space back: a file whose file system punches
 * holes, or any device. Changes nothing. 0, or the errno value.
 */
int image_can_discard(const struct image *img);

/*
 * Give len bytes at offset back: a hole in a file, a discard on a device. They
 * read as anything afterwards. A device that cannot is left as it is. 0, or -1
 * and *err.
 */
int image_discard(const struct image *img, uint64_t offset, uint64_t len,
		  struct error *err);

/* Bytes that the file system of a file has left for us; UINT64_MAX: a device */
uint64_t image_free_space(const struct image *img);

/*
 * Create a file of size bytes, all holes, for reading and writing, locked as by
 * IMAGE_WRITE. It is made under another name beside path and gets its own by
 * image_publish(): it appears whole or not at all. Fails if path exists. 0, or
 * -1 and *err.
 */
int image_create(struct image *img, const char *path, uint64_t size,
		 struct error *err);

/*
 * Sync a created image and give it its name, durably. It stays open. Fails if
 * that name exists by now. 0, or -1 and *err.
 */
int image_publish(struct image *img, struct error *err);

/* Close a created image that was not published, and remove it. */
void image_abandon(struct image *img);

/*
 * Make dst, which is blank and no smaller, read like src: blocks are shared if
 * share allows it and the file system can, holes stay holes in a file, and a
 * device is written throughout. stop is asked now and then whether to give up.
 * 0, 1 if stopped, -1 and *err.
 */
int image_copy(const struct image *dst, const struct image *src, bool share,
	       bool (*stop)(void *context), void *context, struct error *err);

#endif
