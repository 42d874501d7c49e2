/*
 * engine.h - moving the chunks of a table, many at a time
 *
 * A room of its own because threads and buffers are one job and the order of
 * copy, sync and clear is another: copier.c says what may happen next, the
 * engine makes it happen fast. It never syncs and never touches a table.
 *
 * Work is done in turns. A turn is one pass over one batch, which is a suffix
 * [goal, left) of the table. Workers take slices of it from its end; what a
 * slice needs to have read is read before its turn, but nothing is written
 * before. When all slices of a turn are done, the engine stands still until
 * copier.c gives the next turn.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <pthread.h>

#include "copier.h"

enum pass {
	PASS_SAVE,    /* the origin's old contents into the undo store */
	PASS_COPY,    /* the COW's data into the origin */
	PASS_COMPARE, /* the origin, read from the medium, with the COW */
	PASS_COUNT    /* chunks that the origin holds already */
};

#define ENGINE_PASSES 3

static inline uint64_t at_least(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

struct engine {
	const struct cowstore *store;
	const struct image *origin;
	const struct cowstore *undo; /* or NULL */
	const struct copier_options *options;
	const struct copier_plan *plan;
	struct copier_progress *progress; /* under the lock */

	/*
	 * Exception i is saved as exception undo_end - 1 - i of the undo store,
	 * those from unsaved on were saved by an earlier run.
	 */
	uint64_t undo_end, unsaved;

	enum pass passes[ENGINE_PASSES];
	unsigned int pass_count;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* Under the lock: */
	unsigned int turn; /* index of the pass that may write */
	uint64_t left;	   /* end of the batch: exceptions in the table */
	uint64_t goal;	   /* start of the batch */
	uint64_t done;	   /* bytes of the turn that are done */
	unsigned int pass; /* index of the pass being handed out */
	uint64_t next;	   /* exceptions from here on were handed out for it */
	uint64_t piece;	   /* bytes of exception next that were */
	bool ahead;	   /* what is handed out belongs to a later batch */
	uint64_t due;	   /* when the rate limit admits more */
	bool writeback;	   /* a worker is starting it */
	bool stop;	   /* begin no further chunk */
	bool closed;	   /* the workers may go home */
	bool failed;
	struct error error;

	uint8_t *memory; /* of the workers' buffers */
	struct worker *workers;
	unsigned int running;
};

/*
 * Set up *e, whose first group of members and passes are set: buffers, and
 * workers, as many of the planned ones as can be had, that wait for the first
 * turn, the batch [goal, left). Nothing is written yet. 0, or -1 and *err;
 * engine_close() is due only after 0.
 */
int engine_open(struct engine *e, uint64_t left, uint64_t goal,
		struct error *err);

/* Let all workers end, whatever they have read ahead; free everything. */
void engine_close(struct engine *e);

/*
 * Wait until the turn is done, or until when (nanoseconds, monotonic clock).
 * 1 done, 0 not yet; -1 and *err if a worker failed, after which no further
 * slice is begun.
 */
int engine_await(struct engine *e, uint64_t when, struct error *err);

/* Give the turn to the next pass over the same batch. */
void engine_next_pass(struct engine *e);

/* The batch is done, and durable if it was to be: the progress says so. */
void engine_end_batch(struct engine *e);

/*
 * Give the turn to the first pass over the next batch, which begins at goal, or
 * at what the workers have taken already if that is less. Its start.
 */
uint64_t engine_next_batch(struct engine *e, uint64_t goal);

/* Begin no further chunk: the batch starts at what was handed out. Its start.
 */
uint64_t engine_stop(struct engine *e);

/* Whether any exception of the batch was handed out. */
bool engine_begun(struct engine *e);

/* The progress as of now. */
struct copier_progress engine_progress(struct engine *e);

/* Nanoseconds on the monotonic clock. */
uint64_t engine_now(void);
#define SECOND UINT64_C(1000000000)

#endif
