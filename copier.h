/*
 * copier.h - merging a verified store into its origin
 *
 * The order of copy, sync and clear, and the engine that copies. The numbered
 * invariants are on top of copier.c.
 */
#ifndef COPIER_H
#define COPIER_H

#include "cowstore.h"

enum reflink { REFLINK_AUTO, REFLINK_ALWAYS, REFLINK_NEVER };

struct copier_options {
	uint64_t batch_size; /* bytes between two commits; 0: the default */
	uint64_t rate_limit; /* bytes per second; 0: none */
	enum reflink reflink;
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

struct copier_progress {
	uint64_t exceptions; /* when the merge began */
	uint64_t copied;     /* bytes written to the origin, committed or not */
	uint64_t committed;  /* exceptions that are durably gone */
	uint64_t commits;
	bool touched; /* the origin, by a write that was at least begun */
};

/* Called about five times a second and after each commit; true: stop soon. */
typedef bool copier_tick(void *context, const struct copier_progress *progress);

/*
 * Merge store, verified against origin, as planned; both are open for writing.
 * All memory is allocated and all threads are started before the first write.
 *
 * 0 when the table is empty; 1 when tick asked to stop, after a commit; -1 and
 * *err. In each case *progress is true, what it calls committed is durable,
 * and the same call goes on where this one ended.
 */
int copier_merge(struct cowstore *store, const struct image *origin,
		 const struct copier_options *options,
		 const struct copier_plan *plan, copier_tick *tick,
		 void *context, struct copier_progress *progress,
		 struct error *err);

#endif
