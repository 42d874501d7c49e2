/*
 * trace.c - stands between a test program and the kernel
 *
 * The functions that libc would provide are defined here under names of our
 * own and given libc's names in the object file only: so neither its headers'
 * 64-bit redirections nor its fortified inlines get in the way. Calls reach
 * the kernel by syscall().
 */
#undef _FORTIFY_SOURCE

#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define IOV_MOST 1024

/* From <linux/fs.h>, which a libc need not bring along. */
struct clone_range {
	int64_t src_fd;
	uint64_t src_offset, src_length, dst_offset;
};
#define CLONE_RANGE _IOW(0x94, 13, struct clone_range)
#define PUNCH_HOLE  0x02
#define ZERO_RANGE  0x10

#ifdef SYS_fcntl64
#define SYS_FCNTL SYS_fcntl64
#else
#define SYS_FCNTL SYS_fcntl
#endif

struct fault {
	bool armed, met;
	enum trace_call call;
	int file;
	unsigned int left;
	enum trace_fault fault;
	int sys;
	size_t event;
};

static struct {
	pthread_mutex_t lock;
	bool recording, pretend, pretend_clones;
	struct {
		bool used;
		dev_t dev;
		ino_t ino;
	} files[TRACE_FILES];
	struct trace_event *events;
	size_t count, room;
	uint64_t time;
	unsigned int threads, records;
	struct fault fault;
} trace = { .lock = PTHREAD_MUTEX_INITIALIZER };

static _Thread_local bool inside;
static _Thread_local unsigned int thread_number, thread_record;

static void *must(void *p)
{
	if (!p) {
		fputs("trace: no memory\n", stderr);
		abort();
	}
	return p;
}

const char *trace_name(enum trace_call call)
{
	static const char *const names[TRACE_CALLS] = {
		[TRACE_READ] = "read",	       [TRACE_WRITE] = "write",
		[TRACE_SYNC] = "sync",	       [TRACE_WRITEBACK] = "writeback",
		[TRACE_CLONE] = "clone",       [TRACE_IOCTL] = "ioctl",
		[TRACE_FCNTL] = "fcntl",       [TRACE_ADVISE] = "advise",
		[TRACE_ALLOCATE] = "allocate",
	};

	return names[call];
}

bool trace_inside(void)
{
	return inside;
}

void trace_watch(int file, const char *path)
{
	struct stat st;

	if (stat(path, &st)) {
		perror(path);
		abort();
	}
	trace.files[file].used = true;
	trace.files[file].dev = st.st_dev;
	trace.files[file].ino = st.st_ino;
}

void trace_start(void)
{
	while (trace.count)
		free(trace.events[--trace.count].data);
	trace.time = 0;
	trace.threads = 0;
	trace.records++;
	trace.recording = true;
}

void trace_stop(void)
{
	trace.recording = false;
	trace.fault.armed = false;
}

void trace_pretend_syncs(bool pretend)
{
	trace.pretend = pretend;
}

void trace_pretend_clones(bool pretend)
{
	trace.pretend_clones = pretend;
}

size_t trace_count(void)
{
	return trace.count;
}

const struct trace_event *trace_event(size_t n)
{
	return &trace.events[n];
}

uint64_t trace_end(void)
{
	return trace.time;
}

void trace_fault(enum trace_call call, int file, unsigned int n,
		 enum trace_fault fault, int sys)
{
	trace.fault =
		(struct fault){ true, false, call, file, n, fault, sys, 0 };
}

bool trace_met(void)
{
	return trace.fault.met;
}

const struct trace_event *trace_met_event(void)
{
	return &trace.events[trace.fault.event];
}

/* The number of the file behind fd, or -1. */
static int file_of(int fd)
{
	struct stat st;

	if (!trace.recording || inside || fstat(fd, &st))
		return -1;
	for (int i = 0; i < TRACE_FILES; i++)
		if (trace.files[i].used && trace.files[i].dev == st.st_dev &&
		    trace.files[i].ino == st.st_ino)
			return i;
	return -1;
}

/* A call that is being recorded. */
struct call {
	size_t event;
	bool faulty;
	enum trace_fault fault;
	int sys;
};

static bool in_direct_mode(int fd)
{
	long flags = syscall(SYS_FCNTL, fd, F_GETFL);

	return flags >= 0 && (flags & O_DIRECT);
}

static void meet_fault(struct call *c, const struct trace_event *event, int fd)
{
	struct fault *f = &trace.fault;

	if (!f->armed || f->call != event->call || f->file != event->file)
		return;
	if (f->fault == TRACE_FAIL_DIRECT && !in_direct_mode(fd))
		return;
	if (f->left > 1) {
		f->left--;
		return;
	}
	if (!f->met)
		f->event = c->event;
	f->met = c->faulty = true;
	f->armed = f->fault == TRACE_FAIL_ON || f->fault == TRACE_FAIL_DIRECT;
	c->fault = f->fault;
	c->sys = f->sys;
}

/* Open the record of a call; the event's data becomes the record's. */
static struct call begin(struct trace_event event, int fd)
{
	struct call c = { 0 };

	inside = true;
	pthread_mutex_lock(&trace.lock);
	if (trace.count == trace.room) {
		trace.room = trace.room ? 2 * trace.room : 1024;
		trace.events = must(realloc(
			trace.events, trace.room * sizeof(*trace.events)));
	}
	if (thread_record != trace.records) {
		thread_record = trace.records;
		thread_number = trace.threads++;
	}
	event.thread = thread_number;
	event.begin = trace.time++;
	event.end = TRACE_NEVER;
	c.event = trace.count++;
	trace.events[c.event] = event;
	meet_fault(&c, &event, fd);
	pthread_mutex_unlock(&trace.lock);
	errno = 0;
	return c;
}

static bool must_fail(const struct call *c)
{
	return c->faulty && c->fault != TRACE_SHORTEN &&
	       c->fault != TRACE_NIBBLE && c->fault != TRACE_CORRUPT;
}

static long refuse(const struct call *c)
{
	errno = c->sys;
	return -1;
}

/* Close the record of a call that transferred len bytes, or failed. */
static void end(const struct call *c, bool failed, uint64_t len)
{
	struct trace_event *event;
	int sys = errno;

	pthread_mutex_lock(&trace.lock);
	event = &trace.events[c->event];
	event->end = trace.time++;
	event->sys = failed ? sys : 0;
	event->len = failed ? 0 : len;
	pthread_mutex_unlock(&trace.lock);
	inside = false;
	errno = sys;
}

/* Transfers */

static size_t total(const struct iovec *iov, int count)
{
	size_t sum = 0;

	while (count-- > 0)
		sum += iov++->iov_len;
	return sum;
}

static unsigned char *gathered(const struct iovec *iov, int count)
{
	unsigned char *data = must(malloc(total(iov, count) + 1)), *at = data;

	for (; count > 0; count--, iov++) {
		memcpy(at, iov->iov_base, iov->iov_len);
		at += iov->iov_len;
	}
	return data;
}

/* The kernel takes an offset as two halves of a long's width. */
static long kernel_vector(long number, int fd, const struct iovec *iov,
			  int count, off_t offset)
{
	uint64_t at = (uint64_t)offset;

	return syscall(number, fd, iov, count, (unsigned long)at,
		       (unsigned long)(at >> 16 >> 16));
}

/* Let only the first bytes of a vector through. */
static long kernel_cut(long number, int fd, const struct iovec *iov, int count,
		       off_t offset, size_t bytes)
{
	struct iovec cut[IOV_MOST];
	int n = 0;

	while (n < count && n < IOV_MOST && bytes) {
		cut[n] = iov[n];
		if (cut[n].iov_len > bytes)
			cut[n].iov_len = bytes;
		bytes -= cut[n++].iov_len;
	}
	return kernel_vector(number, fd, cut, n, offset);
}

static ssize_t transfer(enum trace_call call, int fd, const struct iovec *iov,
			int count, off_t offset)
{
	long number = call == TRACE_READ ? SYS_preadv : SYS_pwritev;
	struct trace_event event = {
		.call = call,
		.file = file_of(fd),
		.offset = (uint64_t)offset,
		.parts = count,
	};
	struct call c;
	size_t half;
	long result;

	if (event.file < 0)
		return kernel_vector(number, fd, iov, count, offset);
	inside = true;
	event.asked = total(iov, count);
	if (call == TRACE_WRITE)
		event.data = gathered(iov, count);
	else
		event.direct = in_direct_mode(fd);
	c = begin(event, fd);
	half = event.asked > 1 ? (size_t)event.asked / 2 : 1;
	if (c.faulty && c.fault == TRACE_NIBBLE)
		half = 1;
	if (must_fail(&c))
		result = refuse(&c);
	else if (c.faulty && c.fault != TRACE_CORRUPT)
		result = kernel_cut(number, fd, iov, count, offset, half);
	else
		result = kernel_vector(number, fd, iov, count, offset);
	if (c.faulty && c.fault == TRACE_CORRUPT && result > 0)
		*(unsigned char *)iov->iov_base ^= 1;
	end(&c, result < 0, (uint64_t)result);
	return result;
}

static void *without_const(const void *p)
{
	return (void *)(uintptr_t)p;
}

static ssize_t transfer_one(enum trace_call call, int fd, const void *buf,
			    size_t len, off_t offset)
{
	struct iovec iov = { without_const(buf), len };

	return transfer(call, fd, &iov, 1, offset);
}

/* Some libcs have macros in their place. */
#undef pread64
#undef pwrite64
#undef preadv64
#undef pwritev64
#undef posix_fadvise64
#undef fallocate64
#undef fcntl64

/* Define a function that the linker knows as name. */
#define NAMED(type, name, args)                                                \
	type traced_##name args __asm__(#name);                                \
	type traced_##name args

#define PREAD(name)                                                            \
	NAMED(ssize_t, name, (int fd, void *buf, size_t len, off_t offset))    \
	{                                                                      \
		return transfer_one(TRACE_READ, fd, buf, len, offset);         \
	}
#define PREAD_CHK(name)                                                        \
	NAMED(ssize_t, name,                                                   \
	      (int fd, void *buf, size_t len, off_t offset, size_t room))      \
	{                                                                      \
		if (len > room)                                                \
			abort();                                               \
		return transfer_one(TRACE_READ, fd, buf, len, offset);         \
	}
#define PWRITE(name)                                                           \
	NAMED(ssize_t, name,                                                   \
	      (int fd, const void *buf, size_t len, off_t offset))             \
	{                                                                      \
		return transfer_one(TRACE_WRITE, fd, buf, len, offset);        \
	}
#define VECTOR(name, call)                                                     \
	NAMED(ssize_t, name,                                                   \
	      (int fd, const struct iovec *iov, int count, off_t offset))      \
	{                                                                      \
		return transfer(call, fd, iov, count, offset);                 \
	}

PREAD(pread)
PREAD(pread64)
PREAD_CHK(__pread_chk)
PREAD_CHK(__pread64_chk)
PWRITE(pwrite)
PWRITE(pwrite64)
VECTOR(preadv, TRACE_READ)
VECTOR(preadv64, TRACE_READ)
VECTOR(pwritev, TRACE_WRITE)
VECTOR(pwritev64, TRACE_WRITE)

/* Everything else; files that are not watched go straight to the kernel. */

static int sync_file(int fd, long number)
{
	struct trace_event event = { .call = TRACE_SYNC, .file = file_of(fd) };
	struct call c;
	long result;

	if (event.file < 0)
		return (int)syscall(number, fd);
	c = begin(event, fd);
	if (must_fail(&c))
		result = refuse(&c);
	else
		result = trace.pretend ? 0 : syscall(number, fd);
	end(&c, result < 0, 0);
	return (int)result;
}

NAMED(int, fdatasync, (int fd))
{
	return sync_file(fd, SYS_fdatasync);
}

NAMED(int, fsync, (int fd))
{
	return sync_file(fd, SYS_fsync);
}

/*
 * Where two registers make an offset, each architecture has its own order of
 * them: there, hints end here.
 */
#ifndef SYS_sync_file_range
#define SYS_sync_file_range 0
#endif
#ifndef SYS_fadvise64
#define SYS_fadvise64 0
#endif

static long hint(enum trace_call call, long number, int fd, off_t offset,
		 off_t len, int how)
{
	struct trace_event event = {
		.call = call,
		.file = file_of(fd),
		.offset = (uint64_t)offset,
		.asked = (uint64_t)len,
		.request = how,
	};
	bool able = sizeof(long) == sizeof(off_t) && number;
	struct call c;
	long result;

	if (event.file < 0)
		return able ? syscall(number, fd, offset, len, how) : 0;
	c = begin(event, fd);
	if (call == TRACE_WRITEBACK && trace.pretend)
		able = false;
	if (must_fail(&c))
		result = refuse(&c);
	else
		result = able ? syscall(number, fd, offset, len, how) : 0;
	end(&c, result < 0, 0);
	return result;
}

NAMED(int, sync_file_range,
      (int fd, off_t offset, off_t len, unsigned int flags))
{
	return (int)hint(TRACE_WRITEBACK, SYS_sync_file_range, fd, offset, len,
			 (int)flags);
}

/* Returns the error instead of setting it. */
static int advise(int fd, off_t offset, off_t len, int advice)
{
	int saved = errno, sys = 0;

	if (hint(TRACE_ADVISE, SYS_fadvise64, fd, offset, len, advice))
		sys = errno;
	errno = saved;
	return sys;
}

NAMED(int, posix_fadvise, (int fd, off_t offset, off_t len, int advice))
{
	return advise(fd, offset, len, advice);
}

NAMED(int, posix_fadvise64, (int fd, off_t offset, off_t len, int advice))
{
	return advise(fd, offset, len, advice);
}

static long kernel_allocate(int fd, int mode, off_t offset, off_t len)
{
	uint64_t at = (uint64_t)offset, n = (uint64_t)len;

	if (sizeof(long) == sizeof(off_t))
		return syscall(SYS_fallocate, fd, mode, offset, len);
	return syscall(SYS_fallocate, fd, mode, (unsigned long)at,
		       (unsigned long)(at >> 32), (unsigned long)n,
		       (unsigned long)(n >> 32));
}

static int allocate(int fd, int mode, off_t offset, off_t len)
{
	struct trace_event event = {
		.call = TRACE_ALLOCATE,
		.file = file_of(fd),
		.offset = (uint64_t)offset,
		.asked = (uint64_t)len,
		.request = mode,
	};
	struct call c;
	long result;

	if (event.file < 0)
		return (int)kernel_allocate(fd, mode, offset, len);
	c = begin(event, fd);
	if (must_fail(&c))
		result = refuse(&c);
	else
		result = kernel_allocate(fd, mode, offset, len);
	end(&c, result < 0, event.asked);
	return (int)result;
}

NAMED(int, fallocate, (int fd, int mode, off_t offset, off_t len))
{
	return allocate(fd, mode, offset, len);
}

NAMED(int, fallocate64, (int fd, int mode, off_t offset, off_t len))
{
	return allocate(fd, mode, offset, len);
}

/* fcntl and ioctl, whose last argument is anything that fits a register */

static int control(int fd, int request, unsigned long argument)
{
	struct trace_event event = {
		.call = TRACE_FCNTL,
		.file = file_of(fd),
		.request = request,
		.argument = argument,
	};
	struct call c;
	long result;

	if (event.file < 0)
		return (int)syscall(SYS_FCNTL, fd, request, argument);
	c = begin(event, fd);
	if (must_fail(&c))
		result = refuse(&c);
	else
		result = syscall(SYS_FCNTL, fd, request, argument);
	end(&c, result < 0, 0);
	return (int)result;
}

#define FCNTL(name)                                                            \
	NAMED(int, name, (int fd, int request, ...))                           \
	{                                                                      \
		unsigned long argument;                                        \
		va_list ap;                                                    \
                                                                               \
		va_start(ap, request);                                         \
		argument = va_arg(ap, unsigned long);                          \
		va_end(ap);                                                    \
		return control(fd, request, argument);                         \
	}

FCNTL(fcntl)
FCNTL(fcntl64)
FCNTL(__fcntl_time64)

/* A clone is recorded as the write that it stands for. */
static int clone_range(int fd, int file, const struct clone_range *range)
{
	struct iovec iov = { NULL, (size_t)range->src_length };
	struct trace_event event = {
		.call = TRACE_CLONE,
		.file = file,
		.offset = range->dst_offset,
		.asked = range->src_length,
		.parts = 1,
	};
	struct call c;
	long result;

	inside = true;
	iov.iov_base = event.data = must(calloc(1, iov.iov_len + 1));
	/* Length 0 means up to the end of the source: only ever nothing. */
	if (iov.iov_len && kernel_vector(SYS_preadv, (int)range->src_fd, &iov,
					 1, (off_t)range->src_offset) < 0) {
		perror("trace: source of a clone");
		abort();
	}
	c = begin(event, fd);
	if (must_fail(&c))
		result = refuse(&c);
	else if (trace.pretend_clones)
		result = kernel_vector(SYS_pwritev, fd, &iov, 1,
				       (off_t)range->dst_offset) < 0
				 ? -1
				 : 0;
	else
		result = syscall(SYS_ioctl, fd, CLONE_RANGE, range);
	end(&c, result < 0, event.asked);
	return (int)result;
}

static int io_control(int fd, unsigned long request, void *argument)
{
	struct trace_event event = {
		.call = TRACE_IOCTL,
		.file = file_of(fd),
		.request = (long)request,
	};
	struct call c;
	long result;

	if (event.file < 0)
		return (int)syscall(SYS_ioctl, fd, request, argument);
	if (request == (uint32_t)CLONE_RANGE)
		return clone_range(fd, event.file, argument);
	c = begin(event, fd);
	if (must_fail(&c))
		result = refuse(&c);
	else
		result = syscall(SYS_ioctl, fd, request, argument);
	end(&c, result < 0, 0);
	return (int)result;
}

/* The request is an int in musl: its upper half is not looked at. */
#define IOCTL(name)                                                            \
	NAMED(int, name, (int fd, unsigned long request, ...))                 \
	{                                                                      \
		void *argument;                                                \
		va_list ap;                                                    \
                                                                               \
		va_start(ap, request);                                         \
		argument = va_arg(ap, void *);                                 \
		va_end(ap);                                                    \
		return io_control(fd, (uint32_t)request, argument);            \
	}

IOCTL(ioctl)
IOCTL(__ioctl_time64)

/* Power cuts */

bool trace_changes(const struct trace_event *event)
{
	if (event->sys)
		return false;
	return event->call == TRACE_WRITE ||
	       (event->call == TRACE_CLONE && event->len) ||
	       (event->call == TRACE_ALLOCATE &&
		(event->request & (PUNCH_HOLE | ZERO_RANGE)));
}

uint64_t trace_durable(size_t n)
{
	const struct trace_event *change = &trace.events[n];

	for (size_t i = n + 1; i < trace.count; i++) {
		const struct trace_event *sync = &trace.events[i];

		if (sync->call != TRACE_SYNC || sync->file != change->file)
			continue;
		if (sync->sys) /* its pages are clean from now on */
			return TRACE_NEVER;
		if (sync->begin > change->end)
			return sync->end;
	}
	return TRACE_NEVER;
}

static uint64_t length(const struct trace_event *event)
{
	return event->call == TRACE_ALLOCATE ? event->asked : event->len;
}

void trace_apply(const struct trace_event *event, uint64_t from, uint64_t to,
		 unsigned char *disk, size_t size)
{
	if (to > length(event))
		to = length(event);
	if (event->offset > size)
		return;
	if (to > size - event->offset)
		to = size - event->offset;
	if (from >= to)
		return;
	if (event->data)
		memcpy(disk + event->offset + from, event->data + from,
		       (size_t)(to - from));
	else
		memset(disk + event->offset + from, 0, (size_t)(to - from));
}

void trace_apply_durable(int file, uint64_t when, unsigned char *disk,
			 size_t size)
{
	for (size_t i = 0; i < trace.count; i++) {
		const struct trace_event *event = &trace.events[i];

		if (event->file == file && trace_changes(event) &&
		    trace_durable(i) <= when)
			trace_apply(event, 0, TRACE_NEVER, disk, size);
	}
}

/* How many syncs began or ended before a time; syncs holds those times. */
static uint64_t epoch(const uint64_t *syncs, size_t count, uint64_t when)
{
	size_t low = 0;

	while (low < count) {
		size_t middle = low + (count - low) / 2;

		if (syncs[middle] < when)
			low = middle + 1;
		else
			count = middle;
	}
	return low;
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* Times hold epochs here, and argument what was first recorded first. */
static int by_place(const void *a, const void *b)
{
	const struct trace_event *x = a, *y = b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	if (x->file != y->file)
		return x->file < y->file ? -1 : 1;
	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return (x->argument > y->argument) - (x->argument < y->argument);
}

/*
 * Each epoch gets a span of time with room for all: its opening sync boundary
 * first, then pairs of begin and end.
 */
static void retime(uint64_t span)
{
	uint64_t in = 0, before = UINT64_MAX;

	for (size_t i = 0; i < trace.count; i++) {
		struct trace_event *event = &trace.events[i];
		uint64_t first = event->begin, last = event->end;

		if (first != before)
			in = 1;
		before = first;
		if (event->call == TRACE_SYNC) {
			/* Its own boundaries open the epochs after them. */
			event->begin = (first + 1) * span;
			event->end = (last + 1) * span;
			continue;
		}
		event->begin = first * span + in++;
		event->end = first == last ? first * span + in++
					   : last * span + in++;
	}
}

static int by_begin(const void *a, const void *b)
{
	const struct trace_event *x = a, *y = b;

	return (x->begin > y->begin) - (x->begin < y->begin);
}

void trace_canonical(void)
{
	uint64_t *syncs, span;
	size_t boundaries = 0, kept = 0;

	for (size_t i = 0; i < trace.count; i++) {
		struct trace_event *event = &trace.events[i];

		if (event->call == TRACE_SYNC || trace_changes(event))
			trace.events[kept++] = *event;
		else
			free(event->data);
	}
	trace.count = kept;
	syncs = must(malloc((2 * kept + 1) * sizeof(*syncs)));
	for (size_t i = 0; i < kept; i++) {
		if (trace.events[i].call != TRACE_SYNC)
			continue;
		syncs[boundaries++] = trace.events[i].begin;
		syncs[boundaries++] = trace.events[i].end;
	}
	qsort(syncs, boundaries, sizeof(*syncs), by_number);
	for (size_t i = 0; i < kept; i++) {
		struct trace_event *event = &trace.events[i];

		event->argument = event->begin;
		event->begin = epoch(syncs, boundaries, event->begin);
		event->end = epoch(syncs, boundaries, event->end);
	}
	free(syncs);
	span = 2 * kept + 3;
	if (kept) { /* qsort wants an array */
		qsort(trace.events, kept, sizeof(*trace.events), by_place);
		retime(span);
		qsort(trace.events, kept, sizeof(*trace.events), by_begin);
	}
	trace.time = (boundaries + 1) * span;
}
