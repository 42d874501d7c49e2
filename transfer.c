/*
 * transfer.c - one slice of a turn, by one worker
 *
 * A room of its own because it alone knows how chunks get from one image to
 * another fast: in few large reads, in ascending gathered writes, by shared
 * blocks where that is possible. It knows nothing of other workers, of locks
 * or of turns. A chunk too large for a buffer travels in pieces, one slice
 * each.
 */
#include "transfer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The longest gap in the COW that is read through. */
#define MAX_GAP (64 * UINT64_C(1024))

/* POSIX promises 16, Linux gives 1024. */
#define MAX_IOV 1024

enum pass transfer_pass(const struct worker *w)
{
	return w->engine->passes[w->slice.pass];
}

static uint64_t offset_of(const struct worker *w, uint64_t chunk)
{
	return chunk * w->engine->store->chunk_size + w->slice.piece;
}

/* The part of a chunk that lies inside the image: its last may be cut off. */
static size_t inside(const struct worker *w, const struct image *img,
		     uint64_t chunk)
{
	uint64_t offset = offset_of(w, chunk);

	if (offset >= img->size)
		return 0;
	return (size_t)at_most(w->engine->plan->unit, img->size - offset);
}

static int by_from(const void *a, const void *b)
{
	const struct move *x = a, *y = b;

	return (x->from > y->from) - (x->from < y->from);
}

static int by_to(const void *a, const void *b)
{
	const struct move *x = a, *y = b;

	return (x->to > y->to) - (x->to < y->to);
}

/* Tables are usually in order already. */
static void sort(struct worker *w, int (*compare)(const void *, const void *))
{
	for (size_t i = 1; i < w->count; i++) {
		if (compare(&w->moves[i - 1], &w->moves[i]) > 0) {
			qsort(w->moves, w->count, sizeof(*w->moves), compare);
			return;
		}
	}
}

/* What a buffer holds beside data: gaps. */
static size_t slack(const struct copier_plan *plan)
{
	return (plan->buffer / 16 / IMAGE_ALIGNMENT + 1) * IMAGE_ALIGNMENT;
}

/*
 * Whether the origin is read through the page cache, many chunks at a time:
 * what is going to be overwritten, where it is scattered. What is compared
 * comes from the medium: after a failed sync the page cache may hold what was
 * never written.
 */
static bool reads_cached(const struct worker *w)
{
	return transfer_pass(w) == PASS_SAVE && !w->engine->plan->direct;
}

static int read_origin(const struct worker *w, void *buf, size_t len,
		       uint64_t offset, struct error *err)
{
	const struct image *origin = w->engine->origin;

	if (reads_cached(w))
		return image_read(origin, buf, len, offset, err);
	return image_read_medium(origin, buf, len, offset, err);
}

/* Start reading what the moves come from. */
static void prefetch_origin(const struct worker *w)
{
	const struct image *origin = w->engine->origin;

	for (size_t i = 0; reads_cached(w) && i < w->count; i++)
		image_prefetch(origin, offset_of(w, w->moves[i].from),
			       inside(w, origin, w->moves[i].from));
}

/*
 * Read the moves' data from the COW in the order in which it lies there, by few
 * large reads that include small gaps.
 */
static int load_cow(struct worker *w, struct error *err)
{
	const struct engine *e = w->engine;
	uint64_t chunk = e->store->chunk_size;
	size_t spare = slack(e->plan), used = 0, done = 0;

	sort(w, by_from);
	while (done < w->count) {
		struct move *mv = &w->moves[done];
		size_t len = 0, n = 0;

		do {
			uint64_t gap = (mv[n].from - mv->from) * chunk - len;

			if (gap > MAX_GAP || gap > spare)
				break;
			spare -= (size_t)gap;
			len += (size_t)gap;
			mv[n++].data = w->buffer + used + len;
			len += e->plan->unit;
		} while (done + n < w->count);
		if (image_read_medium(e->store->image, w->buffer + used, len,
				      offset_of(w, mv->from), err))
			return -1;
		used += len;
		done += n;
	}
	return 0;
}

/* How many moves from here on name rising chunks, by from or by to. */
static size_t run_length(const struct worker *w, size_t done, bool to)
{
	const struct move *mv = &w->moves[done];
	size_t n = 1;

	while (done + n < w->count &&
	       (to ? mv[n].to - mv->to : mv[n].from - mv->from) == n)
		n++;
	return n;
}

/* Bytes of the origin that a run of n chunks from chunk on covers. */
static size_t run_bytes(const struct worker *w, uint64_t chunk, size_t n)
{
	return (n - 1) * w->engine->plan->unit +
	       inside(w, w->engine->origin, chunk + n - 1);
}

/* Read the moves' data from the origin; what a cut-off chunk lacks is 0. */
static int load_origin(struct worker *w, struct error *err)
{
	size_t unit = w->engine->plan->unit, n;

	sort(w, by_from);
	prefetch_origin(w);
	for (size_t done = 0; done < w->count; done += n) {
		struct move *mv = &w->moves[done];
		uint8_t *at = w->buffer + done * unit;
		size_t len;

		n = run_length(w, done, false);
		len = run_bytes(w, mv->from, n);
		if (read_origin(w, at, len, offset_of(w, mv->from), err))
			return -1;
		memset(at + len, 0, n * unit - len);
		for (size_t i = 0; i < n; i++)
			mv[i].data = at + i * unit;
	}
	return 0;
}

/* Gather moves that adjoin in the image; how many is returned. */
static size_t gather(const struct worker *w, const struct image *img,
		     size_t done, struct iovec *iov, int *count)
{
	const struct move *mv = &w->moves[done];
	size_t limit = run_length(w, done, true), n = 0;

	*count = 0;
	do {
		struct iovec *last = &iov[*count ? *count - 1 : 0];
		size_t len = inside(w, img, mv[n].to);

		if (*count &&
		    (uint8_t *)last->iov_base + last->iov_len == mv[n].data)
			last->iov_len += len;
		else
			iov[(*count)++] = (struct iovec){ mv[n].data, len };
		n++;
	} while (n < limit && *count < MAX_IOV);
	return n;
}

/* Write the moves' data in the order of the image, runs as one. */
static int store(struct worker *w, const struct image *img, struct error *err)
{
	struct iovec iov[MAX_IOV];
	size_t done = 0;

	sort(w, by_to);
	while (done < w->count) {
		uint64_t offset = offset_of(w, w->moves[done].to);
		int count;

		done += gather(w, img, done, iov, &count);
		if (iov[0].iov_len && image_write(img, iov, count, offset, err))
			return -1;
	}
	return 0;
}

/* Share blocks with the origin; n chunks that rise on both sides. */
static int share_run(const struct worker *w, const struct move *mv, size_t n,
		     struct error *err)
{
	const struct engine *e = w->engine;
	int refused = image_clone(e->origin, offset_of(w, mv->to),
				  e->store->image, offset_of(w, mv->from),
				  n * e->plan->unit, err);

	if (refused > 0 && e->options->reflink == REFLINK_ALWAYS)
		return error_set(err, ERROR_SYSTEM, EINVAL, e->origin->path,
				 "cannot share blocks with the COW");
	return refused;
}

/*
 * Share the blocks of the moves instead of copying them, and keep those moves
 * for which that cannot be: the origin's last chunk if it is cut off.
 */
static int share(struct worker *w, struct error *err)
{
	size_t unit = w->engine->plan->unit, kept = 0, done = 0;

	sort(w, by_from);
	while (done < w->count) {
		const struct move *mv = &w->moves[done];
		size_t n = 0;
		int refused = 1;

		while (done + n < w->count && mv[n].from - mv->from == n &&
		       mv[n].to - mv->to == n &&
		       inside(w, w->engine->origin, mv[n].to) == unit)
			n++;
		if (n)
			refused = share_run(w, mv, n, err);
		if (refused < 0)
			return -1;
		for (n += !n; n--; done++)
			if (refused)
				w->moves[kept++] = w->moves[done];
	}
	w->count = kept;
	return 0;
}

static int differs(const struct worker *w, uint64_t chunk, struct error *err)
{
	const struct image *origin = w->engine->origin;

	error_set(err, ERROR_SYSTEM, EIO, origin->path,
		  "chunk %llu, %zu bytes at offset %llu, does not read back "
		  "as it was written",
		  (unsigned long long)chunk, inside(w, origin, chunk),
		  (unsigned long long)offset_of(w, chunk));
	err->has_offset = true;
	err->offset = offset_of(w, chunk);
	return -1;
}

/*
 * Compare the moves' data with what the origin holds, and drop the moves that
 * it holds already; in PASS_COMPARE it must hold all.
 */
static int compare(struct worker *w, struct error *err)
{
	size_t unit = w->engine->plan->unit, kept = 0, n;

	sort(w, by_to);
	for (size_t done = 0; done < w->count; done += n) {
		uint64_t first = w->moves[done].to;

		n = run_length(w, done, true);
		if (read_origin(w, w->other, run_bytes(w, first, n),
				offset_of(w, first), err))
			return -1;
		for (size_t i = 0; i < n; i++) {
			const struct move *mv = &w->moves[done + i];

			if (!memcmp(w->other + i * unit, mv->data,
				    inside(w, w->engine->origin, mv->to)))
				continue;
			if (transfer_pass(w) == PASS_COMPARE)
				return differs(w, mv->to, err);
			w->moves[kept++] = *mv;
		}
	}
	w->count = kept;
	return 0;
}

/* The slice's exceptions as moves of its pass. */
static int plan_moves(struct worker *w, struct error *err)
{
	const struct engine *e = w->engine;
	const struct slice *s = &w->slice;

	w->count = s->count;
	if (transfer_pass(w) == PASS_SAVE)
		w->count = (size_t)at_most(
			w->count, e->unsaved - at_most(s->first, e->unsaved));
	if (cowstore_read(e->store, s->first, w->count, w->exceptions, err))
		return -1;
	for (size_t i = 0; i < w->count; i++) {
		const struct exception *ex = &w->exceptions[i];
		struct move *mv = &w->moves[i];

		*mv = (struct move){ .from = ex->new_chunk,
				     .to = ex->old_chunk };
		if (transfer_pass(w) == PASS_SAVE)
			*mv = (struct move){
				.from = ex->old_chunk,
				.to = cowstore_data_chunk(
					e->undo, e->undo_end - 1 - s->first - i)
			};
	}
	return 0;
}

int transfer_prepare(struct worker *w, struct error *err)
{
	const struct engine *e = w->engine;

	if (plan_moves(w, err))
		return -1;
	switch (transfer_pass(w)) {
	case PASS_SAVE:
		return load_origin(w, err);
	case PASS_COPY:
		if (e->options->skip_identical)
			return load_cow(w, err) || compare(w, err) ? -1 : 0;
		return e->plan->clone ? 0 : load_cow(w, err);
	default:
		return load_cow(w, err);
	}
}

int transfer_deliver(struct worker *w, struct error *err)
{
	const struct engine *e = w->engine;

	switch (transfer_pass(w)) {
	case PASS_SAVE:
		return store(w, e->undo->image, err);
	case PASS_COPY:
		if (e->plan->clone && (share(w, err) || load_cow(w, err)))
			return -1;
		return store(w, e->origin, err);
	default:
		return compare(w, err);
	}
}

static bool compares(const struct engine *e)
{
	bool does = e->options->skip_identical;

	for (unsigned int i = 0; i < e->pass_count; i++)
		does |= e->passes[i] == PASS_COMPARE ||
			e->passes[i] == PASS_COUNT;
	return does;
}

size_t transfer_memory(const struct engine *e)
{
	return e->plan->buffer + slack(e->plan) +
	       (compares(e) ? e->plan->buffer : 0);
}

void transfer_close(struct worker *w)
{
	free(w->moves);
	free(w->exceptions);
}

bool transfer_open(struct worker *w, struct engine *e, uint8_t *memory)
{
	size_t count = e->plan->buffer / e->plan->unit;

	w->engine = e;
	w->other = memory;
	w->buffer = memory + (compares(e) ? e->plan->buffer : 0);
	w->exceptions = malloc(count * sizeof(*w->exceptions));
	w->moves = malloc(count * sizeof(*w->moves));
	return w->exceptions && w->moves;
}
