/*
 * cowstore.c - the on-disk format of persistent dm-snapshot stores
 *
 * The COW is an array of chunks; all numbers on it are little-endian. Chunk 0
 * holds a header of 16 bytes. Behind it, a metadata area of one chunk and as
 * many data chunks as the area has entries alternate:
 *
 *   chunk   0       1       2 .. E+1   E+2     E+3 .. 2E+2   ...
 *           header  area 0  data       area 1  data
 *
 * with E = chunk size / 16, so that chunk c > 0 is an area exactly when
 * c mod (E + 1) is 1. An entry is an exception: old chunk (in the origin) and
 * new chunk (in the COW), 8 bytes each. The table ends at the first entry, in
 * the order of the areas, whose new chunk is 0; an area without one is full
 * and continues in the next. Nothing carries a checksum, a count or a name of
 * the origin, so everything that can be checked is checked here.
 *
 * Since readers stop at the first empty entry, each prefix of the table is a
 * sound store, and zeroing entries from the end shortens it. An entry never
 * straddles a 512-byte sector: a torn write leaves old entries or empty ones,
 * never mixtures. What lies behind the first empty entry is not read, but the
 * kernel, which rewrites whole areas, would bring such leftovers of a torn
 * write in the last area back to life as soon as it appends: hence they are
 * counted, and zeroed with the first commit. Whole areas behind the last are
 * wiped by the kernel before it uses them; old bytes there are normal.
 */
#include "cowstore.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR	      512u
#define MAGIC	      0x70416e53u /* "SnAp" */
#define VERSION	      1u
#define MAX_SECTORS   2097152u /* 1 GiB */
#define RESERVED_BITS (UINT64_C(0xff) << 56)

struct disk_header {
	uint8_t magic[4], valid[4], version[4], chunk_size[4];
};
_Static_assert(sizeof(struct disk_header) == 16, "header is 16 bytes");

struct disk_exception {
	uint8_t old_chunk[8], new_chunk[8];
};
_Static_assert(sizeof(struct disk_exception) == 16, "exception is 16 bytes");
_Static_assert(sizeof(struct exception) == sizeof(struct disk_exception),
	       "exceptions are decoded where they were read");

/* Entries read or zeroed by one call: 64 KiB. */
#define BLOCK 4096

/* Areas that are fetched ahead of a walk. */
#define AHEAD 256

/*
 * Chunks that one walk can tell apart, by 10 MiB of bitmap: 320 GiB of 4 KiB
 * chunks.
 */
#define WINDOW (UINT64_C(80) << 20)

static uint32_t get_le32(const uint8_t p[4])
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	       (uint32_t)p[3] << 24;
}

static uint64_t get_le64(const uint8_t p[8])
{
	return get_le32(p) | (uint64_t)get_le32(p + 4) << 32;
}

static uint64_t entries_per_area(const struct cowstore *store)
{
	return store->chunk_size / sizeof(struct disk_exception);
}

static uint64_t area_chunk(const struct cowstore *store, uint64_t area)
{
	return 1 + area * (entries_per_area(store) + 1);
}

/* Areas that lie wholly inside the COW. */
static uint64_t areas(const struct cowstore *store)
{
	if (store->chunks < 2)
		return 0;
	return (store->chunks - 2) / (entries_per_area(store) + 1) + 1;
}

/* Where an entry lies, in bytes; n counts over all areas. */
static uint64_t entry_offset(const struct cowstore *store, uint64_t n)
{
	uint64_t e = entries_per_area(store);

	return area_chunk(store, n / e) * store->chunk_size +
	       n % e * sizeof(struct disk_exception);
}

static bool is_metadata(const struct cowstore *store, uint64_t chunk)
{
	return chunk % (entries_per_area(store) + 1) == 1;
}

static int refuse(struct error *err, const struct cowstore *store,
		  const char *what)
{
	return error_set(err, ERROR_REFUSED, 0, store->image->path, "%s", what);
}

/* In the order in which the kernel would object. */
static int check_header(struct cowstore *store, const struct disk_header *disk,
			bool accept_invalid, struct error *err)
{
	uint32_t magic = get_le32(disk->magic);
	uint32_t sectors = get_le32(disk->chunk_size);

	store->version = get_le32(disk->version);
	store->valid = get_le32(disk->valid) != 0;
	if (!magic)
		return refuse(err, store,
			      "blank: nothing was ever written to this store");
	if (magic != MAGIC)
		return refuse(err, store,
			      "not a persistent snapshot store: no magic");
	if (!sectors || sectors > MAX_SECTORS || (sectors & (sectors - 1)))
		return error_set(err, ERROR_REFUSED, 0, store->image->path,
				 "chunk size of %" PRIu32 " sectors is not a "
				 "power of two from 1 to %u",
				 sectors, MAX_SECTORS);
	if (store->version != VERSION)
		return error_set(err, ERROR_REFUSED, 0, store->image->path,
				 "version %" PRIu32 " of the store is not %u",
				 store->version, VERSION);
	if (!store->valid && !accept_invalid)
		return refuse(err, store,
			      "invalid: the kernel gave this snapshot up "
			      "(it overflowed or failed), chunks are missing");
	store->chunk_size = (uint64_t)sectors * SECTOR;
	store->chunks = store->image->size / store->chunk_size;
	if (!areas(store))
		return error_set(err, ERROR_REFUSED, 0, store->image->path,
				 "metadata area 0 ends at byte %" PRIu64
				 ", past the end of the COW (%" PRIu64
				 " bytes)",
				 2 * store->chunk_size, store->image->size);
	return 0;
}

int cowstore_open(struct cowstore *store, const struct image *image,
		  bool accept_invalid, struct error *err)
{
	struct cowstore opened = { .image = image };
	struct disk_header disk;

	if (image->size < sizeof(disk))
		return refuse(err, &opened,
			      "not a persistent snapshot store: too small");
	if (image_read(image, &disk, sizeof(disk), 0, err))
		return -1;
	if (check_header(&opened, &disk, accept_invalid, err))
		return -1;
	*store = opened;
	return 0;
}

/* Read entries [first, first + count), all in one area, and decode in place. */
static int read_entries(const struct cowstore *store, uint64_t first,
			size_t count, struct exception *out, struct error *err)
{
	if (image_read(store->image, out, count * sizeof(*out),
		       entry_offset(store, first), err))
		return -1;
	for (size_t i = 0; i < count; i++) {
		struct disk_exception disk;

		memcpy(&disk, &out[i], sizeof(disk));
		out[i].old_chunk = get_le64(disk.old_chunk);
		out[i].new_chunk = get_le64(disk.new_chunk);
	}
	return 0;
}

/* How many of the entries [first, end) lie in first's area. */
static size_t within_area(const struct cowstore *store, uint64_t first,
			  uint64_t end)
{
	uint64_t e = entries_per_area(store);
	uint64_t left = e - first % e;

	return (size_t)(end - first < left ? end - first : left);
}

int cowstore_read(const struct cowstore *store, uint64_t first, size_t count,
		  struct exception *out, struct error *err)
{
	uint64_t end = first + count;

	while (first < end) {
		size_t n = within_area(store, first, end);

		if (read_entries(store, first, n, out, err))
			return -1;
		first += n;
		out += n;
	}
	return 0;
}

/*
 * A walk over the table from its start to its end, a block at a time.
 */
struct walk {
	const struct cowstore *store;
	struct exception *block; /* BLOCK entries */
	size_t count;		 /* live ones among them */
	uint64_t first;		 /* number of block[0] */
	uint64_t next;		 /* number of the first entry not yet read */
	uint64_t fetched;	 /* areas asked for ahead */
	bool ended;		 /* the table's end was seen */
};

/* The farther the table reaches, the farther ahead it is fetched. */
static void fetch_ahead(struct walk *w, uint64_t area)
{
	uint64_t until = area + (area < AHEAD ? area : AHEAD) + 1;

	if (until > areas(w->store))
		until = areas(w->store);
	for (; w->fetched < until; w->fetched++)
		image_prefetch(w->store->image,
			       area_chunk(w->store, w->fetched) *
				       w->store->chunk_size,
			       w->store->chunk_size);
}

/* 1: w->block has exceptions; 0: the table has ended; -1 and *err. */
static int walk_next(struct walk *w, struct error *err)
{
	uint64_t e = entries_per_area(w->store);
	size_t n;

	if (w->ended || w->next / e >= areas(w->store))
		return 0;
	if (w->next % e == 0)
		fetch_ahead(w, w->next / e);
	n = within_area(w->store, w->next, w->next + BLOCK);
	if (read_entries(w->store, w->next, n, w->block, err))
		return -1;
	w->first = w->next;
	w->next += n;
	for (w->count = 0; w->count < n; w->count++) {
		if (!w->block[w->count].new_chunk) {
			w->ended = true;
			break;
		}
	}
	return w->count != 0;
}

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
	else if (is_metadata(store, ex->new_chunk))
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
static int check_table(struct cowstore *store, struct walk *w, bool first,
		       struct side *origin, struct side *cow,
		       struct findings *found, struct error *err)
{
	static const char twice[] = "is named twice";
	struct exception prev = { 0 };
	int more;

	*w = (struct walk){ .store = store, .block = w->block };
	while ((more = walk_next(w, err)) > 0) {
		for (size_t i = 0; i < w->count; i++) {
			const struct exception *ex = &w->block[i];
			uint64_t number = w->first + i;

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
		store->exceptions = w->first + w->count;
	}
	store->no_end = !w->ended;
	return more;
}

/* Count what is not zero between the table's end and the end of its area. */
static int find_stale(struct cowstore *store, struct walk *w, struct error *err)
{
	uint64_t e = entries_per_area(store);
	uint64_t at = store->exceptions;
	uint64_t end = (at / e + 1) * e;

	store->scrub_end = at;
	if (store->no_end)
		return 0;
	while (at < end) {
		size_t n = within_area(store, at,
				       end - at < BLOCK ? end : at + BLOCK);

		if (read_entries(store, at, n, w->block, err))
			return -1;
		for (size_t i = 0; i < n; i++) {
			if (!w->block[i].old_chunk && !w->block[i].new_chunk)
				continue;
			store->stale++;
			store->scrub_end = at + i + 1;
		}
		at += n;
	}
	return 0;
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
	struct walk w = { .store = store };
	struct side origin = { 0 }, cow = { 0 };
	int result = -1;

	found->count = 0;
	w.block = malloc(BLOCK * sizeof(*w.block));
	if (!w.block)
		return error_set(err, ERROR_SYSTEM, ENOMEM, NULL,
				 "cannot verify the table");
	if (side_open(&origin, "origin",
		      origin_size / store->chunk_size +
			      (origin_size % store->chunk_size != 0),
		      err) ||
	    side_open(&cow, "COW", store->chunks, err))
		goto out;
	if (check_table(&verified, &w, true, &origin, &cow, found, err) ||
	    find_stale(&verified, &w, err))
		goto out;
	/* One more walk for each window of chunks that the table names. */
	while (!found->count && (side_advance(&origin) | side_advance(&cow)))
		if (check_table(&verified, &w, false, &origin, &cow, found,
				err))
			goto out;
	*store = verified;
	result = 0;
out:
	free(cow.bits);
	free(origin.bits);
	free(w.block);
	return result;
}

int cowstore_clear(struct cowstore *store, uint64_t keep, struct error *err)
{
	static uint8_t zeros[BLOCK * sizeof(struct disk_exception)];
	uint64_t e = entries_per_area(store);
	uint64_t end = store->scrub_end > store->exceptions ? store->scrub_end
							    : store->exceptions;

	/* M2: backwards, area by area. */
	while (end > keep) {
		uint64_t first = (end - 1) / e * e;
		struct iovec iov = { .iov_base = zeros };

		if (end - first > BLOCK)
			first = end - BLOCK;
		if (first < keep)
			first = keep;
		iov.iov_len = (size_t)(end - first) *
			      sizeof(struct disk_exception);
		if (image_write(store->image, &iov, 1,
				entry_offset(store, first), err))
			return -1;
		end = first;
	}
	store->exceptions = store->scrub_end = keep;
	store->stale = 0;
	return 0;
}

void cowstore_status(const struct cowstore *store,
		     struct cowstore_status *status)
{
	uint64_t sectors = store->chunk_size / SECTOR;
	uint64_t next = (store->last_new_chunk ? store->last_new_chunk : 1) + 1;

	if (is_metadata(store, next))
		next++;
	status->allocated_sectors = next * sectors;
	status->total_sectors = store->image->size / SECTOR;
	status->metadata_sectors =
		(store->exceptions / entries_per_area(store) + 2) * sectors;
}
