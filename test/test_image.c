/*
 * test_image.c - claims about image.c
 *
 * Who may hold a file together with whom, what is read and written where, and
 * what a failure says. Blocks are shared on an XFS of our own in a loop
 * device, where the machine allows that.
 */
#undef _FORTIFY_SOURCE /* pread() is ours */
#include "../image.h"
#include "scratch.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>

#define SIZE 1000003u /* no multiple of anything */

/* How the system treats reads and writes, in the place of libc's. */
static size_t longest;		/* bytes moved at once, 0: any number */
static unsigned int interrupts; /* so many calls are, from now on */

static size_t permitted(size_t len)
{
	return longest && len > longest ? longest : len;
}

static bool interrupted(void)
{
	if (!interrupts)
		return false;
	interrupts--;
	errno = EINTR;
	return true;
}

ssize_t pread(int fd, void *buf, size_t len, off_t offset)
{
	struct iovec iov = { buf, permitted(len) };

	if (interrupted())
		return -1;
	return syscall(SYS_preadv, fd, &iov, 1L, (unsigned long)offset,
		       (unsigned long)((uint64_t)offset >> 32));
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
	struct iovec first = { iov->iov_base, permitted(iov->iov_len) };

	if (interrupted())
		return -1;
	if (longest) {
		iov = &first;
		count = 1;
	}
	return syscall(SYS_pwritev, fd, iov, (long)count, (unsigned long)offset,
		       (unsigned long)((uint64_t)offset >> 32));
}

static uint8_t pattern_at(uint64_t offset)
{
	return (uint8_t)(offset * 2654435761u >> 11);
}

/* A file of size bytes that differ. */
static void make_file(const char *path, size_t size)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
	uint8_t *bytes = malloc(size + 1);

	ck_assert_int_ge(fd, 0);
	ck_assert_ptr_nonnull(bytes);
	for (size_t i = 0; i < size; i++)
		bytes[i] = pattern_at(i);
	ck_assert_int_eq(write(fd, bytes, size), (ssize_t)size);
	ck_assert_int_eq(close(fd), 0);
	free(bytes);
}

static void open_ok(struct image *img, const char *path, enum image_use use)
{
	struct error err = { 0 };

	ck_assert_msg(!image_open(img, path, use, &err), "%s: %s (%s)", path,
		      err.what, strerror(err.sys));
}

static void close_ok(struct image *img)
{
	struct error err;

	ck_assert_int_eq(image_close(img, &err), 0);
}

/* Opening fails so; the error names the path and nothing stays open. */
static void open_fails(const char *path, enum image_use use,
		       enum error_kind kind, int sys, const char *what)
{
	struct error err = { 0 };
	struct image img;

	ck_assert_int_eq(image_open(&img, path, use, &err), -1);
	ck_assert_str_eq(err.what, what);
	ck_assert_int_eq(err.kind, kind);
	ck_assert_int_eq(err.sys, sys);
	ck_assert_str_eq(err.path, path);
	ck_assert_int_eq(img.fd, -1);
	ck_assert_int_eq(img.bypass_fd, -1);
}

static void open_busy(const char *path, enum image_use use)
{
	open_fails(path, use, ERROR_BUSY, 0,
		   "in use: another snapmerge or a virtual machine holds a "
		   "lock on it");
}

static void assert_pattern(const uint8_t *buf, size_t len, uint64_t offset)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != pattern_at(offset + i))
			ck_abort_msg("byte %" PRIu64 " is 0x%02x, not 0x%02x",
				     offset + i, buf[i],
				     pattern_at(offset + i));
}

/* A lock of l_type on one byte, as another program would take it. */
static int lock_byte(int fd, short type, off_t at)
{
	struct flock lock = {
		.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1
	};

	return fcntl(fd, F_OFD_SETLK, &lock);
}

START_TEST(of_two_merges_the_second_is_busy)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	open_busy("f", IMAGE_WRITE);
	close_ok(&img);
	open_ok(&img, "f", IMAGE_WRITE);
	close_ok(&img);
}
END_TEST

START_TEST(a_second_name_of_a_file_is_busy_too)
{
	struct image img;

	make_file("f", SIZE);
	ck_assert_int_eq(link("f", "hard"), 0);
	ck_assert_int_eq(symlink("f", "soft"), 0);
	open_ok(&img, "f", IMAGE_WRITE);
	open_busy("hard", IMAGE_WRITE);
	open_busy("soft", IMAGE_WRITE);
	close_ok(&img);
	unlink("hard");
	unlink("soft");
}
END_TEST

START_TEST(a_probe_is_refused_while_a_merge_runs)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	open_busy("f", IMAGE_PROBE);
	close_ok(&img);
}
END_TEST

START_TEST(a_probe_does_not_hinder_a_merge)
{
	struct image img, probe;

	make_file("f", SIZE);
	open_ok(&probe, "f", IMAGE_PROBE);
	open_ok(&img, "f", IMAGE_WRITE);
	close_ok(&img);
	close_ok(&probe);
}
END_TEST

START_TEST(readers_share_a_file_and_keep_a_merge_out)
{
	struct image a, b;

	make_file("f", SIZE);
	open_ok(&a, "f", IMAGE_SHARE);
	open_ok(&b, "f", IMAGE_SHARE);
	open_busy("f", IMAGE_WRITE);
	open_busy("f", IMAGE_PROBE);
	close_ok(&a);
	open_busy("f", IMAGE_WRITE);
	close_ok(&b);
	open_ok(&a, "f", IMAGE_WRITE);
	open_busy("f", IMAGE_SHARE);
	close_ok(&a);
}
END_TEST

START_TEST(a_peek_neither_minds_nor_hinders_a_merge)
{
	struct image img, peek;
	uint8_t byte;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	open_ok(&peek, "f", IMAGE_PEEK);
	ck_assert_int_eq(image_read(&peek, &byte, 1, 7, &err), 0);
	ck_assert_uint_eq(byte, pattern_at(7));
	close_ok(&img);
	open_ok(&img, "f", IMAGE_WRITE);
	close_ok(&img);
	close_ok(&peek);
}
END_TEST

/* QEMU holds read locks on single bytes from 100 and from 200 on. */
static const off_t qemu_bytes[] = { 100, 101, 103, 200, 201, 203 };

START_TEST(bytes_that_a_virtual_machine_locks_are_noticed)
{
	struct image img;
	int fd;

	make_file("f", SIZE);
	fd = open("f", O_RDWR);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, qemu_bytes[_i]), 0);
	open_busy("f", IMAGE_WRITE);
	open_busy("f", IMAGE_PROBE);
	open_ok(&img, "f", IMAGE_PEEK);
	close_ok(&img);
	close(fd);
	open_ok(&img, "f", IMAGE_WRITE);
	close_ok(&img);
}
END_TEST

START_TEST(a_virtual_machine_notices_a_merge)
{
	struct image img;
	int fd;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	fd = open("f", O_RDWR);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, qemu_bytes[_i]), -1);
	ck_assert(errno == EAGAIN || errno == EACCES);
	close_ok(&img);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, qemu_bytes[_i]), 0);
	close(fd);
}
END_TEST

/* Byte 101 is held by who writes, 201 by who forbids others to write. */
START_TEST(readers_mind_virtual_machines_that_write_and_no_others)
{
	struct image img;
	int fd;

	make_file("f", SIZE);
	fd = open("f", O_RDWR);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, 100), 0);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, 201), 0);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, 203), 0);
	open_ok(&img, "f", IMAGE_SHARE);
	close_ok(&img);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, 101), 0);
	open_busy("f", IMAGE_SHARE);
	close(fd);
}
END_TEST

/* Whether another program's write lock on that byte would meet one of ours. */
static bool is_held(int fd, off_t at)
{
	struct flock lock = { .l_type = F_WRLCK,
			      .l_whence = SEEK_SET,
			      .l_start = at,
			      .l_len = 1 };

	ck_assert_int_eq(fcntl(fd, F_OFD_GETLK, &lock), 0);
	return lock.l_type != F_UNLCK;
}

START_TEST(virtual_machines_that_write_notice_readers_and_no_others)
{
	struct image img;
	int fd;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_SHARE);
	fd = open("f", O_RDWR);
	ck_assert_int_ge(fd, 0);
	ck_assert(is_held(fd, 201));
	ck_assert(!is_held(fd, 200));
	ck_assert(!is_held(fd, 101));
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, 100), 0);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, 201), 0);
	close(fd);
	close_ok(&img);
}
END_TEST

START_TEST(a_lock_covers_what_lies_behind_the_end)
{
	struct image img;
	int fd;

	make_file("f", 10);
	open_ok(&img, "f", IMAGE_WRITE);
	fd = open("f", O_RDWR);
	ck_assert_int_eq(lock_byte(fd, F_RDLCK, (off_t)1 << 50), -1);
	close(fd);
	close_ok(&img);
}
END_TEST

/* A process-wide lock would vanish with the first descriptor closed. */
START_TEST(a_lock_outlives_other_descriptors_of_the_file)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	ck_assert_int_eq(close(open("f", O_RDONLY)), 0);
	open_busy("f", IMAGE_WRITE);
	close_ok(&img);
}
END_TEST

static const char no_kind[] = "neither a regular file nor a block device";

START_TEST(only_files_and_block_devices_are_images)
{
	static const enum image_use uses[] = { IMAGE_PEEK, IMAGE_PROBE,
					       IMAGE_SHARE, IMAGE_WRITE };
	struct sockaddr_un addr = { .sun_family = AF_UNIX,
				    .sun_path = "socket" };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(mkdir("dir", 0777), 0);
	ck_assert_int_eq(mkfifo("fifo", 0666), 0);
	for (size_t i = 0; i < sizeof(uses) / sizeof(*uses); i++) {
		open_fails("dir", uses[i], ERROR_SYSTEM, 0, no_kind);
		open_fails("fifo", uses[i], ERROR_SYSTEM, 0, no_kind);
		open_fails("socket", uses[i], ERROR_SYSTEM, 0, no_kind);
		open_fails("/dev/null", uses[i], ERROR_SYSTEM, 0, no_kind);
	}
	close(fd);
}
END_TEST

START_TEST(a_missing_file_is_neither_opened_nor_made)
{
	open_fails("missing", IMAGE_WRITE, ERROR_SYSTEM, ENOENT, "cannot open");
	ck_assert_int_eq(access("missing", F_OK), -1);
}
END_TEST

START_TEST(opening_to_write_changes_nothing)
{
	struct timespec past[2] = { { .tv_sec = 1000000 },
				    { .tv_sec = 1000000 } };
	struct image img;
	struct stat st;

	make_file("f", SIZE);
	ck_assert_int_eq(utimensat(AT_FDCWD, "f", past, 0), 0);
	open_ok(&img, "f", IMAGE_WRITE);
	close_ok(&img);
	ck_assert_int_eq(stat("f", &st), 0);
	ck_assert_int_eq(st.st_mtim.tv_sec, 1000000);
	ck_assert_int_eq(st.st_size, SIZE);
}
END_TEST

START_TEST(the_size_is_exact)
{
	static const size_t sizes[] = { 0, 1, 511, 512, 513, SIZE };
	struct image img;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		make_file("f", sizes[i]);
		open_ok(&img, "f", IMAGE_WRITE);
		ck_assert_uint_eq(img.size, sizes[i]);
		ck_assert(!img.is_device);
		close_ok(&img);
	}
	ck_assert_int_eq(truncate("f", ((off_t)3 << 40) + 5), 0);
	open_ok(&img, "f", IMAGE_WRITE);
	ck_assert_uint_eq(img.size, (UINT64_C(3) << 40) + 5);
	close_ok(&img);
}
END_TEST

START_TEST(closing_twice_is_harmless)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	close_ok(&img);
	close_ok(&img);
	ck_assert_int_eq(img.fd, -1);
}
END_TEST

static void assert_end_of_file(int result, const struct error *err,
			       uint64_t offset, size_t len)
{
	char what[128];

	snprintf(what, sizeof(what), "cannot read %zu bytes at offset %" PRIu64,
		 len, offset);
	ck_assert_int_eq(result, -1);
	ck_assert_str_eq(err->what, what);
	ck_assert_int_eq(err->kind, ERROR_SYSTEM);
	ck_assert_int_eq(err->sys, ENODATA);
	ck_assert(err->has_offset);
	ck_assert_uint_eq(err->offset, offset);
	ck_assert_str_eq(err->path, "f");
}

START_TEST(the_end_of_the_file_inside_a_read_is_an_error_with_its_offset)
{
	uint8_t buf[100];
	struct image img;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_PEEK);
	assert_end_of_file(image_read(&img, buf, 100, SIZE - 30, &err), &err,
			   SIZE, 70);
	assert_end_of_file(image_read(&img, buf, 1, SIZE, &err), &err, SIZE, 1);
	assert_end_of_file(image_read_medium(&img, buf, 100, SIZE - 30, &err),
			   &err, SIZE, 70);
	close_ok(&img);
}
END_TEST

START_TEST(an_aligned_read_from_the_medium_past_the_end_is_an_error)
{
	uint8_t *buf = aligned_alloc(IMAGE_ALIGNMENT, 2 * IMAGE_ALIGNMENT);
	struct image img;
	struct error err;

	make_file("f", IMAGE_ALIGNMENT);
	open_ok(&img, "f", IMAGE_PEEK);
	assert_end_of_file(
		image_read_medium(&img, buf, 2 * IMAGE_ALIGNMENT, 0, &err),
		&err, IMAGE_ALIGNMENT, IMAGE_ALIGNMENT);
	close_ok(&img);
	free(buf);
}
END_TEST

static bool is_cached(const struct image *img, uint64_t offset)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	unsigned char resident;
	void *at = mmap(NULL, page, PROT_READ, MAP_SHARED, img->fd,
			(off_t)(offset / page * page));

	ck_assert_ptr_ne(at, MAP_FAILED);
	ck_assert_int_eq(mincore(at, page, &resident), 0);
	munmap(at, page);
	return resident & 1;
}

static bool memory_is_the_medium(void)
{
	const char *tmp = getenv("TMPDIR");
	struct statfs fs;

	return !statfs(tmp ? tmp : "/tmp", &fs) && fs.f_type == TMPFS_MAGIC;
}

/* Else the next one would not come from the medium. */
START_TEST(an_odd_read_from_the_medium_leaves_nothing_cached)
{
	struct image img;
	struct error err;
	uint8_t buf[100];

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	ck_assert_int_eq(image_sync(&img, &err), 0);
	image_forget(&img);
	ck_assert(!is_cached(&img, 200000));
	ck_assert_int_eq(image_read(&img, buf, 100, 200000, &err), 0);
	ck_assert(is_cached(&img, 200000));
	ck_assert_int_eq(image_read_medium(&img, buf, 100, 200000, &err), 0);
	ck_assert(!is_cached(&img, 200000));
	close_ok(&img);
}
END_TEST

/* Aligned and not, whole and to the very end. */
START_TEST(the_medium_and_the_page_cache_read_alike)
{
	static const struct {
		size_t skew; /* of the memory */
		uint64_t offset;
		size_t len;
	} reads[] = {
		{ 0, 0, 4096 },	    { 0, 4096, 65536 }, { 0, 1, 1 },
		{ 1, 0, 4096 },	    { 0, 512, 512 },	{ 3, 511, 8193 },
		{ 0, 4096, 5000 },  { 0, 0, SIZE },	{ 8, 12345, 777777 },
		{ 0, SIZE - 1, 1 }, { 0, 0, 0 },	{ 0, SIZE, 0 },
		{ 0, 999424, 579 },
	};
	uint8_t *buf = aligned_alloc(IMAGE_ALIGNMENT, 256 * IMAGE_ALIGNMENT);
	struct image img;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_PEEK);
	for (size_t i = 0; i < sizeof(reads) / sizeof(*reads); i++) {
		uint8_t *at = buf + reads[i].skew;

		memset(buf, 0xee, 256 * IMAGE_ALIGNMENT);
		ck_assert_int_eq(image_read_medium(&img, at, reads[i].len,
						   reads[i].offset, &err),
				 0);
		assert_pattern(at, reads[i].len, reads[i].offset);
		ck_assert_uint_eq(at[reads[i].len], 0xee);
		ck_assert_int_eq(image_read(&img, at, reads[i].len,
					    reads[i].offset, &err),
				 0);
		assert_pattern(at, reads[i].len, reads[i].offset);
	}
	close_ok(&img);
	free(buf);
}
END_TEST

static void write_ok(const struct image *img, uint8_t *bytes, size_t len,
		     uint64_t offset)
{
	struct iovec iov = { .iov_base = bytes, .iov_len = len };
	struct error err;

	ck_assert_int_eq(image_write(img, &iov, 1, offset, &err), 0);
}

START_TEST(what_was_written_and_not_synced_is_read_from_the_medium)
{
	uint8_t *buf = aligned_alloc(IMAGE_ALIGNMENT, 2 * IMAGE_ALIGNMENT);
	struct image img;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	memset(buf, 0x5a, IMAGE_ALIGNMENT);
	write_ok(&img, buf, IMAGE_ALIGNMENT, 8192);
	memset(buf, 0, 2 * IMAGE_ALIGNMENT);
	ck_assert_int_eq(
		image_read_medium(&img, buf, 2 * IMAGE_ALIGNMENT, 8192, &err),
		0);
	for (size_t i = 0; i < IMAGE_ALIGNMENT; i++)
		ck_assert_uint_eq(buf[i], 0x5a);
	assert_pattern(buf + IMAGE_ALIGNMENT, IMAGE_ALIGNMENT, 12288);
	close_ok(&img);
	free(buf);
}
END_TEST

/* Write pieces of 1, 3000, 0 and 96 bytes and look at every byte after. */
static void write_pieces(const struct image *img, uint64_t offset)
{
	uint8_t news[3097], *buf = malloc(SIZE);
	struct iovec iov[] = { { news, 1 },
			       { news + 1, 3000 },
			       { news, 0 },
			       { news + 3001, 96 } };
	struct error err;

	for (size_t i = 0; i < sizeof(news); i++)
		news[i] = (uint8_t)~pattern_at(offset + i);
	ck_assert_int_eq(image_write(img, iov, 4, offset, &err), 0);
	ck_assert_int_eq(image_sync(img, &err), 0);
	ck_assert_int_eq(image_read(img, buf, SIZE, 0, &err), 0);
	assert_pattern(buf, offset, 0);
	for (size_t i = 0; i < sizeof(news); i++)
		if (buf[offset + i] != news[i])
			ck_abort_msg("byte %zu of what was written", i);
	assert_pattern(buf + offset + sizeof(news),
		       SIZE - offset - sizeof(news), offset + sizeof(news));
	free(buf);
}

START_TEST(a_write_puts_all_its_pieces_there_and_nothing_else)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	write_pieces(&img, 12345);
	close_ok(&img);
}
END_TEST

START_TEST(an_unaligned_write_arrives_also_in_direct_mode)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	image_write_direct(&img);
	write_pieces(&img, 12345);
	close_ok(&img);
}
END_TEST

START_TEST(an_aligned_write_in_direct_mode_arrives)
{
	uint8_t *buf = aligned_alloc(IMAGE_ALIGNMENT, IMAGE_ALIGNMENT);
	uint8_t *all = malloc(SIZE);
	struct image img, peek;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	open_ok(&peek, "f", IMAGE_PEEK);
	image_write_direct(&img);
	memset(buf, 0x77, IMAGE_ALIGNMENT);
	write_ok(&img, buf, IMAGE_ALIGNMENT, 4096);
	ck_assert_int_eq(image_read(&peek, all, SIZE, 0, &err), 0);
	assert_pattern(all, 4096, 0);
	ck_assert_int_eq(memcmp(all + 4096, buf, 4096), 0);
	assert_pattern(all + 8192, SIZE - 8192, 8192);
	close_ok(&peek);
	close_ok(&img);
	free(all);
	free(buf);
}
END_TEST

static const size_t short_lengths[] = { 1, 100, 4096 };

START_TEST(short_writes_are_continued)
{
	struct image img;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	longest = short_lengths[_i];
	write_pieces(&img, 12345);
	longest = 0;
	close_ok(&img);
}
END_TEST

START_TEST(short_reads_are_continued)
{
	const size_t len = 5 * IMAGE_ALIGNMENT;
	uint8_t *buf = aligned_alloc(IMAGE_ALIGNMENT, len);
	struct image img;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_PEEK);
	longest = short_lengths[_i];
	ck_assert_int_eq(image_read(&img, buf, len, 8192, &err), 0);
	assert_pattern(buf, len, 8192);
	memset(buf, 0, len);
	ck_assert_int_eq(image_read_medium(&img, buf, len, 8192, &err), 0);
	assert_pattern(buf, len, 8192);
	longest = 0;
	close_ok(&img);
	free(buf);
}
END_TEST

START_TEST(interrupted_calls_are_repeated)
{
	uint8_t *buf = aligned_alloc(IMAGE_ALIGNMENT, IMAGE_ALIGNMENT);
	struct image img;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_WRITE);
	interrupts = 3;
	ck_assert_int_eq(image_read(&img, buf, 10, 77, &err), 0);
	ck_assert_uint_eq(interrupts, 0);
	assert_pattern(buf, 10, 77);
	interrupts = 3;
	ck_assert_int_eq(
		image_read_medium(&img, buf, IMAGE_ALIGNMENT, 4096, &err), 0);
	ck_assert_uint_eq(interrupts, 0);
	assert_pattern(buf, IMAGE_ALIGNMENT, 4096);
	interrupts = 3;
	write_pieces(&img, 12345);
	ck_assert_uint_eq(interrupts, 0);
	close_ok(&img);
	free(buf);
}
END_TEST

START_TEST(a_failed_write_tells_its_offset)
{
	uint8_t byte = 1;
	struct iovec iov = { &byte, 1 };
	struct image img;
	struct error err;

	make_file("f", SIZE);
	open_ok(&img, "f", IMAGE_PEEK); /* cannot write */
	ck_assert_int_eq(image_write(&img, &iov, 1, 4711, &err), -1);
	ck_assert_str_eq(err.what, "cannot write 1 bytes at offset 4711");
	ck_assert_int_eq(err.sys, EBADF);
	ck_assert_int_eq(err.kind, ERROR_SYSTEM);
	ck_assert(err.has_offset);
	ck_assert_uint_eq(err.offset, 4711);
	close_ok(&img);
}
END_TEST

/* Blocks 2 and 3 of eight are data, the others holes. */
START_TEST(holes_are_counted_within_the_range_alone)
{
	const uint64_t unit = 65536;
	uint8_t *bytes = calloc(2, unit);
	struct image img;

	make_file("f", 0);
	ck_assert_int_eq(truncate("f", (off_t)(8 * unit)), 0);
	open_ok(&img, "f", IMAGE_WRITE);
	memset(bytes, 1, 2 * unit);
	write_ok(&img, bytes, 2 * unit, 2 * unit);
	ck_assert_uint_eq(image_hole(&img, 0, 8 * unit), 6 * unit);
	ck_assert_uint_eq(image_hole(&img, 0, 2 * unit), 2 * unit);
	ck_assert_uint_eq(image_hole(&img, 2 * unit, 2 * unit), 0);
	ck_assert_uint_eq(image_hole(&img, unit + 512, 2 * unit), unit - 512);
	ck_assert_uint_eq(image_hole(&img, 3 * unit + 512, 2 * unit),
			  unit + 512);
	ck_assert_uint_eq(image_hole(&img, 6 * unit, 2 * unit), 2 * unit);
	ck_assert_uint_eq(image_hole(&img, 6 * unit, 0), 0);
	close_ok(&img);
	free(bytes);
}
END_TEST

START_TEST(one_file_by_many_names_is_the_same)
{
	make_file("f", 10);
	make_file("g", 10);
	ck_assert_int_eq(link("f", "hard"), 0);
	ck_assert_int_eq(symlink("f", "soft"), 0);
	ck_assert(image_same("f", "f"));
	ck_assert(image_same("f", "./f"));
	ck_assert(image_same("f", "hard"));
	ck_assert(image_same("soft", "f"));
	ck_assert(image_same("soft", "hard"));
	ck_assert(!image_same("f", "g"));
	ck_assert(!image_same("g", "soft"));
	unlink("hard");
	unlink("soft");
}
END_TEST

START_TEST(what_cannot_be_looked_up_is_not_the_same)
{
	make_file("f", 10);
	ck_assert(!image_same("f", "missing"));
	ck_assert(!image_same("missing", "f"));
	ck_assert(!image_same("missing", "missing"));
}
END_TEST

/*
 * An XFS, which shares blocks, in a loop device. It is mounted in a namespace
 * of our own and its image is unlinked: whatever ends this program, both go
 * with it.
 */

static char xfs_dir[] = "/tmp/snapmerge-xfs.XXXXXX";

static void xfs_path(char *path, size_t size, const char *name)
{
	snprintf(path, size, "%s/mnt/%s", xfs_dir, name);
}

static bool xfs_shell(const char *command)
{
	char line[512];

	snprintf(line, sizeof(line), "cd %s && (%s) >/dev/null 2>&1", xfs_dir,
		 command);
	return !system(line);
}

/* NULL, or why there is none. */
static const char *xfs_mount(void)
{
	if (geteuid())
		return "only root can mount";
	if (system("command -v mkfs.xfs >/dev/null"))
		return "mkfs.xfs is missing";
	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return "no mount namespace of its own";
	if (!mkdtemp(xfs_dir))
		return "no temporary directory";
	if (!xfs_shell("truncate -s 320M image && "
		       "mkfs.xfs -q -m reflink=1 image && mkdir mnt && "
		       "mount -o loop image mnt && rm image"))
		return "no XFS could be made and mounted";
	return NULL;
}

static void xfs_umount(void)
{
	if (xfs_dir[strlen(xfs_dir) - 1] == 'X')
		return; /* never made */
	xfs_shell("umount mnt");
	xfs_shell("rm -rf image mnt");
	rmdir(xfs_dir);
}

#define BLOCK ((size_t)65536)

static void clone_pair(struct image *dst, struct image *src, char *dst_path,
		       char *src_path, size_t size)
{
	xfs_path(dst_path, 512, "dst");
	xfs_path(src_path, 512, "src");
	make_file(dst_path, size);
	make_file(src_path, 2 * size); /* shared by mistake, it would show */
	open_ok(dst, dst_path, IMAGE_WRITE);
	open_ok(src, src_path, IMAGE_WRITE);
}

START_TEST(asking_whether_blocks_can_be_shared_changes_nothing)
{
	static const size_t sizes[] = { 4 * BLOCK, 4 * BLOCK + 1234, 0 };
	char dst_path[512], src_path[512];
	struct image dst, src;
	uint8_t *buf = malloc(5 * BLOCK);
	struct error err;
	struct stat st;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		clone_pair(&dst, &src, dst_path, src_path, sizes[i]);
		ck_assert_int_eq(image_can_clone(&dst, &src, 4096), 0);
		ck_assert_int_eq(stat(dst_path, &st), 0);
		ck_assert_uint_eq((uint64_t)st.st_size, sizes[i]);
		ck_assert_int_eq(image_read(&dst, buf, sizes[i], 0, &err), 0);
		assert_pattern(buf, sizes[i], 0);
		close_ok(&dst);
		close_ok(&src);
	}
	free(buf);
}
END_TEST

START_TEST(pieces_smaller_than_a_block_cannot_be_shared)
{
	char dst_path[512], src_path[512];
	struct image dst, src;

	clone_pair(&dst, &src, dst_path, src_path, 4 * BLOCK);
	ck_assert_int_eq(image_can_clone(&dst, &src, 512), EINVAL);
	ck_assert_int_eq(image_can_clone(&dst, &src, 2048), EINVAL);
	close_ok(&dst);
	close_ok(&src);
}
END_TEST

START_TEST(shared_blocks_read_like_copied_ones)
{
	char dst_path[512], src_path[512];
	struct image dst, src;
	uint8_t *buf = malloc(4 * BLOCK);
	struct error err;

	clone_pair(&dst, &src, dst_path, src_path, 4 * BLOCK);
	ck_assert_int_eq(image_clone(&dst, 3 * BLOCK, &src, BLOCK, BLOCK, &err),
			 0);
	ck_assert_int_eq(image_read(&dst, buf, 4 * BLOCK, 0, &err), 0);
	assert_pattern(buf, 3 * BLOCK, 0);
	assert_pattern(buf + 3 * BLOCK, BLOCK, BLOCK);
	close_ok(&dst);
	close_ok(&src);
	free(buf);
}
END_TEST

START_TEST(a_range_that_cannot_be_shared_is_left_alone)
{
	char dst_path[512], src_path[512];
	struct image dst, src;
	uint8_t *buf = malloc(4 * BLOCK);
	struct error err;

	clone_pair(&dst, &src, dst_path, src_path, 4 * BLOCK);
	ck_assert_int_eq(image_clone(&dst, 512, &src, 1024, 512, &err), 1);
	ck_assert_int_eq(image_read(&dst, buf, 4 * BLOCK, 0, &err), 0);
	assert_pattern(buf, 4 * BLOCK, 0);
	close_ok(&dst);
	close_ok(&src);
	free(buf);
}
END_TEST

START_TEST(blocks_are_not_shared_between_file_systems)
{
	char path[512];
	struct image dst, src;
	struct error err;

	xfs_path(path, sizeof(path), "src");
	make_file(path, BLOCK);
	make_file("dst", BLOCK);
	open_ok(&src, path, IMAGE_WRITE);
	open_ok(&dst, "dst", IMAGE_WRITE);
	ck_assert_int_ne(image_can_clone(&dst, &src, 4096), 0);
	ck_assert_int_eq(image_clone(&dst, 0, &src, 0, BLOCK, &err), 1);
	close_ok(&dst);
	close_ok(&src);
}
END_TEST

static void add_locks(Suite *suite)
{
	int count = (int)(sizeof(qemu_bytes) / sizeof(*qemu_bytes));
	TCase *tc = scratch_case(suite, "locks", 10);

	tcase_add_test(tc, of_two_merges_the_second_is_busy);
	tcase_add_test(tc, a_second_name_of_a_file_is_busy_too);
	tcase_add_test(tc, a_probe_is_refused_while_a_merge_runs);
	tcase_add_test(tc, a_probe_does_not_hinder_a_merge);
	tcase_add_test(tc, readers_share_a_file_and_keep_a_merge_out);
	tcase_add_test(tc, a_peek_neither_minds_nor_hinders_a_merge);
	tcase_add_loop_test(tc, bytes_that_a_virtual_machine_locks_are_noticed,
			    0, count);
	tcase_add_loop_test(tc, a_virtual_machine_notices_a_merge, 0, count);
	tcase_add_test(tc,
		       readers_mind_virtual_machines_that_write_and_no_others);
	tcase_add_test(
		tc, virtual_machines_that_write_notice_readers_and_no_others);
	tcase_add_test(tc, a_lock_covers_what_lies_behind_the_end);
	tcase_add_test(tc, a_lock_outlives_other_descriptors_of_the_file);
}

static void add_files(Suite *suite)
{
	TCase *tc = scratch_case(suite, "files", 30);

	tcase_add_test(tc, only_files_and_block_devices_are_images);
	tcase_add_test(tc, a_missing_file_is_neither_opened_nor_made);
	tcase_add_test(tc, opening_to_write_changes_nothing);
	tcase_add_test(tc, the_size_is_exact);
	tcase_add_test(tc, closing_twice_is_harmless);
	tcase_add_test(
		tc,
		the_end_of_the_file_inside_a_read_is_an_error_with_its_offset);
	tcase_add_test(
		tc, an_aligned_read_from_the_medium_past_the_end_is_an_error);
	if (memory_is_the_medium())
		skip(1, "reads from the medium", "files are on tmpfs");
	else
		tcase_add_test(
			tc, an_odd_read_from_the_medium_leaves_nothing_cached);
	tcase_add_test(tc, the_medium_and_the_page_cache_read_alike);
	tcase_add_test(tc,
		       what_was_written_and_not_synced_is_read_from_the_medium);
	tcase_add_test(tc, a_write_puts_all_its_pieces_there_and_nothing_else);
	tcase_add_test(tc, an_unaligned_write_arrives_also_in_direct_mode);
	tcase_add_test(tc, an_aligned_write_in_direct_mode_arrives);
	tcase_add_loop_test(tc, short_writes_are_continued, 0, 3);
	tcase_add_loop_test(tc, short_reads_are_continued, 0, 3);
	tcase_add_test(tc, interrupted_calls_are_repeated);
	tcase_add_test(tc, a_failed_write_tells_its_offset);
	tcase_add_test(tc, holes_are_counted_within_the_range_alone);
	tcase_add_test(tc, one_file_by_many_names_is_the_same);
	tcase_add_test(tc, what_cannot_be_looked_up_is_not_the_same);
}

static void add_clones(Suite *suite)
{
	TCase *tc = scratch_case(suite, "clones", 30);

	tcase_add_test(tc, asking_whether_blocks_can_be_shared_changes_nothing);
	tcase_add_test(tc, pieces_smaller_than_a_block_cannot_be_shared);
	tcase_add_test(tc, shared_blocks_read_like_copied_ones);
	tcase_add_test(tc, a_range_that_cannot_be_shared_is_left_alone);
	tcase_add_test(tc, blocks_are_not_shared_between_file_systems);
}

int main(void)
{
	const char *no_xfs = xfs_mount();
	Suite *suite = suite_create("image");
	int result;

	add_locks(suite);
	add_files(suite);
	if (no_xfs)
		skip(5, "sharing blocks", no_xfs);
	else
		add_clones(suite);
	result = run(suite, "image");
	xfs_umount();
	return result;
}
