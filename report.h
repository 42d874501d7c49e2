/*
 * report.h - what a person or a program reads
 *
 * What was asked for goes to stdout, as text or as one JSON object; errors,
 * warnings, progress and the summary go to stderr. A message that cannot be
 * delivered stops no merge, but report_flush() tells whether stdout got all.
 */
#ifndef REPORT_H
#define REPORT_H

#include "copier.h"

struct report {
	bool quiet;    /* errors and warnings only */
	bool verbose;  /* decisions and commits too */
	bool json;     /* results as one object on stdout */
	bool terminal; /* stderr shows the progress line */
	bool plain;    /* or gets a line of progress now and then */
	bool shown;    /* a progress line stands there now */
	bool open;     /* an object was begun on stdout */
	bool listing;  /* and the list of runs in it */
	const char *mode;
	uint64_t chunk_size; /* bytes; 0 while unknown */
	uint64_t started;    /* nanoseconds on the monotonic clock */
	uint64_t printed;    /* likewise: the last progress line */
	uint64_t commits;    /* told so far */
};

/* How an object calls the mode, and what is shown; the time is taken. */
struct report_style {
	const char *mode;
	bool quiet, verbose, json, progress;
};
void report_open(struct report *r, const struct report_style *style);

/* Renew the progress, as often as fits the place where it is read. */
void report_progress(struct report *r, const struct copier_progress *p);

/* One plain line of progress, now. */
void report_progress_now(struct report *r, const struct copier_progress *p);

/* What is odd about a store and yet no reason to refuse it. */
void report_warnings(struct report *r, const struct cowstore *store);

/* The decisions taken, if that is wanted. */
void report_decisions(struct report *r, const struct copier_plan *plan);

/* --info; code is the exit code that follows, here and below. */
void report_info(struct report *r, int code, const struct cowstore *store,
		 const struct findings *found);

/* --check, with and without findings. */
void report_sound(struct report *r, const struct cowstore *store);
void report_findings(struct report *r, int code, const struct findings *found);

/*
 * --dry-run; hole: bytes of the origin that will need new blocks; counted: what
 * was found identical, or NULL if that was not asked for.
 */
void report_plan(struct report *r, const struct cowstore *store,
		 const struct image *origin, const struct copier_plan *plan,
		 uint64_t hole, const struct copier_progress *counted);

/* --list: each run, and the end of the list. */
void report_run(struct report *r, const struct run *run);
void report_runs_end(struct report *r);

/*
 * How a merge ended: merged (and the command that takes it back), stopped as
 * asked, or failed. In any mode, err may come from before anything was done.
 */
void report_merged(struct report *r, const struct copier_progress *p);
void report_undo(struct report *r, const char *origin, const char *undo);
void report_stopped(struct report *r, int code,
		    const struct copier_progress *p);
void report_failed(struct report *r, int code, const struct error *err,
		   const struct copier_progress *p);

/* --output: written, or stopped and gone again. */
void report_output(struct report *r, int code, const char *path, bool device,
		   const struct copier_progress *p);

/* Whether all of stdout was delivered; says so on stderr if not. */
bool report_flush(struct report *r);

#endif
