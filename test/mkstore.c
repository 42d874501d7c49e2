/* SPDX-License-Identifier: MIT */
/*
 * mkstore: the store builder as a command, for tests in shell, benchmarks and
 * experiments.  Knows options and units; everything else is in builder.c.
 */
#include "builder.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Larger tables are computed, not held: 16 bytes each, and as many for runs. */
#define HELD_MAX (4u << 20)

struct options {
	uint32_t chunk_sectors;
	uint64_t origin_size, cow_size, count, seed, stale;
	int pattern; /* -1: not given */
	const char *list, *header;
	bool counted, garbage, invalid, prealloc, sparse, metadata_only, view;
};

static const char usage_text[] =
	"usage: mkstore [OPTION]... ORIGIN COW [MERGED]\n"
	"       mkstore --view ORIGIN COW OUT\n"
	"Write an origin and a persistent snapshot store for it, and with MERGED\n"
	"what the origin must look like after a merge. Files are truncated.\n"
	"\n"
	"  --chunk SECTORS      chunk size, a power of two (8)\n"
	"  --origin-size SIZE   size of the origin (8M)\n"
	"  --cow-size SIZE      size of the store (what the exceptions need)\n"
	"  --count N            number of exceptions (300, or what fits)\n"
	"  --pattern PATTERN    scattered, runs, one, reversed or shuffled (runs)\n"
	"  --list OLD[:NEW],... these exceptions instead; without NEW the chunk that\n"
	"                       the kernel would allocate\n"
	"  --seed N             seed of contents and patterns (1)\n"
	"  --stale N            N old entries behind the end, in the last area\n"
	"  --garbage            old exceptions in the areas behind the last one\n"
	"  --invalid            a store that the kernel has invalidated\n"
	"  --header MAGIC,VALID,VERSION,CHUNK\n"
	"                       words of the header; an empty one stays sound\n"
	"  --prealloc           both files have real blocks throughout\n"
	"  --sparse-origin      the origin is a hole and reads as zeros\n"
	"  --metadata-only      the data chunks of the store are holes; a table of\n"
	"                       more than 4 Mi exceptions is computed (one,\n"
	"                       reversed or scattered; one)\n"
	"  --view               write the snapshot view of any origin and store to\n"
	"                       OUT, and print the number of live exceptions\n"
	"  --help               print this\n"
	"\n"
	"SIZE takes K, M, G, T (powers of 1024). Numbers may be hexadecimal (0x).\n"
	"Exit: 0 done, 1 no view of that store, 2 wrong usage, 99 anything else.\n";

static void usage(const char *fmt, ...)
	__attribute__((noreturn, format(printf, 1, 2)));

static void usage(const char *fmt, ...)
{
	va_list ap;

	fputs("mkstore: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs("\nmkstore: try --help\n", stderr);
	exit(2);
}

/* A number at text; *end is set behind it. */
static uint64_t number_at(const char *text, const char **end)
{
	unsigned long long value;
	char *stop;

	errno = 0;
	value = strtoull(text, &stop, 0);
	if (*text < '0' || *text > '9' || errno)
		usage("not a number: %s", text);
	*end = stop;
	return value;
}

static uint64_t number(const char *text, uint64_t max)
{
	const char *end;
	uint64_t value = number_at(text, &end);

	if (*end)
		usage("not a number: %s", text);
	if (value > max)
		usage("number too large: %s", text);
	return value;
}

static uint64_t size_in_bytes(const char *text)
{
	static const char units[] = "KMGT";
	const char *end, *unit;
	uint64_t value = number_at(text, &end);
	unsigned int shift = 0;

	if (*end) {
		unit = strchr(units, *end);
		if (!unit || end[1])
			usage("not a size: %s", text);
		shift = 10 * (unsigned int)(unit - units + 1);
	}
	if (value > (uint64_t)INT64_MAX >> shift)
		usage("size too large: %s", text);
	return value << shift;
}

static void parse_list(struct builder *b, const char *list)
{
	const char *at = list;

	for (;;) {
		uint64_t old_chunk = number_at(at, &at);
		uint64_t new_chunk = builder_new_chunk(b->chunk_sectors,
						       b->count);

		if (*at == ':')
			new_chunk = number_at(at + 1, &at);
		builder_add(b, old_chunk, new_chunk);
		if (!*at)
			return;
		if (*at++ != ',')
			usage("not a list of exceptions: %s", list);
	}
}

static void parse_header(struct builder *b, const char *words)
{
	uint32_t *const fields[] = { &b->magic, &b->valid, &b->version,
				     &b->chunk_size };
	const char *at = words;

	for (int i = 0; i < 4; i++) {
		if (*at && *at != ',') {
			uint64_t value = number_at(at, &at);

			if (value > UINT32_MAX)
				usage("not a word of 32 bits: %s", words);
			*fields[i] = (uint32_t)value;
		}
		if (i < 3 ? *at++ != ',' : *at)
			usage("not four words of a header: %s", words);
	}
}

enum {
	OPT_CHUNK = 256,
	OPT_ORIGIN_SIZE,
	OPT_COW_SIZE,
	OPT_COUNT,
	OPT_PATTERN,
	OPT_LIST,
	OPT_SEED,
	OPT_STALE,
	OPT_GARBAGE,
	OPT_INVALID,
	OPT_HEADER,
	OPT_PREALLOC,
	OPT_SPARSE,
	OPT_METADATA,
	OPT_VIEW,
	OPT_HELP
};

static const struct option long_options[] = {
	{ "chunk", required_argument, NULL, OPT_CHUNK },
	{ "origin-size", required_argument, NULL, OPT_ORIGIN_SIZE },
	{ "cow-size", required_argument, NULL, OPT_COW_SIZE },
	{ "count", required_argument, NULL, OPT_COUNT },
	{ "pattern", required_argument, NULL, OPT_PATTERN },
	{ "list", required_argument, NULL, OPT_LIST },
	{ "seed", required_argument, NULL, OPT_SEED },
	{ "stale", required_argument, NULL, OPT_STALE },
	{ "garbage", no_argument, NULL, OPT_GARBAGE },
	{ "invalid", no_argument, NULL, OPT_INVALID },
	{ "header", required_argument, NULL, OPT_HEADER },
	{ "prealloc", no_argument, NULL, OPT_PREALLOC },
	{ "sparse-origin", no_argument, NULL, OPT_SPARSE },
	{ "metadata-only", no_argument, NULL, OPT_METADATA },
	{ "view", no_argument, NULL, OPT_VIEW },
	{ "help", no_argument, NULL, OPT_HELP },
	{ NULL, 0, NULL, 0 }
};

static uint32_t chunk_option(const char *text)
{
	uint64_t sectors = number(text, BUILDER_MAX_SECTORS);

	if (!sectors || (sectors & (sectors - 1)))
		usage("not a power of two: %s", text);
	return (uint32_t)sectors;
}

static int pattern_option(const char *name)
{
	int pattern = builder_pattern_of(name);

	if (pattern < 0)
		usage("no such pattern: %s", name);
	return pattern;
}

static void take_option(struct options *o, int opt)
{
	switch (opt) {
	case OPT_CHUNK:
		o->chunk_sectors = chunk_option(optarg);
		break;
	case OPT_ORIGIN_SIZE:
		o->origin_size = size_in_bytes(optarg);
		break;
	case OPT_COW_SIZE:
		o->cow_size = size_in_bytes(optarg);
		break;
	case OPT_COUNT:
		o->count = number(optarg, SIZE_MAX / 32);
		o->counted = true;
		break;
	case OPT_PATTERN:
		o->pattern = pattern_option(optarg);
		break;
	case OPT_LIST:
		o->list = optarg;
		break;
	case OPT_SEED:
		o->seed = number(optarg, UINT64_MAX);
		break;
	case OPT_STALE:
		o->stale = number(optarg, SIZE_MAX / 32);
		break;
	case OPT_GARBAGE:
		o->garbage = true;
		break;
	case OPT_INVALID:
		o->invalid = true;
		break;
	case OPT_HEADER:
		o->header = optarg;
		break;
	case OPT_PREALLOC:
		o->prealloc = true;
		break;
	case OPT_SPARSE:
		o->sparse = true;
		break;
	case OPT_METADATA:
		o->metadata_only = true;
		break;
	case OPT_VIEW:
		o->view = true;
		break;
	case OPT_HELP:
		fputs(usage_text, stdout);
		exit(fflush(stdout) ? BUILDER_EXIT : 0);
	default:
		fputs("mkstore: try --help\n", stderr);
		exit(2);
	}
}

static void fill_table(struct builder *b, const struct options *o)
{
	bool held = !o->metadata_only || o->count <= HELD_MAX;
	int given = o->pattern;
	enum builder_pattern pattern;
	uint64_t room, count = o->count;

	if (given < 0)
		given = held ? BUILDER_RUNS : BUILDER_ONE;
	pattern = (enum builder_pattern)given;
	if (!held && (pattern == BUILDER_RUNS || pattern == BUILDER_SHUFFLED))
		usage("more than %u exceptions must be one, reversed or "
		      "scattered",
		      HELD_MAX);
	room = held ? builder_room(b, pattern) : builder_origin_chunks(b);
	if (count > room && !o->counted)
		count = room;
	if (count > room)
		usage("the origin has room for %llu exceptions of that pattern",
		      (unsigned long long)room);
	if (held)
		builder_fill(b, pattern, (size_t)count);
	else
		builder_compute(b, pattern, (size_t)count);
}

static void configure(struct builder *b, const struct options *o)
{
	builder_init(b, o->chunk_sectors, o->origin_size, o->seed);
	b->cow_size = o->cow_size;
	b->stale_entries = (size_t)o->stale;
	b->garbage_after_table = o->garbage;
	b->prealloc = o->prealloc;
	b->sparse = o->sparse;
	b->metadata_only = o->metadata_only;
	if (o->invalid)
		b->valid = 0;
	if (o->header)
		parse_header(b, o->header);
	if (o->list)
		parse_list(b, o->list);
	else
		fill_table(b, o);
}

static int view(char **paths)
{
	int live = view_of_files(paths[0], paths[1], paths[2]);

	if (live < 0) {
		fprintf(stderr,
			"mkstore: %s: no table to read, or it does not "
			"fit %s\n",
			paths[1], paths[0]);
		return 1;
	}
	printf("%d exceptions\n", live);
	return fflush(stdout) ? BUILDER_EXIT : 0;
}

static void check_usage(const struct options *o, int paths)
{
	if (o->view && paths != 3)
		usage("--view needs ORIGIN, COW and OUT");
	if (paths < 2 || paths > 3)
		usage("ORIGIN and COW are needed, MERGED may follow");
	if (!o->view && o->metadata_only && paths == 3)
		usage("there is no MERGED with --metadata-only");
	if (o->list && (o->counted || o->pattern >= 0))
		usage("--list goes with neither --count nor --pattern");
	if (o->prealloc && (o->sparse || o->metadata_only))
		usage("--prealloc goes with neither --sparse-origin nor "
		      "--metadata-only");
}

int main(int argc, char **argv)
{
	struct options o = {
		.chunk_sectors = 8,
		.origin_size = (uint64_t)8 << 20,
		.count = 300,
		.seed = 1,
		.pattern = -1,
	};
	struct builder b;
	int opt;

	while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1)
		take_option(&o, opt);
	argc -= optind;
	argv += optind;
	check_usage(&o, argc);
	if (o.view)
		return view(argv);

	configure(&b, &o);
	builder_write(&b, argv[0], argv[1]);
	if (argc == 3)
		builder_write_merged(&b, argv[2]);
	printf("%zu exceptions, chunk %llu bytes, origin %llu bytes, "
	       "cow %llu bytes, seed %llu\n",
	       b.count, (unsigned long long)b.chunk_sectors * BUILDER_SECTOR,
	       (unsigned long long)b.origin_size,
	       (unsigned long long)builder_cow_bytes(&b),
	       (unsigned long long)b.seed);
	builder_free(&b);
	return fflush(stdout) ? BUILDER_EXIT : 0;
}
