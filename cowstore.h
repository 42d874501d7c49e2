/*
 * cowstore.h - the persistent snapshot store
 *
 * Opening, verifying, reading and shortening the exception table of a COW.
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
 * Decode the exceptions [first, first + count) into out. They lie inside
 * the live ones. May be called from several threads. 0, or -1 and *err.
 */
int cowstore_read(const struct cowstore *store, uint64_t first, size_t count,
		  struct exception *out, struct error *err);

/*
 * Shorten the table to its first keep exceptions: everything behind them is
 * written as zeros, the last area first, stale entries included. Nothing else
 * is written. Not durable before image_sync(store->image); until then any part
 * of it may have reached the disk, and every such state is a sound store with
 * at least keep exceptions. 0, or -1 and *err.
 */
int cowstore_clear(struct cowstore *store, uint64_t keep, struct error *err);

/* The figures that the kernel prints for a snapshot, in sectors. */
struct cowstore_status {
	uint64_t allocated_sectors, total_sectors, metadata_sectors;
};

/* What `dmsetup status` would say of the store as it was verified. */
void cowstore_status(const struct cowstore *store,
		     struct cowstore_status *status);

#endif
