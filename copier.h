/*
 * copier.h - merging a verified store into its origin
 *
 * The order of copy, sync and clear. The numbered invariants are on top of
 * copier.c; the copying itself is engine.c's.
 */
#ifndef COPIER_H
#define COPIER_H

#include "cowstore.h"

enum reflink { REFLINK_AUTO, REFLINK_ALWAYS, REFLINK_NEVER };

enum copier_task {
	COPIER_MERGE,	/* copy, sync and clear, batch by batch */
	COPIER_OVERLAY, /* copy into an image of our own, clear nothing */
	COPIER_COUNT	/* write nothing, count what is identical already */
};

struct copier_options {
	enum copier_task task;
	uint64_t batch_size; /* bytes between two commits; 0: the default */
	uint64_t rate_limit; /* bytes per second; 0: none */
	uint64_t deadline;   /* nanoseconds, monotonic clock; 0: none */
	enum reflink reflink;
	bool verify;	     /* read each batch back before it is committed */
	bool discard;	     /* give the COW's space back */
	bool skip_identical; /* leave alone what the origin holds already */
};

/* What a merge is going to do; decided once, before its first write. */
struct copier_plan {
	uint64_t batch_chunks; /* exceptions between two commits */
	uint64_t batches;
	size_t unit;   /* bytes copied as one: a chunk, or a piece of one */
	size_t buffer; /* bytes of data that a worker holds */
	unsigned int workers;
	bool direct; /* write around the page cache */
	bool clone;  /* share blocks where a run allows it */
};

/*
 * Decide how store would be merged into origin; both are open, and store is
 * verified. Writes nothing. 0, or -1 and *err: ERROR_SYSTEM if blocks must be
 * shared and cannot be.
 */
int copier_plan(const struct cowstore *store, const struct image *origin,
		const struct copier_options *options, struct copier_plan *plan,
		struct error *err);

/*
 * If a merge of store is under way, look whether origin still holds what the
 * record says was merged last. 0 if so, or if nothing is known; -1 and *err,
 * ERROR_REFUSED if it has changed or is another.
 */
int copier_recognise(const struct cowstore *store, const struct image *origin,
		     struct error *err);

/* An undo store, and which exceptions of the COW it lacks: [0, unsaved). */
struct copier_undo {
	struct cowstore store;
	uint64_t unsaved;
};

/*
 * Find out how far undo->store, verified against the origin, has saved what
 * store is going to overwrite. 0, or -1 and *err: ERROR_REFUSED if it was not
 * made by this merge, or has no room for the rest of it.
 */
int copier_match_undo(const struct cowstore *store, struct copier_undo *undo,
		      uint64_t origin_size, struct error *err);

struct copier_progress {
	uint64_t exceptions; /* in the table when this run began */
	uint64_t before;     /* merged by earlier runs, as far as is known */
	uint64_t copied;     /* bytes done by this run, committed or not */
	uint64_t identical;  /* bytes among them that needed no write */
	uint64_t committed;  /* exceptions that this run made durably gone */
	uint64_t commits;
	bool touched; /* the origin, by a write that was at least begun */
};

/*
 * Called about five times a second and after each commit, from the thread that
 * called copier_merge(); true: stop soon.
 */
typedef bool copier_tick(void *context, const struct copier_progress *progress);

/*
 * Merge store, verified against origin, as planned; both are open for writing.
 * With undo (or NULL), which was matched, the origin's old contents are saved
 * durably before they are overwritten. All memory is allocated and all threads
 * are started, or as many as can be had, before the first write.
 *
 * 0 when the table is empty; 1 after the last commit when tick asked to stop
 * or the deadline has come; -1 and *err. In each case *progress is true, what
 * it calls committed is durable, and the same call goes on where this one
 * ended.
 *
 * The other tasks work on the whole table alike, but neither sync nor clear
 * nor write to the store.
 */
int copier_merge(struct cowstore *store, const struct image *origin,
		 struct copier_undo *undo, const struct copier_options *options,
		 const struct copier_plan *plan, copier_tick *tick,
		 void *context, struct copier_progress *progress,
		 struct error *err);

#endif
