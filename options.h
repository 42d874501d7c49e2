/*
 * options.h - the command line
 *
 * A room of its own because what may be asked for, and in which combinations,
 * is one table, apart from what is done about it.
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "copier.h"

enum exit_code {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_STOPPED = 3,
	EXIT_REFUSED = 4,
	EXIT_BUSY = 5
};

/* What can be done; bits, to say which options go with what. */
enum mode {
	MERGE = 1,
	DRY_RUN = 2,
	CHECK = 4,
	INFO = 8,
	LIST = 16,
	OUTPUT = 32,
	ALL = 63
};

struct settings {
	enum mode mode;
	const char *origin, *cow, *undo, *output;
	struct copier_options copier;
	uint64_t max_time; /* nanoseconds */
	bool accept_invalid, accept_changed;
	bool quiet, verbose, json, progress;
};

/*
 * Read the command line into *s; its strings are argv's. -1 to go on, or the
 * exit code: --help and --version are done then, and what is wrong was said.
 */
int options_parse(int argc, char **argv, struct settings *s);

#endif
