/*
 * verify.c - what makes a table sound
 *
 * A room of its own because it needs no byte of the format: it looks at decoded
 * exceptions, one walk after another, and judges what they name. A table that
 * passes can be merged: no chunk is outside its side, none is metadata, none is
 * named twice. Memory is fixed; a bitmap covers a window of the chunks there
 * are, and further walks move it on. The contract is in cowstore.h.
 */
#include "cowstore.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The kernel would read them as the length of a run. */
#define RESERVED_BITS (UINT64_C(0xff) << 56)

/*
 * Chunks that one walk can tell apart, by 10 MiB of bitmap: 320 GiB of 4 KiB
 * chunks.
 */
#define WINDOW (UINT64_C(80) << 20)

/* What must be told apart on one side of the table: its chunks, once each. */
struct side {
	uint64_t *bits; /* WINDOW of them, or as many as there are chunks */
	uint64_t chunks;
	uint64_t base; /* chunk of the first bit */
	uint64_t next; /* lowest chunk seen behind the window */
	const char *name;
};

static uint64_t window(const struct side *side)
{
	return side->chunks < WINDOW ? side->chunks : WINDOW;
}

/* Chunks of an origin, the last of which may be cut off. */
static uint64_t chunks_of(const struct cowstore *store, uint64_t origin_size)
{
	return origin_size / store->chunk_size +
	       (origin_size % store->chunk_size != 0);
}

static int side_open(struct side *side, const char *name, uint64_t chunks,
		     struct error *err)
{
	*side = (struct side){ .name = name, .chunks = chunks };
	side->next = UINT64_MAX;
	side->bits = calloc((size_t)(window(side) / 64 + 1), sizeof(uint64_t));
	if (!side->bits)
		return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
				 "cannot verify the table");
	return 0;
}

/* Move to the lowest chunk not looked at yet; whether there is one. */
static bool side_advance(struct side *side)
{
	bool more = side->next != UINT64_MAX;

	side->base = side->next; /* an empty window if there is none */
	side->next = UINT64_MAX;
	if (more)
		memset(side->bits, 0,
		       (size_t)(window(side) / 64 + 1) * sizeof(uint64_t));
	return more;
}

static bool advance_both(struct side *a, struct side *b)
{
	bool more_a = side_advance(a), more_b = side_advance(b);

	return more_a || more_b;
}

/* Note that the table names chunk; whether it did so before. */
static bool side_seen(struct side *side, uint64_t chunk)
{
	uint64_t bit = chunk - side->base, mask;

	if (chunk < side->base)
		return false;
	if (bit >= window(side)) {
		if (chunk < side->next)
			side->next = chunk;
		return false;
	}
	mask = UINT64_C(1) << bit % 64;
	if (side->bits[bit / 64] & mask)
		return true;
	side->bits[bit / 64] |= mask;
	return false;
}

static void find(struct findings *found, const struct cowstore *store,
		 uint64_t number, const struct side *side, uint64_t chunk,
		 const char *what)
{
	if (found->count++ < COWSTORE_FINDINGS)
		error_set(&found->first[found->count - 1], ERROR_REFUSED, 0,
			  store->image->path,
			  "exception %" PRIu64 ": %s chunk %" PRIu64
			  " %s (the %s has %" PRIu64 " chunks)",
			  number, side->name, chunk, what, side->name,
			  side->chunks);
}

/* Whether an exception names chunks that data can be in. */
static bool check_bounds(const struct cowstore *store, uint64_t number,
			 const struct exception *ex, const struct side *origin,
			 const struct side *cow, struct findings *found)
{
	uint64_t before = found->count;

	if (ex->new_chunk & RESERVED_BITS)
		find(found, store, number, cow, ex->new_chunk,
		     "has reserved bits (56 to 63) set");
	else if (ex->new_chunk >= cow->chunks)
		find(found, store, number, cow, ex->new_chunk,
		     "is past the end");
	else if (cowstore_is_metadata(store, ex->new_chunk))
		find(found, store, number, cow, ex->new_chunk,
		     "is a metadata area");
	if (ex->old_chunk >= origin->chunks)
		find(found, store, number, origin, ex->old_chunk,
		     "is past the end");
	return found->count == before;
}

/* Learn the table's shape; prev is the exception before ex, if any. */
static void survey(struct cowstore *store, const struct exception *prev,
		   const struct exception *ex)
{
	uint64_t step = prev ? ex->old_chunk - prev->old_chunk : 0;

	if (step != 1 || ex->new_chunk - prev->new_chunk != 1)
		store->runs++;
	if (step != 1 && step != UINT64_MAX)
		store->origin_runs++;
	if (ex->new_chunk > store->last_new_chunk)
		store->last_new_chunk = ex->new_chunk;
	if (ex->old_chunk > store->last_old_chunk)
		store->last_old_chunk = ex->old_chunk;
	if (ex->old_chunk < store->first_old_chunk)
		store->first_old_chunk = ex->old_chunk;
}

/* Walk once and look for chunks that the sides' windows have seen before. */
static int check_table(struct cowstore *store, bool first, struct side *origin,
		       struct side *cow, struct findings *found,
		       struct error *err)
{
	static const char twice[] = "is named twice";
	struct exception prev = { 0 };
	struct cowstore_walk w;
	int more;

	cowstore_walk_begin(&w, store, 0, UINT64_MAX);
	while ((more = cowstore_walk_next(&w, err)) > 0) {
		for (size_t i = 0; i < w.count; i++) {
			const struct exception *ex = &w.block[i];
			uint64_t number = w.first + i;

			if (first) {
				survey(store, number ? &prev : NULL, ex);
				prev = *ex;
				if (!check_bounds(store, number, ex, origin,
						  cow, found))
					continue;
			}
			if (side_seen(cow, ex->new_chunk))
				find(found, store, number, cow, ex->new_chunk,
				     twice);
			if (side_seen(origin, ex->old_chunk))
				find(found, store, number, origin,
				     ex->old_chunk, twice);
		}
	}
	if (!more && first)
		more = cowstore_settle(store, &w, err);
	return more;
}

int cowstore_verify(struct cowstore *store, uint64_t origin_size,
		    struct findings *found, struct error *err)
{
	struct cowstore verified = {
		.image = store->image,
		.version = store->version,
		.valid = store->valid,
		.chunk_size = store->chunk_size,
		.chunks = store->chunks,
		.first_old_chunk = UINT64_MAX,
	};
	struct side origin = { 0 }, cow = { 0 };
	int result = -1;

	found->count = 0;
	if (side_open(&origin, "origin", chunks_of(store, origin_size), err) ||
	    side_open(&cow, "COW", store->chunks, err))
		goto out;
	if (check_table(&verified, true, &origin, &cow, found, err))
		goto out;
	/* One more walk for each window of chunks that the table names. */
	while (!found->count && advance_both(&origin, &cow))
		if (check_table(&verified, false, &origin, &cow, found, err))
			goto out;
	*store = verified;
	result = 0;
out:
	free(cow.bits);
	free(origin.bits);
	return result;
}

/* Walk the first count exceptions of store past the window of origin. */
static int see_all(const struct cowstore *store, uint64_t count,
		   struct side *origin, bool *twice, uint64_t *chunk,
		   struct error *err)
{
	struct cowstore_walk w;
	int more = 0;

	cowstore_walk_begin(&w, store, 0, count);
	while (!*twice && (more = cowstore_walk_next(&w, err)) > 0) {
		for (size_t i = 0; i < w.count && !*twice; i++) {
			*chunk = w.block[i].old_chunk;
			*twice = side_seen(origin, *chunk);
		}
	}
	return more < 0 ? -1 : 0;
}

int cowstore_disjoint(const struct cowstore *store, uint64_t count,
		      const struct cowstore *other, uint64_t origin_size,
		      struct error *err)
{
	struct side origin;
	uint64_t chunk = 0;
	bool twice = false;
	int result = -1;

	if (side_open(&origin, "origin", chunks_of(store, origin_size), err))
		return -1;
	do {
		if (see_all(store, count, &origin, &twice, &chunk, err) ||
		    see_all(other, other->exceptions, &origin, &twice, &chunk,
			    err))
			goto out;
	} while (!twice && side_advance(&origin));
	result = 0;
	if (twice)
		result = error_set(err, ERROR_REFUSED, 0, other->image->path,
				   "holds origin chunk %" PRIu64
				   " already, from another merge",
				   chunk);
out:
	free(origin.bits);
	return result;
}
