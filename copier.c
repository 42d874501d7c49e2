/*
 * copier.c - the order of copy, sync and clear
 *
 * What holds at every moment, whatever fails and whenever the power goes:
 *
 * M1 An exception is cleared only after its origin chunk was written and
 *    synced.
 * M2 Exceptions are cleared from the end of the table. Readers stop at the
 *    first empty one, so a torn clear leaves live exceptions, which are merged
 *    again, or entries that nobody reads.
 * M3 Merging an exception twice writes the same bytes: recovery is to run the
 *    command again. Each origin chunk is named at most once for that.
 * M4 Nothing is written before the whole table was verified and all memory
 *    allocated.
 * M5 Data chunks of the store are never written.
 * M6 A failed sync is final: nothing is cleared, nothing is tried again.
 * M7 The origin overlaid with the exceptions that are left always reads as the
 *    full snapshot.
 *
 * The table is merged from its end in batches. A batch is a suffix of the
 * table, cut into slices that fit a worker's buffer. Each worker takes the
 * next slice, reads its chunks in the order in which they lie in the COW,
 * waits until the slice's batch has its turn, and writes them in the order of
 * the origin. So one batch is read while another is written and synced, and
 * between two commits only slices of one batch reach the origin. The thread
 * that called commits: it syncs the origin (M1), clears the batch (M2), and
 * syncs the COW. A chunk too large for a buffer travels in pieces, one slice
 * each.
 */
#include "copier.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

#define DEFAULT_BATCH (256 * MIB)
#define MAX_BUFFER    (8 * MIB)
#define MIN_BUFFER    (64 * KIB)
#define WORKERS	      4

/* The longest gap in the COW that is read through. */
#define MAX_GAP (64 * KIB)

/* From this mean length of runs on, the page cache is in the way. */
#define DIRECT_RUN (64 * KIB)

/* POSIX promises 16, Linux gives 1024. */
#define MAX_IOV 1024

/* Times are in nanoseconds. */
#define SECOND UINT64_C(1000000000)
#define TICK   (SECOND / 5)

struct move {
	uint64_t old_chunk;
	uint8_t *data;
};

/* A part of one batch: chunks [first, first + count) of the table. */
struct slice {
	uint64_t first;
	size_t count;
	uint64_t piece; /* offset in the chunk, if it travels in pieces */
};

struct worker {
	struct merge *merge;
	pthread_t thread;
	struct slice slice;
	uint8_t *buffer;
	struct exception *exceptions; /* of the slice */
	struct move *moves;
	size_t count; /* of both */
};

struct merge {
	struct cowstore *store;
	const struct image *origin;
	const struct copier_options *options;
	const struct copier_plan *plan;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* Under the lock: */
	uint64_t left;	  /* exceptions in the table, on disk */
	uint64_t goal;	  /* the batch whose turn it is: [goal, left) */
	uint64_t written; /* its bytes that are in the origin */
	uint64_t next;	  /* exceptions from here on were handed out */
	uint64_t piece;	  /* bytes of exception next that were */
	uint64_t due;	  /* nanoseconds; when the rate limit admits more */
	bool stop;	  /* begin no further chunk */
	bool closed;	  /* no slice has its turn any more */
	bool failed;
	struct error error;
	struct copier_progress *progress;
};

static uint64_t at_least(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

int copier_plan(const struct cowstore *store, const struct image *origin,
		const struct copier_options *options, struct copier_plan *plan,
		struct error *err)
{
	uint64_t batch = options->batch_size ? options->batch_size
					     : DEFAULT_BATCH;
	uint64_t chunk = store->chunk_size;
	uint64_t buffer = MAX_BUFFER;
	int sys = options->reflink == REFLINK_NEVER
			  ? EOPNOTSUPP
			  : image_can_clone(origin, store->image);

	if (options->reflink == REFLINK_ALWAYS && sys)
		return error_set(err, ERROR_SYSTEM, sys, origin->path,
				 "cannot share blocks with the COW");
	while (buffer > MIN_BUFFER &&
	       (buffer > batch / WORKERS ||
		(options->rate_limit && buffer > options->rate_limit / 8)))
		buffer /= 2;
	plan->buffer = (size_t)buffer;
	plan->unit = (size_t)at_most(chunk, buffer);
	plan->batch_chunks = at_least(batch / chunk, 1);
	plan->batches = store->exceptions / plan->batch_chunks +
			(store->exceptions % plan->batch_chunks != 0);
	plan->workers = WORKERS;
	plan->clone = !sys;
	plan->direct = store->origin_runs &&
		       store->exceptions / store->origin_runs >=
			       at_least(DIRECT_RUN / chunk, 1);
	return 0;
}

/* Where a unit of exception data lies; piece is 0 for whole chunks. */
static uint64_t chunk_offset(const struct merge *m, uint64_t chunk,
			     const struct slice *slice)
{
	return chunk * m->store->chunk_size + slice->piece;
}

/* Hand out the next slice, the highest not yet taken; false: there is none. */
static bool take(struct merge *m, struct slice *slice)
{
	uint64_t chunk = m->store->chunk_size, batch = m->plan->batch_chunks;
	uint64_t per_slice = at_least(m->plan->buffer / chunk, 1), start;

	if (m->closed || m->failed)
		return false;
	if (m->piece && m->piece < chunk) {
		*slice = (struct slice){ m->next, 1, m->piece };
		m->piece += m->plan->unit;
		return true;
	}
	if (m->stop || !m->next)
		return false;
	/* The start of the batch that exception next - 1 belongs to. */
	start = m->goal;
	while (start >= m->next)
		start -= at_most(start, batch);
	start = at_least(start, m->next - at_most(m->next, per_slice));
	*slice = (struct slice){ start, (size_t)(m->next - start), 0 };
	m->next = start;
	m->piece = m->plan->unit;
	return true;
}

static int by_new_chunk(const void *a, const void *b)
{
	const struct exception *x = a, *y = b;

	return (x->new_chunk > y->new_chunk) - (x->new_chunk < y->new_chunk);
}

static int by_old_chunk(const void *a, const void *b)
{
	const struct move *x = a, *y = b;

	return (x->old_chunk > y->old_chunk) - (x->old_chunk < y->old_chunk);
}

/* Tables are usually in order already. */
static void sort(void *base, size_t count, size_t size,
		 int (*compare)(const void *, const void *))
{
	uint8_t *at = base;

	for (size_t i = 1; i < count; i++, at += size) {
		if (compare(at, at + size) > 0) {
			qsort(base, count, size, compare);
			return;
		}
	}
}

/* What a worker's buffer holds beside data: gaps, and alignment. */
static size_t buffer_slack(const struct copier_plan *plan)
{
	return plan->buffer / 16 + IMAGE_ALIGNMENT;
}

/*
 * Read the slice's chunks in the order of the COW, by few large reads, and
 * note in w->moves where each one is.
 */
static int load(struct worker *w, struct error *err)
{
	const struct merge *m = w->merge;
	uint64_t chunk = m->store->chunk_size;
	size_t unit = m->plan->unit, used = 0, done = 0;
	size_t slack = buffer_slack(m->plan);

	sort(w->exceptions, w->count, sizeof(*w->exceptions), by_new_chunk);
	while (done < w->count) {
		const struct exception *ex = &w->exceptions[done];
		uint64_t offset = chunk_offset(m, ex->new_chunk, &w->slice);
		size_t len = 0, n = 0;

		do {
			uint64_t gap =
				(ex[n].new_chunk - ex->new_chunk) * chunk - len;

			if (gap > MAX_GAP || gap > slack)
				break;
			slack -= (size_t)gap;
			len += (size_t)gap;
			w->moves[done + n].old_chunk = ex[n].old_chunk;
			w->moves[done + n].data = w->buffer + used + len;
			len += unit;
			n++;
		} while (done + n < w->count);
		if (image_read_medium(m->store->image, w->buffer + used, len,
				      offset, err))
			return -1;
		used += len;
		done += n;
	}
	return 0;
}

/* Only what is inside the origin is copied of its last chunk. */
static size_t clipped(const struct merge *m, uint64_t offset, size_t len)
{
	if (offset >= m->origin->size)
		return 0;
	return (size_t)at_most(len, m->origin->size - offset);
}

/* Write the slice's chunks in the order of the origin, runs as one. */
static int store(struct worker *w, struct error *err)
{
	const struct merge *m = w->merge;
	size_t unit = m->plan->unit, done = 0;
	struct iovec iov[MAX_IOV];

	sort(w->moves, w->count, sizeof(*w->moves), by_old_chunk);
	while (done < w->count) {
		const struct move *mv = &w->moves[done];
		uint64_t offset = chunk_offset(m, mv->old_chunk, &w->slice);
		size_t len, n = 0;
		int count = 0;

		do {
			uint8_t *data = mv[n].data;
			struct iovec *last = &iov[count ? count - 1 : 0];

			len = clipped(m, offset + n * unit, unit);
			if (count &&
			    (uint8_t *)last->iov_base + last->iov_len == data)
				last->iov_len += len;
			else
				iov[count++] = (struct iovec){ data, len };
			n++;
		} while (done + n < w->count && count < MAX_IOV &&
			 mv[n].old_chunk == mv[n - 1].old_chunk + 1);
		if (iov[0].iov_len &&
		    image_write(m->origin, iov, count, offset, err))
			return -1;
		done += n;
	}
	if (!m->plan->direct)
		image_start_writeback(m->origin);
	return 0;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* Sleep under the lock until something changed, or the time has come. */
static void wait_until(struct merge *m, uint64_t when)
{
	struct timespec t = { .tv_sec = (time_t)(when / SECOND),
			      .tv_nsec = (long)(when % SECOND) };

	pthread_cond_timedwait(&m->changed, &m->lock, &t);
}

/*
 * Pay for bytes before they are written. Up to one second that was lost, to a
 * sync for instance, is made up for.
 */
static void throttle(struct merge *m, uint64_t bytes)
{
	uint64_t due;

	if (!m->options->rate_limit)
		return;
	m->due = at_least(m->due + SECOND, now()) - SECOND +
		 (uint64_t)((double)bytes / (double)m->options->rate_limit *
			    (double)SECOND);
	due = m->due;
	while (!m->failed && now() < due)
		wait_until(m, due);
}

static void fail(struct merge *m, const struct error *err)
{
	if (!m->failed)
		m->error = *err;
	m->failed = true;
	pthread_cond_broadcast(&m->changed);
}

/* Wait until slices of this one's batch may be written; false: never. */
static bool await_turn(struct merge *m, const struct slice *slice)
{
	while (slice->first < m->goal && !m->closed && !m->failed)
		pthread_cond_wait(&m->changed, &m->lock);
	return slice->first >= m->goal && !m->failed;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct merge *m = w->merge;
	struct error err;

	pthread_mutex_lock(&m->lock);
	while (take(m, &w->slice)) {
		uint64_t bytes = w->slice.count * m->plan->unit;
		int result;

		pthread_mutex_unlock(&m->lock);
		w->count = w->slice.count;
		result = cowstore_read(m->store, w->slice.first, w->count,
				       w->exceptions, &err);
		if (!result)
			result = load(w, &err);
		pthread_mutex_lock(&m->lock);
		if (result) {
			fail(m, &err);
			break;
		}
		if (!await_turn(m, &w->slice))
			break;
		throttle(m, bytes);
		m->progress->touched = true;
		pthread_mutex_unlock(&m->lock);
		result = store(w, &err);
		pthread_mutex_lock(&m->lock);
		if (result) {
			fail(m, &err);
			break;
		}
		m->written += bytes;
		m->progress->copied += bytes;
		if (m->written == (m->left - m->goal) * m->store->chunk_size)
			pthread_cond_broadcast(&m->changed);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

/* Make the batch that was written permanent; the only place that clears. */
static int commit(struct merge *m, struct error *err)
{
	if (image_sync(m->origin, err)) /* M1, M6 */
		return -1;
	if (cowstore_clear(m->store, m->goal, err)) /* M2 */
		return -1;
	if (image_sync(m->store->image, err)) /* M6 */
		return -1;
	image_forget(m->origin);
	return 0;
}

/* The bytes of the batch that are still on their way. */
static bool batch_done(const struct merge *m)
{
	return m->written == (m->left - m->goal) * m->store->chunk_size;
}

/* Begin nothing new, and let the batch end with what was begun. */
static void request_stop(struct merge *m)
{
	m->stop = true;
	m->goal = at_least(m->goal, m->next);
}

/* Wait for the end of the batch; -1 and *err if a worker failed. */
static int await_batch(struct merge *m, copier_tick *tick, void *context,
		       struct error *err)
{
	uint64_t next_tick = now() + TICK;
	int result = 0;

	pthread_mutex_lock(&m->lock);
	while (!m->failed && !batch_done(m)) {
		struct copier_progress progress;
		bool stop;

		wait_until(m, next_tick);
		if (now() < next_tick)
			continue;
		progress = *m->progress;
		pthread_mutex_unlock(&m->lock);
		stop = tick(context, &progress); /* may block: a terminal */
		pthread_mutex_lock(&m->lock);
		if (stop)
			request_stop(m);
		next_tick = now() + TICK;
	}
	if (m->failed) {
		*err = m->error;
		result = -1;
	}
	pthread_mutex_unlock(&m->lock);
	return result;
}

/* Give the next batch its turn, or close; whether there is one. */
static bool next_batch(struct merge *m, copier_tick *tick, void *context)
{
	struct copier_progress progress;
	bool stop;

	pthread_mutex_lock(&m->lock);
	m->progress->committed += m->left - m->goal;
	m->progress->commits++;
	progress = *m->progress;
	pthread_mutex_unlock(&m->lock);
	stop = tick(context, &progress);
	pthread_mutex_lock(&m->lock);
	m->left = m->goal;
	m->written = 0;
	m->closed = !m->left || m->stop || stop;
	if (!m->closed)
		m->goal -= at_most(m->goal, m->plan->batch_chunks);
	pthread_cond_broadcast(&m->changed);
	stop = m->closed;
	pthread_mutex_unlock(&m->lock);
	return !stop;
}

/* Batch after batch; the workers run. 0, 1 if stopped, -1. */
static int merge_batches(struct merge *m, copier_tick *tick, void *context,
			 struct error *err)
{
	do {
		if (await_batch(m, tick, context, err))
			return -1;
		if (m->goal == m->left) /* stopped before anything was begun */
			return 1;
		if (commit(m, err))
			return -1;
	} while (next_batch(m, tick, context));
	return m->left != 0;
}

static void close_worker(struct worker *w)
{
	free(w->moves);
	free(w->exceptions);
	free(w->buffer);
}

static int open_worker(struct worker *w, struct merge *m, struct error *err)
{
	const struct copier_plan *plan = m->plan;
	size_t count = plan->buffer / plan->unit;

	*w = (struct worker){ .merge = m };
	w->buffer = aligned_alloc(IMAGE_ALIGNMENT,
				  plan->buffer + buffer_slack(plan));
	w->exceptions = malloc(count * sizeof(*w->exceptions));
	w->moves = malloc(count * sizeof(*w->moves));
	if (w->buffer && w->exceptions && w->moves)
		return 0;
	close_worker(w);
	return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
			 "cannot merge with buffers of %zu bytes",
			 plan->buffer);
}

/* Start all workers, or none; they wait for the lock, which is held. */
static unsigned int start_workers(struct merge *m, struct worker *workers,
				  struct error *err)
{
	unsigned int n;

	for (n = 0; n < m->plan->workers; n++) {
		int sys = pthread_create(&workers[n].thread, NULL, work,
					 &workers[n]);

		if (sys) {
			error_set(&m->error, ERROR_SYSTEM, sys, NULL,
				  "cannot start a thread");
			*err = m->error;
			m->failed = true;
			break;
		}
	}
	return n;
}

int copier_merge(struct cowstore *store, const struct image *origin,
		 const struct copier_options *options,
		 const struct copier_plan *plan, copier_tick *tick,
		 void *context, struct copier_progress *progress,
		 struct error *err)
{
	struct merge m = {
		.store = store,
		.origin = origin,
		.options = options,
		.plan = plan,
		.progress = progress,
		.left = store->exceptions,
		.next = store->exceptions,
		.due = now(),
	};
	struct worker workers[WORKERS];
	unsigned int ready, running;
	pthread_condattr_t attr;
	int result = -1;

	*progress = (struct copier_progress){ .exceptions = m.left };
	if (!m.left) /* nothing to copy, but perhaps to scrub */
		return store->stale ? commit(&m, err) : 0;
	m.goal = m.left - at_most(m.left, plan->batch_chunks);
	for (ready = 0; ready < plan->workers; ready++)
		if (open_worker(&workers[ready], &m, err))
			goto out;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&m.changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&m.lock, NULL);
	if (plan->direct)
		image_write_direct(origin);

	pthread_mutex_lock(&m.lock);
	running = start_workers(&m, workers, err); /* M4 */
	pthread_mutex_unlock(&m.lock);
	if (running == plan->workers)
		result = merge_batches(&m, tick, context, err);
	pthread_mutex_lock(&m.lock);
	m.closed = true;
	pthread_cond_broadcast(&m.changed);
	pthread_mutex_unlock(&m.lock);
	while (running)
		pthread_join(workers[--running].thread, NULL);
	pthread_mutex_destroy(&m.lock);
	pthread_cond_destroy(&m.changed);
	image_forget(store->image);
out:
	while (ready)
		close_worker(&workers[--ready]);
	return result;
}
