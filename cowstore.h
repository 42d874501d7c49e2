/*
 * cowstore.h - the persistent snapshot store
 *
 * Opening, verifying, reading and shortening the exception table of a COW, and
 * making stores of our own.
 * Facts about the format come from the kernel's dm-snap-persistent.c and are
 * told in the essay on top of cowstore.c.
 *
 * A chunk number is an index, chunk_size bytes each; an exception's number is
 * its position in the table, from 0, over all metadata areas.
 */
#ifndef COWSTORE_H
#define COWSTORE_H

#include "image.h"

struct exception {
	uint64_t old_chunk; /* in the origin */
	uint64_t new_chunk; /* in the COW */
};

struct run {
	uint64_t old_chunk, new_chunk; /* of its first exception */
	uint64_t length;	       /* in chunks; both sides rise by one */
};

/*
 * What snapmerge notes in the unused part of the header chunk while a merge is
 * under way, and takes away when it ends. It is believed only if it was
 * written for exactly the table that is there.
 */
#define COWSTORE_SAMPLES 18
struct cowstore_record {
	uint64_t origin_size; /* bytes */
	uint64_t total;	      /* exceptions when the merge began */
	uint64_t samples;     /* how many there are of: */
	struct run sample[COWSTORE_SAMPLES]; /* from the last commit */
};

struct cowstore {
	const struct image *image; /* borrowed */
	uint32_t version;
	bool valid;	     /* false: the kernel gave the snapshot up */
	uint64_t chunk_size; /* bytes: a power of two, 512 B to 1 GiB */
	uint64_t chunks;     /* whole chunks that the COW holds */

	/* What cowstore_verify() found, kept up to date by cowstore_clear(). */
	uint64_t exceptions; /* live ones */
	uint64_t stale;	     /* entries behind the table's end that are not 0 */
	uint64_t scrub_end;  /* entries from here to the area's end are 0 */
	bool no_end;	     /* the last area is full and the last that fits */

	/* Whether a record may be kept, stands there, and can be believed. */
	bool may_record, recorded, half_merged;
	struct cowstore_record record; /* if half_merged */

	/* Facts about the table as it was when it was verified. */
	uint64_t runs;	      /* inside one, both chunks rise by one */
	uint64_t origin_runs; /* the old chunk alone rises or falls by one */
	uint64_t first_old_chunk, last_old_chunk; /* lowest and highest */
	uint64_t last_new_chunk;		  /* highest, 0 if none */
};

/*
 * Read and check the header of image, which must outlive *store. With
 * accept_invalid an invalidated store is opened too. Writes nothing.
 *
 * 0, or -1 and *err: ERROR_REFUSED for what is no store that can be merged
 * (blank, foreign, other version, impossible chunk size, no room for a table,
 * invalid), ERROR_SYSTEM if it could not be read.
 */
int cowstore_open(struct cowstore *store, const struct image *image,
		  bool accept_invalid, struct error *err);

/*
 * Decode the exceptions [first, first + count) into out. They lie inside
 * the live ones. May be called from several threads. 0, or -1 and *err.
 */
int cowstore_read(const struct cowstore *store, uint64_t first, size_t count,
		  struct exception *out, struct error *err);

/* Exceptions that a walk reads at once: 64 KiB. */
#define COWSTORE_BLOCK 4096

/*
 * A walk over a part of the table, a block of exceptions at a time. It needs no
 * memory but itself, so that it cannot fail for lack of it in mid-merge.
 */
struct cowstore_walk {
	const struct cowstore *store;
	size_t count;	  /* exceptions in the block */
	uint64_t first;	  /* number of the block's first */
	uint64_t next;	  /* number of the first entry not yet read */
	uint64_t end;	  /* where to end at the latest */
	uint64_t fetched; /* areas before this one were asked for */
	uint64_t ahead;	  /* areas to ask for ahead */
	bool ended;	  /* the table's end was seen */
	struct exception block[COWSTORE_BLOCK];
};

/*
 * Begin a walk over the exceptions [first, end), or to the table's end if that
 * comes first. What they name need not have been verified.
 */
void cowstore_walk_begin(struct cowstore_walk *w, const struct cowstore *store,
			 uint64_t first, uint64_t end);

/* 1: the block has exceptions; 0: there are no more; -1 and *err. */
int cowstore_walk_next(struct cowstore_walk *w, struct error *err);

/*
 * Note in *store what follows from a walk over the whole table that found no
 * more, and what stands behind its end: the second part of *store.
 */
int cowstore_settle(struct cowstore *store, struct cowstore_walk *w,
		    struct error *err);

/* Whether a chunk of the COW is a metadata area. */
bool cowstore_is_metadata(const struct cowstore *store, uint64_t chunk);

typedef void cowstore_run(void *context, const struct run *run);

/*
 * Such a walk, by runs in which both chunks rise by one. 0, or -1 and *err.
 */
int cowstore_runs(const struct cowstore *store, uint64_t first, uint64_t end,
		  cowstore_run *visit, void *context, struct error *err);

/*
 * Shorten the table to its first keep exceptions: everything behind them is
 * written as zeros, the last area first, stale entries included. With a record
 * (NULL: none) and keep > 0, the record is noted; with keep 0, one that stands
 * there is taken away. Nothing else is written. Not durable before
 * image_sync(store->image); until then any part of it may have reached the
 * disk, and every such state is a sound store with at least keep exceptions.
 * 0, or -1 and *err.
 */
int cowstore_clear(struct cowstore *store, uint64_t keep,
		   const struct cowstore_record *record, struct error *err);

/* --- stores of our own --- */

/* The chunk that holds the data of exception n, counted as they are added. */
uint64_t cowstore_data_chunk(const struct cowstore *store, uint64_t n);

/* Bytes of a COW for so many exceptions, and an empty entry behind them. */
uint64_t cowstore_size(uint64_t chunk_size, uint64_t exceptions);

/*
 * Make image, which is blank and of the size wanted, an empty store, durably.
 * chunk_size is bytes. 0, or -1 and *err.
 */
int cowstore_create(struct cowstore *store, const struct image *image,
		    uint64_t chunk_size, struct error *err);

/*
 * Wipe what lies behind the table's end, in its area and in the areas that
 * count more exceptions will reach into. It must be durable before they are
 * appended, like the data in their chunks. 0, or -1 and *err.
 */
int cowstore_reserve(struct cowstore *store, uint64_t count, struct error *err);

/*
 * Append exceptions with the old chunks given, in this order; their data are in
 * cowstore_data_chunk() already. Not durable before image_sync(). 0, or -1.
 */
int cowstore_append(struct cowstore *store, const uint64_t *old_chunks,
		    size_t count, struct error *err);

/* The figures that the kernel prints for a snapshot, in sectors. */
struct cowstore_status {
	uint64_t allocated_sectors, total_sectors, metadata_sectors;
};

/* What `dmsetup status` would say of the store as it was verified. */
void cowstore_status(const struct cowstore *store,
		     struct cowstore_status *status);

/* --- verify.c --- */

/* The first problems of a store, and how many there are in all. */
#define COWSTORE_FINDINGS 20
struct findings {
	uint64_t count;
	struct error first[COWSTORE_FINDINGS];
};

/* The largest size an origin can have, for when it is not at hand. */
#define COWSTORE_ANY_ORIGIN ((uint64_t)INT64_MAX)

/*
 * Walk the whole table and look for whatever the kernel would trip over or
 * believe blindly: chunks outside the COW or the origin (origin_size bytes),
 * on the header or on a metadata area, reserved bits, chunks named twice.
 * Fills the second and third part of *store, and *found, whose errors are
 * ERROR_REFUSED. Memory is fixed; tables over large ranges are walked more than
 * once.
 *
 * 0 whatever was found; -1 and *err if it could not be read or no memory.
 */
int cowstore_verify(struct cowstore *store, uint64_t origin_size,
		    struct findings *found, struct error *err);

/*
 * Look for an origin chunk that is named by both the first count exceptions of
 * store and by any of other. 0 if there is none; -1 and *err, ERROR_REFUSED
 * if there is, against other.
 */
int cowstore_disjoint(const struct cowstore *store, uint64_t count,
		      const struct cowstore *other, uint64_t origin_size,
		      struct error *err);

#endif
