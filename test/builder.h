/* SPDX-License-Identifier: MIT */
/*
 * An independent builder of snapshot stores, for tests.
 *
 * It writes a persistent snapshot store byte by byte from the description of
 * the format, and shares nothing with the code under test: a mistake about the
 * format would have to be made twice to stay hidden.  It also knows, without
 * reading any store, what the merged origin must look like.
 *
 * Test code: a helper that cannot do its work (no memory, no space, a table
 * that does not fit) prints why and exits with BUILDER_EXIT.  The system calls
 * it makes are open, fstat, pwrite, ftruncate, posix_fallocate, lseek, mmap,
 * munmap and close: tests that put their own functions in the place of these
 * keep faults off while they build.  view_of() makes none.
 */
#ifndef BUILDER_H
#define BUILDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUILDER_EXIT	      99
#define BUILDER_SECTOR	      512u
#define BUILDER_MAGIC	      0x70416e53u
#define BUILDER_MAX_SECTORS   2097152u /* 1 GiB chunks */
#define BUILDER_ENTRY	      16u      /* bytes of an exception */
#define BUILDER_GARBAGE_AREAS 4u

struct builder_exception {
	uint64_t old_chunk; /* in the origin */
	uint64_t new_chunk; /* in the COW */
};

/*
 * One origin and its store.  builder_init() makes a sound one with an empty
 * table; every field may then be changed, also to nonsense.
 */
struct builder {
	uint32_t chunk_sectors; /* the layout: a power of two, 1 ... 2^21 */
	uint64_t origin_size;	/* bytes; any, also no multiple of a chunk */
	/*
	 * Bytes; any.  0: as large as the kernel's allocator needs for count
	 * exceptions, with the area that ends the table, and with one more
	 * area if there is garbage to hold.  What lies behind the end is not
	 * written: a full last area may so lose its successor.  A table with
	 * new chunks beyond those of the allocator needs a size of its own.
	 */
	uint64_t cow_size;

	uint32_t magic; /* the words of the header */
	uint32_t valid;
	uint32_t version;
	uint32_t chunk_size; /* sectors; what the header claims */

	/*
	 * The table, in table order; owned (builder_free()).  NULL with a
	 * count: computed, see builder_compute().
	 */
	struct builder_exception *exceptions;
	size_t count;
	uint64_t first_chunk; /* a computed table: */
	uint64_t step_chunks; /* old = (first + n * step) mod origin chunks */

	size_t stale_entries; /* behind the terminator and one empty entry */
	bool garbage_after_table; /* old exceptions fill the next areas */
	bool sparse;	    /* the origin is one hole and reads as zeros */
	bool metadata_only; /* the data chunks of the COW are holes */
	bool prealloc;	    /* give every byte of both files real blocks */
	uint64_t seed;	    /* of contents and patterns */
};

/*
 * Every pattern but ONE names the first and the last chunk of the origin (two
 * exceptions or more), none names a chunk twice, and new chunks are those of
 * the kernel's allocator.
 */
enum builder_pattern {
	BUILDER_SCATTERED, /* no two neighbours in the origin; any order */
	BUILDER_RUNS,	   /* runs of 1 ... 256 chunks, in any order */
	BUILDER_ONE,	   /* one run, anywhere in the origin */
	BUILDER_REVERSED,  /* RUNS, but old chunks fall as new ones rise */
	BUILDER_SHUFFLED,  /* RUNS, with the entries in any order */
};

/* The layout, for any sound chunk_sectors; n and area count from 0. */

/* E: how many exceptions one metadata area holds. */
uint64_t builder_per_area(uint32_t chunk_sectors);
/* The chunk that holds a metadata area. */
uint64_t builder_area_chunk(uint32_t chunk_sectors, uint64_t area);
/* The data chunk that the kernel's allocator gives to the n-th exception. */
uint64_t builder_new_chunk(uint32_t chunk_sectors, uint64_t n);
/* Where the n-th entry of the table lies, in bytes from the COW's start. */
uint64_t builder_entry_offset(uint32_t chunk_sectors, uint64_t n);
/* How many chunks the origin has; the last one may be a part. */
uint64_t builder_origin_chunks(const struct builder *b);
/* The size of the COW in bytes, also when cow_size is 0. */
uint64_t builder_cow_bytes(const struct builder *b);

/* A sound store without exceptions.  Free it with builder_free(). */
void builder_init(struct builder *b, uint32_t chunk_sectors,
		  uint64_t origin_size, uint64_t seed);
/* Frees the table; b is then as after builder_init(), options kept. */
void builder_free(struct builder *b);

/* Appends an exception as it is, sound or not. */
void builder_add(struct builder *b, uint64_t old_chunk, uint64_t new_chunk);
/* Replaces the table by a copy of count exceptions. */
void builder_set(struct builder *b, const struct builder_exception *exceptions,
		 size_t count);
/* How many exceptions a pattern can hold at most in this origin. */
uint64_t builder_room(const struct builder *b, enum builder_pattern pattern);
/* Replaces the table by count exceptions after a pattern and b->seed. */
void builder_fill(struct builder *b, enum builder_pattern pattern,
		  size_t count);
/*
 * The same without memory, for huge tables: ONE is ascending from chunk 0,
 * REVERSED descending from the last, SCATTERED a walk in equal steps around
 * the origin (which may be full).  Other patterns do not exist here.
 */
void builder_compute(struct builder *b, enum builder_pattern pattern,
		     size_t count);
/* The pattern of that name ("scattered", ...), or -1. */
int builder_pattern_of(const char *name);

/*
 * Contents.  Every byte follows from the seed, the side, the number of its
 * chunk and its place there; a misplaced chunk is never equal.  The last
 * chunk of the COW is whole even where the origin's is a part.
 */

/* The origin before the merge: len bytes at offset. */
void builder_origin_bytes(const struct builder *b, uint64_t offset, void *buf,
			  size_t len);
/*
 * The origin after the merge: len bytes at offset, which must lie within the
 * origin.  Costs one walk of the table, whatever len is.
 */
void builder_expect(const struct builder *b, uint64_t offset, void *buf,
		    size_t len);
/* The data of one chunk of the COW: len bytes at offset in that chunk. */
void builder_cow_data(const struct builder *b, uint64_t new_chunk,
		      uint64_t offset, void *buf, size_t len);

/*
 * Writes both files, created or truncated; regular files only, nothing is
 * synced.  Entries that name the header, a metadata area or a chunk behind
 * the end are written, but their data is not: the layout stays as it is.
 */
void builder_write(const struct builder *b, const char *origin_path,
		   const char *cow_path);
/*
 * Writes the merged image, created or truncated: the origin overlaid with
 * the exceptions up to the first whose new chunk is 0, clipped at the end.
 */
void builder_write_merged(const struct builder *b, const char *path);

/*
 * The snapshot view: the origin overlaid with the exceptions that the store
 * has now, read from its bytes alone; works on any store, also the kernel's.
 * out holds origin_len bytes and may be origin itself.
 *
 * Returns the number of live exceptions, or -1 if the table cannot be read or
 * an exception leads out of the origin, out of the COW or into metadata; out
 * is undefined then.  The word "valid" is not looked at.
 */
int view_of(const unsigned char *origin, size_t origin_len,
	    const unsigned char *cow, size_t cow_len, unsigned char *out);
/*
 * The same on regular files; out_path is created or truncated, is none of the
 * others, and has holes where the origin has.
 */
int view_of_files(const char *origin_path, const char *cow_path,
		  const char *out_path);

#endif
