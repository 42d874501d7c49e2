/*
 * report.h - what a person or a program reads
 *
 * Everything here goes to stderr; stdout is for what was asked for. Nothing
 * fails: a message that cannot be delivered does not stop a merge.
 */
#ifndef REPORT_H
#define REPORT_H

#include "copier.h"

struct report {
	bool quiet;	     /* errors and warnings only */
	bool terminal;	     /* stderr is one, and shows the progress line */
	bool shown;	     /* a progress line stands there now */
	uint64_t chunk_size; /* bytes */
	uint64_t started;    /* nanoseconds on the monotonic clock */
	uint64_t printed;    /* likewise: the last progress line */
};

/* Begin: from here the time is taken. */
void report_start(struct report *r, bool quiet, uint64_t chunk_size);

/* Renew the progress line, a few times a second at most. */
void report_progress(struct report *r, const struct copier_progress *p);

/* Take the progress line away, if there is one. */
void report_clear(struct report *r);

/* The one line after a merge that went to the end of the table. */
void report_merged(struct report *r, const struct copier_progress *p);

/* The error's line: `snapmerge: PATH: what happened: strerror`. */
void report_error(struct report *r, const struct error *err);

/* The line after it: what was committed, and what to do now. */
void report_advice(struct report *r, const struct error *err,
		   const struct copier_progress *p);

/* The lines after a stop that was asked for. */
void report_stopped(struct report *r, const struct copier_progress *p);

/* What is odd about a store and yet no reason to refuse it. */
void report_warnings(struct report *r, const struct cowstore *store);

#endif
