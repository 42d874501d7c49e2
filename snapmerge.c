/*
 * snapmerge.c - the command line
 *
 * Options, signals, exit codes, and which of the other rooms run.
 */
#include "copier.h"
#include "report.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef SNAPMERGE_VERSION
#define SNAPMERGE_VERSION "unknown"
#endif

enum exit_code {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_STOPPED = 3,
	EXIT_REFUSED = 4,
	EXIT_BUSY = 5
};

struct settings {
	const char *origin, *cow;
	struct copier_options copier;
	bool quiet;
};

static const char help[] =
	"Usage: snapmerge [OPTION]... --origin ORIGIN --cow COW\n"
	"Merge a persistent dm-snapshot store back into its origin, offline.\n"
	"\n"
	"  -o, --origin PATH       what the snapshot was taken of\n"
	"  -c, --cow PATH          the snapshot's exception store\n"
	"                          both are image files or block devices\n"
	"  -b, --batch-size SIZE   bytes copied between two commits (256M)\n"
	"      --rate-limit SIZE   bytes per second\n"
	"      --reflink WHEN      share blocks instead of copying: auto, "
	"always, never\n"
	"  -q, --quiet             say nothing but errors and warnings\n"
	"  -h, --help              print this and exit\n"
	"  -V, --version           print the version and exit\n"
	"\n"
	"SIZE takes K, M, G or T (powers of 1024). Whatever happens, run the\n"
	"same command again: it goes on where it stopped.\n"
	"\n"
	"Exit status: 0 merged, 1 error, 2 usage, 3 stopped early, 4 refused,\n"
	"5 in use.\n";

/* Print to stdout what was asked for; what was not delivered is an error. */
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

/* A positive number of bytes: 4096, 64K, 1G. */
static bool parse_size(const char *s, uint64_t *size)
{
	static const char units[] = "KMGT";
	unsigned int shift = 0;
	uint64_t value = 0;

	if (!*s)
		return false;
	for (; *s >= '0' && *s <= '9'; s++) {
		unsigned int digit = (unsigned int)(*s - '0');

		if (value > (UINT64_MAX - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	if (*s) {
		const char *unit = strchr(units, *s++ & ~0x20);

		if (!unit || !*unit || *s)
			return false;
		shift = 10 * (unsigned int)(unit - units + 1);
	}
	*size = value << shift;
	return value && *size >> shift == value;
}

static bool parse_reflink(const char *s, enum reflink *reflink)
{
	if (!strcmp(s, "auto"))
		*reflink = REFLINK_AUTO;
	else if (!strcmp(s, "always"))
		*reflink = REFLINK_ALWAYS;
	else if (!strcmp(s, "never"))
		*reflink = REFLINK_NEVER;
	else
		return false;
	return true;
}

enum { OPT_RATE_LIMIT = 256, OPT_REFLINK, OPT_END };

static const struct option long_options[] = {
	{ "origin", required_argument, NULL, 'o' },
	{ "cow", required_argument, NULL, 'c' },
	{ "batch-size", required_argument, NULL, 'b' },
	{ "rate-limit", required_argument, NULL, OPT_RATE_LIMIT },
	{ "reflink", required_argument, NULL, OPT_REFLINK },
	{ "quiet", no_argument, NULL, 'q' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ NULL, 0, NULL, 0 },
};

/* Take one option's value; false if it does not parse. */
static bool set_option(struct settings *s, int opt, const char *value)
{
	switch (opt) {
	case 'o':
		s->origin = value;
		return *value != '\0';
	case 'c':
		s->cow = value;
		return *value != '\0';
	case 'b':
		return parse_size(value, &s->copier.batch_size);
	case OPT_RATE_LIMIT:
		return parse_size(value, &s->copier.rate_limit);
	case OPT_REFLINK:
		return parse_reflink(value, &s->copier.reflink);
	case 'q':
		s->quiet = true;
		return true;
	default:
		return false;
	}
}

/* -1 to go on, or the exit code. */
static int parse(int argc, char **argv, struct settings *s)
{
	bool seen[OPT_END] = { false };
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, ":o:c:b:qhV", long_options,
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
			return usage("given twice: ", given);
		seen[opt] = true;
		if (!set_option(s, opt, optarg))
			return usage("not a value for this option: ", optarg);
	}
	if (optind < argc)
		return usage("extra argument ", argv[optind]);
	if (!s->origin)
		return usage("--origin is missing", "");
	if (!s->cow)
		return usage("--cow is missing", "");
	return -1;
}

/* The signals that ask to stop, but for those that are ignored (nohup). */
static void stop_signals(sigset_t *set)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction now;

	sigemptyset(set);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (!sigaction(signals[i], NULL, &now) &&
		    now.sa_handler != SIG_IGN)
			sigaddset(set, signals[i]);
}

static void leave_at_once(int sig)
{
	static const char text[] =
		"snapmerge: stopped as asked; this run wrote nothing\n";

	(void)sig;
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(EXIT_STOPPED);
	_exit(EXIT_STOPPED);
}

/* Until the first write, whoever asks to stop can have it at once. */
static void stop_at_once(const sigset_t *stops)
{
	struct sigaction leave = { .sa_handler = leave_at_once };

	signal(SIGPIPE, SIG_IGN); /* who reads along does not decide */
	for (int sig = 1; sig < NSIG; sig++)
		if (sigismember(stops, sig) == 1)
			sigaction(sig, &leave, NULL);
}

struct context {
	struct report *report;
	sigset_t stops; /* blocked in all threads, collected here */
};

static bool tick(void *context, const struct copier_progress *progress)
{
	static const struct timespec at_once;
	struct context *c = context;

	report_progress(c->report, progress);
	return sigtimedwait(&c->stops, NULL, &at_once) > 0;
}

static int exit_code(const struct error *err)
{
	switch (err->kind) {
	case ERROR_REFUSED:
		return EXIT_REFUSED;
	case ERROR_BUSY:
		return EXIT_BUSY;
	default:
		return EXIT_FAILED;
	}
}

/* Open and verify both sides. 0, or -1 and *err. */
static int open_pair(const struct settings *s, struct image *origin,
		     struct image *cow, struct cowstore *store,
		     struct error *err)
{
	struct findings found;

	if (image_same(s->origin, s->cow))
		return error_set(err, ERROR_BUSY, 0, s->cow,
				 "origin and COW are the same");
	if (image_open(origin, s->origin, IMAGE_WRITE, err) ||
	    image_open(cow, s->cow, IMAGE_WRITE, err) ||
	    cowstore_open(store, cow, false, err) ||
	    cowstore_verify(store, origin->size, &found, err))
		return -1;
	if (found.count) {
		*err = found.first[0];
		return -1;
	}
	return 0;
}

static int merge(const struct settings *s)
{
	struct image origin = { .fd = -1, .bypass_fd = -1 }, cow = origin;
	struct copier_progress progress = { 0 };
	struct copier_plan plan;
	struct report report;
	struct cowstore store;
	struct context context = { .report = &report };
	struct error err, closing;
	int result;

	report_start(&report, s->quiet, 0);
	stop_signals(&context.stops);
	stop_at_once(&context.stops);
	result = open_pair(s, &origin, &cow, &store, &err);
	if (!result) {
		report_start(&report, s->quiet, store.chunk_size);
		report_warnings(&report, &store);
		result = copier_plan(&store, &origin, &s->copier, &plan, &err);
	}
	if (!result) {
		sigprocmask(SIG_BLOCK, &context.stops, NULL);
		result = copier_merge(&store, &origin, &s->copier, &plan, tick,
				      &context, &progress, &err);
	}
	if (image_close(&cow, &closing) | image_close(&origin, &closing) &&
	    result >= 0) {
		err = closing;
		result = -1;
	}
	if (result < 0) {
		report_error(&report, &err);
		report_advice(&report, &err, &progress);
		return exit_code(&err);
	}
	if (result > 0) {
		report_stopped(&report, &progress);
		return EXIT_STOPPED;
	}
	report_merged(&report, &progress);
	return EXIT_DONE;
}

int main(int argc, char **argv)
{
	struct settings settings = { 0 };
	int code = parse(argc, argv, &settings);

	return code < 0 ? merge(&settings) : code;
}
