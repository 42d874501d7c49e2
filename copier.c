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
 * M5 Data chunks of the store are never written; they are discarded, if at all,
 *    once their exceptions are durably gone.
 * M6 A failed sync is final: nothing is cleared, nothing is tried again.
 * M7 The origin overlaid with the exceptions that are left always reads as the
 *    full snapshot.
 *
 * The table is merged from its end in batches. A batch is a suffix of the
 * table and takes up to three passes, each finished before the next begins:
 * what is about to be overwritten is saved in the undo store, the COW's data
 * are copied, the result is read back. Then the batch is committed: cleared
 * (M2), together with the record of the merge under the same sync. While one
 * batch is written and synced, the engine reads ahead for the next.
 *
 * An undo store is appended to from its start while the COW is cleared from
 * its end: exception j of the one saves what exception undo_end - 1 - j of the
 * other overwrites. Being in this order, whatever the batches were, an
 * interrupted undo store can be matched with what is left of the table, and
 * saving a batch again, as after a crash, saves the same.
 */
#include "copier.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

#define DEFAULT_BATCH (256 * MIB)
#define DISCARD_BATCH (64 * MIB)

/*
 * Workers wait for the disk, not for a processor: so many keep its queue full
 * with single chunks, too. Together they hold 32 MiB, and as much again where
 * they compare.
 */
#define MAX_WORKERS 64
#define MIN_WORKERS 8
#define ALL_BUFFERS (32 * MIB)
#define MIN_BUFFER  (64 * KIB)

/* From this mean length of runs on, the page cache is in the way. */
#define DIRECT_RUN (64 * KIB)

/* Of each sampled run, so much is compared with the origin. */
#define SAMPLE_BYTES (256 * KIB)

#define TICK (SECOND / 5)

/* Exceptions read at once by the thread that commits. */
#define BLOCK 1024

struct merge {
	struct engine engine;
	struct cowstore *store;
	const struct image *origin;
	struct copier_undo *undo; /* or NULL */
	const struct copier_options *options;
	const struct copier_plan *plan;
	copier_tick *tick;
	void *context;
	uint64_t begun;	      /* nanoseconds */
	uint64_t commit_time; /* nanoseconds that the last commit took */
	uint64_t left, goal;  /* the batch: exceptions [goal, left) */
	bool stop;
	struct cowstore_record record;
	uint64_t seen;	  /* runs of the batch that were looked at */
	struct run *runs; /* of the batch, for discarding */
	struct run *gone; /* of the batch committed before */
	size_t run_count, gone_count;
};

/* Two batches are in the origin before the first leaves the COW. */
static uint64_t default_batch(const struct image *origin,
			      const struct copier_options *options)
{
	if (options->task != COPIER_MERGE)
		return UINT64_MAX;
	if (options->batch_size)
		return options->batch_size;
	if (!options->discard)
		return DEFAULT_BATCH;
	return at_most(DISCARD_BATCH, image_free_space(origin) / 4);
}

int copier_plan(const struct cowstore *store, const struct image *origin,
		const struct copier_options *options, struct copier_plan *plan,
		struct error *err)
{
	uint64_t batch = default_batch(origin, options);
	uint64_t chunk = store->chunk_size, most = MAX_WORKERS, buffer;
	uint64_t under_way = batch; /* bytes that are at once, at most */
	int sys = EOPNOTSUPP;

	if (options->reflink != REFLINK_NEVER)
		sys = image_can_clone(origin, store->image, chunk);
	if (options->reflink == REFLINK_ALWAYS && sys)
		return error_set(err, ERROR_SYSTEM, sys, origin->path,
				 "cannot share blocks with the COW");
	if (options->rate_limit)
		under_way = at_most(under_way, options->rate_limit);
	if (!sys) /* clones take turns, and long slices leave runs whole */
		most = MIN_WORKERS;
	buffer = ALL_BUFFERS / most;
	while (buffer > MIN_BUFFER && buffer > under_way / most)
		buffer /= 2;
	under_way = at_most(under_way, store->exceptions * chunk);
	plan->buffer = (size_t)buffer;
	plan->unit = (size_t)at_most(chunk, buffer);
	plan->batch_chunks = at_least(batch / chunk, 1);
	plan->batches = store->exceptions / plan->batch_chunks +
			(store->exceptions % plan->batch_chunks != 0);
	plan->workers = (unsigned int)at_least(
		at_most(under_way / buffer, most), MIN_WORKERS);
	plan->clone = !sys;
	plan->direct = store->origin_runs &&
		       store->exceptions / store->origin_runs >=
			       at_least(DIRECT_RUN / chunk, 1);
	return 0;
}

/* Compare up to SAMPLE_BYTES of a run on both sides; buf holds twice that. */
static int recognise_run(const struct cowstore *store,
			 const struct image *origin, const struct run *run,
			 uint8_t *buf, struct error *err)
{
	uint64_t old_offset = run->old_chunk * store->chunk_size;
	uint64_t len = at_most(run->length * store->chunk_size, SAMPLE_BYTES);

	len = at_most(len, origin->size - at_most(old_offset, origin->size));
	if (image_read_medium(origin, buf, (size_t)len, old_offset, err) ||
	    image_read_medium(store->image, buf + SAMPLE_BYTES, (size_t)len,
			      run->new_chunk * store->chunk_size, err))
		return -1;
	if (!memcmp(buf, buf + SAMPLE_BYTES, (size_t)len))
		return 0;
	error_set(err, ERROR_REFUSED, 0, origin->path,
		  "changed since the merge was interrupted, or not the origin "
		  "that it was merged into: chunk %" PRIu64
		  " is not what was written",
		  run->old_chunk);
	err->has_offset = true;
	err->offset = old_offset;
	return -1;
}

int copier_recognise(const struct cowstore *store, const struct image *origin,
		     struct error *err)
{
	const struct cowstore_record *record = &store->record;
	uint8_t *buf;
	int result = 0;

	if (!store->half_merged)
		return 0;
	if (record->origin_size != origin->size)
		return error_set(err, ERROR_REFUSED, 0, origin->path,
				 "not the origin that was being merged into: "
				 "it has %" PRIu64 " bytes, not %" PRIu64,
				 origin->size, record->origin_size);
	buf = aligned_alloc(IMAGE_ALIGNMENT, 2 * SAMPLE_BYTES);
	if (!buf)
		return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
				 "cannot compare with the origin");
	for (uint64_t i = 0; i < record->samples && !result; i++)
		result = recognise_run(store, origin, &record->sample[i], buf,
				       err);
	free(buf);
	return result;
}

/* --- the undo store --- */

/* Number of the exception of store that names old_chunk, or UINT64_MAX. */
static int find_old_chunk(const struct cowstore *store, uint64_t old_chunk,
			  struct exception *block, uint64_t *number,
			  struct error *err)
{
	*number = UINT64_MAX;
	for (uint64_t i = 0; i < store->exceptions; i += BLOCK) {
		size_t n = (size_t)at_most(BLOCK, store->exceptions - i);

		if (cowstore_read(store, i, n, block, err))
			return -1;
		for (size_t k = 0; k < n; k++) {
			if (block[k].old_chunk == old_chunk) {
				*number = i + k;
				return 0;
			}
		}
	}
	return 0;
}

/* Whether the undo store ends with what saves store's [unsaved, end). */
static int check_saved(const struct cowstore *store,
		       const struct copier_undo *undo, struct exception *block,
		       struct error *err)
{
	uint64_t count = store->exceptions - undo->unsaved;
	const struct cowstore *saves = &undo->store;
	struct exception *other = block + BLOCK;
	bool same = count <= saves->exceptions;
	size_t n;

	for (uint64_t k = 0; k < count && same; k += n) {
		n = (size_t)at_most(BLOCK, count - k);
		if (cowstore_read(saves, saves->exceptions - count + k, n,
				  block, err) ||
		    cowstore_read(store, store->exceptions - k - n, n, other,
				  err))
			return -1;
		for (size_t i = 0; i < n; i++)
			same &= block[i].old_chunk ==
				other[n - 1 - i].old_chunk;
	}
	if (same)
		return 0;
	return error_set(err, ERROR_REFUSED, 0, saves->image->path,
			 "not the undo store of this merge");
}

int copier_match_undo(const struct cowstore *store, struct copier_undo *undo,
		      uint64_t origin_size, struct error *err)
{
	const struct cowstore *saves = &undo->store;
	uint64_t chunk = store->chunk_size, found = UINT64_MAX, total;
	struct exception last, *block;
	int result = -1;

	undo->unsaved = store->exceptions;
	if (saves->chunk_size != chunk)
		return error_set(err, ERROR_REFUSED, 0, saves->image->path,
				 "chunks of %" PRIu64 " bytes, not of %" PRIu64
				 " as in the COW",
				 saves->chunk_size, chunk);
	if (saves->recorded)
		return error_set(err, ERROR_REFUSED, 0, saves->image->path,
				 "is itself being merged: finish that first");
	block = malloc(2 * BLOCK * sizeof(*block));
	if (!block)
		return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
				 "cannot match the undo store");
	if (saves->exceptions &&
	    (cowstore_read(saves, saves->exceptions - 1, 1, &last, err) ||
	     find_old_chunk(store, last.old_chunk, block, &found, err)))
		goto out;
	undo->unsaved = at_most(undo->unsaved, found);
	if (check_saved(store, undo, block, err) ||
	    cowstore_disjoint(store, undo->unsaved, saves, origin_size, err))
		goto out;
	result = 0;
	total = saves->exceptions + undo->unsaved;
	/* All of the merge, nothing else, and as large as it was created */
	if ((store->half_merged && total != store->record.total) ||
	    (!saves->image->is_device &&
	     cowstore_size(chunk, total) < saves->image->size))
		result = error_set(err, ERROR_REFUSED, 0, saves->image->path,
				   "not the undo store of this merge, or not "
				   "of all of it");
	else if (cowstore_size(chunk, total) > saves->image->size)
		result = error_set(err, ERROR_REFUSED, 0, saves->image->path,
				   "no room for what is left of this merge");
out:
	free(block);
	return result;
}

/*
 * The data of the batch's chunks were saved: make that durable, and only then
 * name them; make that durable too before the origin is written.
 */
static int keep_saved(const struct merge *m, struct error *err)
{
	struct cowstore *saves = &m->undo->store;
	uint64_t unsaved = m->engine.undo_end - saves->exceptions;
	struct exception block[BLOCK];
	uint64_t old_chunks[BLOCK];

	if (unsaved <= m->goal) /* by an earlier run */
		return 0;
	if (cowstore_reserve(saves, unsaved - m->goal, err) ||
	    image_sync(saves->image, err))
		return -1;
	while (unsaved > m->goal) {
		size_t n = (size_t)at_most(BLOCK, unsaved - m->goal);

		unsaved -= n;
		if (cowstore_read(m->store, unsaved, n, block, err))
			return -1;
		for (size_t i = 0; i < n; i++)
			old_chunks[i] = block[n - 1 - i].old_chunk;
		if (cowstore_append(saves, old_chunks, n, err))
			return -1;
	}
	if (image_sync(saves->image, err))
		return -1;
	image_forget(saves->image);
	return 0;
}

/* --- commits --- */

/* A run of the batch, before it is cleared: for the record, for discarding. */
static void note_run(void *context, const struct run *run)
{
	struct merge *m = context;
	struct cowstore_record *record = &m->record;
	uint64_t every = m->seen / COWSTORE_SAMPLES + 1;

	/* Spread over the batch: the later ones replace earlier ones. */
	if (m->seen % every == 0)
		record->sample[m->seen / every % COWSTORE_SAMPLES] = *run;
	m->seen++;
	record->samples = at_most(m->seen, COWSTORE_SAMPLES);
	if (m->runs)
		m->runs[m->run_count++] = *run;
}

/* M5: the batch before the last is durably gone, and so is its sample. */
static int discard_gone(struct merge *m, struct error *err)
{
	uint64_t chunk = m->store->chunk_size;
	struct run *gone = m->gone;

	for (size_t i = 0; i < m->gone_count; i++)
		if (image_discard(m->store->image, gone[i].new_chunk * chunk,
				  gone[i].length * chunk, err))
			return -1;
	m->gone = m->runs;
	m->gone_count = m->run_count;
	m->runs = gone;
	m->run_count = 0;
	return 0;
}

/* After a commit; a failure here leaves nothing to be merged again. */
static int give_back(struct merge *m, struct error *err)
{
	if (!m->options->discard || m->goal == m->left)
		return 0;
	if (discard_gone(m, err))
		return -1;
	return m->goal ? 0 : discard_gone(m, err); /* no sample is needed */
}

/* Make the batch that was written permanent; the only place that clears. */
static int commit(struct merge *m, struct error *err)
{
	m->seen = 0;
	if (cowstore_runs(m->store, m->goal, m->left, note_run, m, err) ||
	    cowstore_clear(m->store, m->goal, &m->record, err) || /* M2 */
	    image_sync(m->store->image, err))			  /* M6 */
		return -1;
	image_forget(m->origin);
	return 0;
}

/* What must follow a pass before the next, or the commit, may begin. */
static int finish_pass(const struct merge *m, enum pass pass, struct error *err)
{
	switch (pass) {
	case PASS_SAVE:
		return keep_saved(m, err);
	case PASS_COPY:
		return image_sync(m->origin, err); /* M1, M6 */
	default:
		return 0;
	}
}

/* --- batches --- */

/* Until the deadline, less what the last commit took; 0 if it has come. */
static uint64_t time_left(const struct merge *m)
{
	uint64_t end = engine_now() + m->commit_time;

	if (!m->options->deadline)
		return UINT64_MAX;
	return end < m->options->deadline ? m->options->deadline - end : 0;
}

/* How far the next batch may reach if it is to be done by the deadline. */
static uint64_t next_goal(struct merge *m)
{
	uint64_t chunks = m->plan->batch_chunks, left = time_left(m);
	double pace = (double)engine_progress(&m->engine).committed /
		      (double)(engine_now() - m->begun);

	/* As space comes back, batches may grow. */
	if (m->options->discard)
		chunks = at_least(chunks, default_batch(m->origin, m->options) /
						  m->store->chunk_size);
	if (left != UINT64_MAX)
		chunks = at_most(chunks, (uint64_t)(pace * (double)left));
	return m->left - at_most(m->left, at_least(chunks, 1));
}

static void ask_to_stop(struct merge *m)
{
	m->stop = true;
	m->goal = engine_stop(&m->engine);
}

static void look_around(struct merge *m)
{
	struct copier_progress progress = engine_progress(&m->engine);

	if (m->tick(m->context, &progress) && !m->stop)
		ask_to_stop(m);
}

/* Wait for the end of the turn, with an eye on the clock and the caller. */
static int await_turn(struct merge *m, struct error *err)
{
	uint64_t deadline = m->options->deadline;
	uint64_t next_tick = engine_now() + TICK;
	int done;

	for (;;) {
		uint64_t when = next_tick;

		if (deadline && time_left(m))
			when = at_most(when, deadline);
		done = engine_await(&m->engine, when, err);
		if (done)
			return done < 0 ? -1 : 0;
		/* Each run does something, however late it is. */
		if (!time_left(m) && !m->stop && engine_begun(&m->engine))
			ask_to_stop(m);
		if (engine_now() >= next_tick) {
			look_around(m);
			next_tick = engine_now() + TICK;
		}
	}
}

/* All passes over one batch, and its commit. */
static int merge_batch(struct merge *m, struct error *err)
{
	uint64_t copied = engine_now();

	for (unsigned int i = 0; i < m->engine.pass_count; i++) {
		if (i)
			engine_next_pass(&m->engine);
		if (await_turn(m, err))
			return -1;
		if (m->goal == m->left) /* stopped before it was begun */
			return 0;
		copied = engine_now();
		if (finish_pass(m, m->engine.passes[i], err))
			return -1;
	}
	if (m->options->task == COPIER_MERGE && commit(m, err))
		return -1;
	m->commit_time = engine_now() - copied;
	return 0;
}

/* 0 when all is merged, 1 if stopped, -1 and *err. */
static int merge_batches(struct merge *m, struct error *err)
{
	for (;;) {
		if (merge_batch(m, err))
			return -1;
		if (m->options->task == COPIER_MERGE) {
			engine_end_batch(&m->engine);
			if (give_back(m, err))
				return -1;
		}
		m->left = m->goal;
		look_around(m);
		if (!m->left || m->stop || !time_left(m))
			return m->left != 0;
		m->goal = engine_next_batch(&m->engine, next_goal(m));
	}
}

static void plan_passes(struct merge *m)
{
	struct engine *e = &m->engine;

	if (m->undo)
		e->passes[e->pass_count++] = PASS_SAVE;
	e->passes[e->pass_count++] = m->options->task == COPIER_COUNT
					     ? PASS_COUNT
					     : PASS_COPY;
	if (m->options->verify)
		e->passes[e->pass_count++] = PASS_COMPARE;
}

static int alloc_runs(struct merge *m, struct error *err)
{
	uint64_t most = at_least(m->plan->batch_chunks,
				 DISCARD_BATCH / m->store->chunk_size);
	size_t size = (size_t)at_most(most, m->left) * sizeof(struct run);

	if (!m->options->discard)
		return 0;
	m->runs = malloc(size);
	m->gone = malloc(size);
	if (m->runs && m->gone)
		return 0;
	return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
			 "cannot note what to discard");
}

int copier_merge(struct cowstore *store, const struct image *origin,
		 struct copier_undo *undo, const struct copier_options *options,
		 const struct copier_plan *plan, copier_tick *tick,
		 void *context, struct copier_progress *progress,
		 struct error *err)
{
	struct merge m = {
		.engine = { .store = store,
			    .origin = origin,
			    .undo = undo ? &undo->store : NULL,
			    .unsaved = undo ? undo->unsaved : 0,
			    .options = options,
			    .plan = plan,
			    .progress = progress },
		.store = store,
		.origin = origin,
		.undo = undo,
		.options = options,
		.plan = plan,
		.tick = tick,
		.context = context,
		.begun = engine_now(),
		.left = store->exceptions,
		.record = { .origin_size = origin->size,
			    .total = store->exceptions },
	};
	int result = -1;

	*progress = (struct copier_progress){ .exceptions = m.left };
	if (store->half_merged) {
		m.record.total = store->record.total;
		progress->before = m.record.total - m.left;
	}
	if (undo) /* it knows the whole merge, also if the record is void */
		m.record.total = m.engine.undo_end = undo->store.exceptions +
						     undo->unsaved;
	m.goal = m.left - at_most(m.left, plan->batch_chunks);
	if (!m.left) /* nothing to copy, but perhaps to scrub */
		return (store->stale || store->recorded) &&
				       options->task == COPIER_MERGE
			       ? commit(&m, err)
			       : 0;
	plan_passes(&m);
	if (alloc_runs(&m, err))
		goto out;
	if (plan->direct && options->task != COPIER_COUNT)
		image_write_direct(origin);
	if (engine_open(&m.engine, m.left, m.goal, err)) /* M4 */
		goto out;
	result = merge_batches(&m, err);
	engine_close(&m.engine);
	image_forget(store->image);
out:
	free(m.gone);
	free(m.runs);
	return result;
}
