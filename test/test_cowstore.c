/*
 * test_cowstore.c - claims about cowstore.c
 *
 * Stores come from the independent builder, or from a kernel; what the table
 * must read as, which bytes a shortened one must have, and what is refused in
 * which words is known here without asking the code under test.
 */
#include "../cowstore.h"
#include "builder.h"
#include "scratch.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define CHUNK 8u /* sectors; 256 entries fill an area */
#define E     256u
#define TIB   (UINT64_C(1) << 40)
#define GIB   (UINT64_C(1) << 30)
#define MIB   (UINT64_C(1) << 20)

/* Chunks that the verifier's bitmap tells apart in one walk. */
#define WINDOW (UINT64_C(80) << 20)

/* A store, built and opened. */
struct fixture {
	struct builder b;
	struct image image;
	struct cowstore store;
	struct findings found;
};

static void begin(struct fixture *f, uint32_t chunk_sectors,
		  uint64_t origin_size)
{
	builder_init(&f->b, chunk_sectors, origin_size, 1);
	f->b.sparse = true; /* nobody here reads the origin */
}

static void open_store(struct fixture *f, enum image_use use)
{
	struct error err = { 0 };

	builder_write(&f->b, "origin", "cow");
	ck_assert_msg(!image_open(&f->image, "cow", use, &err), "%s", err.what);
	ck_assert_msg(!cowstore_open(&f->store, &f->image, false, &err), "%s",
		      err.what);
}

static void verify(struct fixture *f)
{
	struct error err = { 0 };

	ck_assert_msg(
		!cowstore_verify(&f->store, f->b.origin_size, &f->found, &err),
		"%s", err.what);
}

static void verify_sound(struct fixture *f)
{
	verify(f);
	ck_assert_msg(!f->found.count, "%s", f->found.first[0].what);
}

static void end(struct fixture *f)
{
	struct error err;

	ck_assert_int_eq(image_close(&f->image, &err), 0);
	builder_free(&f->b);
}

/* The table is what was built, and so are the facts about it. */
static void assert_table(const struct fixture *f)
{
	size_t count = f->b.count;
	struct exception *table = malloc((count + 1) * sizeof(*table));
	struct error err;

	ck_assert_ptr_nonnull(table);
	ck_assert_uint_eq(f->store.exceptions, count);
	ck_assert_int_eq(cowstore_read(&f->store, 0, count, table, &err), 0);
	for (size_t i = 0; i < count; i++) {
		const struct builder_exception *e = &f->b.exceptions[i];

		if (table[i].old_chunk != e->old_chunk ||
		    table[i].new_chunk != e->new_chunk)
			ck_abort_msg("exception %zu is %" PRIu64 ", %" PRIu64
				     ", not %" PRIu64 ", %" PRIu64,
				     i, table[i].old_chunk, table[i].new_chunk,
				     e->old_chunk, e->new_chunk);
	}
	free(table);
}

/* Build, open, verify, compare, close. */
static void assert_sound(struct fixture *f)
{
	open_store(f, IMAGE_PEEK);
	verify_sound(f);
	assert_table(f);
	end(f);
}

START_TEST(every_legal_chunk_size_is_read)
{
	uint32_t sectors = UINT32_C(1) << _i;
	uint64_t chunk = (uint64_t)sectors * 512;
	struct fixture f;

	begin(&f, sectors, 100 * chunk);
	f.b.metadata_only = true;
	builder_fill(&f.b, BUILDER_SHUFFLED, 40);
	open_store(&f, IMAGE_PEEK);
	ck_assert_uint_eq(f.store.chunk_size, chunk);
	verify_sound(&f);
	assert_table(&f);
	ck_assert_uint_eq(f.store.first_old_chunk, 0);
	ck_assert_uint_eq(f.store.last_old_chunk, 99);
	end(&f);
}
END_TEST

START_TEST(an_empty_table_has_no_exceptions)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	ck_assert_uint_eq(f.store.exceptions, 0);
	ck_assert_uint_eq(f.store.stale, 0);
	ck_assert_uint_eq(f.store.runs, 0);
	ck_assert_uint_eq(f.store.last_new_chunk, 0);
	ck_assert(!f.store.no_end);
	ck_assert(f.store.valid);
	ck_assert_uint_eq(f.store.version, 1);
	end(&f);
}
END_TEST

/* Tables of so many exceptions end inside an area, at its end, behind it. */
static const size_t counts[] = { 1,	E - 1,	   E,	      E + 1,
				 2 * E, 2 * E + 1, 3 * E - 1, 20 * E };
#define COUNTS (int)(sizeof(counts) / sizeof(*counts))

START_TEST(areas_partly_and_exactly_full_are_read)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, counts[_i]);
	assert_sound(&f);
}
END_TEST

START_TEST(old_bytes_behind_the_last_area_are_not_read)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, counts[_i]);
	f.b.garbage_after_table = true;
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_table(&f);
	ck_assert_uint_eq(f.store.stale, 0);
	end(&f);
}
END_TEST

/*
 * The table fills its areas, and the first entry of the next one is empty with
 * an older use's entries behind it.
 */
START_TEST(a_successor_with_old_bytes_ends_the_table_and_is_stale)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 2 * E);
	f.b.stale_entries = E - 1;
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_table(&f);
	ck_assert_uint_eq(f.store.stale, E - 1);
	ck_assert_uint_eq(f.store.scrub_end, 3 * E);
	ck_assert(!f.store.no_end);
	end(&f);
}
END_TEST

START_TEST(stale_entries_are_counted_up_to_the_last)
{
	static const struct {
		size_t count, stale;
	} cases[] = { { 0, 1 }, { 0, 255 }, { 10, 5 }, { 300, 100 } };
	struct fixture f;

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		begin(&f, CHUNK, 32 * MIB);
		builder_fill(&f.b, BUILDER_RUNS, cases[i].count);
		f.b.stale_entries = cases[i].stale;
		open_store(&f, IMAGE_PEEK);
		verify_sound(&f);
		assert_table(&f);
		ck_assert_uint_eq(f.store.stale, cases[i].stale);
		ck_assert_uint_eq(f.store.scrub_end,
				  cases[i].count + 1 + cases[i].stale);
		end(&f);
	}
}
END_TEST

START_TEST(a_clean_table_has_nothing_to_scrub)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 300);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	ck_assert_uint_eq(f.store.stale, 0);
	ck_assert_uint_le(f.store.scrub_end, 300);
	end(&f);
}
END_TEST

/* The header, an area and its E chunks: no place for the next area. */
START_TEST(a_full_last_area_at_the_end_of_the_cow_ends_the_table)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, E);
	f.b.cow_size = (2 + E) * CHUNK * 512;
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_table(&f);
	ck_assert(f.store.no_end);
	ck_assert_uint_eq(f.store.stale, 0);
	end(&f);
}
END_TEST

START_TEST(a_full_area_with_a_piece_of_a_successor_ends_the_table)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 2 * E);
	f.b.cow_size = (uint64_t)(3 + 2 * E) * CHUNK * 512 + 2048;
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_table(&f);
	ck_assert(f.store.no_end);
	end(&f);
}
END_TEST

START_TEST(a_table_in_any_order_is_read_in_its_order)
{
	static const enum builder_pattern patterns[] = {
		BUILDER_SCATTERED, BUILDER_RUNS, BUILDER_ONE, BUILDER_REVERSED,
		BUILDER_SHUFFLED
	};
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, patterns[_i], 2000);
	assert_sound(&f);
}
END_TEST

START_TEST(holes_between_new_chunks_are_no_problem)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	builder_add(&f.b, 3, 200);
	builder_add(&f.b, 0, 2);
	builder_add(&f.b, 255, 100);
	f.b.cow_size = MIB;
	assert_sound(&f);
}
END_TEST

START_TEST(a_cow_that_ends_inside_a_chunk_is_read)
{
	struct fixture f;

	for (uint64_t more = 1; more < 4096; more += 585) {
		begin(&f, CHUNK, 32 * MIB);
		builder_fill(&f.b, BUILDER_RUNS, 300);
		f.b.cow_size = builder_cow_bytes(&f.b) + more;
		assert_sound(&f);
	}
}
END_TEST

START_TEST(any_word_but_zero_is_valid)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.valid = UINT32_C(0x80000000);
	open_store(&f, IMAGE_PEEK);
	ck_assert(f.store.valid);
	end(&f);
}
END_TEST

START_TEST(an_invalid_store_is_opened_on_demand)
{
	struct fixture f;
	struct error err;

	begin(&f, CHUNK, MIB);
	f.b.valid = 0;
	builder_fill(&f.b, BUILDER_RUNS, 100);
	builder_write(&f.b, "origin", "cow");
	ck_assert_int_eq(image_open(&f.image, "cow", IMAGE_PEEK, &err), 0);
	ck_assert_int_eq(cowstore_open(&f.store, &f.image, true, &err), 0);
	ck_assert(!f.store.valid);
	verify_sound(&f);
	assert_table(&f);
	end(&f);
}
END_TEST

START_TEST(runs_and_the_lowest_and_highest_chunks_are_counted)
{
	/* old: a run up, a run down, a single one; new: one gap */
	static const struct builder_exception table[] = {
		{ 10, 2 }, { 11, 3 }, { 12, 4 }, { 40, 5 },
		{ 39, 6 }, { 38, 7 }, { 5, 8 },	 { 6, 20 },
	};
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = MIB;
	builder_set(&f.b, table, 8);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	ck_assert_uint_eq(f.store.runs, 6);
	ck_assert_uint_eq(f.store.origin_runs, 3);
	ck_assert_uint_eq(f.store.first_old_chunk, 5);
	ck_assert_uint_eq(f.store.last_old_chunk, 40);
	ck_assert_uint_eq(f.store.last_new_chunk, 20);
	end(&f);
}
END_TEST

struct seen_runs {
	struct run run[8];
	size_t count;
};

static void see_run(void *context, const struct run *run)
{
	struct seen_runs *seen = context;

	ck_assert_uint_lt(seen->count, 8);
	seen->run[seen->count++] = *run;
}

static void see_runs(const struct fixture *f, uint64_t first, uint64_t last,
		     struct seen_runs *seen)
{
	struct error err;

	seen->count = 0;
	ck_assert_int_eq(
		cowstore_runs(&f->store, first, last, see_run, seen, &err), 0);
}

static void assert_run(const struct run *run, uint64_t old_chunk,
		       uint64_t new_chunk, uint64_t length)
{
	ck_assert_uint_eq(run->old_chunk, old_chunk);
	ck_assert_uint_eq(run->new_chunk, new_chunk);
	ck_assert_uint_eq(run->length, length);
}

START_TEST(runs_are_told_in_the_order_of_the_table)
{
	static const struct builder_exception table[] = {
		{ 10, 2 }, { 11, 3 }, { 12, 4 }, { 40, 5 },
		{ 39, 6 }, { 5, 8 },  { 6, 9 },
	};
	struct seen_runs seen;
	struct fixture f;

	begin(&f, CHUNK, MIB);
	builder_set(&f.b, table, 7);
	open_store(&f, IMAGE_PEEK);
	see_runs(&f, 0, UINT64_MAX, &seen);
	ck_assert_uint_eq(seen.count, 4);
	assert_run(&seen.run[0], 10, 2, 3);
	assert_run(&seen.run[1], 40, 5, 1);
	assert_run(&seen.run[2], 39, 6, 1);
	assert_run(&seen.run[3], 5, 8, 2);
	end(&f);
}
END_TEST

START_TEST(runs_of_a_part_of_the_table_are_cut)
{
	struct seen_runs seen;
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	for (uint64_t n = 0; n < 600; n++)
		builder_add(&f.b, n, builder_new_chunk(CHUNK, n));
	open_store(&f, IMAGE_PEEK);
	see_runs(&f, 10, 20, &seen);
	ck_assert_uint_eq(seen.count, 1);
	assert_run(&seen.run[0], 10, 12, 10);
	see_runs(&f, 250, 520, &seen);
	ck_assert_uint_eq(seen.count, 3);
	assert_run(&seen.run[0], 250, 252, 6);
	assert_run(&seen.run[1], 256, 259, 256);
	assert_run(&seen.run[2], 512, 516, 8);
	see_runs(&f, 599, 700, &seen);
	ck_assert_uint_eq(seen.count, 1);
	assert_run(&seen.run[0], 599, 603, 1);
	see_runs(&f, 30, 30, &seen);
	ck_assert_uint_eq(seen.count, 0);
	end(&f);
}
END_TEST

/* The area's own chunk interrupts the new chunks, not the old ones. */
START_TEST(a_run_ends_at_an_area)
{
	struct seen_runs seen;
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	for (uint64_t n = 0; n < E + 44; n++)
		builder_add(&f.b, n, builder_new_chunk(CHUNK, n));
	open_store(&f, IMAGE_PEEK);
	see_runs(&f, 0, UINT64_MAX, &seen);
	ck_assert_uint_eq(seen.count, 2);
	assert_run(&seen.run[0], 0, 2, E);
	assert_run(&seen.run[1], E, E + 3, 44);
	end(&f);
}
END_TEST

START_TEST(any_part_of_the_table_is_read_across_areas)
{
	struct exception out[3 * E + 1];
	struct fixture f;
	struct error err;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_SHUFFLED, 5 * E);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	for (uint64_t first = 0; first < 5 * E; first += 101) {
		for (size_t n = 0; n <= 3 * E && n <= 5 * E - first; n += 85) {
			const struct builder_exception *want;

			want = f.b.exceptions + first;
			out[n].old_chunk = 4711;
			ck_assert_int_eq(
				cowstore_read(&f.store, first, n, out, &err),
				0);
			for (size_t i = 0; i < n; i++)
				if (out[i].old_chunk != want[i].old_chunk ||
				    out[i].new_chunk != want[i].new_chunk)
					ck_abort_msg("exception %" PRIu64,
						     first + i);
			ck_assert_uint_eq(out[n].old_chunk, 4711);
		}
	}
	end(&f);
}
END_TEST

START_TEST(a_truncated_area_cannot_be_read)
{
	struct exception out[E];
	struct fixture f;
	struct error err;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, E);
	open_store(&f, IMAGE_PEEK);
	ck_assert_int_eq(truncate("cow", 4096 + 100 * 16), 0);
	ck_assert_int_eq(cowstore_read(&f.store, 0, E, out, &err), -1);
	ck_assert_int_eq(err.kind, ERROR_SYSTEM);
	ck_assert(err.has_offset);
	ck_assert_uint_eq(err.offset, 4096 + 100 * 16);
	ck_assert_int_eq(
		cowstore_verify(&f.store, f.b.origin_size, &f.found, &err), -1);
	ck_assert_int_eq(err.kind, ERROR_SYSTEM);
	end(&f);
}
END_TEST

/* Beyond two tebibytes */

START_TEST(chunks_past_two_tib_are_read)
{
	struct fixture f;

	begin(&f, CHUNK, 3 * TIB);
	f.b.cow_size = 3 * TIB;
	f.b.metadata_only = true;
	builder_add(&f.b, 3 * TIB / 4096 - 1, 3 * TIB / 4096 - 1);
	builder_add(&f.b, UINT64_C(0x20000001), UINT64_C(0x20000003));
	builder_add(&f.b, 0, 2);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_table(&f);
	ck_assert_uint_eq(f.store.chunks, 3 * TIB / 4096);
	ck_assert_uint_eq(f.store.last_old_chunk, 3 * TIB / 4096 - 1);
	end(&f);
}
END_TEST

START_TEST(chunk_numbers_of_more_than_32_bits_are_read)
{
	struct fixture f;

	begin(&f, 1, 6 * TIB);
	f.b.cow_size = 6 * TIB;
	f.b.metadata_only = true;
	builder_add(&f.b, UINT64_C(0x100000005), UINT64_C(0x100000007));
	builder_add(&f.b, 5, 7);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_table(&f);
	ck_assert_uint_eq(f.store.last_old_chunk, UINT64_C(0x100000005));
	end(&f);
}
END_TEST

/* Chunks of 4 MiB: area 2 lies two tebibytes behind area 0. */
START_TEST(areas_past_two_tib_are_read)
{
	const size_t per_area = 262144, count = 2 * per_area + 5;
	struct exception last[7];
	struct fixture f;
	struct error err;

	begin(&f, 8192, (count + 3) << 22);
	f.b.metadata_only = true;
	builder_compute(&f.b, BUILDER_ONE, count);
	open_store(&f, IMAGE_PEEK);
	ck_assert_uint_gt(f.image.size, 2 * TIB);
	verify_sound(&f);
	ck_assert_uint_eq(f.store.exceptions, count);
	ck_assert_int_eq(cowstore_read(&f.store, count - 7, 7, last, &err), 0);
	for (size_t i = 0; i < 7; i++) {
		ck_assert_uint_eq(last[i].old_chunk, count - 7 + i);
		ck_assert_uint_eq(last[i].new_chunk,
				  builder_new_chunk(8192, count - 7 + i));
	}
	end(&f);
}
END_TEST

/* Refusals */

/* Opening the store that was built is refused in these words. */
static void assert_refused(struct fixture *f, const char *what)
{
	struct cowstore store = { .exceptions = 4711 };
	struct error err = { 0 };

	builder_write(&f->b, "origin", "cow");
	ck_assert_int_eq(image_open(&f->image, "cow", IMAGE_PEEK, &err), 0);
	ck_assert_int_eq(cowstore_open(&store, &f->image, false, &err), -1);
	ck_assert_str_eq(err.what, what);
	ck_assert_int_eq(err.kind, ERROR_REFUSED);
	ck_assert_int_eq(err.sys, 0);
	ck_assert_str_eq(err.path, "cow");
	ck_assert_uint_eq(store.exceptions, 4711);
	end(f);
}

START_TEST(a_blank_store_is_refused)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.magic = 0;
	assert_refused(&f, "blank: nothing was ever written to this store");
}
END_TEST

START_TEST(another_magic_is_refused)
{
	static const uint32_t magics[] = { 1, BUILDER_MAGIC + 1,
					   UINT32_C(0x536e4170) };
	struct fixture f;

	for (size_t i = 0; i < sizeof(magics) / sizeof(*magics); i++) {
		begin(&f, CHUNK, MIB);
		f.b.magic = magics[i];
		assert_refused(&f, "not a persistent snapshot store: no magic");
	}
}
END_TEST

START_TEST(another_version_is_refused)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.version = 2;
	assert_refused(&f, "version 2 of the store is not 1");
	begin(&f, CHUNK, MIB);
	f.b.version = 0;
	assert_refused(&f, "version 0 of the store is not 1");
}
END_TEST

START_TEST(an_invalid_store_is_refused)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.valid = 0;
	assert_refused(&f, "invalid: the kernel gave this snapshot up (it "
			   "overflowed or failed), chunks are missing");
}
END_TEST

START_TEST(an_impossible_chunk_size_is_refused)
{
	static const uint32_t sizes[] = {
		0, 3, 12, 4194304, UINT32_C(0x80000000), UINT32_MAX
	};
	struct fixture f;
	char what[128];

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		begin(&f, CHUNK, MIB);
		f.b.chunk_size = sizes[i];
		snprintf(what, sizeof(what),
			 "chunk size of %" PRIu32 " sectors is not a power of "
			 "two from 1 to 2097152",
			 sizes[i]);
		assert_refused(&f, what);
	}
}
END_TEST

START_TEST(a_cow_too_small_for_a_header_is_refused)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = 15;
	assert_refused(&f, "not a persistent snapshot store: too small");
}
END_TEST

START_TEST(a_first_area_past_the_end_is_refused)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = 8191;
	assert_refused(&f, "metadata area 0 ends at byte 8192, past the end of "
			   "the COW (8191 bytes)");
	begin(&f, CHUNK, MIB);
	f.b.cow_size = 16;
	assert_refused(&f, "metadata area 0 ends at byte 8192, past the end of "
			   "the COW (16 bytes)");
	begin(&f, CHUNK, MIB);
	f.b.chunk_size = 2097152;
	f.b.cow_size = MIB;
	assert_refused(&f, "metadata area 0 ends at byte 2147483648, past the "
			   "end of the COW (1048576 bytes)");
}
END_TEST

START_TEST(a_bare_header_and_area_are_a_store)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = 8192;
	assert_sound(&f);
}
END_TEST

/* A table of one problem, which must be found in these words. */
struct problem {
	struct builder_exception table[4];
	size_t count;
	const char *what;
};

static const struct problem problems[] = {
	{ { { 0, 2 }, { 1, 256 } },
	  2,
	  "exception 1: COW chunk 256 is past the end (the COW has 256 "
	  "chunks)" },
	{ { { 0, UINT64_C(0x00ffffffffffffff) } },
	  1,
	  "exception 0: COW chunk 72057594037927935 is past the end (the COW "
	  "has 256 chunks)" },
	{ { { 0, 2 }, { 1, 3 }, { 2, 1 } },
	  3,
	  "exception 2: COW chunk 1 is a metadata area (the COW has 256 "
	  "chunks)" },
	{ { { 0, UINT64_C(0x0100000000000002) } },
	  1,
	  "exception 0: COW chunk 72057594037927938 has reserved bits (56 to "
	  "63) set (the COW has 256 chunks)" },
	{ { { 0, UINT64_C(0x8000000000000000) } },
	  1,
	  "exception 0: COW chunk 9223372036854775808 has reserved bits (56 "
	  "to 63) set (the COW has 256 chunks)" },
	{ { { 255, 2 }, { 256, 3 } },
	  2,
	  "exception 1: origin chunk 256 is past the end (the origin has 256 "
	  "chunks)" },
	{ { { UINT64_MAX, 2 } },
	  1,
	  "exception 0: origin chunk 18446744073709551615 is past the end "
	  "(the origin has 256 chunks)" },
	{ { { 7, 2 }, { 8, 3 }, { 9, 4 }, { 7, 5 } },
	  4,
	  "exception 3: origin chunk 7 is named twice (the origin has 256 "
	  "chunks)" },
	{ { { 7, 2 }, { 8, 3 }, { 9, 3 } },
	  3,
	  "exception 2: COW chunk 3 is named twice (the COW has 256 chunks)" },
};

START_TEST(a_problem_is_found_with_its_exception_and_limit)
{
	const struct problem *p = &problems[_i];
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = MIB;
	builder_set(&f.b, p->table, p->count);
	open_store(&f, IMAGE_PEEK);
	verify(&f);
	ck_assert_uint_eq(f.found.count, 1);
	ck_assert_str_eq(f.found.first[0].what, p->what);
	ck_assert_int_eq(f.found.first[0].kind, ERROR_REFUSED);
	ck_assert_int_eq(f.found.first[0].sys, 0);
	ck_assert_str_eq(f.found.first[0].path, "cow");
	end(&f);
}
END_TEST

static void assert_one_finding(struct fixture *f, const char *what)
{
	open_store(f, IMAGE_PEEK);
	verify(f);
	ck_assert_uint_eq(f->found.count, 1);
	ck_assert_str_eq(f->found.first[0].what, what);
	end(f);
}

START_TEST(an_origin_that_ends_inside_a_chunk_has_that_chunk)
{
	struct fixture f;

	begin(&f, CHUNK, MIB + 1);
	builder_add(&f.b, 256, 2);
	assert_sound(&f);
	begin(&f, CHUNK, MIB + 4095);
	builder_add(&f.b, 257, 2);
	assert_one_finding(&f, "exception 0: origin chunk 257 is past the end "
			       "(the origin has 257 chunks)");
}
END_TEST

START_TEST(an_empty_origin_takes_no_exception)
{
	struct fixture f;

	begin(&f, CHUNK, 0);
	assert_sound(&f);
	begin(&f, CHUNK, 0);
	builder_add(&f.b, 0, 2);
	assert_one_finding(&f, "exception 0: origin chunk 0 is past the end "
			       "(the origin has 0 chunks)");
}
END_TEST

START_TEST(the_chunk_that_the_cow_ends_in_is_past_its_end)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = MIB + 4095;
	builder_add(&f.b, 0, 256);
	assert_one_finding(&f, "exception 0: COW chunk 256 is past the end "
			       "(the COW has 256 chunks)");
}
END_TEST

START_TEST(a_second_metadata_area_is_no_place_for_data)
{
	struct fixture f;

	begin(&f, CHUNK, 8 * MIB);
	f.b.cow_size = 4 * MIB;
	builder_add(&f.b, 0, 1 + E + 1);
	assert_one_finding(&f, "exception 0: COW chunk 258 is a metadata area "
			       "(the COW has 1024 chunks)");
}
END_TEST

START_TEST(chunks_beside_a_metadata_area_hold_data)
{
	struct fixture f;

	begin(&f, CHUNK, 8 * MIB);
	f.b.cow_size = 4 * MIB;
	builder_add(&f.b, 0, E + 1);
	builder_add(&f.b, 1, E + 3);
	assert_sound(&f);
}
END_TEST

START_TEST(duplicates_are_found_across_areas)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_SHUFFLED, 4 * E);
	f.b.exceptions[4 * E - 1].old_chunk = f.b.exceptions[3].old_chunk;
	open_store(&f, IMAGE_PEEK);
	verify(&f);
	ck_assert_uint_eq(f.found.count, 1);
	end(&f);
}
END_TEST

START_TEST(the_last_chunk_before_the_tables_end_is_looked_at)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 2 * E);
	f.b.exceptions[2 * E - 1].old_chunk = 8192;
	assert_one_finding(&f, "exception 511: origin chunk 8192 is past the "
			       "end (the origin has 8192 chunks)");
}
END_TEST

/* One exception, two problems: both count. */
START_TEST(both_sides_of_an_exception_are_looked_at)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = MIB;
	builder_add(&f.b, 300, 400);
	open_store(&f, IMAGE_PEEK);
	verify(&f);
	ck_assert_uint_eq(f.found.count, 2);
	end(&f);
}
END_TEST

START_TEST(twenty_problems_are_kept_and_all_are_counted)
{
	struct fixture f;
	char what[128];

	begin(&f, CHUNK, MIB);
	f.b.cow_size = 2 * MIB;
	for (uint64_t i = 0; i < 200; i++)
		builder_add(&f.b, 1000 + i, 2 + i);
	open_store(&f, IMAGE_PEEK);
	verify(&f);
	ck_assert_uint_eq(f.found.count, 200);
	for (unsigned int i = 0; i < COWSTORE_FINDINGS; i++) {
		snprintf(what, sizeof(what),
			 "exception %u: origin chunk %u is past the end (the "
			 "origin has 256 chunks)",
			 i, 1000 + i);
		ck_assert_str_eq(f.found.first[i].what, what);
	}
	end(&f);
}
END_TEST

START_TEST(a_second_verification_forgets_the_first)
{
	struct fixture f;
	struct error err;

	begin(&f, CHUNK, MIB);
	builder_add(&f.b, 100, 2);
	open_store(&f, IMAGE_PEEK);
	ck_assert_int_eq(cowstore_verify(&f.store, 4096, &f.found, &err), 0);
	ck_assert_uint_eq(f.found.count, 1);
	verify_sound(&f);
	verify_sound(&f);
	ck_assert_uint_eq(f.store.exceptions, 1);
	ck_assert_uint_eq(f.store.runs, 1);
	end(&f);
}
END_TEST

START_TEST(without_an_origin_every_size_is_possible)
{
	struct fixture f;
	struct error err;

	begin(&f, CHUNK, MIB);
	builder_add(&f.b, UINT64_C(1) << 50, 2);
	builder_add(&f.b, 4, 3);
	open_store(&f, IMAGE_PEEK);
	ck_assert_int_eq(
		cowstore_verify(&f.store, COWSTORE_ANY_ORIGIN, &f.found, &err),
		0);
	ck_assert_uint_eq(f.found.count, 0);
	ck_assert_uint_eq(f.store.exceptions, 2);
	end(&f);
}
END_TEST

/*
 * Chunks farther apart than one bitmap reaches: one comes twice, with those of
 * other windows before, between and behind.
 */
static const uint64_t far_chunks[] = {
	5,	    WINDOW - 1,	    WINDOW + 4,	    WINDOW + 5,
	WINDOW + 7, 2 * WINDOW + 5, 3 * WINDOW - 1, 7 * WINDOW + 11
};
#define FAR	 8
#define FARTHEST (9 * WINDOW + 1)

START_TEST(origin_chunks_named_twice_are_found_in_every_window)
{
	uint64_t twice = far_chunks[_i];
	struct fixture f;
	char what[160];

	begin(&f, CHUNK, 3 * TIB);
	for (size_t i = 0; i < FAR; i++)
		builder_add(&f.b, far_chunks[(i * 5) % FAR],
			    builder_new_chunk(CHUNK, i));
	builder_add(&f.b, twice, builder_new_chunk(CHUNK, FAR));
	builder_add(&f.b, FARTHEST, builder_new_chunk(CHUNK, FAR + 1));
	snprintf(what, sizeof(what),
		 "exception 8: origin chunk %" PRIu64 " is named twice (the "
		 "origin has 805306368 chunks)",
		 twice);
	assert_one_finding(&f, what);
}
END_TEST

START_TEST(cow_chunks_named_twice_are_found_in_every_window)
{
	uint64_t twice = far_chunks[_i];
	struct fixture f;
	char what[160];

	begin(&f, CHUNK, MIB);
	f.b.cow_size = 3 * TIB;
	f.b.metadata_only = true;
	for (size_t i = 0; i < FAR; i++)
		builder_add(&f.b, i, far_chunks[(i * 3) % FAR]);
	builder_add(&f.b, FAR, twice);
	builder_add(&f.b, FAR + 1, FARTHEST);
	snprintf(what, sizeof(what),
		 "exception 8: COW chunk %" PRIu64 " is named twice (the COW "
		 "has 805306368 chunks)",
		 twice);
	assert_one_finding(&f, what);
}
END_TEST

START_TEST(distant_chunks_named_once_are_sound)
{
	struct fixture f;

	begin(&f, CHUNK, 3 * TIB);
	f.b.cow_size = 3 * TIB;
	f.b.metadata_only = true;
	for (size_t i = 0; i < FAR; i++)
		builder_add(&f.b, far_chunks[(i * 5) % FAR],
			    far_chunks[(i * 3) % FAR]);
	assert_sound(&f);
}
END_TEST

/* Clearing */

/* In the place of libc's, under whichever name: the offsets are noted. */
static off_t written[4096];
static size_t writes;

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
	if (writes < sizeof(written) / sizeof(*written))
		written[writes] = offset;
	writes++;
	return syscall(SYS_pwritev, fd, iov, (long)count, (unsigned long)offset,
		       (unsigned long)((uint64_t)offset >> 32));
}

static int clear_to(struct cowstore *store, uint64_t keep, struct error *err)
{
	return cowstore_clear(store, keep, NULL, err);
}

/* A file's bytes; the caller frees them. */
static uint8_t *slurp(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	struct stat st;
	uint8_t *bytes;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(fstat(fd, &st), 0);
	*size = (size_t)st.st_size;
	bytes = malloc(*size);
	ck_assert_ptr_nonnull(bytes);
	ck_assert_int_eq(read(fd, bytes, *size), st.st_size);
	close(fd);
	return bytes;
}

/* The store shortened to keep has these bytes and no others changed. */
static void assert_cleared(struct fixture *f, uint64_t keep, uint64_t until)
{
	size_t size, size_after;
	uint8_t *want, *got;
	struct error err;

	open_store(f, IMAGE_WRITE);
	verify_sound(f);
	want = slurp("cow", &size);
	for (uint64_t n = keep; n < until; n++)
		memset(want + builder_entry_offset(f->b.chunk_sectors, n), 0,
		       16);
	ck_assert_int_eq(clear_to(&f->store, keep, &err), 0);
	got = slurp("cow", &size_after);
	ck_assert_uint_eq(size, size_after);
	for (size_t i = 0; i < size; i++)
		if (got[i] != want[i])
			ck_abort_msg("keeping %" PRIu64 ": byte %zu is 0x%02x",
				     keep, i, got[i]);
	ck_assert_uint_eq(f->store.exceptions, keep);
	ck_assert_uint_eq(f->store.stale, 0);
	free(got);
	free(want);

	verify_sound(f);
	ck_assert_uint_eq(f->store.exceptions, keep);
	ck_assert_uint_eq(f->store.stale, 0);
	ck_assert_int_eq(image_close(&f->image, &err), 0);
}

START_TEST(clearing_zeroes_the_tail_and_nothing_else)
{
	static const uint64_t keeps[] = { 0,	     1,	    E - 1,
					  E,	     E + 1, 2 * E,
					  3 * E - 1, 3 * E, 3 * E + 9,
					  3 * E + 10 };
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 3 * E + 10);
	for (size_t i = 0; i < sizeof(keeps) / sizeof(*keeps); i++)
		assert_cleared(&f, keeps[i], 3 * E + 10);
	builder_free(&f.b);
}
END_TEST

START_TEST(clearing_leaves_old_bytes_behind_the_last_area)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 2 * E + 7);
	f.b.garbage_after_table = true;
	assert_cleared(&f, 0, 2 * E + 7);
	assert_cleared(&f, E, 2 * E + 7);
	builder_free(&f.b);
}
END_TEST

START_TEST(clearing_scrubs_stale_entries)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, E + 7);
	f.b.stale_entries = 100;
	assert_cleared(&f, 0, E + 7 + 1 + 100);
	assert_cleared(&f, E + 2, E + 7 + 1 + 100);
	assert_cleared(&f, E + 7, E + 7 + 1 + 100);
	builder_free(&f.b);
	begin(&f, CHUNK, 32 * MIB);
	f.b.stale_entries = 9;
	assert_cleared(&f, 0, 10);
	builder_free(&f.b);
}
END_TEST

/* An area larger than what one write zeroes. */
START_TEST(clearing_a_large_area_zeroes_all_of_it)
{
	struct fixture f;
	struct error err;

	begin(&f, 1024, (uint64_t)30000 << 19);
	f.b.metadata_only = true;
	builder_compute(&f.b, BUILDER_ONE, 20000);
	open_store(&f, IMAGE_WRITE);
	verify_sound(&f);
	ck_assert_int_eq(clear_to(&f.store, 17, &err), 0);
	verify_sound(&f);
	ck_assert_uint_eq(f.store.exceptions, 17);
	ck_assert_uint_eq(f.store.stale, 0);
	end(&f);
}
END_TEST

START_TEST(clearing_goes_from_the_end_to_the_start)
{
	struct fixture f;
	struct error err;

	begin(&f, CHUNK, 64 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, 20 * E + 9);
	open_store(&f, IMAGE_WRITE);
	verify_sound(&f);
	writes = 0;
	ck_assert_int_eq(clear_to(&f.store, E + 5, &err), 0);
	ck_assert_uint_ge(writes, 20); /* one for each area at least */
	ck_assert_uint_le(writes, sizeof(written) / sizeof(*written));
	for (size_t i = 1; i < writes; i++)
		ck_assert_int_lt(written[i], written[i - 1]);
	ck_assert_int_eq(written[writes - 1],
			 (off_t)builder_entry_offset(CHUNK, E + 5));
	end(&f);
}
END_TEST

START_TEST(clearing_step_by_step_leaves_a_sound_store_each_time)
{
	struct fixture f;
	struct error err;

	begin(&f, 1, MIB);
	builder_fill(&f.b, BUILDER_SHUFFLED, 500);
	open_store(&f, IMAGE_WRITE);
	verify_sound(&f);
	while (f.b.count) {
		f.b.count -= f.b.count < 7 ? f.b.count : 7;
		ck_assert_int_eq(clear_to(&f.store, f.b.count, &err), 0);
		assert_table(&f);
		verify_sound(&f);
		assert_table(&f);
		ck_assert_uint_eq(f.store.stale, 0);
	}
	end(&f);
}
END_TEST

START_TEST(a_clear_that_cannot_be_written_fails)
{
	struct fixture f;
	struct error err = { 0 };

	begin(&f, CHUNK, MIB);
	builder_fill(&f.b, BUILDER_RUNS, 100);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	ck_assert_int_eq(clear_to(&f.store, 50, &err), -1);
	ck_assert_int_eq(err.kind, ERROR_SYSTEM);
	ck_assert_int_eq(err.sys, EBADF);
	ck_assert_str_eq(err.path, "cow");
	end(&f);
}
END_TEST

/* The kernel's figures */

static void assert_status(const struct cowstore *store, uint64_t allocated,
			  uint64_t total, uint64_t metadata)
{
	struct cowstore_status status;

	cowstore_status(store, &status);
	ck_assert_uint_eq(status.allocated_sectors, allocated);
	ck_assert_uint_eq(status.total_sectors, total);
	ck_assert_uint_eq(status.metadata_sectors, metadata);
}

/* The kernel documentation shows 397896/2097152 1560. */
START_TEST(the_documented_status_is_that_of_49542_exceptions)
{
	struct fixture f;

	begin(&f, CHUNK, GIB);
	f.b.cow_size = GIB;
	f.b.metadata_only = true;
	builder_fill(&f.b, BUILDER_RUNS, 49542);
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_status(&f.store, 397896, 2097152, 1560);
	end(&f);
}
END_TEST

START_TEST(a_store_without_exceptions_has_allocated_its_metadata)
{
	struct fixture f;

	begin(&f, CHUNK, MIB);
	f.b.cow_size = 16 * MIB;
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_status(&f.store, 16, 32768, 16);
	end(&f);
}
END_TEST

START_TEST(the_next_chunk_to_allocate_is_no_metadata_area)
{
	struct fixture f;

	begin(&f, CHUNK, 32 * MIB);
	builder_fill(&f.b, BUILDER_RUNS, E);
	f.b.cow_size = 16 * MIB;
	open_store(&f, IMAGE_PEEK);
	verify_sound(&f);
	assert_status(&f.store, (E + 3) * CHUNK, 32768, 3 * CHUNK);
	end(&f);
}
END_TEST

static char fixtures[4096];

/* The last status that the kernel printed before the store was taken. */
static void kernel_status(uint64_t *allocated, uint64_t *total,
			  uint64_t *metadata)
{
	FILE *log = fopen("create.log", "r");
	bool found = false;
	char line[256];

	ck_assert_ptr_nonnull(log);
	while (fgets(line, sizeof(line), log))
		if (sscanf(line,
			   "snap: 0 %*u snapshot %" SCNu64 "/%" SCNu64
			   " %" SCNu64,
			   allocated, total, metadata) == 3)
			found = true;
	fclose(log);
	ck_assert(found);
}

static const char *const kernel_stores[] = { "dev-ext4", "dev-mixed4k",
					     "dev-tail16k" };

START_TEST(the_status_is_what_the_kernel_printed)
{
	uint64_t allocated = 0, total = 0, metadata = 0;
	char command[sizeof(fixtures) + 64];
	struct findings found;
	struct cowstore store;
	struct image image;
	struct error err;

	snprintf(command, sizeof(command), "tar -xJf '%s/%s.tar.xz'", fixtures,
		 kernel_stores[_i]);
	ck_assert_int_eq(system(command), 0);
	kernel_status(&allocated, &total, &metadata);
	ck_assert_int_eq(image_open(&image, "cow", IMAGE_PEEK, &err), 0);
	ck_assert_int_eq(cowstore_open(&store, &image, false, &err), 0);
	ck_assert_int_eq(
		cowstore_verify(&store, COWSTORE_ANY_ORIGIN, &found, &err), 0);
	ck_assert_uint_eq(found.count, 0);
	assert_status(&store, allocated, total, metadata);
	ck_assert_int_eq(image_close(&image, &err), 0);
}
END_TEST

static void add_reading(Suite *suite)
{
	TCase *tc = scratch_case(suite, "reading", 120);

	tcase_add_loop_test(tc, every_legal_chunk_size_is_read, 0, 22);
	tcase_add_test(tc, an_empty_table_has_no_exceptions);
	tcase_add_loop_test(tc, areas_partly_and_exactly_full_are_read, 0,
			    COUNTS);
	tcase_add_loop_test(tc, old_bytes_behind_the_last_area_are_not_read, 0,
			    COUNTS);
	tcase_add_test(tc,
		       a_successor_with_old_bytes_ends_the_table_and_is_stale);
	tcase_add_test(tc, stale_entries_are_counted_up_to_the_last);
	tcase_add_test(tc, a_clean_table_has_nothing_to_scrub);
	tcase_add_test(tc,
		       a_full_last_area_at_the_end_of_the_cow_ends_the_table);
	tcase_add_test(tc,
		       a_full_area_with_a_piece_of_a_successor_ends_the_table);
	tcase_add_loop_test(tc, a_table_in_any_order_is_read_in_its_order, 0,
			    5);
	tcase_add_test(tc, holes_between_new_chunks_are_no_problem);
	tcase_add_test(tc, a_cow_that_ends_inside_a_chunk_is_read);
	tcase_add_test(tc, any_word_but_zero_is_valid);
	tcase_add_test(tc, an_invalid_store_is_opened_on_demand);
	tcase_add_test(tc, runs_and_the_lowest_and_highest_chunks_are_counted);
	tcase_add_test(tc, runs_are_told_in_the_order_of_the_table);
	tcase_add_test(tc, runs_of_a_part_of_the_table_are_cut);
	tcase_add_test(tc, a_run_ends_at_an_area);
	tcase_add_test(tc, any_part_of_the_table_is_read_across_areas);
	tcase_add_test(tc, a_truncated_area_cannot_be_read);
	tcase_add_test(tc, chunks_past_two_tib_are_read);
	tcase_add_test(tc, chunk_numbers_of_more_than_32_bits_are_read);
	tcase_add_test(tc, areas_past_two_tib_are_read);
}

static void add_refusing(Suite *suite)
{
	TCase *tc = scratch_case(suite, "refusing", 60);
	int count = (int)(sizeof(problems) / sizeof(*problems));

	tcase_add_test(tc, a_blank_store_is_refused);
	tcase_add_test(tc, another_magic_is_refused);
	tcase_add_test(tc, another_version_is_refused);
	tcase_add_test(tc, an_invalid_store_is_refused);
	tcase_add_test(tc, an_impossible_chunk_size_is_refused);
	tcase_add_test(tc, a_cow_too_small_for_a_header_is_refused);
	tcase_add_test(tc, a_first_area_past_the_end_is_refused);
	tcase_add_test(tc, a_bare_header_and_area_are_a_store);
	tcase_add_loop_test(tc, a_problem_is_found_with_its_exception_and_limit,
			    0, count);
	tcase_add_test(tc, an_origin_that_ends_inside_a_chunk_has_that_chunk);
	tcase_add_test(tc, an_empty_origin_takes_no_exception);
	tcase_add_test(tc, the_chunk_that_the_cow_ends_in_is_past_its_end);
	tcase_add_test(tc, a_second_metadata_area_is_no_place_for_data);
	tcase_add_test(tc, chunks_beside_a_metadata_area_hold_data);
	tcase_add_test(tc, duplicates_are_found_across_areas);
	tcase_add_test(tc, the_last_chunk_before_the_tables_end_is_looked_at);
	tcase_add_test(tc, both_sides_of_an_exception_are_looked_at);
	tcase_add_test(tc, twenty_problems_are_kept_and_all_are_counted);
	tcase_add_test(tc, a_second_verification_forgets_the_first);
	tcase_add_test(tc, without_an_origin_every_size_is_possible);
	tcase_add_loop_test(tc,
			    origin_chunks_named_twice_are_found_in_every_window,
			    0, FAR);
	tcase_add_loop_test(
		tc, cow_chunks_named_twice_are_found_in_every_window, 0, FAR);
	tcase_add_test(tc, distant_chunks_named_once_are_sound);
}

static void add_clearing(Suite *suite)
{
	TCase *tc = scratch_case(suite, "clearing", 60);

	tcase_add_test(tc, clearing_zeroes_the_tail_and_nothing_else);
	tcase_add_test(tc, clearing_leaves_old_bytes_behind_the_last_area);
	tcase_add_test(tc, clearing_scrubs_stale_entries);
	tcase_add_test(tc, clearing_a_large_area_zeroes_all_of_it);
	tcase_add_test(tc, clearing_goes_from_the_end_to_the_start);
	tcase_add_test(tc,
		       clearing_step_by_step_leaves_a_sound_store_each_time);
	tcase_add_test(tc, a_clear_that_cannot_be_written_fails);
}

/* NULL, or why there are no stores of a real kernel. */
static const char *find_fixtures(void)
{
	char *dir = realpath("test/fixtures", NULL);

	if (!dir)
		return "test/fixtures is not here";
	snprintf(fixtures, sizeof(fixtures), "%s", dir);
	free(dir);
	if (system("command -v xz >/dev/null"))
		return "xz is missing";
	return NULL;
}

static void add_status(Suite *suite)
{
	TCase *tc = scratch_case(suite, "status", 60);
	const char *no_fixtures = find_fixtures();

	tcase_add_test(tc, the_documented_status_is_that_of_49542_exceptions);
	tcase_add_test(tc,
		       a_store_without_exceptions_has_allocated_its_metadata);
	tcase_add_test(tc, the_next_chunk_to_allocate_is_no_metadata_area);
	if (no_fixtures)
		skip(3, "the kernel's own figures", no_fixtures);
	else
		tcase_add_loop_test(tc, the_status_is_what_the_kernel_printed,
				    0, 3);
}

int main(void)
{
	Suite *suite = suite_create("cowstore");

	add_reading(suite);
	add_refusing(suite);
	add_clearing(suite);
	add_status(suite);
	return run(suite, "cowstore");
}
