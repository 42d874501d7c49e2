/* SPDX-License-Identifier: MIT */
/*
 * The independent builder of stores: knows the format of the snapshot store
 * from its description, and nothing of the code under test.  Origin, store and
 * expected image are all computed from a seed; the only thing ever read back
 * is what view_of() is given, and that function shares no arithmetic with the
 * rest of this file.
 */
#include "builder.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SINK_SIZE (4u << 20)
#define RUN_MAX	  256u

enum side { SIDE_ORIGIN = 1, SIDE_COW = 2 };

static void die(const char *fmt, ...)
	__attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *fmt, ...)
{
	va_list ap;

	fputs("builder: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(BUILDER_EXIT);
}

static void *xcalloc(size_t count, size_t size)
{
	void *p = calloc(count ? count : 1, size);

	if (!p)
		die("no memory for %zu times %zu bytes", count, size);
	return p;
}

/* Random numbers: splitmix64, whose mixer also makes the contents. */

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static uint64_t below(uint64_t *state, uint64_t bound)
{
	*state += 0x9e3779b97f4a7c15u;
	return mix(*state) % bound;
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void put_le(unsigned char *p, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		p[i] = (unsigned char)(value >> (8 * i));
}

/* The layout */

static uint64_t chunk_bytes(const struct builder *b)
{
	return (uint64_t)b->chunk_sectors * BUILDER_SECTOR;
}

uint64_t builder_per_area(uint32_t chunk_sectors)
{
	return (uint64_t)chunk_sectors * BUILDER_SECTOR / BUILDER_ENTRY;
}

uint64_t builder_area_chunk(uint32_t chunk_sectors, uint64_t area)
{
	return 1 + area * (builder_per_area(chunk_sectors) + 1);
}

uint64_t builder_new_chunk(uint32_t chunk_sectors, uint64_t n)
{
	/* behind the header, area 0, and one more area for each E */
	return 2 + n + n / builder_per_area(chunk_sectors);
}

uint64_t builder_entry_offset(uint32_t chunk_sectors, uint64_t n)
{
	uint64_t per_area = builder_per_area(chunk_sectors);

	return builder_area_chunk(chunk_sectors, n / per_area) * chunk_sectors *
		       BUILDER_SECTOR +
	       n % per_area * BUILDER_ENTRY;
}

uint64_t builder_origin_chunks(const struct builder *b)
{
	return b->origin_size / chunk_bytes(b) +
	       (b->origin_size % chunk_bytes(b) != 0);
}

/* The area in which the table ends. */
static uint64_t last_area(const struct builder *b)
{
	return b->count / builder_per_area(b->chunk_sectors);
}

uint64_t builder_cow_bytes(const struct builder *b)
{
	uint64_t last, next;

	if (b->cow_size)
		return b->cow_size;
	last = builder_area_chunk(b->chunk_sectors, last_area(b));
	if (b->count) {
		next = builder_new_chunk(b->chunk_sectors, b->count - 1);
		if (next > last)
			last = next;
	}
	if (b->garbage_after_table)
		last = builder_area_chunk(b->chunk_sectors, last_area(b) + 1);
	if (last >= INT64_MAX / chunk_bytes(b))
		die("a store of %llu chunks is too large for a file",
		    (unsigned long long)last + 1);
	return (last + 1) * chunk_bytes(b);
}

static bool is_data_chunk(const struct builder *b, uint64_t chunk)
{
	return chunk && chunk % (builder_per_area(b->chunk_sectors) + 1) != 1;
}

/* The table */

void builder_init(struct builder *b, uint32_t chunk_sectors,
		  uint64_t origin_size, uint64_t seed)
{
	if (!chunk_sectors || (chunk_sectors & (chunk_sectors - 1)) ||
	    chunk_sectors > BUILDER_MAX_SECTORS)
		die("no layout has chunks of %u sectors", chunk_sectors);
	*b = (struct builder){
		.chunk_sectors = chunk_sectors,
		.origin_size = origin_size,
		.magic = BUILDER_MAGIC,
		.valid = 1,
		.version = 1,
		.chunk_size = chunk_sectors,
		.seed = seed,
	};
}

void builder_free(struct builder *b)
{
	free(b->exceptions);
	b->exceptions = NULL;
	b->count = 0;
}

void builder_set(struct builder *b, const struct builder_exception *exceptions,
		 size_t count)
{
	struct builder_exception *copy = xcalloc(count, sizeof(*copy));

	if (count)
		memcpy(copy, exceptions, count * sizeof(*copy));
	builder_free(b);
	b->exceptions = copy;
	b->count = count;
}

void builder_add(struct builder *b, uint64_t old_chunk, uint64_t new_chunk)
{
	size_t count = b->count;

	if (count && !b->exceptions)
		die("cannot add to a computed table");
	/* grows at each power of two */
	if (!b->exceptions || !(count & (count - 1))) {
		struct builder_exception *grown;

		grown = xcalloc(count ? 2 * count : 1, sizeof(*grown));
		if (count)
			memcpy(grown, b->exceptions, count * sizeof(*grown));
		free(b->exceptions);
		b->exceptions = grown;
	}
	b->exceptions[count].old_chunk = old_chunk;
	b->exceptions[count].new_chunk = new_chunk;
	b->count = count + 1;
}

static const char *const pattern_names[] = {
	[BUILDER_SCATTERED] = "scattered",
	[BUILDER_RUNS] = "runs",
	[BUILDER_ONE] = "one",
	[BUILDER_REVERSED] = "reversed",
	[BUILDER_SHUFFLED] = "shuffled",
};

int builder_pattern_of(const char *name)
{
	int count = (int)(sizeof(pattern_names) / sizeof(*pattern_names));

	for (int i = 0; i < count; i++)
		if (!strcmp(name, pattern_names[i]))
			return i;
	return -1;
}

uint64_t builder_room(const struct builder *b, enum builder_pattern pattern)
{
	uint64_t chunks = builder_origin_chunks(b);

	return pattern == BUILDER_SCATTERED ? chunks / 2 + chunks % 2 : chunks;
}

static void check_room(const struct builder *b, enum builder_pattern pattern,
		       size_t count, uint64_t room)
{
	if (count > room)
		die("%zu exceptions (%s) do not fit an origin of %llu chunks",
		    count, pattern_names[pattern],
		    (unsigned long long)builder_origin_chunks(b));
}

struct run {
	uint64_t start; /* chunk of the origin */
	size_t length;	/* chunks */
};

/* Cuts count chunks into runs of 1 ... longest; returns their number. */
static size_t cut_runs(struct run *runs, size_t count, size_t longest,
		       uint64_t *rng)
{
	size_t n = 0;

	while (count) {
		runs[n].length = (size_t)below(rng, min64(longest, count)) + 1;
		count -= runs[n++].length;
	}
	return n;
}

/*
 * Spreads the runs over the origin in ascending order, the first at its start
 * and the last at its end: run i gets a random place in the i-th of n equal
 * shares of the free chunks.  Runs touch only if there are too few of these.
 */
static void place_runs(struct run *runs, size_t n, uint64_t free_chunks,
		       uint64_t *rng)
{
	uint64_t share = (free_chunks + 1) / n;
	uint64_t rest = (free_chunks + 1) % n;
	uint64_t used = 0;

	for (size_t i = 0; i < n; i++) {
		uint64_t width = share + (i < rest);
		uint64_t gap = i * share + min64(i, rest);

		if (width)
			gap += below(rng, width);
		gap = min64(gap, free_chunks);
		if (n > 1 && i == 0)
			gap = 0;
		if (n > 1 && i == n - 1)
			gap = free_chunks;
		runs[i].start = used + gap;
		used += runs[i].length;
	}
}

static void shuffle_runs(struct run *runs, size_t n, uint64_t *rng)
{
	for (size_t i = n; i > 1; i--) {
		size_t j = (size_t)below(rng, i);
		struct run other = runs[j];

		runs[j] = runs[i - 1];
		runs[i - 1] = other;
	}
}

static void shuffle_exceptions(struct builder_exception *e, size_t n,
			       uint64_t *rng)
{
	for (size_t i = n; i > 1; i--) {
		size_t j = (size_t)below(rng, i);
		struct builder_exception other = e[j];

		e[j] = e[i - 1];
		e[i - 1] = other;
	}
}

/* Turns runs into exceptions, new chunks rising. */
static void lay_runs(struct builder *b, const struct run *runs, size_t n,
		     bool falling)
{
	size_t at = 0;

	for (size_t i = 0; i < n; i++) {
		size_t length = runs[i].length;

		for (size_t j = 0; j < length; j++, at++) {
			b->exceptions[at].old_chunk =
				runs[i].start + (falling ? length - 1 - j : j);
			b->exceptions[at].new_chunk =
				builder_new_chunk(b->chunk_sectors, at);
		}
	}
}

void builder_fill(struct builder *b, enum builder_pattern pattern, size_t count)
{
	uint64_t rng = mix(b->seed);
	size_t longest = RUN_MAX;
	struct run *runs;
	size_t n;

	check_room(b, pattern, count, builder_room(b, pattern));
	builder_free(b);
	if (!count)
		return;
	if (pattern == BUILDER_SCATTERED)
		longest = 1;
	runs = xcalloc(count, sizeof(*runs));
	if (pattern == BUILDER_ONE) {
		n = 1;
		runs[0].length = count;
	} else {
		n = cut_runs(runs, count, longest, &rng);
	}
	place_runs(runs, n, builder_origin_chunks(b) - count, &rng);
	shuffle_runs(runs, n, &rng);
	b->exceptions = xcalloc(count, sizeof(*b->exceptions));
	b->count = count;
	lay_runs(b, runs, n, pattern == BUILDER_REVERSED);
	if (pattern == BUILDER_SHUFFLED)
		shuffle_exceptions(b->exceptions, count, &rng);
	free(runs);
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

void builder_compute(struct builder *b, enum builder_pattern pattern,
		     size_t count)
{
	uint64_t chunks = builder_origin_chunks(b);

	check_room(b, pattern, count, chunks);
	builder_free(b);
	b->count = count;
	switch (pattern) {
	case BUILDER_ONE:
		b->first_chunk = 0;
		b->step_chunks = 1;
		break;
	case BUILDER_REVERSED:
		b->first_chunk = chunks ? chunks - 1 : 0;
		b->step_chunks = b->first_chunk;
		break;
	case BUILDER_SCATTERED:
		b->first_chunk = 0;
		/* far from the neighbours; coprime, so that none comes twice */
		b->step_chunks = chunks / 8 * 3 + 1;
		while (gcd(b->step_chunks, chunks) != 1)
			b->step_chunks++;
		break;
	case BUILDER_RUNS:
	case BUILDER_SHUFFLED:
		die("no computed table is %s", pattern_names[pattern]);
	}
}

/* Walks a table that is held or computed, in table order. */
struct cursor {
	const struct builder *b;
	size_t next;
	uint64_t old_chunk; /* of a computed table */
};

static struct cursor table_start(const struct builder *b)
{
	return (struct cursor){ .b = b, .old_chunk = b->first_chunk };
}

static bool table_next(struct cursor *c, struct builder_exception *e)
{
	const struct builder *b = c->b;

	if (c->next == b->count)
		return false;
	if (b->exceptions) {
		*e = b->exceptions[c->next++];
		return true;
	}
	e->old_chunk = c->old_chunk;
	e->new_chunk = builder_new_chunk(b->chunk_sectors, c->next++);
	c->old_chunk += b->step_chunks;
	if (c->old_chunk >= builder_origin_chunks(b))
		c->old_chunk -= builder_origin_chunks(b);
	return true;
}

/* Contents */

/* len bytes of a chunk's contents from an offset in it that may be odd. */
static void contents(const struct builder *b, enum side side, uint64_t chunk,
		     uint64_t offset, unsigned char *buf, size_t len)
{
	uint64_t key = mix(mix(b->seed + (uint64_t)side) ^ mix(chunk));

	while (len) {
		uint64_t word = htole64(mix(key + offset / 8));
		size_t skip = (size_t)(offset % 8);
		size_t n = len < 8 - skip ? len : 8 - skip;

		if (n == 8)
			memcpy(buf, &word, 8);
		else
			memcpy(buf, (unsigned char *)&word + skip, n);
		buf += n;
		offset += n;
		len -= n;
	}
}

void builder_cow_data(const struct builder *b, uint64_t new_chunk,
		      uint64_t offset, void *buf, size_t len)
{
	if (b->metadata_only)
		memset(buf, 0, len);
	else
		contents(b, SIDE_COW, new_chunk, offset, buf, len);
}

void builder_origin_bytes(const struct builder *b, uint64_t offset, void *buf,
			  size_t len)
{
	unsigned char *p = buf;

	if (b->sparse) {
		memset(buf, 0, len);
		return;
	}
	while (len) {
		uint64_t in = offset % chunk_bytes(b);
		size_t n = (size_t)min64(len, chunk_bytes(b) - in);

		contents(b, SIDE_ORIGIN, offset / chunk_bytes(b), in, p, n);
		p += n;
		offset += n;
		len -= n;
	}
}

void builder_expect(const struct builder *b, uint64_t offset, void *buf,
		    size_t len)
{
	struct cursor c = table_start(b);
	unsigned char *p = buf;
	struct builder_exception e;
	uint64_t end = offset + len;

	if (offset > b->origin_size || len > b->origin_size - offset)
		die("%zu bytes at %llu are not within the origin", len,
		    (unsigned long long)offset);
	builder_origin_bytes(b, offset, buf, len);
	while (table_next(&c, &e) && e.new_chunk) {
		uint64_t start, from, to;

		if (e.old_chunk >= builder_origin_chunks(b))
			continue;
		start = e.old_chunk * chunk_bytes(b);
		from = start > offset ? start : offset;
		to = min64(start + chunk_bytes(b), end);
		if (from < to)
			builder_cow_data(b, e.new_chunk, from - start,
					 p + (from - offset),
					 (size_t)(to - from));
	}
}

/*
 * A file being written: neighbouring writes are gathered, and what lies at or
 * behind its size is dropped.
 */
struct sink {
	const char *path;
	int fd;
	uint64_t size;	    /* of the file */
	unsigned char *buf; /* holds used bytes that belong at offset */
	size_t used;
	uint64_t offset;
};

static void sink_open(struct sink *s, const char *path, uint64_t size,
		      bool prealloc)
{
	struct stat st;
	int error;

	*s = (struct sink){ .path = path, .size = size };
	s->buf = xcalloc(1, SINK_SIZE);
	s->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (s->fd < 0 || fstat(s->fd, &st))
		die("%s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		die("%s: not a regular file", path);
	if (size > INT64_MAX)
		die("%s: size past the limit of a file", path);
	if (ftruncate(s->fd, (off_t)size))
		die("%s: cannot make it %llu bytes long: %s", path,
		    (unsigned long long)size, strerror(errno));
	if (prealloc && size) {
		error = posix_fallocate(s->fd, 0, (off_t)size);
		if (error)
			die("%s: cannot allocate %llu bytes: %s", path,
			    (unsigned long long)size, strerror(error));
	}
}

static void sink_flush(struct sink *s)
{
	size_t done = 0;

	while (done < s->used) {
		ssize_t n = pwrite(s->fd, s->buf + done, s->used - done,
				   (off_t)(s->offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("%s: write at %llu: %s", s->path,
			    (unsigned long long)(s->offset + done),
			    n ? strerror(errno) : "nothing written");
		done += (size_t)n;
	}
	s->offset += s->used;
	s->used = 0;
}

static void sink_close(struct sink *s)
{
	sink_flush(s);
	if (close(s->fd))
		die("%s: close: %s", s->path, strerror(errno));
	free(s->buf);
}

/*
 * Takes up to len bytes at offset: returns where to put them and how many in
 * taken, which is 0 at or behind the end of the file.
 */
static unsigned char *sink_take(struct sink *s, uint64_t offset, uint64_t len,
				size_t *taken)
{
	unsigned char *at;

	if (s->used == SINK_SIZE || offset != s->offset + s->used) {
		sink_flush(s);
		s->offset = offset;
	}
	if (offset >= s->size)
		len = 0;
	else
		len = min64(len, s->size - offset);
	*taken = (size_t)min64(len, SINK_SIZE - s->used);
	at = s->buf + s->used;
	s->used += *taken;
	return at;
}

static void sink_bytes(struct sink *s, uint64_t offset,
		       const unsigned char *bytes, size_t len)
{
	while (len) {
		size_t n;
		unsigned char *at = sink_take(s, offset, len, &n);

		if (!n)
			return;
		memcpy(at, bytes, n);
		bytes += n;
		offset += n;
		len -= n;
	}
}

/* Puts the data of new_chunk where chunk number at_chunk of the file is. */
static void sink_data(struct sink *s, const struct builder *b,
		      uint64_t at_chunk, uint64_t new_chunk)
{
	uint64_t done = 0;

	if (at_chunk > s->size / chunk_bytes(b))
		return;
	while (done < chunk_bytes(b)) {
		size_t n;
		unsigned char *at = sink_take(s,
					      at_chunk * chunk_bytes(b) + done,
					      chunk_bytes(b) - done, &n);

		if (!n)
			return;
		builder_cow_data(b, new_chunk, done, at, n);
		done += n;
	}
}

static void sink_origin(struct sink *s, const struct builder *b)
{
	uint64_t offset = 0;

	while (!b->sparse && offset < b->origin_size) {
		size_t n;
		unsigned char *at = sink_take(s, offset,
					      b->origin_size - offset, &n);

		builder_origin_bytes(b, offset, at, n);
		offset += n;
	}
}

static void sink_exception(struct sink *s, const struct builder *b, uint64_t n,
			   const struct builder_exception *e)
{
	unsigned char entry[BUILDER_ENTRY];

	put_le(entry, e->old_chunk, 8);
	put_le(entry + 8, e->new_chunk, 8);
	sink_bytes(s, builder_entry_offset(b->chunk_sectors, n), entry,
		   sizeof(entry));
}

/* Entries from ... to - 1 of the table as an older use has left them. */
static void sink_stale(struct sink *s, const struct builder *b, uint64_t from,
		       uint64_t to, uint64_t *rng)
{
	uint64_t chunks = builder_origin_chunks(b);

	for (uint64_t n = from; n < to; n++) {
		struct builder_exception e;

		if (builder_entry_offset(b->chunk_sectors, n) >= s->size)
			return;
		e.old_chunk = chunks ? below(rng, chunks) : 0;
		e.new_chunk = builder_new_chunk(b->chunk_sectors, n);
		sink_exception(s, b, n, &e);
	}
}

static void sink_table(struct sink *s, const struct builder *b)
{
	uint64_t per_area = builder_per_area(b->chunk_sectors);
	uint64_t area_end = (last_area(b) + 1) * per_area;
	struct cursor c = table_start(b);
	uint64_t rng = mix(~b->seed);
	struct builder_exception e;

	for (uint64_t n = 0; table_next(&c, &e); n++)
		sink_exception(s, b, n, &e);
	/* one empty entry ends the table, another one could follow it */
	if (b->stale_entries)
		sink_stale(s, b, b->count + 1,
			   b->stale_entries < area_end - b->count - 1
				   ? b->count + 1 + b->stale_entries
				   : area_end,
			   &rng);
	if (b->garbage_after_table)
		sink_stale(s, b, area_end,
			   area_end + BUILDER_GARBAGE_AREAS * per_area, &rng);
}

static void sink_header(struct sink *s, const struct builder *b)
{
	unsigned char header[16];

	put_le(header, b->magic, 4);
	put_le(header + 4, b->valid, 4);
	put_le(header + 8, b->version, 4);
	put_le(header + 12, b->chunk_size, 4);
	sink_bytes(s, 0, header, sizeof(header));
}

void builder_write(const struct builder *b, const char *origin_path,
		   const char *cow_path)
{
	struct builder_exception e;
	struct cursor c = table_start(b);
	struct sink s;

	sink_open(&s, origin_path, b->origin_size, b->prealloc);
	sink_origin(&s, b);
	sink_close(&s);

	sink_open(&s, cow_path, builder_cow_bytes(b), b->prealloc);
	sink_header(&s, b);
	sink_table(&s, b);
	while (!b->metadata_only && table_next(&c, &e))
		if (is_data_chunk(b, e.new_chunk))
			sink_data(&s, b, e.new_chunk, e.new_chunk);
	sink_close(&s);
}

void builder_write_merged(const struct builder *b, const char *path)
{
	struct builder_exception e;
	struct cursor c = table_start(b);
	struct sink s;

	sink_open(&s, path, b->origin_size, false);
	sink_origin(&s, b);
	while (table_next(&c, &e) && e.new_chunk)
		sink_data(&s, b, e.old_chunk, e.new_chunk);
	sink_close(&s);
}

/* The view of a store as it lies there */

static uint64_t get_le(const unsigned char *p, int bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | p[bytes];
	return value;
}

/* Lays the live exceptions of a store over out, a copy of the origin. */
static int overlay(unsigned char *out, size_t origin_len,
		   const unsigned char *cow, size_t cow_len)
{
	uint64_t chunk, entries, stride;
	int live = 0;

	if (cow_len < 16 || memcmp(cow, "SnAp", 4) || get_le(cow + 8, 4) != 1)
		return -1;
	chunk = get_le(cow + 12, 4) << 9;
	if (!chunk || (chunk & (chunk - 1)) || chunk > 1u << 30)
		return -1;
	entries = chunk >> 4;
	stride = entries + 1;
	if (cow_len / chunk < 2)
		return -1;
	for (uint64_t area = 1; area < cow_len / chunk; area += stride) {
		const unsigned char *entry = cow + area * chunk;
		const unsigned char *end = entry + chunk;

		for (; entry < end; entry += 16, live++) {
			uint64_t to = get_le(entry, 8);
			uint64_t from = get_le(entry + 8, 8);
			uint64_t room;

			if (!from)
				return live;
			if (from >= cow_len / chunk || from % stride == 1)
				return -1;
			if (to > origin_len / chunk || to * chunk >= origin_len)
				return -1;
			room = origin_len - to * chunk;
			memcpy(out + to * chunk, cow + from * chunk,
			       (size_t)(room < chunk ? room : chunk));
		}
	}
	return live;
}

int view_of(const unsigned char *origin, size_t origin_len,
	    const unsigned char *cow, size_t cow_len, unsigned char *out)
{
	if (out != origin && origin_len)
		memcpy(out, origin, origin_len);
	return overlay(out, origin_len, cow, cow_len);
}

/* A file in memory. */
struct map {
	int fd;
	unsigned char *bytes;
	size_t len;
};

/* Maps a whole file; size < 0: read-only, else made that long and a hole. */
static struct map map_file(const char *path, int64_t size)
{
	bool out = size >= 0;
	struct map m;
	struct stat st;
	void *bytes;

	m.fd = open(path,
		    out ? O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC
			: O_RDONLY | O_CLOEXEC,
		    0666);
	if (m.fd < 0 || (out && ftruncate(m.fd, (off_t)size)) ||
	    fstat(m.fd, &st))
		die("%s: %s", path, strerror(errno));
	if ((uintmax_t)st.st_size > SIZE_MAX)
		die("%s: too large to be mapped", path);
	m.len = (size_t)st.st_size;
	/* an empty file cannot be mapped; nobody looks at its bytes */
	bytes = m.len ? mmap(NULL, m.len,
			     out ? PROT_READ | PROT_WRITE : PROT_READ,
			     MAP_SHARED, m.fd, 0)
		      : NULL;
	if (bytes == MAP_FAILED)
		die("%s: mmap: %s", path, strerror(errno));
	m.bytes = bytes;
	return m;
}

static void unmap_file(struct map *m)
{
	if (m->len)
		munmap(m->bytes, m->len);
	close(m->fd);
}

/* Copies a file onto a hole of its size, without reading its own holes. */
static void copy_data(const struct map *to, const struct map *from)
{
	off_t hole = 0;

	for (;;) {
		off_t data = lseek(from->fd, hole, SEEK_DATA);

		if (data < 0 && errno == ENXIO)
			return;
		hole = data < 0 ? -1 : lseek(from->fd, data, SEEK_HOLE);
		if (hole < 0)
			die("cannot look for holes: %s", strerror(errno));
		memcpy(to->bytes + data, from->bytes + data,
		       (size_t)(hole - data));
	}
}

int view_of_files(const char *origin_path, const char *cow_path,
		  const char *out_path)
{
	struct map origin = map_file(origin_path, -1);
	struct map cow = map_file(cow_path, -1);
	struct map out = map_file(out_path, (int64_t)origin.len);
	int live;

	copy_data(&out, &origin);
	live = overlay(out.bytes, out.len, cow.bytes, cow.len);
	unmap_file(&origin);
	unmap_file(&cow);
	unmap_file(&out);
	return live;
}
