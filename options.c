/*
 * options.c - reading the command line
 *
 * A room of its own for the reason on top of options.h.
 * Knows every option, what its value may be and what it goes with. Says in one
 * line what is wrong; knows nothing of what is then done.
 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#ifndef SNAPMERGE_VERSION
#define SNAPMERGE_VERSION "unknown"
#endif

#define SECOND UINT64_C(1000000000)

static const char help[] =
	"Usage: snapmerge [OPTION]... --origin ORIGIN --cow COW\n"
	"       snapmerge --dry-run --origin ORIGIN --cow COW\n"
	"       snapmerge --check --cow COW [--origin ORIGIN]\n"
	"       snapmerge --info --cow COW\n"
	"       snapmerge --list --cow COW\n"
	"       snapmerge --output NEW --origin ORIGIN --cow COW\n"
	"Merge a persistent dm-snapshot store back into its origin, offline.\n"
	"\n"
	"  -o, --origin PATH        what the snapshot was taken of\n"
	"  -c, --cow PATH           the snapshot's exception store; both are "
	"image\n"
	"                           files or block devices\n"
	"\n"
	"Instead of merging, and without writing anything:\n"
	"  -n, --dry-run            verify all that a merge would, print the "
	"plan\n"
	"      --check              verify the store, list all problems\n"
	"      --info               chunk size, use, what is left to merge\n"
	"      --list               the exceptions as runs: origin chunk, COW "
	"chunk,\n"
	"                           length\n"
	"\n"
	"      --output NEW         write the merged image to NEW instead\n"
	"\n"
	"How to merge:\n"
	"  -b, --batch-size SIZE    bytes copied between two commits (256M)\n"
	"      --rate-limit SIZE    bytes per second\n"
	"      --max-time DURATION  stop at a commit once it is used up, exit "
	"3\n"
	"      --reflink WHEN       share blocks instead of copying: auto, "
	"always,\n"
	"                           never (auto)\n"
	"\n"
	"      --undo FILE          first save what will be overwritten, as a "
	"snapshot\n"
	"                           store that takes the merge back\n"
	"      --verify             read each batch back before it is committed\n"
	"      --discard            give the merged COW space back\n"
	"      --skip-identical     do not write what the origin holds already\n"
	"      --accept-invalid     merge a store that the kernel has given up\n"
	"      --accept-changed     go on although the origin is not as it was "
	"left\n"
	"\n"
	"What to print:\n"
	"      --json               the result as one JSON object on stdout\n"
	"  -p, --progress           plain lines of progress if stderr is no "
	"terminal\n"
	"  -q, --quiet              nothing but errors and warnings\n"
	"  -v, --verbose            the decisions taken, and each commit\n"
	"  -h, --help               this\n"
	"  -V, --version            the version\n"
	"\n"
	"SIZE takes K, M, G or T (powers of 1024), DURATION s, m or h.\n"
	"Whatever happens, run the same command again: it goes on where it "
	"stopped.\n"
	"\n"
	"Exit status: 0 done, 1 error, 2 usage, 3 stopped early, 4 refused, 5 "
	"in use.\n";

/* Print what was asked for; what was not delivered is an error. */
static int print(const char *text)
{
	if (fputs(text, stdout) == EOF || fflush(stdout) == EOF) {
		fprintf(stderr, "snapmerge: standard output: %s\n",
			strerror(errno));
		return EXIT_FAILED;
	}
	return EXIT_DONE;
}

static int usage(const char *what, const char *value)
{
	fprintf(stderr, "snapmerge: %s%s\nTry 'snapmerge --help'.\n", what,
		value);
	return EXIT_USAGE;
}

/* Digits, at least one; the rest of s in *end. False if too large, or 0. */
static bool parse_number(const char *s, const char **end, uint64_t *value)
{
	*value = 0;
	for (; *s >= '0' && *s <= '9'; s++) {
		unsigned int digit = (unsigned int)(*s - '0');

		if (*value > (UINT64_MAX - digit) / 10)
			return false;
		*value = *value * 10 + digit;
	}
	*end = s;
	return *value != 0;
}

/* A positive number with one letter of units behind it, or none. */
static bool parse_scaled(const char *s, const char *units,
			 const uint64_t *factors, uint64_t *result)
{
	const char *end, *unit = units;
	uint64_t value;

	if (!parse_number(s, &end, &value))
		return false;
	if (*end) {
		unit = strchr(units + 1, *end);
		if (!unit || end[1])
			return false;
	}
	if (value > UINT64_MAX / factors[unit - units])
		return false;
	*result = value * factors[unit - units];
	return true;
}

static bool parse_size(const char *s, uint64_t *size)
{
	static const uint64_t factors[] = { 1, UINT64_C(1) << 10,
					    UINT64_C(1) << 20,
					    UINT64_C(1) << 30,
					    UINT64_C(1) << 40 };

	return parse_scaled(s, " KMGT", factors, size);
}

static bool parse_duration(const char *s, uint64_t *nanoseconds)
{
	static const uint64_t factors[] = { SECOND, SECOND, 60 * SECOND,
					    3600 * SECOND };

	return parse_scaled(s, " smh", factors, nanoseconds);
}

static bool parse_reflink(const char *s, enum reflink *reflink)
{
	static const char words[][8] = { [REFLINK_AUTO] = "auto",
					 [REFLINK_ALWAYS] = "always",
					 [REFLINK_NEVER] = "never" };

	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
		if (!strcmp(s, words[i])) {
			*reflink = (enum reflink)i;
			return true;
		}
	}
	return false;
}

enum {
	OPT_CHECK = 256,
	OPT_INFO,
	OPT_LIST,
	OPT_JSON,
	OPT_RATE_LIMIT,
	OPT_MAX_TIME,
	OPT_REFLINK,
	OPT_OUTPUT,
	OPT_UNDO,
	OPT_VERIFY,
	OPT_DISCARD,
	OPT_SKIP_IDENTICAL,
	OPT_ACCEPT_INVALID,
	OPT_ACCEPT_CHANGED,
	OPT_END
};

/* Every option, and the modes that it has a meaning in. */
static const struct rule {
	struct option option;
	unsigned int modes;
} rules[] = {
#define TAKES(name, value, modes)                                              \
	{                                                                      \
		{ name, required_argument, NULL, value }, modes                \
	}
#define FLAG(name, value, modes)                                               \
	{                                                                      \
		{ name, no_argument, NULL, value }, modes                      \
	}
	TAKES("origin", 'o', MERGE | DRY_RUN | CHECK | OUTPUT),
	TAKES("cow", 'c', ALL),
	FLAG("dry-run", 'n', DRY_RUN),
	FLAG("check", OPT_CHECK, CHECK),
	FLAG("info", OPT_INFO, INFO),
	FLAG("list", OPT_LIST, LIST),
	TAKES("output", OPT_OUTPUT, OUTPUT),
	TAKES("batch-size", 'b', MERGE | DRY_RUN),
	TAKES("rate-limit", OPT_RATE_LIMIT, MERGE | DRY_RUN | OUTPUT),
	TAKES("max-time", OPT_MAX_TIME, MERGE | DRY_RUN),
	TAKES("reflink", OPT_REFLINK, MERGE | DRY_RUN | OUTPUT),
	TAKES("undo", OPT_UNDO, MERGE | DRY_RUN),
	FLAG("verify", OPT_VERIFY, MERGE | DRY_RUN | OUTPUT),
	FLAG("discard", OPT_DISCARD, MERGE | DRY_RUN),
	FLAG("skip-identical", OPT_SKIP_IDENTICAL, MERGE | DRY_RUN),
	FLAG("accept-invalid", OPT_ACCEPT_INVALID,
	     MERGE | DRY_RUN | CHECK | OUTPUT),
	FLAG("accept-changed", OPT_ACCEPT_CHANGED, MERGE | DRY_RUN | OUTPUT),
	FLAG("json", OPT_JSON, ALL),
	FLAG("progress", 'p', MERGE | DRY_RUN | OUTPUT),
	FLAG("quiet", 'q', ALL),
	FLAG("verbose", 'v', ALL),
	FLAG("help", 'h', ALL),
	FLAG("version", 'V', ALL),
};
#define RULES (sizeof(rules) / sizeof(*rules))

static const char *name_of(int opt)
{
	size_t i = 0;

	while (rules[i].option.val != opt)
		i++;
	return rules[i].option.name;
}

/* Take one option; false if its value does not parse. */
static bool set_option(struct settings *s, int opt, const char *value)
{
	switch (opt) {
	case 'o':
		s->origin = value;
		return *value != '\0';
	case 'c':
		s->cow = value;
		return *value != '\0';
	case 'n':
		s->mode |= DRY_RUN;
		return true;
	case OPT_CHECK:
		s->mode |= CHECK;
		return true;
	case OPT_INFO:
		s->mode |= INFO;
		return true;
	case OPT_LIST:
		s->mode |= LIST;
		return true;
	case 'b':
		return parse_size(value, &s->copier.batch_size);
	case OPT_RATE_LIMIT:
		return parse_size(value, &s->copier.rate_limit);
	case OPT_MAX_TIME:
		return parse_duration(value, &s->max_time);
	case OPT_REFLINK:
		return parse_reflink(value, &s->copier.reflink);
	case OPT_OUTPUT:
		s->mode |= OUTPUT;
		s->output = value;
		return *value != '\0';
	case OPT_UNDO:
		s->undo = value;
		return *value != '\0';
	case OPT_VERIFY:
		s->copier.verify = true;
		return true;
	case OPT_DISCARD:
		s->copier.discard = true;
		return true;
	case OPT_SKIP_IDENTICAL:
		s->copier.skip_identical = true;
		return true;
	case OPT_ACCEPT_INVALID:
		s->accept_invalid = true;
		return true;
	case OPT_ACCEPT_CHANGED:
		s->accept_changed = true;
		return true;
	case OPT_JSON:
		s->json = true;
		return true;
	case 'p':
		s->progress = true;
		return true;
	case 'q':
		s->quiet = true;
		return true;
	case 'v':
		s->verbose = true;
		return true;
	default:
		return false;
	}
}

/* What was given must fit together. -1, or the exit code. */
static int check_settings(struct settings *s, const bool *seen)
{
	if (!s->mode)
		s->mode = MERGE;
	if (s->mode & (s->mode - 1))
		return usage("more than one thing to do", "");
	for (size_t i = 0; i < RULES; i++)
		if (seen[rules[i].option.val] && !(rules[i].modes & s->mode))
			return usage("has no meaning here: --",
				     rules[i].option.name);
	if (s->quiet && (s->verbose || s->progress))
		return usage("--quiet excludes --verbose and --progress", "");
	if (!s->origin && (s->mode & (MERGE | DRY_RUN | OUTPUT)))
		return usage("--origin is missing", "");
	if (!s->cow)
		return usage("--cow is missing", "");
	return -1;
}

int options_parse(int argc, char **argv, struct settings *s)
{
	struct option options[RULES + 1] = { 0 };
	bool seen[OPT_END] = { false };
	int opt;

	for (size_t i = 0; i < RULES; i++)
		options[i] = rules[i].option;
	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":o:c:b:npqvhV", options,
				  NULL)) != -1) {
		const char *given = argv[optind - 1];

		if (opt == 'h')
			return print(help);
		if (opt == 'V')
			return print("snapmerge " SNAPMERGE_VERSION "\n");
		if (opt == ':')
			return usage("a value is missing after ", given);
		if (opt == '?' && optopt && optopt < 256)
			return usage("unknown option -",
				     (char[]){ (char)optopt, '\0' });
		if (opt == '?')
			return usage("unknown option ", given);
		if (optarg && seen[opt])
			return usage("given twice: --", name_of(opt));
		seen[opt] = true;
		if (!set_option(s, opt, optarg))
			return usage("not a value for this option: ", optarg);
	}
	if (optind < argc)
		return usage("extra argument ", argv[optind]);
	return check_settings(s, seen);
}
