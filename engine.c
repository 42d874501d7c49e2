/*
 * engine.c - turns, workers, and who does what next
 *
 * A room of its own for the reason on top of engine.h. Knows how the slices of
 * a turn are shared out among threads, and sees to it that nothing is written
 * outside a slice's turn: copier.c's invariants rest on that. What becomes of
 * one slice is transfer.c's.
 */
#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "transfer.h"

uint64_t engine_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* --- handing out slices, under the lock --- */

/* Where the batch that is handed out begins: this one, or the next. */
static uint64_t floor_of(const struct engine *e)
{
	if (!e->ahead)
		return e->goal;
	return e->goal - at_most(e->goal, e->plan->batch_chunks);
}

/* Move on to where there is something to hand out; false: not now. */
static bool find_work(struct engine *e)
{
	while (e->next <= floor_of(e)) {
		if (e->ahead)
			return false;
		if (e->pass + 1 < e->pass_count) {
			e->pass++;
			e->next = e->left;
		} else {
			e->pass = 0;
			e->ahead = true;
		}
	}
	return !e->ahead || !e->stop;
}

/* The next slice, from the end; false: the workers may go home. */
static bool take(struct engine *e, struct slice *slice)
{
	uint64_t chunk = e->store->chunk_size, start;
	uint64_t per_slice = at_least(e->plan->buffer / chunk, 1);

	while (!e->closed && !e->failed) {
		if (e->piece && e->piece < chunk) {
			*slice = (struct slice){ e->next, 1, e->piece,
						 e->pass };
			e->piece += e->plan->unit;
			return true;
		}
		if (!find_work(e)) {
			pthread_cond_wait(&e->changed, &e->lock);
			continue;
		}
		start = at_least(floor_of(e),
				 e->next - at_most(e->next, per_slice));
		*slice = (struct slice){ start, (size_t)(e->next - start), 0,
					 e->pass };
		e->next = start;
		e->piece = e->plan->unit;
		return true;
	}
	return false;
}

/* Wait until the slice may be written; false: it never may. */
static bool await_turn(struct engine *e, const struct slice *s)
{
	while ((s->first < e->goal || s->pass != e->turn) && !e->closed &&
	       !e->failed)
		pthread_cond_wait(&e->changed, &e->lock);
	return s->first >= e->goal && s->pass == e->turn && !e->failed;
}

static bool turn_done(const struct engine *e)
{
	return e->done == (e->left - e->goal) * e->store->chunk_size;
}

/* Sleep until something changed, or the time has come. */
static void wait_until(struct engine *e, uint64_t when)
{
	struct timespec t = { .tv_sec = (time_t)(when / SECOND),
			      .tv_nsec = (long)(when % SECOND) };

	pthread_cond_timedwait(&e->changed, &e->lock, &t);
}

/*
 * Pay for bytes before they are written. Up to one second that was lost, to a
 * sync for instance, is made up for.
 */
static void throttle(struct engine *e, uint64_t bytes)
{
	uint64_t due;

	if (!e->options->rate_limit)
		return;
	due = at_least(e->due + SECOND, engine_now()) - SECOND +
	      (uint64_t)((double)bytes / (double)e->options->rate_limit *
			 (double)SECOND);
	e->due = due;
	while (!e->failed && engine_now() < due)
		wait_until(e, due);
}

/* --- the worker's life --- */

static void fail(struct engine *e, const struct error *err)
{
	if (!e->failed)
		e->error = *err;
	e->failed = true;
	pthread_cond_broadcast(&e->changed);
}

static void finish(struct engine *e, const struct worker *w, size_t moves)
{
	uint64_t bytes = w->slice.count * e->plan->unit;

	if (transfer_pass(w) == PASS_COPY || transfer_pass(w) == PASS_COUNT) {
		e->progress->copied += bytes;
		e->progress->identical += (w->slice.count - moves) *
					  e->plan->unit;
	}
	e->done += bytes;
	if (turn_done(e))
		pthread_cond_broadcast(&e->changed);
}

/*
 * What was written so far shall be on its way before it is synced. One at a
 * time is enough: more get in each other's way.
 */
static void start_writeback(struct engine *e)
{
	if (e->plan->direct || e->writeback)
		return;
	e->writeback = true;
	pthread_mutex_unlock(&e->lock);
	image_start_writeback(e->origin);
	pthread_mutex_lock(&e->lock);
	e->writeback = false;
}

/* The lock is held before and after. False: the slice will not be done. */
static bool work_slice(struct engine *e, struct worker *w)
{
	bool copies = transfer_pass(w) == PASS_COPY;
	struct error err;
	size_t moves;
	int result;

	pthread_mutex_unlock(&e->lock);
	result = transfer_prepare(w, &err);
	pthread_mutex_lock(&e->lock);
	if (!result) {
		if (!await_turn(e, &w->slice))
			return false;
		moves = w->count;
		if (copies && moves) {
			throttle(e, moves * e->plan->unit);
			e->progress->touched = true;
		}
		pthread_mutex_unlock(&e->lock);
		result = transfer_deliver(w, &err);
		pthread_mutex_lock(&e->lock);
		if (!result)
			finish(e, w, copies ? moves : w->count);
		if (!result && copies)
			start_writeback(e);
	}
	if (result)
		fail(e, &err);
	return !result;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct engine *e = w->engine;

	pthread_mutex_lock(&e->lock);
	while (take(e, &w->slice) && work_slice(e, w))
		;
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

/* --- the engine as copier.c sees it --- */

static void close_all(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	e->closed = true;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
	while (e->running)
		pthread_join(e->workers[--e->running].thread, NULL);
	pthread_mutex_destroy(&e->lock);
	pthread_cond_destroy(&e->changed);
}

static void free_all(struct engine *e)
{
	for (unsigned int i = 0; e->workers && i < e->plan->workers; i++)
		transfer_close(&e->workers[i]);
	free(e->workers);
	free(e->memory);
}

/*
 * In huge pages, if the kernel has them: direct I/O takes memory page by page,
 * and adjoining pages travel as one.
 */
static uint8_t *alloc_buffers(size_t size)
{
	const size_t huge_page = (size_t)2 << 20;
	uint8_t *memory;

	size = (size + huge_page - 1) / huge_page * huge_page;
	memory = aligned_alloc(huge_page, size);
	if (memory)
		madvise(memory, size, MADV_HUGEPAGE);
	return memory;
}

static bool alloc_all(struct engine *e)
{
	size_t each = transfer_memory(e);

	e->workers = calloc(e->plan->workers, sizeof(*e->workers));
	e->memory = alloc_buffers(each * e->plan->workers);
	if (!e->workers || !e->memory)
		return false;
	for (unsigned int i = 0; i < e->plan->workers; i++)
		if (!transfer_open(&e->workers[i], e, e->memory + i * each))
			return false;
	return true;
}

void engine_close(struct engine *e)
{
	close_all(e);
	free_all(e);
}

int engine_open(struct engine *e, uint64_t left, uint64_t goal,
		struct error *err)
{
	pthread_condattr_t attr;
	int sys = 0;

	e->left = e->next = left;
	e->goal = goal;
	e->due = engine_now();
	if (!alloc_all(e)) {
		free_all(e);
		return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
				 "cannot merge with %u buffers of %zu bytes",
				 e->plan->workers, e->plan->buffer);
	}
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&e->changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&e->lock, NULL);
	pthread_mutex_lock(&e->lock); /* nobody begins before all can */
	while (e->running < e->plan->workers && !sys) {
		struct worker *w = &e->workers[e->running];

		sys = pthread_create(&w->thread, NULL, work, w);
		e->running += !sys;
	}
	e->closed = !e->running;
	pthread_mutex_unlock(&e->lock);
	if (e->running) /* a few do as well */
		return 0;
	engine_close(e);
	return error_set(err, ERROR_SYSTEM, sys, NULL, "cannot start a thread");
}

int engine_await(struct engine *e, uint64_t when, struct error *err)
{
	int result;

	pthread_mutex_lock(&e->lock);
	while (!e->failed && !turn_done(e) && engine_now() < when)
		wait_until(e, when);
	result = turn_done(e);
	if (e->failed) {
		*err = e->error;
		result = -1;
	}
	pthread_mutex_unlock(&e->lock);
	return result;
}

void engine_next_pass(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	e->turn++;
	e->done = 0;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
}

void engine_end_batch(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	if (e->goal < e->left)
		e->progress->commits++;
	e->progress->committed += e->left - e->goal;
	pthread_mutex_unlock(&e->lock);
}

uint64_t engine_next_batch(struct engine *e, uint64_t goal)
{
	pthread_mutex_lock(&e->lock);
	e->left = e->goal;
	if (!e->ahead)
		e->next = e->left;
	e->goal = at_most(goal, e->next);
	e->pass = e->turn = 0;
	e->ahead = false;
	e->done = 0;
	goal = e->goal;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
	return goal;
}

uint64_t engine_stop(struct engine *e)
{
	uint64_t goal;

	pthread_mutex_lock(&e->lock);
	e->stop = true;
	if (!e->ahead && !e->pass)
		e->goal = at_least(e->goal, e->next);
	goal = e->goal;
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
	return goal;
}

bool engine_begun(struct engine *e)
{
	bool begun;

	pthread_mutex_lock(&e->lock);
	begun = e->ahead || e->pass || e->next < e->left;
	pthread_mutex_unlock(&e->lock);
	return begun;
}

struct copier_progress engine_progress(struct engine *e)
{
	struct copier_progress progress;

	pthread_mutex_lock(&e->lock);
	progress = *e->progress;
	pthread_mutex_unlock(&e->lock);
	return progress;
}
