/*
 * test_copier.c - claims about copier.c
 *
 * Merges are recorded, call by call, and their order is read off the record;
 * then they are made to fail at each call in turn. Workers run at the same
 * time, so no claim is about the order of what they do at the same time.
 *
 * Linked with --wrap for what is wrapped at the end of the next section.
 */
#include "builder.h"
#include "pair.h"
#include "scratch.h"
#include "trace.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)

enum { ORIGIN, COW, FILES };

static const char *const paths[FILES] = { "origin", "cow" };

/* Cheap where it holds, unlike ck_assert_msg(). */
#define must(condition, ...)                                                   \
	do {                                                                   \
		if (!(condition))                                              \
			ck_abort_msg(__VA_ARGS__);                             \
	} while (0)

/* Memory and threads that cannot be had */

static struct {
	bool armed, met;
	unsigned int left;
} scarce;

static bool refused(void)
{
	if (!scarce.armed || trace_inside() || --scarce.left)
		return false;
	scarce.armed = false;
	scarce.met = true;
	return true;
}

static struct {
	bool armed, met;
} threadless;
static unsigned int threads_left;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*start)(void *), void *arg);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*start)(void *), void *arg);

void *__wrap_malloc(size_t size)
{
	return refused() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return refused() ? NULL : __real_calloc(count, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
	return refused() ? NULL : __real_aligned_alloc(alignment, size);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*start)(void *), void *arg)
{
	if (threadless.armed && !--threads_left) {
		threadless.armed = false;
		threadless.met = true;
		return EAGAIN;
	}
	return __real_pthread_create(thread, attr, start, arg);
}

/* Files */

struct disk {
	unsigned char *bytes;
	size_t size;
};

static struct disk disk_new(size_t size)
{
	struct disk d = { calloc(1, size + 1), size };

	ck_assert_ptr_nonnull(d.bytes);
	return d;
}

static struct disk disk_copy(const struct disk *from)
{
	struct disk d = disk_new(from->size);

	memcpy(d.bytes, from->bytes, from->size);
	return d;
}

static struct disk disk_load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	struct disk d;
	size_t done = 0;

	must(fd >= 0 && !fstat(fd, &st), "%s: %s", path, strerror(errno));
	d = disk_new((size_t)st.st_size);
	while (done < d.size) {
		ssize_t n = read(fd, d.bytes + done, d.size - done);

		must(n > 0, "%s: %s", path, strerror(errno));
		done += (size_t)n;
	}
	close(fd);
	return d;
}

static void disk_save(const struct disk *d, const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	size_t done = 0;

	must(fd >= 0, "%s: %s", path, strerror(errno));
	while (done < d->size) {
		ssize_t n = write(fd, d->bytes + done, d->size - done);

		must(n > 0, "%s: %s", path, strerror(errno));
		done += (size_t)n;
	}
	close(fd);
}

/* The offset of the first difference, or UINT64_MAX. */
static uint64_t difference(const struct disk *a, const struct disk *b)
{
	size_t i = 0;

	if (a->size == b->size && !memcmp(a->bytes, b->bytes, a->size))
		return UINT64_MAX;
	while (i < a->size && i < b->size && a->bytes[i] == b->bytes[i])
		i++;
	return i;
}

/* One store and its merge */

static struct {
	struct builder b;
	struct disk before[FILES];
	struct disk merged; /* what the origin must become */
	struct pair pair;
	int result;
} job;

static void new_store(uint32_t chunk_sectors, uint64_t origin_size,
		      uint64_t seed)
{
	builder_free(&job.b);
	builder_init(&job.b, chunk_sectors, origin_size, seed);
}

/* Write what the builder holds to the files. */
static void write_store(void)
{
	for (int f = 0; f < FILES; f++)
		free(job.before[f].bytes);
	free(job.merged.bytes);
	builder_write(&job.b, paths[ORIGIN], paths[COW]);
	for (int f = 0; f < FILES; f++)
		job.before[f] = disk_load(paths[f]);
	job.merged = disk_new((size_t)job.b.origin_size);
	builder_expect(&job.b, 0, job.merged.bytes, job.merged.size);
	memset(&job.pair, 0, sizeof(job.pair));
	job.pair.origin = paths[ORIGIN];
	job.pair.cow = paths[COW];
	job.pair.options.reflink = REFLINK_NEVER;
}

static void make_store(uint32_t chunk_sectors, uint64_t origin_size,
		       enum builder_pattern pattern, size_t count)
{
	new_store(chunk_sectors, origin_size, count + chunk_sectors);
	builder_fill(&job.b, pattern, count);
	write_store();
}

/*
 * Three full areas and a part of one, an origin that ends in a chunk, batches
 * that end in the middle of areas.
 */
static void make_small_store(enum builder_pattern pattern)
{
	make_store(1, 300 * 512 + 100, pattern, 110);
	job.pair.options.batch_size = 24 * 512;
}

/* Several slices to a batch, so that all workers have something to do. */
static void make_wide_store(enum builder_pattern pattern)
{
	make_store(8, 4 * MIB + 700, pattern, 500);
	job.pair.options.batch_size = 512 * KIB;
}

static int merge(void)
{
	for (int f = 0; f < FILES; f++)
		trace_watch(f, paths[f]);
	trace_pretend_syncs(true); /* the record says what they would do */
	trace_start();
	job.result = pair_merge(&job.pair);
	trace_stop();
	must(trace_count(), "no call was recorded: is trace.c linked in?");
	return job.result;
}

static void merge_ok(void)
{
	int result = merge();

	must(!result, "merge returned %d: %s: %s (%s)", result,
	     job.pair.error.path ? job.pair.error.path : "",
	     job.pair.error.what, strerror(job.pair.error.sys));
}

static uint64_t chunk_bytes(void)
{
	return job.b.chunk_sectors * UINT64_C(512);
}

/* The table */

/* Entries that the first commit is to clear: live ones, and stale ones. */
static uint64_t table_end(void)
{
	return job.b.count +
	       (job.b.stale_entries ? 1 + job.b.stale_entries : 0);
}

/* The number of the entry at this offset of the COW; false: none is there. */
static bool entry_at(uint64_t offset, uint64_t *number)
{
	uint64_t e = builder_per_area(job.b.chunk_sectors);
	uint64_t chunk = offset / chunk_bytes();

	if (chunk % (e + 1) != 1)
		return false;
	*number = chunk / (e + 1) * e + offset % chunk_bytes() / 16;
	return true;
}

static uint64_t *numbers(uint64_t count)
{
	uint64_t *all = calloc((size_t)count + 1, sizeof(*all));

	ck_assert_ptr_nonnull(all);
	return all;
}

/* Which exception names a chunk of the origin, or UINT64_MAX. */
static uint64_t *by_old_chunk(void)
{
	uint64_t chunks = builder_origin_chunks(&job.b);
	uint64_t *number = numbers(chunks);

	for (uint64_t i = 0; i < chunks; i++)
		number[i] = UINT64_MAX;
	for (size_t i = 0; i < job.b.count; i++)
		number[job.b.exceptions[i].old_chunk] = i;
	return number;
}

/*
 * Claims about a record
 */

static bool is_change(const struct trace_event *event, int file)
{
	return event->file == file && trace_changes(event);
}

/* Only chunks that the table names, each byte at most once. */
static void check_named_chunks_only(void)
{
	struct disk seen = disk_new(job.before[ORIGIN].size);
	uint64_t *number = by_old_chunk();

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		if (!is_change(event, ORIGIN))
			continue;
		must(event->offset + event->len <= seen.size,
		     "write past the end of the origin");
		for (uint64_t at = event->offset;
		     at < event->offset + event->len; at++) {
			must(number[at / chunk_bytes()] != UINT64_MAX,
			     "byte %" PRIu64 " of the origin was written, its "
			     "chunk is not in the table",
			     at);
			must(!seen.bytes[at]++,
			     "byte %" PRIu64 " of the origin was written twice",
			     at);
			must(event->data[at - event->offset] ==
				     job.merged.bytes[at],
			     "byte %" PRIu64 " of the origin is wrong", at);
		}
	}
	free(number);
	free(seen.bytes);
}

/* When each sector of the origin became durable. */
static uint64_t *origin_durable(void)
{
	size_t sectors = job.before[ORIGIN].size / 512 + 1;
	uint64_t *when = numbers(sectors);

	for (size_t i = 0; i < sectors; i++) {
		size_t left = job.merged.size - i * 512;
		bool same = !memcmp(job.before[ORIGIN].bytes + i * 512,
				    job.merged.bytes + i * 512,
				    left < 512 ? left : 512);

		when[i] = same ? 0 : TRACE_NEVER;
	}
	for (size_t i = 0; i < trace_count(); i++) {
		const struct trace_event *event = trace_event(i);
		uint64_t durable = trace_durable(i);
		uint64_t end = event->offset + event->len;

		if (!is_change(event, ORIGIN))
			continue;
		for (uint64_t at = event->offset / 512; at * 512 < end; at++) {
			bool whole = at * 512 + 512 <= end ||
				     end == job.before[ORIGIN].size;

			/* The halves of a write that was cut short. */
			if (when[at] == TRACE_NEVER || when[at] < durable)
				when[at] = durable;
			if (!whole)
				when[at] = durable;
		}
	}
	return when;
}

/* M1 */
static void check_durable_before_cleared(void)
{
	uint64_t *when = origin_durable();

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		if (!is_change(event, COW))
			continue;
		for (uint64_t at = 0; at < event->len; at += 16) {
			uint64_t n, from, to;

			if (!entry_at(event->offset + at, &n) ||
			    n >= job.b.count)
				continue;
			from = job.b.exceptions[n].old_chunk * chunk_bytes();
			to = from + chunk_bytes();
			if (to > job.before[ORIGIN].size)
				to = job.before[ORIGIN].size;
			for (; from < to; from += 512)
				must(when[from / 512] < event->begin,
				     "exception %" PRIu64 " was cleared before "
				     "byte %" PRIu64 " of the origin was "
				     "durable",
				     n, from);
		}
	}
	free(when);
}

/* The header chunk's second sector may hold a note on the merge. */
static bool is_note(const struct trace_event *event)
{
	return event->file == COW && event->offset == 512 &&
	       event->asked == 512 && chunk_bytes() > 512;
}

/*
 * M2, M5: but for notes, zeros only, entries only, from the end, without a
 * gap. What is left of a write that was cut short follows it.
 */
static void check_cleared_from_the_end(void)
{
	uint64_t end = table_end(), rest = 0;

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);
		uint64_t first, last;

		if (!is_change(event, COW) || !event->data ||
		    event->asked == rest) {
			rest -= is_change(event, COW) && event->data
					? event->len
					: 0;
			continue;
		}
		rest = event->asked - event->len;
		if (is_note(event))
			continue;
		must(event->offset % 16 == 0 && event->asked % 16 == 0,
		     "a part of an entry was written");
		must(entry_at(event->offset, &first) &&
			     entry_at(event->offset + event->asked - 16, &last),
		     "%" PRIu64 " bytes at %" PRIu64 " of the COW were "
		     "written, which are not of the table",
		     event->asked, event->offset);
		must(last + 1 == end,
		     "entries up to %" PRIu64 " were cleared when the table "
		     "ended at %" PRIu64,
		     last, end);
		must(event->asked / 16 == last + 1 - first,
		     "the write goes over more than an area");
		for (uint64_t i = 0; i < event->asked; i++)
			must(!event->data[i], "an entry was not cleared");
		end = first;
	}
}

/* No write to the origin between a clear and the sync that makes it stay. */
static void check_cow_synced_before_next_batch(void)
{
	uint64_t busy = 0;

	for (size_t i = 0; i < trace_count(); i++) {
		const struct trace_event *event = trace_event(i);

		/* A discard may go lost. */
		if (is_change(event, COW) && event->data &&
		    trace_durable(i) > busy)
			busy = trace_durable(i);
		must(!is_change(event, ORIGIN) || event->begin > busy,
		     "a write to the origin began before the clear of the "
		     "batch before it was durable");
	}
}

/* Between two commits only exceptions of one batch, which has its limit. */
static void check_one_batch_at_a_time(void)
{
	uint64_t *number = by_old_chunk();
	uint64_t low = UINT64_MAX, keep = job.pair.exceptions;
	bool cleared = false;

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);
		uint64_t n;

		if (is_change(event, COW) && entry_at(event->offset, &n)) {
			cleared = true;
			if (n < keep)
				keep = n;
		}
		if (!is_change(event, ORIGIN))
			continue;
		if (cleared) {
			must(keep <= low || low == UINT64_MAX,
			     "exception %" PRIu64 " was written, the commit "
			     "after it keeps %" PRIu64,
			     low, keep);
			low = UINT64_MAX;
			cleared = false;
		}
		for (uint64_t at = event->offset / chunk_bytes();
		     at * chunk_bytes() < event->offset + event->len; at++) {
			n = number[at];
			must(n < keep, "exception %" PRIu64 " again", n);
			must(keep - n <= job.pair.plan.batch_chunks,
			     "exception %" PRIu64 " was written while %" PRIu64
			     " were left, batches are of %" PRIu64,
			     n, keep, job.pair.plan.batch_chunks);
			if (n < low)
				low = n;
		}
	}
	free(number);
}

/*
 * Each worker: between two reads of data, writes ascend, and none begins where
 * the last one ended, unless that was cut short or as long as a vector can be.
 */
static void check_slices_ascend(void)
{
	enum { THREADS = 128 };
	uint64_t end[THREADS] = { 0 };
	bool may_meet[THREADS] = { 0 };

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);
		uint64_t n;

		must(event->thread < THREADS, "too many threads");
		if (event->file == COW && event->call == TRACE_READ &&
		    !entry_at(event->offset, &n))
			end[event->thread] = 0;
		if (event->file != ORIGIN || event->call != TRACE_WRITE)
			continue;
		must(event->offset >= end[event->thread],
		     "a write at %" PRIu64 " follows one that ended at "
		     "%" PRIu64,
		     event->offset, end[event->thread]);
		must(!end[event->thread] ||
			     event->offset > end[event->thread] ||
			     may_meet[event->thread],
		     "two writes meet at %" PRIu64, event->offset);
		end[event->thread] = event->offset + event->len;
		may_meet[event->thread] = event->parts >= 1024 ||
					  event->len < event->asked;
	}
}

/* Waiting for writeback reports errors once, and not to the sync. */
static void check_no_writeback_is_awaited(void)
{
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		must(event->call != TRACE_WRITEBACK || event->request == 2,
		     "sync_file_range() with flags %ld", event->request);
	}
}

/* M6 */
static void check_failed_sync_is_final(void)
{
	bool failed = false;

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		must(!failed || (event->call != TRACE_SYNC &&
				 !trace_changes(event)),
		     "a %s after a failed sync", trace_name(event->call));
		failed |= event->call == TRACE_SYNC && event->sys;
	}
}

/* What holds for every merge, also for one that failed. */
static void check_order(void)
{
	check_durable_before_cleared();
	check_cow_synced_before_next_batch();
	check_one_batch_at_a_time();
	check_no_writeback_is_awaited();
	check_failed_sync_is_final();
}

/* The files themselves */

static void check_origin_is(const struct disk *wanted)
{
	struct disk now = disk_load(paths[ORIGIN]);
	uint64_t at = difference(&now, wanted);

	must(at == UINT64_MAX, "origin is wrong at byte %" PRIu64, at);
	free(now.bytes);
}

/* Nothing but the first entries of the table has changed, and they are 0. */
static void check_cow_is_merged(void)
{
	struct disk now = disk_load(paths[COW]);
	struct disk wanted = disk_copy(&job.before[COW]);
	uint64_t at;

	for (uint64_t n = 0; n < table_end(); n++) {
		at = builder_entry_offset(job.b.chunk_sectors, n);
		if (at < wanted.size)
			memset(wanted.bytes + at, 0, 16);
	}
	at = difference(&now, &wanted);
	must(at == UINT64_MAX, "COW is wrong at byte %" PRIu64, at);
	free(wanted.bytes);
	free(now.bytes);
}

static void check_untouched(void)
{
	for (int f = 0; f < FILES; f++) {
		struct disk now = disk_load(paths[f]);
		uint64_t at = difference(&now, &job.before[f]);

		must(at == UINT64_MAX, "%s was changed at byte %" PRIu64,
		     paths[f], at);
		free(now.bytes);
	}
}

/* M7, on these disks. */
static void check_view(const struct disk *origin, const struct disk *cow,
		       const char *when)
{
	struct disk view = disk_new(origin->size);
	int live = view_of(origin->bytes, origin->size, cow->bytes, cow->size,
			   view.bytes);
	uint64_t at = difference(&view, &job.merged);

	must(live >= 0, "%s: the store is unsound", when);
	must(at == UINT64_MAX, "%s: the view is wrong at byte %" PRIu64, when,
	     at);
	free(view.bytes);
}

/*
 * Had the power gone at the end: the origin holds what was synced, the COW
 * has everything.
 */
static void check_view_after_power_cut(struct disk *origin, struct disk *cow)
{
	*origin = disk_copy(&job.before[ORIGIN]);
	*cow = disk_load(paths[COW]);
	trace_apply_durable(ORIGIN, trace_end(), origin->bytes, origin->size);
	check_view(origin, cow, "after a power cut");
}

static void check_merged(void)
{
	must(job.result == 0, "not merged");
	check_origin_is(&job.merged);
	check_cow_is_merged();
}

/* Run again without faults; it must finish, whatever was before. */
static void check_rerun(void)
{
	copier_tick *tick = job.pair.tick;

	job.pair.tick = NULL;
	job.result = pair_merge(&job.pair);
	must(!job.result, "rerun: %s (%s)", job.pair.error.what,
	     strerror(job.pair.error.sys));
	job.pair.tick = tick;
	check_merged();
}

/* What was cleared is durable, and what was not is still in the store. */
static void check_nothing_lost(void)
{
	struct disk origin, cow, now = disk_load(paths[ORIGIN]);

	check_order();
	check_cleared_from_the_end();
	check_view_after_power_cut(&origin, &cow);
	check_view(&now, &cow, "after the fault");
	free(now.bytes);
	check_rerun();
	disk_save(&origin, paths[ORIGIN]);
	disk_save(&cow, paths[COW]);
	check_rerun();
	free(cow.bytes);
	free(origin.bytes);
}

static void check_everything(void)
{
	check_order();
	check_named_chunks_only();
	check_cleared_from_the_end();
	check_slices_ascend();
	for (size_t i = 0; i < trace_count(); i++)
		must(!trace_changes(trace_event(i)) ||
			     trace_durable(i) != TRACE_NEVER,
		     "a write is not durable at the end");
	check_merged();
	must(job.pair.progress.committed == job.b.count &&
		     job.pair.progress.exceptions == job.b.count,
	     "%" PRIu64 " of %" PRIu64 " are said to be committed",
	     job.pair.progress.committed, job.pair.progress.exceptions);
	must(job.pair.progress.touched == (job.b.count != 0),
	     "touched is wrong");
}

/* Order */

START_TEST(merge_syncs_origin_before_clearing)
{
	make_small_store(BUILDER_SCATTERED);
	merge_ok();
	check_durable_before_cleared();
	make_wide_store(BUILDER_RUNS);
	merge_ok();
	check_durable_before_cleared();
}
END_TEST

START_TEST(merge_clears_the_table_from_its_end)
{
	make_small_store(BUILDER_SHUFFLED);
	merge_ok();
	check_cleared_from_the_end();
	make_small_store(BUILDER_RUNS);
	job.pair.options.batch_size = 0; /* all areas in one commit */
	merge_ok();
	ck_assert_uint_eq(job.pair.progress.commits, 1);
	check_cleared_from_the_end();
}
END_TEST

START_TEST(merge_syncs_cow_before_the_next_batch)
{
	make_small_store(BUILDER_RUNS);
	merge_ok();
	check_cow_synced_before_next_batch();
	make_wide_store(BUILDER_REVERSED);
	merge_ok();
	check_cow_synced_before_next_batch();
}
END_TEST

START_TEST(merge_writes_one_batch_between_commits)
{
	make_small_store(BUILDER_SHUFFLED);
	merge_ok();
	check_one_batch_at_a_time();
	ck_assert_uint_eq(job.pair.progress.commits, job.pair.plan.batches);
	make_wide_store(BUILDER_SCATTERED);
	merge_ok();
	check_one_batch_at_a_time();
}
END_TEST

START_TEST(merge_leaves_header_and_data_of_cow_alone)
{
	make_small_store(BUILDER_RUNS);
	merge_ok();
	check_cow_is_merged();
	check_cleared_from_the_end();
}
END_TEST

START_TEST(merge_writes_named_chunks_only_and_once)
{
	make_small_store(BUILDER_SCATTERED);
	merge_ok();
	check_named_chunks_only();
	make_wide_store(BUILDER_SHUFFLED);
	merge_ok();
	check_named_chunks_only();
}
END_TEST

START_TEST(merge_writes_a_slice_in_order_and_joined)
{
	make_small_store(BUILDER_SHUFFLED);
	merge_ok();
	check_slices_ascend();
	make_wide_store(BUILDER_SHUFFLED);
	merge_ok();
	check_slices_ascend();
	make_wide_store(BUILDER_REVERSED);
	merge_ok();
	check_slices_ascend();
}
END_TEST

START_TEST(merge_awaits_no_writeback_but_by_sync)
{
	make_wide_store(BUILDER_SCATTERED);
	job.pair.direct = -1;
	merge_ok();
	check_no_writeback_is_awaited();
}
END_TEST

START_TEST(merge_ends_with_everything_durable)
{
	make_small_store(BUILDER_RUNS);
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(empty_table_is_merged_without_a_write)
{
	make_store(8, MIB, BUILDER_RUNS, 0);
	merge_ok();
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		must(!trace_changes(event), "a write");
	}
	check_untouched();
	ck_assert(!job.pair.progress.touched);
}
END_TEST

/* Shapes */

START_TEST(every_pattern_and_chunk_size_is_merged)
{
	static const uint32_t sectors[] = { 1, 2, 8, 32, 128, 1024 };
	enum builder_pattern pattern = (enum builder_pattern)(_i % 5);
	uint32_t chunk = sectors[_i / 5];
	uint64_t size = chunk < 128 ? 600 * chunk * 512 + 5
				    : 40 * chunk * 512 + 5;

	new_store(chunk, size, (uint64_t)_i);
	builder_fill(&job.b, pattern,
		     (size_t)builder_room(&job.b, pattern) * 2 / 3);
	write_store();
	job.pair.options.batch_size = size / 5;
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(every_batch_size_is_kept)
{
	static const uint64_t chunks[] = { 1,  2,  3,  31, 32,	33,  63,
					   64, 65, 96, 97, 109, 110, 111 };

	make_small_store(_i % 2 ? BUILDER_RUNS : BUILDER_SHUFFLED);
	job.pair.options.batch_size = chunks[_i] * 512;
	merge_ok();
	check_everything();
	ck_assert_uint_eq(job.pair.plan.batch_chunks, chunks[_i]);
	ck_assert_uint_eq(job.pair.plan.batches,
			  (110 + chunks[_i] - 1) / chunks[_i]);
	ck_assert_uint_eq(job.pair.progress.commits, job.pair.plan.batches);
}
END_TEST

START_TEST(batch_size_below_a_chunk_means_one_chunk)
{
	make_store(32, 40 * 16 * KIB, BUILDER_RUNS, 9);
	job.pair.options.batch_size = 1;
	merge_ok();
	check_everything();
	ck_assert_uint_eq(job.pair.progress.commits, 9);
}
END_TEST

START_TEST(table_of_exactly_full_areas_is_merged)
{
	make_store(1, 300 * 512, BUILDER_RUNS, 32u * (unsigned int)_i);
	job.pair.options.batch_size = 20 * 512;
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(full_last_area_at_the_end_of_the_cow_is_merged)
{
	new_store(1, 300 * 512, 1);
	builder_fill(&job.b, BUILDER_SHUFFLED, 64);
	/* The last data chunk is the last of all. */
	job.b.cow_size = (builder_new_chunk(1, 63) + 1) * 512;
	write_store();
	job.pair.options.batch_size = 20 * 512;
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(old_bytes_behind_the_last_area_stay)
{
	new_store(1, 300 * 512, 1);
	builder_fill(&job.b, BUILDER_RUNS, 32u * (unsigned int)_i + 5);
	job.b.garbage_after_table = true;
	write_store();
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(last_chunk_is_clipped)
{
	static const uint64_t tails[] = { 1, 511, 512, 513, 4095 };

	make_store(8, 20 * 4096 + tails[_i], BUILDER_RUNS, 15);
	ck_assert_uint_eq(builder_origin_chunks(&job.b), 21);
	job.pair.direct = _i % 2 ? 1 : -1;
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(chunks_larger_than_a_buffer_travel_in_pieces)
{
	uint64_t largest = 0;

	new_store(32768, 5 * 16 * MIB + 4097, 3);
	builder_fill(&job.b, BUILDER_SHUFFLED, 3);
	write_store();
	job.pair.options.batch_size = 32 * MIB;
	merge_ok();
	check_order();
	check_named_chunks_only();
	check_cleared_from_the_end();
	check_merged();
	ck_assert_uint_lt(job.pair.plan.unit, 16 * MIB);
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		if (event->file == COW && event->call == TRACE_READ &&
		    event->asked > largest)
			largest = event->asked;
	}
	ck_assert_uint_le(largest, job.pair.plan.buffer * 9 / 8);
}
END_TEST

/* Stale entries */

START_TEST(stale_entries_are_scrubbed_by_the_first_commit)
{
	bool first = true;

	new_store(1, 300 * 512, 8);
	builder_fill(&job.b, BUILDER_RUNS, 70);
	job.b.stale_entries = 11;
	write_store();
	job.pair.options.batch_size = 10 * 512;
	merge_ok();
	ck_assert_uint_eq(job.pair.stale, 11);
	check_cleared_from_the_end();
	check_merged();
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);
		uint64_t last;

		if (!first || !is_change(event, COW) || is_note(event))
			continue;
		ck_assert(entry_at(event->offset + event->len - 16, &last));
		ck_assert_uint_eq(last, 70 + 1 + 11 - 1);
		first = false;
	}
}
END_TEST

START_TEST(stale_entries_of_an_empty_table_are_scrubbed)
{
	new_store(1, 300 * 512, 8);
	job.b.stale_entries = 5;
	write_store();
	merge_ok();
	check_cleared_from_the_end();
	check_merged();
	check_origin_is(&job.before[ORIGIN]);
	for (size_t i = 0; i < trace_count(); i++)
		must(!trace_changes(trace_event(i)) ||
			     trace_durable(i) != TRACE_NEVER,
		     "the scrub is not durable");
}
END_TEST

/* Stop and go */

static bool stop_after(void *context, const struct copier_progress *progress)
{
	return progress->commits >= *(unsigned int *)context;
}

START_TEST(stop_request_ends_at_a_commit_and_returns_1)
{
	for (unsigned int commits = 1; commits < 5; commits++) {
		struct disk origin, cow;

		make_small_store(BUILDER_SHUFFLED);
		job.pair.tick = stop_after;
		job.pair.context = &commits;
		ck_assert_int_eq(merge(), 1);
		ck_assert_uint_eq(job.pair.progress.commits, commits);
		ck_assert_uint_eq(job.pair.progress.committed, commits * 24);
		check_order();
		check_cleared_from_the_end();
		origin = disk_load(paths[ORIGIN]);
		cow = disk_load(paths[COW]);
		check_view(&origin, &cow, "stopped");
		ck_assert_int_eq(view_of(origin.bytes, origin.size, cow.bytes,
					 cow.size, origin.bytes),
				 110 - (int)commits * 24);
		free(cow.bytes);
		free(origin.bytes);
		check_view_after_power_cut(&origin, &cow);
		free(cow.bytes);
		free(origin.bytes);
		check_rerun();
	}
}
END_TEST

START_TEST(stop_request_after_the_last_commit_returns_0)
{
	unsigned int commits = 5;

	make_small_store(BUILDER_SHUFFLED);
	job.pair.tick = stop_after;
	job.pair.context = &commits;
	ck_assert_int_eq(merge(), 0);
	check_merged();
}
END_TEST

static bool stop_always(void *context, const struct copier_progress *progress)
{
	(void)context;
	(void)progress;
	return true;
}

START_TEST(stop_request_within_a_batch_commits_what_was_begun)
{
	/* So slow that a tick falls into the first batch. */
	make_store(8, 4 * MIB, BUILDER_RUNS, 900);
	job.pair.options.rate_limit = MIB;
	job.pair.tick = stop_always;
	ck_assert_int_eq(merge(), 1);
	ck_assert_uint_ge(job.pair.progress.commits, 1);
	ck_assert_uint_gt(job.pair.progress.committed, 0);
	ck_assert_uint_lt(job.pair.progress.committed, 900);
	check_order();
	check_named_chunks_only();
	check_cleared_from_the_end();
	job.pair.options.rate_limit = 0;
	check_rerun();
}
END_TEST

START_TEST(stop_request_within_a_chunk_finishes_the_chunk)
{
	make_store(8192, 5 * 4 * MIB, BUILDER_RUNS, 4);
	job.pair.options.rate_limit = 8 * MIB;
	job.pair.tick = stop_always;
	ck_assert_int_eq(merge(), 1);
	ck_assert_uint_gt(job.pair.progress.committed, 0);
	check_order();
	check_named_chunks_only();
	job.pair.options.rate_limit = 0;
	check_rerun();
}
END_TEST

static bool count_ticks(void *context, const struct copier_progress *progress)
{
	uint64_t *commits = context;

	must(progress->commits == *commits || progress->commits == *commits + 1,
	     "a tick is missing");
	*commits = progress->commits;
	return false;
}

START_TEST(tick_follows_each_commit)
{
	uint64_t commits = 0;

	make_small_store(BUILDER_RUNS);
	job.pair.tick = count_ticks;
	job.pair.context = &commits;
	merge_ok();
	ck_assert_uint_eq(commits, job.pair.plan.batches);
}
END_TEST

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

START_TEST(rate_limit_is_kept_and_waits_idly)
{
	uint64_t wall, cpu;

	make_store(8, 2 * MIB, BUILDER_RUNS, 256);
	job.pair.options.rate_limit = MIB;
	wall = nanoseconds(CLOCK_MONOTONIC);
	cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID);
	merge_ok();
	wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	cpu = nanoseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	check_merged();
	ck_assert_uint_ge(wall, 950000000);
	/* Who polls takes what there is; on a busy machine that is little. */
	ck_assert_uint_le(cpu, 100000000);
}
END_TEST

START_TEST(deadline_that_has_passed_still_commits_something)
{
	make_small_store(BUILDER_RUNS);
	job.pair.options.deadline = 1;
	ck_assert_int_eq(merge(), 1);
	ck_assert_uint_ge(job.pair.progress.committed, 1);
	check_durable_before_cleared();
	check_cow_synced_before_next_batch();
	check_cleared_from_the_end();
	job.pair.options.deadline = 0;
	check_rerun();
}
END_TEST

START_TEST(deadline_ends_a_slow_merge_at_a_commit)
{
	uint64_t begun = nanoseconds(CLOCK_MONOTONIC);

	make_store(8, 8 * MIB, BUILDER_RUNS, 1500);
	job.pair.options.rate_limit = 2 * MIB;
	job.pair.options.batch_size = 256 * KIB;
	job.pair.options.deadline = begun + 1000000000;
	ck_assert_int_eq(merge(), 1);
	ck_assert_uint_gt(job.pair.progress.committed, 0);
	ck_assert_uint_lt(nanoseconds(CLOCK_MONOTONIC) - begun, 2000000000);
	check_durable_before_cleared();
	check_cow_synced_before_next_batch();
	check_named_chunks_only();
	check_cleared_from_the_end();
	job.pair.options.rate_limit = job.pair.options.deadline = 0;
	check_rerun();
}
END_TEST

START_TEST(merge_goes_on_where_another_stopped)
{
	unsigned int commits = 1;
	int runs = 0;

	make_small_store(BUILDER_SCATTERED);
	job.pair.tick = stop_after;
	job.pair.context = &commits;
	while (merge() == 1 && runs++ < 10)
		check_order();
	ck_assert_int_eq(runs, 4);
	check_merged();
}
END_TEST

/* Engines */

static bool seen_direct(void)
{
	bool direct = false;

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		direct |= event->call == TRACE_FCNTL && event->file == ORIGIN &&
			  event->request == F_SETFL &&
			  (event->argument & O_DIRECT);
	}
	return direct;
}

static bool direct_works(void)
{
	int fd = open("probe", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

START_TEST(long_runs_go_around_the_page_cache)
{
	make_store(8, 8 * MIB, BUILDER_ONE, 1000);
	merge_ok();
	ck_assert(job.pair.plan.direct);
	check_everything();
	ck_assert(seen_direct());
}
END_TEST

START_TEST(short_runs_go_through_the_page_cache)
{
	make_store(8, 8 * MIB, BUILDER_SCATTERED, 1000);
	merge_ok();
	ck_assert(!job.pair.plan.direct);
	check_everything();
	ck_assert(!seen_direct());
}
END_TEST

START_TEST(direct_writes_of_any_alignment_arrive)
{
	static const uint32_t sectors[] = { 1, 2, 4, 8, 32 };

	for (size_t i = 0; i < sizeof(sectors) / sizeof(*sectors); i++) {
		make_store(sectors[i], 200 * sectors[i] * 512 + 77,
			   BUILDER_SHUFFLED, 150);
		job.pair.options.batch_size = 100 * sectors[i] * 512;
		job.pair.direct = 1;
		merge_ok();
		check_order();
		check_merged();
	}
}
END_TEST

START_TEST(direct_writes_refused_late_go_through_the_page_cache)
{
	for (unsigned int n = 1; n < 20; n++) {
		make_wide_store(BUILDER_SCATTERED);
		job.pair.direct = 1;
		trace_fault(TRACE_WRITE, ORIGIN, n, TRACE_FAIL_DIRECT, EINVAL);
		merge_ok();
		check_order();
		check_merged();
	}
}
END_TEST

START_TEST(one_worker_is_enough)
{
	make_wide_store(BUILDER_SHUFFLED);
	job.pair.workers = 1;
	merge_ok();
	check_everything();
}
END_TEST

START_TEST(more_workers_than_slices_agree)
{
	static const int direct[] = { -1, 1 };

	for (size_t i = 0; i < 2; i++) {
		make_wide_store(BUILDER_SHUFFLED);
		job.pair.options.batch_size = MIB;
		job.pair.direct = direct[i];
		job.pair.workers = 64;
		merge_ok();
		check_everything();
	}
}
END_TEST

static unsigned int count_of(enum trace_call call, int file)
{
	unsigned int count = 0;

	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		count += event->call == call && event->file == file &&
			 event->asked;
	}
	return count;
}

START_TEST(blocks_that_cannot_be_shared_are_refused_on_demand)
{
	make_small_store(BUILDER_RUNS); /* no file system has such blocks */
	job.pair.options.reflink = REFLINK_ALWAYS;
	ck_assert_int_eq(merge(), -1);
	ck_assert_int_eq(job.pair.error.kind, ERROR_SYSTEM);
	check_untouched();
	job.pair.options.reflink = REFLINK_AUTO;
	merge_ok();
	check_everything();
}
END_TEST

/* These run where blocks can be shared. */

START_TEST(runs_are_shared_instead_of_copied)
{
	make_store(8, 4 * MIB, BUILDER_RUNS, 700);
	job.pair.options.reflink = _i ? REFLINK_ALWAYS : REFLINK_AUTO;
	merge_ok();
	ck_assert(job.pair.plan.clone);
	check_everything();
	ck_assert_uint_gt(count_of(TRACE_CLONE, ORIGIN), 0);
	ck_assert_uint_eq(count_of(TRACE_WRITE, ORIGIN), 0);
}
END_TEST

START_TEST(shared_blocks_are_synced_before_clearing)
{
	for (int pattern = BUILDER_SCATTERED; pattern <= BUILDER_SHUFFLED;
	     pattern++) {
		make_wide_store((enum builder_pattern)pattern);
		job.pair.options.reflink = REFLINK_AUTO;
		merge_ok();
		ck_assert(job.pair.plan.clone);
		check_everything();
	}
}
END_TEST

START_TEST(clipped_chunk_is_copied_where_others_are_shared)
{
	make_store(8, 50 * 4096 + 1000, BUILDER_RUNS, 40);
	job.pair.options.reflink = REFLINK_AUTO;
	merge_ok();
	check_everything();
	ck_assert_uint_gt(count_of(TRACE_CLONE, ORIGIN), 0);
}
END_TEST

START_TEST(chunks_smaller_than_a_block_are_copied)
{
	make_store(1, 300 * 512, BUILDER_RUNS, 100);
	job.pair.options.reflink = REFLINK_AUTO;
	merge_ok();
	check_everything();
	ck_assert_uint_eq(count_of(TRACE_CLONE, ORIGIN), 0);
}
END_TEST

START_TEST(refused_share_is_copied)
{
	for (unsigned int n = 1;; n++) {
		make_wide_store(BUILDER_RUNS);
		job.pair.options.reflink = REFLINK_AUTO;
		trace_fault(TRACE_CLONE, ORIGIN, n, TRACE_FAIL, EOPNOTSUPP);
		merge_ok();
		check_everything();
		if (!trace_met())
			break;
	}
}
END_TEST

/* What can be asked for beside */

START_TEST(verify_reads_back_before_clearing)
{
	uint64_t *read_back, sectors;

	make_small_store(BUILDER_SHUFFLED);
	job.pair.options.verify = true;
	job.pair.direct = _i ? 1 : -1;
	merge_ok();
	check_everything();
	/* When each sector was last read. */
	sectors = job.before[ORIGIN].size / 512 + 1;
	read_back = numbers(sectors);
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		if (event->file == ORIGIN && event->call == TRACE_READ)
			for (uint64_t at = event->offset / 512;
			     at * 512 < event->offset + event->len; at++)
				read_back[at] = event->end;
		if (!is_change(event, COW) || is_note(event))
			continue;
		for (uint64_t at = 0; at < event->len; at += 16) {
			uint64_t n, old;

			if (!entry_at(event->offset + at, &n) ||
			    n >= job.b.count)
				continue;
			old = job.b.exceptions[n].old_chunk;
			must(read_back[old] && read_back[old] < event->begin,
			     "exception %" PRIu64 " was not read back", n);
		}
	}
	for (size_t i = 0; i < trace_count(); i++) {
		const struct trace_event *event = trace_event(i);

		must(!is_change(event, ORIGIN) ||
			     read_back[event->offset / 512] > trace_durable(i),
		     "what was read back was not synced");
	}
	free(read_back);
}
END_TEST

START_TEST(verify_finds_what_reads_back_wrong)
{
	for (unsigned int n = 1;; n++) {
		const struct trace_event *event;

		make_small_store(BUILDER_RUNS);
		job.pair.options.verify = true;
		trace_fault(TRACE_READ, ORIGIN, n, TRACE_CORRUPT, 0);
		merge();
		if (!trace_met()) {
			ck_assert_uint_gt(n, 10);
			check_merged();
			break;
		}
		event = trace_met_event();
		if (event->sys) /* not a read: directly, but not aligned */
			continue;
		must(job.result == -1, "read %u was wrong and believed", n);
		ck_assert_int_eq(job.pair.error.kind, ERROR_SYSTEM);
		ck_assert_str_eq(job.pair.error.path, paths[ORIGIN]);
		ck_assert(job.pair.error.has_offset);
		ck_assert_uint_ge(job.pair.error.offset, event->offset);
		ck_assert_uint_lt(job.pair.error.offset,
				  event->offset + event->len);
		must(job.pair.progress.committed % 24 == 0, "half a batch");
		for (size_t k = 0; k < trace_count(); k++) {
			const struct trace_event *later = trace_event(k);

			must(later->begin < event->end ||
				     !is_change(later, COW),
			     "cleared all the same");
		}
		check_nothing_lost();
	}
}
END_TEST

/* The origin holds what every other exception brings. */
static void make_half_merged_store(void)
{
	make_small_store(BUILDER_SHUFFLED);
	for (size_t i = 0; i < job.b.count; i += 2) {
		size_t at = (size_t)job.b.exceptions[i].old_chunk * 512, len;

		len = job.merged.size - at < 512 ? job.merged.size - at : 512;
		memcpy(job.before[ORIGIN].bytes + at, job.merged.bytes + at,
		       len);
	}
	disk_save(&job.before[ORIGIN], paths[ORIGIN]);
	job.pair.options.skip_identical = true;
}

START_TEST(identical_chunks_are_not_written)
{
	make_half_merged_store();
	job.pair.direct = _i ? 1 : -1;
	merge_ok();
	check_order();
	check_named_chunks_only();
	check_merged();
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);

		must(!is_change(event, ORIGIN) ||
			     memcmp(event->data,
				    job.before[ORIGIN].bytes + event->offset,
				    (size_t)event->len),
		     "byte %" PRIu64 " was there already", event->offset);
	}
	ck_assert_uint_eq(job.pair.progress.identical, 55 * 512);
}
END_TEST

/* Whether the page cache was asked to forget what is then read. */
static bool forgets(const struct trace_event *advice,
		    const struct trace_event *read)
{
	return advice->call == TRACE_ADVISE && advice->file == read->file &&
	       advice->request == POSIX_FADV_DONTNEED &&
	       advice->offset <= read->offset &&
	       (!advice->asked ||
		advice->offset + advice->asked >= read->offset + read->asked);
}

/*
 * After a failed sync the page cache holds what the medium lacks, and no later
 * sync will write it: what is judged must have been read from the medium.
 */
START_TEST(identical_means_on_the_medium)
{
	make_half_merged_store();
	job.pair.direct = -1;
	merge_ok();
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);
		bool medium = event->direct;

		if (event->file != ORIGIN || event->call != TRACE_READ)
			continue;
		for (size_t i = 0; i < k && !medium; i++)
			medium = forgets(trace_event(i), event);
		must(medium, "byte %" PRIu64 " was looked up in the page cache",
		     event->offset);
	}
}
END_TEST

START_TEST(discard_takes_only_what_is_durably_gone)
{
	uint64_t *number, *cleared;
	uint64_t discarded = 0;

	make_wide_store(BUILDER_RUNS);
	job.pair.options.discard = true;
	merge_ok();
	check_order();
	check_cleared_from_the_end();
	check_origin_is(&job.merged);
	number = numbers(job.before[COW].size / chunk_bytes());
	cleared = numbers(job.b.count);
	for (size_t i = 0; i < job.b.count; i++)
		number[job.b.exceptions[i].new_chunk] = i + 1;
	for (size_t i = 0; i < trace_count(); i++) {
		const struct trace_event *event = trace_event(i);

		for (uint64_t at = 0;
		     is_change(event, COW) && event->data && at < event->len;
		     at += 16) {
			uint64_t n;

			if (entry_at(event->offset + at, &n) && n < job.b.count)
				cleared[n] = trace_durable(i);
		}
		if (!is_change(event, COW) || event->data)
			continue;
		for (uint64_t at = event->offset / chunk_bytes();
		     at * chunk_bytes() < event->offset + event->len; at++) {
			must(number[at], "chunk %" PRIu64 " is not data", at);
			must(cleared[number[at] - 1] &&
				     cleared[number[at] - 1] < event->begin,
			     "chunk %" PRIu64 " was discarded too early", at);
			discarded++;
		}
	}
	ck_assert_uint_eq(discarded, job.b.count);
	free(cleared);
	free(number);
}
END_TEST

static void make_undo(void)
{
	uint32_t sectors = job.b.chunk_sectors;
	struct builder b;

	builder_init(&b, sectors, chunk_bytes(), 1);
	/* Up to where the data of one more would be. */
	b.cow_size = builder_new_chunk(sectors, job.b.count) * chunk_bytes();
	builder_write(&b, "blank", "undo");
	job.pair.undo = "undo";
}

/* Whether this writes entries of the undo store that name data. */
static bool names_saved(const struct trace_event *event)
{
	uint64_t n;

	return is_change(event, FILES) && entry_at(event->offset, &n) &&
	       event->data[8];
}

/* Everything that is written to the origin was saved, durably, before. */
START_TEST(undo_is_durable_before_the_origin_is_written)
{
	struct disk undo, blank, view;

	make_small_store(BUILDER_SHUFFLED);
	make_undo();
	trace_watch(FILES, "undo");
	undo = disk_load("undo");
	merge_ok();
	check_order();
	check_named_chunks_only();
	check_cleared_from_the_end();
	check_merged();
	for (size_t i = 0; i < trace_count(); i++) {
		for (size_t k = 0; names_saved(trace_event(i)) && k < i; k++)
			must(!is_change(trace_event(k), FILES) ||
				     names_saved(trace_event(k)) ||
				     trace_durable(k) < trace_event(i)->begin,
			     "an entry of the undo store was written before "
			     "its data was durable");
	}
	blank = disk_new(job.merged.size);
	view = disk_new(job.merged.size);
	for (size_t k = 0; k < trace_count(); k++) {
		const struct trace_event *event = trace_event(k);
		struct disk now;

		if (!is_change(event, ORIGIN))
			continue;
		now = disk_copy(&undo);
		trace_apply_durable(FILES, event->begin, now.bytes, now.size);
		must(view_of(blank.bytes, blank.size, now.bytes, now.size,
			     view.bytes) > 0,
		     "nothing was saved");
		must(!memcmp(view.bytes + event->offset,
			     job.before[ORIGIN].bytes + event->offset,
			     (size_t)event->len),
		     "byte %" PRIu64 " was not saved", event->offset);
		free(now.bytes);
	}
	free(view.bytes);
	free(blank.bytes);
	free(undo.bytes);
}
END_TEST

/* A power cut can take the note and leave the table that it was made for. */
START_TEST(undo_goes_on_after_interruptions_without_a_note)
{
	unsigned int commits = 1;

	make_wide_store(BUILDER_RUNS);
	make_undo();
	job.pair.tick = stop_after;
	job.pair.context = &commits;
	for (int i = 0; i < 2; i++) {
		struct disk cow;

		ck_assert_int_eq(merge(), 1);
		if (i != _i)
			continue;
		cow = disk_load(paths[COW]);
		memset(cow.bytes + 512, 0, 512);
		disk_save(&cow, paths[COW]);
		free(cow.bytes);
	}
	check_rerun();
}
END_TEST

/* An origin that ends in a sector cannot be read directly to its end. */
START_TEST(origin_of_any_length_is_read_back)
{
	make_store(8, 40 * 4096 + 300, BUILDER_ONE, 41);
	job.pair.options.verify = _i & 1;
	job.pair.options.skip_identical = _i & 2;
	job.pair.direct = _i & 4 ? 1 : -1;
	merge_ok();
	check_order();
	check_merged();
}
END_TEST

/* Faults */

struct fault_case {
	enum trace_call call;
	int file;
	enum trace_fault fault;
	int sys;
	enum { FATAL, TOLERATED, EITHER } outcome;
};

static const struct fault_case fault_cases[] = {
	{ TRACE_READ, COW, TRACE_FAIL, EIO, FATAL },
	{ TRACE_READ, COW, TRACE_FAIL, EINTR, TOLERATED },
	{ TRACE_READ, COW, TRACE_SHORTEN, 0, TOLERATED },
	{ TRACE_READ, COW, TRACE_NIBBLE, 0, TOLERATED },
	{ TRACE_READ, ORIGIN, TRACE_FAIL, EIO, FATAL },
	{ TRACE_WRITE, ORIGIN, TRACE_FAIL, EIO, FATAL },
	{ TRACE_WRITE, ORIGIN, TRACE_FAIL, ENOSPC, FATAL },
	{ TRACE_WRITE, ORIGIN, TRACE_FAIL_ON, ENOSPC, FATAL },
	{ TRACE_WRITE, ORIGIN, TRACE_FAIL, EINTR, TOLERATED },
	{ TRACE_WRITE, ORIGIN, TRACE_SHORTEN, 0, TOLERATED },
	{ TRACE_WRITE, ORIGIN, TRACE_NIBBLE, 0, TOLERATED },
	{ TRACE_WRITE, COW, TRACE_FAIL, EIO, FATAL },
	{ TRACE_WRITE, COW, TRACE_FAIL, ENOSPC, FATAL },
	{ TRACE_WRITE, COW, TRACE_FAIL, EINTR, TOLERATED },
	{ TRACE_WRITE, COW, TRACE_SHORTEN, 0, TOLERATED },
	{ TRACE_WRITE, COW, TRACE_NIBBLE, 0, TOLERATED },
	{ TRACE_SYNC, ORIGIN, TRACE_FAIL, EIO, FATAL },
	{ TRACE_SYNC, ORIGIN, TRACE_FAIL, ENOSPC, FATAL },
	{ TRACE_SYNC, ORIGIN, TRACE_FAIL, EINTR, FATAL },
	{ TRACE_SYNC, COW, TRACE_FAIL, EIO, FATAL },
	{ TRACE_SYNC, COW, TRACE_FAIL, EINTR, FATAL },
	{ TRACE_WRITEBACK, ORIGIN, TRACE_FAIL, EIO, TOLERATED },
	{ TRACE_ADVISE, ORIGIN, TRACE_FAIL, EIO, TOLERATED },
	{ TRACE_ADVISE, COW, TRACE_FAIL, EIO, TOLERATED },
	{ TRACE_FCNTL, ORIGIN, TRACE_FAIL, EIO, EITHER },
	{ TRACE_FCNTL, COW, TRACE_FAIL, EIO, EITHER },
	{ TRACE_IOCTL, ORIGIN, TRACE_FAIL, EIO, EITHER },
	{ TRACE_IOCTL, COW, TRACE_FAIL, EIO, EITHER },
};

/* On a file system that shares blocks. */
static const struct fault_case clone_fault_cases[] = {
	{ TRACE_CLONE, ORIGIN, TRACE_FAIL, EIO, EITHER },
	{ TRACE_CLONE, ORIGIN, TRACE_FAIL, ENOSPC, EITHER },
	{ TRACE_CLONE, ORIGIN, TRACE_FAIL, EINTR, TOLERATED },
	{ TRACE_CLONE, ORIGIN, TRACE_FAIL, EINVAL, TOLERATED },
	{ TRACE_READ, COW, TRACE_FAIL, EIO, FATAL },
	{ TRACE_WRITE, ORIGIN, TRACE_FAIL, EIO, FATAL },
	{ TRACE_SYNC, ORIGIN, TRACE_FAIL, EIO, FATAL },
};

/* Whether a call like this one failed where the error says; several can. */
static bool failed_there(const struct trace_event *like)
{
	for (size_t i = 0; i < trace_count(); i++) {
		const struct trace_event *event = trace_event(i);

		if (event->call == like->call && event->file == like->file &&
		    event->sys && event->offset == job.pair.error.offset)
			return true;
	}
	return false;
}

static void check_outcome(const struct fault_case *c, unsigned int n)
{
	const struct trace_event *event = trace_met_event();
	const struct error *err = &job.pair.error;
	bool transfer = c->call == TRACE_READ || c->call == TRACE_WRITE;

	if (c->outcome == FATAL || (c->outcome == EITHER && job.result)) {
		must(job.result == -1, "%s %u on the %s: %s was ignored",
		     trace_name(c->call), n, paths[c->file], strerror(c->sys));
		must(err->kind == ERROR_SYSTEM && err->sys == c->sys,
		     "%s %u on the %s: %s became kind %d, %s",
		     trace_name(c->call), n, paths[c->file], strerror(c->sys),
		     (int)err->kind, strerror(err->sys));
		must(err->path && !strcmp(err->path, paths[c->file]),
		     "the error names %s", err->path ? err->path : "no file");
		must(!transfer || (err->has_offset && failed_there(event)),
		     "the error names offset %" PRIu64 ", not %" PRIu64,
		     err->offset, event->offset);
	} else {
		must(job.result == 0, "%s %u on the %s: %s (%s)",
		     trace_name(c->call), n, paths[c->file], err->what,
		     strerror(err->sys));
		check_merged();
	}
}

/* Fail call n, for n = 1, 2, ..., until there is no such call. */
static void fail_each_call(const struct fault_case *c)
{
	for (unsigned int n = 1;; n++) {
		for (int f = 0; f < FILES; f++)
			disk_save(&job.before[f], paths[f]);
		trace_fault(c->call, c->file, n, c->fault, c->sys);
		merge();
		if (!trace_met()) {
			must(job.result == 0, "failed without a fault");
			check_merged();
			return;
		}
		check_outcome(c, n);
		check_nothing_lost();
	}
}

START_TEST(fault_in_a_small_merge_loses_nothing)
{
	make_store(1, 120 * 512 + 100, BUILDER_SCATTERED, 45);
	job.pair.options.batch_size = 12 * 512;
	job.pair.workers = 3;
	fail_each_call(&fault_cases[_i]);
}
END_TEST

START_TEST(fault_in_a_wide_merge_loses_nothing)
{
	make_store(8, MIB + 700, BUILDER_RUNS, 200);
	job.pair.options.batch_size = 384 * KIB;
	job.pair.direct = -1;
	fail_each_call(&fault_cases[_i]);
}
END_TEST

START_TEST(fault_in_a_direct_merge_loses_nothing)
{
	make_store(8, MIB, BUILDER_RUNS, 200);
	job.pair.options.batch_size = 384 * KIB;
	job.pair.direct = 1;
	fail_each_call(&fault_cases[_i]);
}
END_TEST

START_TEST(fault_in_a_sharing_merge_loses_nothing)
{
	make_store(8, MIB + 700, BUILDER_RUNS, 150);
	job.pair.options.batch_size = 256 * KIB;
	job.pair.options.reflink = REFLINK_AUTO;
	fail_each_call(&clone_fault_cases[_i]);
}
END_TEST

/* The kernel drops what a failed sync did not write, and then succeeds. */
START_TEST(failed_sync_is_not_tried_again)
{
	for (unsigned int n = 1; n <= 2; n++) {
		make_small_store(BUILDER_RUNS);
		trace_fault(TRACE_SYNC, ORIGIN, n, TRACE_FAIL, EIO);
		ck_assert_int_eq(merge(), -1);
		ck_assert(trace_met());
		ck_assert_uint_eq(job.pair.progress.committed, (n - 1) * 24);
		check_failed_sync_is_final();
		check_nothing_lost();
	}
}
END_TEST

/* Not even a write that changed nothing. */
static void check_nothing_written(void)
{
	ck_assert(!job.pair.progress.touched);
	for (size_t k = 0; k < trace_count(); k++)
		must(!trace_changes(trace_event(k)), "a write");
	check_untouched();
}

/* M4 */
START_TEST(without_memory_nothing_is_written)
{
	for (unsigned int n = 1;; n++) {
		make_wide_store(BUILDER_RUNS);
		scarce.met = false;
		scarce.left = n;
		scarce.armed = true;
		merge();
		scarce.armed = false;
		if (!scarce.met || !job.result) {
			ck_assert_uint_gt(n, 4);
			check_merged();
			if (!scarce.met)
				break;
			continue; /* the libc can do without */
		}
		ck_assert_int_eq(job.result, -1);
		ck_assert_int_eq(job.pair.error.sys, ENOMEM);
		ck_assert_int_eq(job.pair.error.kind, ERROR_SYSTEM);
		check_nothing_written();
		check_rerun();
	}
}
END_TEST

/* Merge while only so many threads can be had; false: that was enough. */
static bool merge_with_threads(unsigned int number)
{
	make_wide_store(BUILDER_RUNS);
	threadless.met = false;
	threads_left = number + 1;
	threadless.armed = true;
	merge();
	threadless.armed = false;
	return threadless.met;
}

START_TEST(without_threads_nothing_is_written)
{
	ck_assert(merge_with_threads(0));
	ck_assert_int_eq(job.result, -1);
	ck_assert_int_eq(job.pair.error.sys, EAGAIN);
	check_nothing_written();
	check_rerun();
}
END_TEST

START_TEST(a_few_threads_do_as_well)
{
	unsigned int number = 1;

	while (merge_with_threads(number)) {
		check_merged();
		number *= 2;
	}
	check_merged();
	ck_assert_uint_gt(number, 2);
}
END_TEST

/*
 * An XFS of our own, seen by this process and its children alone: however they
 * end, it is unmounted.
 */

static char xfs[] = "/tmp/snapmerge-xfs.XXXXXX";
static bool xfs_made;

static const char *xfs_mount(void)
{
	char command[512];

	if (geteuid())
		return "only root can mount a file system that shares blocks";
	if (system("command -v mkfs.xfs > /dev/null"))
		return "mkfs.xfs is missing";
	if (unshare(CLONE_NEWNS) ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return "no mounts of our own are allowed";
	xfs_made = mkdtemp(xfs) != NULL;
	if (!xfs_made)
		return "no temporary directory";
	snprintf(command, sizeof(command),
		 "cd %s && truncate -s 320M image && "
		 "mkfs.xfs -q -m reflink=1 image && mkdir mnt && "
		 "mount -o loop image mnt && rm image",
		 xfs);
	return system(command) ? "no XFS could be made and mounted" : NULL;
}

static void xfs_umount(void)
{
	char command[512];

	if (!xfs_made)
		return;
	snprintf(command, sizeof(command),
		 "{ ! mountpoint -q %s/mnt || umount %s/mnt; } && rm -r %s",
		 xfs, xfs, xfs);
	if (system(command))
		fprintf(stderr, "%s is left behind\n", xfs);
}

/* Each test in a process of its own: this is undone at its end. */
static void xfs_enter(void)
{
	ck_assert_int_eq(chdir(xfs) || chdir("mnt"), 0);
}

#define COUNT(array) ((int)(sizeof(array) / sizeof(*(array))))

static void add_order(Suite *suite)
{
	TCase *tc = scratch_case(suite, "order", 60);

	tcase_add_test(tc, merge_syncs_origin_before_clearing);
	tcase_add_test(tc, merge_clears_the_table_from_its_end);
	tcase_add_test(tc, merge_syncs_cow_before_the_next_batch);
	tcase_add_test(tc, merge_writes_one_batch_between_commits);
	tcase_add_test(tc, merge_leaves_header_and_data_of_cow_alone);
	tcase_add_test(tc, merge_writes_named_chunks_only_and_once);
	tcase_add_test(tc, merge_writes_a_slice_in_order_and_joined);
	tcase_add_test(tc, merge_awaits_no_writeback_but_by_sync);
	tcase_add_test(tc, merge_ends_with_everything_durable);
	tcase_add_test(tc, empty_table_is_merged_without_a_write);
}

static void add_shapes(Suite *suite)
{
	TCase *tc = scratch_case(suite, "shapes", 60);

	tcase_add_loop_test(tc, every_pattern_and_chunk_size_is_merged, 0, 30);
	tcase_add_loop_test(tc, every_batch_size_is_kept, 0, 14);
	tcase_add_test(tc, batch_size_below_a_chunk_means_one_chunk);
	tcase_add_loop_test(tc, table_of_exactly_full_areas_is_merged, 1, 5);
	tcase_add_test(tc, full_last_area_at_the_end_of_the_cow_is_merged);
	tcase_add_loop_test(tc, old_bytes_behind_the_last_area_stay, 0, 3);
	tcase_add_loop_test(tc, last_chunk_is_clipped, 0, 5);
	tcase_add_test(tc, chunks_larger_than_a_buffer_travel_in_pieces);
	tcase_add_test(tc, stale_entries_are_scrubbed_by_the_first_commit);
	tcase_add_test(tc, stale_entries_of_an_empty_table_are_scrubbed);
}

static void add_stops(Suite *suite)
{
	TCase *tc = scratch_case(suite, "stops", 60);

	tcase_add_test(tc, stop_request_ends_at_a_commit_and_returns_1);
	tcase_add_test(tc, stop_request_after_the_last_commit_returns_0);
	tcase_add_test(tc, stop_request_within_a_batch_commits_what_was_begun);
	tcase_add_test(tc, stop_request_within_a_chunk_finishes_the_chunk);
	tcase_add_test(tc, tick_follows_each_commit);
	tcase_add_test(tc, rate_limit_is_kept_and_waits_idly);
	tcase_add_test(tc, deadline_that_has_passed_still_commits_something);
	tcase_add_test(tc, deadline_ends_a_slow_merge_at_a_commit);
	tcase_add_test(tc, merge_goes_on_where_another_stopped);
}

static void add_engines(Suite *suite)
{
	TCase *tc = scratch_case(suite, "engines", 60);

	tcase_add_test(tc, short_runs_go_through_the_page_cache);
	tcase_add_test(tc, one_worker_is_enough);
	tcase_add_test(tc, more_workers_than_slices_agree);
	tcase_add_test(tc, blocks_that_cannot_be_shared_are_refused_on_demand);
	/* These hold also where the file system refuses direct writes. */
	tcase_add_test(tc, direct_writes_of_any_alignment_arrive);
	tcase_add_test(tc,
		       direct_writes_refused_late_go_through_the_page_cache);
}

static void add_extras(Suite *suite)
{
	TCase *tc = scratch_case(suite, "extras", 60);

	tcase_add_loop_test(tc, verify_reads_back_before_clearing, 0, 2);
	tcase_add_test(tc, verify_finds_what_reads_back_wrong);
	tcase_add_loop_test(tc, identical_chunks_are_not_written, 0, 2);
	tcase_add_test(tc, identical_means_on_the_medium);
	tcase_add_test(tc, discard_takes_only_what_is_durably_gone);
	tcase_add_test(tc, undo_is_durable_before_the_origin_is_written);
	tcase_add_loop_test(tc, undo_goes_on_after_interruptions_without_a_note,
			    0, 2);
	tcase_add_loop_test(tc, origin_of_any_length_is_read_back, 0, 8);
}

static void add_direct(Suite *suite)
{
	TCase *tc;
	bool able;

	scratch_enter();
	able = direct_works();
	scratch_leave();
	if (!able) {
		skip(1 + COUNT(fault_cases), "direct I/O",
		     "the scratch directory's file system has none");
		return;
	}
	tc = scratch_case(suite, "direct", 300);
	tcase_add_test(tc, long_runs_go_around_the_page_cache);
	tcase_add_loop_test(tc, fault_in_a_direct_merge_loses_nothing, 0,
			    COUNT(fault_cases));
}

static void add_clones(Suite *suite, const char *no_xfs)
{
	TCase *tc;

	if (no_xfs) {
		skip(6 + COUNT(clone_fault_cases), "sharing blocks", no_xfs);
		return;
	}
	tc = tcase_create("clones");
	tcase_add_checked_fixture(tc, xfs_enter, NULL);
	tcase_set_timeout(tc, 300);
	suite_add_tcase(suite, tc);
	tcase_add_loop_test(tc, runs_are_shared_instead_of_copied, 0, 2);
	tcase_add_test(tc, shared_blocks_are_synced_before_clearing);
	tcase_add_test(tc, clipped_chunk_is_copied_where_others_are_shared);
	tcase_add_test(tc, chunks_smaller_than_a_block_are_copied);
	tcase_add_test(tc, refused_share_is_copied);
	tcase_add_loop_test(tc, fault_in_a_sharing_merge_loses_nothing, 0,
			    COUNT(clone_fault_cases));
}

static void add_faults(Suite *suite)
{
	TCase *tc = scratch_case(suite, "faults", 300);

	tcase_add_loop_test(tc, fault_in_a_small_merge_loses_nothing, 0,
			    COUNT(fault_cases));
	tcase_add_loop_test(tc, fault_in_a_wide_merge_loses_nothing, 0,
			    COUNT(fault_cases));
	tcase_add_test(tc, failed_sync_is_not_tried_again);
	tcase_add_test(tc, without_memory_nothing_is_written);
	tcase_add_test(tc, without_threads_nothing_is_written);
	tcase_add_test(tc, a_few_threads_do_as_well);
}

int main(void)
{
	const char *no_xfs = xfs_mount();
	Suite *suite = suite_create("copier");
	int result;

	add_order(suite);
	add_shapes(suite);
	add_stops(suite);
	add_engines(suite);
	add_extras(suite);
	add_direct(suite);
	add_clones(suite, no_xfs);
	add_faults(suite);
	result = run(suite, "copier");
	xfs_umount();
	return result;
}
