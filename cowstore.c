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
 *
 * Of the header chunk the kernel reads 16 bytes and leaves the rest zero. While
 * a merge is under way, its second sector holds our record of it. One sector
 * is written whole or not at all, but not together with the table: so the
 * record names the number of exceptions that are left and the last of them,
 * and is void for any other table.
 */
#include "cowstore.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define SECTOR	    512u
#define MAGIC	    0x70416e53u /* "SnAp" */
#define VERSION	    1u
#define MAX_SECTORS 2097152u /* 1 GiB */

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

struct disk_run {
	uint8_t old_chunk[8], new_chunk[8], length[8];
};
struct disk_record {
	uint8_t magic[8], checksum[8], origin_size[8], total[8], left[8];
	struct disk_exception last; /* exception left - 1 */
	uint8_t samples[8];
	struct disk_run sample[COWSTORE_SAMPLES];
	uint8_t zero[16];
};
_Static_assert(sizeof(struct disk_record) == SECTOR, "record is one sector");
#define RECORD_OFFSET SECTOR
#define RECORD_MAGIC  UINT64_C(0x3167726d70616e73) /* "snapmrg1" */

/* Areas that are fetched ahead of a walk, in the end. */
#define MAX_AHEAD 256

static uint32_t get_le32(const uint8_t p[4])
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	       (uint32_t)p[3] << 24;
}

static uint64_t get_le64(const uint8_t p[8])
{
	return get_le32(p) | (uint64_t)get_le32(p + 4) << 32;
}

static void put_le32(uint8_t p[4], uint32_t value)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(value >> 8 * i);
}

static void put_le64(uint8_t p[8], uint64_t value)
{
	put_le32(p, (uint32_t)value);
	put_le32(p + 4, (uint32_t)(value >> 32));
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

bool cowstore_is_metadata(const struct cowstore *store, uint64_t chunk)
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

void cowstore_walk_begin(struct cowstore_walk *w, const struct cowstore *store,
			 uint64_t first, uint64_t end)
{
	uint64_t room = areas(store) * entries_per_area(store);

	w->store = store;
	w->count = 0;
	w->first = w->next = first;
	w->end = end < room ? end : room;
	w->fetched = w->ahead = 0;
	w->ended = false;
}

/* The farther the walk has come, the farther ahead areas are fetched. */
static void fetch_ahead(struct cowstore_walk *w)
{
	uint64_t e = entries_per_area(w->store), area = w->next / e;
	uint64_t until = area + 1 + w->ahead;

	if (until > (w->end - 1) / e + 1)
		until = (w->end - 1) / e + 1;
	if (w->fetched < area)
		w->fetched = area;
	for (; w->fetched < until; w->fetched++)
		image_prefetch(w->store->image,
			       area_chunk(w->store, w->fetched) *
				       w->store->chunk_size,
			       w->store->chunk_size);
	if (w->ahead < MAX_AHEAD)
		w->ahead++;
}

int cowstore_walk_next(struct cowstore_walk *w, struct error *err)
{
	size_t n;

	if (w->ended || w->next >= w->end)
		return 0;
	if (!w->count || w->next % entries_per_area(w->store) == 0)
		fetch_ahead(w);
	n = within_area(w->store, w->next,
			w->end - w->next < COWSTORE_BLOCK
				? w->end
				: w->next + COWSTORE_BLOCK);
	if (read_entries(w->store, w->next, n, w->block, err))
		return -1;
	w->first = w->next;
	w->next += n;
	w->count = 0;
	while (w->count < n && w->block[w->count].new_chunk)
		w->count++;
	w->ended = w->count < n;
	return w->count != 0;
}

/* Count what is not zero between the table's end and the end of its area. */
static int find_stale(struct cowstore *store, struct exception *block,
		      struct error *err)
{
	uint64_t e = entries_per_area(store);
	uint64_t at = store->exceptions;
	uint64_t end = (at / e + 1) * e;

	store->scrub_end = at;
	if (store->no_end)
		return 0;
	while (at < end) {
		size_t n = within_area(
			store, at,
			end - at < COWSTORE_BLOCK ? end : at + COWSTORE_BLOCK);

		if (read_entries(store, at, n, block, err))
			return -1;
		for (size_t i = 0; i < n; i++) {
			if (!block[i].old_chunk && !block[i].new_chunk)
				continue;
			store->stale++;
			store->scrub_end = at + i + 1;
		}
		at += n;
	}
	return 0;
}

/* FNV-1a, 64 bits: against chance, not against malice. */
static uint64_t checksum(const struct disk_record *disk)
{
	const uint8_t *p = (const uint8_t *)disk;
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < sizeof(*disk); i++) {
		bool covered = i < offsetof(struct disk_record, checksum) ||
			       i >= offsetof(struct disk_record, origin_size);

		hash = (hash ^ (covered ? p[i] : 0)) * UINT64_C(0x100000001b3);
	}
	return hash;
}

/* Whether the record was written for the first left exceptions. */
static int record_fits(const struct cowstore *store,
		       const struct disk_record *disk, bool *fits,
		       struct error *err)
{
	uint64_t left = get_le64(disk->left);
	struct exception last;

	*fits = get_le64(disk->checksum) == checksum(disk) && left &&
		left == store->exceptions && left < get_le64(disk->total) &&
		get_le64(disk->samples) <= COWSTORE_SAMPLES;
	if (!*fits)
		return 0;
	if (cowstore_read(store, left - 1, 1, &last, err))
		return -1;
	*fits = last.old_chunk == get_le64(disk->last.old_chunk) &&
		last.new_chunk == get_le64(disk->last.new_chunk);
	return 0;
}

/* Whether a sampled run lies in the COW, for it will be read. */
static bool sample_fits(const struct cowstore *store, const struct run *run)
{
	return run->new_chunk < store->chunks &&
	       run->length <= store->chunks - run->new_chunk;
}

/* Look for a record in the header chunk and decide what it is worth. */
static int read_record(struct cowstore *store, struct error *err)
{
	static const struct disk_record none;
	struct cowstore_record *record = &store->record;
	struct disk_record disk;
	bool blank;

	if (store->chunk_size < RECORD_OFFSET + sizeof(disk))
		return 0;
	if (image_read(store->image, &disk, sizeof(disk), RECORD_OFFSET, err))
		return -1;
	blank = !memcmp(&disk, &none, sizeof(disk));
	store->recorded = get_le64(disk.magic) == RECORD_MAGIC;
	store->may_record = store->recorded || blank;
	if (!store->recorded)
		return 0;
	if (record_fits(store, &disk, &store->half_merged, err))
		return -1;
	if (!store->half_merged)
		return 0;
	record->origin_size = get_le64(disk.origin_size);
	record->total = get_le64(disk.total);
	record->samples = get_le64(disk.samples);
	for (uint64_t i = 0; i < record->samples; i++) {
		const struct disk_run *run = &disk.sample[i];

		record->sample[i] = (struct run){ get_le64(run->old_chunk),
						  get_le64(run->new_chunk),
						  get_le64(run->length) };
		if (!sample_fits(store, &record->sample[i]))
			store->half_merged = false;
	}
	return 0;
}

int cowstore_settle(struct cowstore *store, struct cowstore_walk *w,
		    struct error *err)
{
	store->exceptions = w->first + w->count;
	store->no_end = !w->ended;
	store->stale = 0;
	if (find_stale(store, w->block, err))
		return -1;
	return read_record(store, err);
}

static bool continues(const struct run *run, const struct exception *ex)
{
	return run->length && ex->old_chunk - run->old_chunk == run->length &&
	       ex->new_chunk - run->new_chunk == run->length;
}

int cowstore_runs(const struct cowstore *store, uint64_t first, uint64_t end,
		  cowstore_run *visit, void *context, struct error *err)
{
	struct cowstore_walk w;
	struct run run = { 0 };
	int more;

	cowstore_walk_begin(&w, store, first, end);
	while ((more = cowstore_walk_next(&w, err)) > 0) {
		for (size_t i = 0; i < w.count; i++) {
			const struct exception *ex = &w.block[i];

			if (continues(&run, ex)) {
				run.length++;
				continue;
			}
			if (run.length)
				visit(context, &run);
			run = (struct run){ ex->old_chunk, ex->new_chunk, 1 };
		}
	}
	if (run.length)
		visit(context, &run);
	return more;
}

static int write_record(struct cowstore *store, uint64_t left,
			const struct cowstore_record *record, struct error *err)
{
	struct disk_record disk = { 0 };
	struct iovec iov = { &disk, sizeof(disk) };
	struct exception last;

	if (left) {
		if (cowstore_read(store, left - 1, 1, &last, err))
			return -1;
		put_le64(disk.magic, RECORD_MAGIC);
		put_le64(disk.origin_size, record->origin_size);
		put_le64(disk.total, record->total);
		put_le64(disk.left, left);
		put_le64(disk.last.old_chunk, last.old_chunk);
		put_le64(disk.last.new_chunk, last.new_chunk);
		put_le64(disk.samples, record->samples);
		for (uint64_t i = 0; i < record->samples; i++) {
			const struct run *run = &record->sample[i];

			put_le64(disk.sample[i].old_chunk, run->old_chunk);
			put_le64(disk.sample[i].new_chunk, run->new_chunk);
			put_le64(disk.sample[i].length, run->length);
		}
		put_le64(disk.checksum, checksum(&disk));
	}
	if (image_write(store->image, &iov, 1, RECORD_OFFSET, err))
		return -1;
	store->recorded = left != 0;
	return 0;
}

/* Zero the entries [first, end), backwards, area by area: M2. */
static int zero_entries(const struct cowstore *store, uint64_t first,
			uint64_t end, struct error *err)
{
	static uint8_t zeros[COWSTORE_BLOCK * sizeof(struct disk_exception)];
	uint64_t e = entries_per_area(store);

	while (end > first) {
		uint64_t from = (end - 1) / e * e;
		struct iovec iov = { .iov_base = zeros };

		if (end - from > COWSTORE_BLOCK)
			from = end - COWSTORE_BLOCK;
		if (from < first)
			from = first;
		iov.iov_len = (size_t)(end - from) *
			      sizeof(struct disk_exception);
		if (image_write(store->image, &iov, 1,
				entry_offset(store, from), err))
			return -1;
		end = from;
	}
	return 0;
}

int cowstore_clear(struct cowstore *store, uint64_t keep,
		   const struct cowstore_record *record, struct error *err)
{
	uint64_t end = store->scrub_end > store->exceptions ? store->scrub_end
							    : store->exceptions;

	if (zero_entries(store, keep, end, err))
		return -1;
	if ((keep ? record && store->may_record : store->recorded) &&
	    write_record(store, keep, record, err))
		return -1;
	store->exceptions = store->scrub_end = keep;
	store->stale = 0;
	return 0;
}

uint64_t cowstore_data_chunk(const struct cowstore *store, uint64_t n)
{
	uint64_t e = entries_per_area(store);

	return area_chunk(store, n / e) + 1 + n % e;
}

uint64_t cowstore_size(uint64_t chunk_size, uint64_t exceptions)
{
	uint64_t e = chunk_size / sizeof(struct disk_exception);
	uint64_t last_area = exceptions / e;

	return (2 + exceptions + last_area) * chunk_size;
}

int cowstore_create(struct cowstore *store, const struct image *image,
		    uint64_t chunk_size, struct error *err)
{
	struct cowstore created = {
		.image = image,
		.version = VERSION,
		.valid = true,
		.chunk_size = chunk_size,
		.chunks = image->size / chunk_size,
	};
	struct disk_header disk;
	struct iovec iov = { &disk, sizeof(disk) };

	put_le32(disk.magic, MAGIC);
	put_le32(disk.valid, 1);
	put_le32(disk.version, VERSION);
	put_le32(disk.chunk_size, (uint32_t)(chunk_size / SECTOR));
	if (image_write(image, &iov, 1, 0, err) || image_sync(image, err))
		return -1;
	*store = created;
	return 0;
}

int cowstore_reserve(struct cowstore *store, uint64_t count, struct error *err)
{
	uint64_t e = entries_per_area(store);
	uint64_t first = (store->exceptions / e + 1) * e;
	uint64_t end = ((store->exceptions + count) / e + 1) * e;

	if (cowstore_clear(store, store->exceptions, NULL, err))
		return -1;
	return zero_entries(store, first, end, err);
}

int cowstore_append(struct cowstore *store, const uint64_t *old_chunks,
		    size_t count, struct error *err)
{
	struct disk_exception disk[256];

	while (count) {
		size_t n = within_area(store, store->exceptions,
				       store->exceptions +
					       (count < 256 ? count : 256));
		struct iovec iov = { disk, n * sizeof(*disk) };

		for (size_t i = 0; i < n; i++) {
			put_le64(disk[i].old_chunk, old_chunks[i]);
			put_le64(disk[i].new_chunk,
				 cowstore_data_chunk(store,
						     store->exceptions + i));
		}
		if (image_write(store->image, &iov, 1,
				entry_offset(store, store->exceptions), err))
			return -1;
		store->exceptions += n;
		old_chunks += n;
		count -= n;
	}
	return 0;
}

void cowstore_status(const struct cowstore *store,
		     struct cowstore_status *status)
{
	uint64_t sectors = store->chunk_size / SECTOR;
	uint64_t next = (store->last_new_chunk ? store->last_new_chunk : 1) + 1;

	if (cowstore_is_metadata(store, next))
		next++;
	status->allocated_sectors = next * sectors;
	status->total_sectors = store->image->size / SECTOR;
	status->metadata_sectors =
		(store->exceptions / entries_per_area(store) + 2) * sectors;
}
