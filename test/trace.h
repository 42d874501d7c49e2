/*
 * trace.h - every system call on the files of a test, recorded or made to fail
 *
 * A program that is linked with trace.c calls it wherever it means the libc's
 * pread(), pwritev(), fdatasync() and their like, under any of their names.
 * Calls on watched files are recorded, and one of them can be made to fail;
 * all go on to the kernel by syscall(). Files are known by their identity, so
 * it does not matter through which descriptor they are used. Threads may call
 * at the same time.
 *
 * From a record follows what a power cut would have left: which writes were
 * durable at a moment, and which were on their way.
 */
#ifndef TRACE_H
#define TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRACE_FILES 4
#define TRACE_NEVER UINT64_MAX

enum trace_call {
	TRACE_READ,
	TRACE_WRITE,
	TRACE_SYNC,	 /* fdatasync, fsync */
	TRACE_WRITEBACK, /* sync_file_range */
	TRACE_CLONE,	 /* ioctl: shares a range; a write */
	TRACE_IOCTL,	 /* any other */
	TRACE_FCNTL,
	TRACE_ADVISE,	/* posix_fadvise */
	TRACE_ALLOCATE, /* fallocate; a write of zeros if it punches */
	TRACE_CALLS
};

struct trace_event {
	enum trace_call call;
	int file;	     /* as watched */
	unsigned int thread; /* numbered by their first recorded call, from 0 */
	/* When; each begin and end of a call has a time of its own. */
	uint64_t begin, end;
	uint64_t offset, asked; /* bytes that were asked for */
	uint64_t len;		/* bytes that were transferred */
	int parts;		/* of a vector, else 1 */
	bool direct;		/* a read around the page cache */
	long request;		/* of ioctl and fcntl; mode; flags; advice */
	uint64_t argument;	/* of fcntl */
	int sys;		/* errno if it failed, else 0 */
	unsigned char *data;	/* what was written, NULL: zeros */
};

const char *trace_name(enum trace_call call);

/* Files are numbered 0 .. TRACE_FILES - 1. The file must exist. */
void trace_watch(int file, const char *path);

/* Begin a new record and forget the last one. */
void trace_start(void);

/*
 * End the record; its events are in the order of their begin. A call that is
 * still under way must not exist. Faults that were not met are withdrawn.
 */
void trace_stop(void);

/*
 * Whether syncs and writebacks that are recorded end here instead of in the
 * kernel. The power does not really go, and tests that sync ten thousand times
 * become fast.
 */
void trace_pretend_syncs(bool pretend);

/*
 * Whether shared blocks that are recorded are written instead: any file system
 * will do then, and any chunk size.
 */
void trace_pretend_clones(bool pretend);

/* The record, until the next trace_start(). */
size_t trace_count(void);
const struct trace_event *trace_event(size_t n);
/* Later than all that is in it. */
uint64_t trace_end(void);

/* Faults */
enum trace_fault {
	TRACE_FAIL,	   /* the call fails with sys and does nothing */
	TRACE_FAIL_ON,	   /* and so does every later one of its kind */
	TRACE_SHORTEN,	   /* half of it is transferred */
	TRACE_NIBBLE,	   /* one byte of it is transferred */
	TRACE_FAIL_DIRECT, /* fails only while the descriptor has O_DIRECT */
	TRACE_CORRUPT	   /* succeeds, but the first byte read is wrong */
};

/*
 * The n-th (from 1) call of this kind on this file while recording meets a
 * fault. One at a time; it is withdrawn by trace_stop(), and may be set before
 * trace_start().
 */
void trace_fault(enum trace_call call, int file, unsigned int n,
		 enum trace_fault fault, int sys);
/* Whether it was met; and the first event that met it. */
bool trace_met(void);
const struct trace_event *trace_met_event(void);

/*
 * Whether the calling thread is in here: memory is then asked for by the
 * recorder and not by the code under test.
 */
bool trace_inside(void);

/* Power cuts */

/* Whether an event changes bytes of its file. */
bool trace_changes(const struct trace_event *event);

/*
 * When an event's change became durable: the end of the first sync of its file
 * that began after it and succeeded, unless one failed on the way, which loses
 * it. TRACE_NEVER if that did not happen.
 */
uint64_t trace_durable(size_t n);

/* Put an event's bytes [from, to) into disk, size bytes of its file. */
void trace_apply(const struct trace_event *event, uint64_t from, uint64_t to,
		 unsigned char *disk, size_t size);

/* Put what was durable at a time into disk, which was there at the start. */
void trace_apply_durable(int file, uint64_t when, unsigned char *disk,
			 size_t size);

/*
 * Put the record into an order that does not depend on how the threads were
 * scheduled: calls that change bytes and lie between the same syncs by their
 * place, all others dropped. Times are given anew. A call that was under way
 * while a sync began or ended still is. Calls between the same syncs must not
 * overlap, unless they begin at one place.
 */
void trace_canonical(void);

#endif
