/*
 * report.c - words and figures
 *
 * Knows how sizes, times and mishaps are told to people. It is given facts and
 * computes none but rates and percentages.
 */
#include "report.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SECOND	 UINT64_C(1000000000)
#define INTERVAL (SECOND / 4)

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

struct text {
	char s[32];
};

/* 1536 -> 1.5 KiB */
static struct text size_text(uint64_t bytes)
{
	static const char units[][4] = { "KiB", "MiB", "GiB",
					 "TiB", "PiB", "EiB" };
	double value = (double)bytes / 1024;
	struct text t;
	size_t unit = 0;

	if (bytes < 1024) {
		snprintf(t.s, sizeof(t.s), "%" PRIu64 " bytes", bytes);
		return t;
	}
	for (; value >= 1023.95 && unit < 5; unit++)
		value /= 1024;
	snprintf(t.s, sizeof(t.s), "%.1f %s", value, units[unit]);
	return t;
}

static struct text duration_text(double seconds)
{
	uint64_t s = (uint64_t)(seconds + 0.5);
	struct text t;

	if (s < 3600)
		snprintf(t.s, sizeof(t.s), "%u:%02u", (unsigned int)(s / 60),
			 (unsigned int)(s % 60));
	else
		snprintf(t.s, sizeof(t.s), "%" PRIu64 ":%02u:%02u", s / 3600,
			 (unsigned int)(s / 60 % 60), (unsigned int)(s % 60));
	return t;
}

static double elapsed(const struct report *r)
{
	return (double)(now() - r->started) / (double)SECOND;
}

static uint64_t total_bytes(const struct report *r,
			    const struct copier_progress *p)
{
	return p->exceptions * r->chunk_size;
}

/* Half a line is worse than none where it is going to be renewed. */
static void progress_text(const struct report *r,
			  const struct copier_progress *p, char *line,
			  size_t size)
{
	double seconds = elapsed(r), total = (double)total_bytes(r, p);
	double rate = seconds > 0 ? (double)p->copied / seconds : 0;
	int n;

	n = snprintf(line, size, "%3.0f %%  %s of %s",
		     total > 0 ? 100 * (double)p->copied / total : 100.0,
		     size_text(p->copied).s, size_text(total_bytes(r, p)).s);
	if (rate > 0 && n > 0 && (size_t)n < size)
		snprintf(line + n, size - (size_t)n, "  %s/s  %s left",
			 size_text((uint64_t)rate).s,
			 duration_text((total - (double)p->copied) / rate).s);
}

static unsigned int terminal_width(void)
{
	struct winsize w;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) || !w.ws_col)
		return 80;
	return w.ws_col;
}

void report_start(struct report *r, bool quiet, uint64_t chunk_size)
{
	const char *term = getenv("TERM");

	*r = (struct report){ .quiet = quiet,
			      .chunk_size = chunk_size,
			      .started = now() };
	r->terminal = !quiet && isatty(STDERR_FILENO) && term &&
		      strcmp(term, "dumb") != 0;
}

void report_progress(struct report *r, const struct copier_progress *p)
{
	char line[160];
	uint64_t t = now();

	if (!r->terminal || t - r->printed < INTERVAL)
		return;
	progress_text(r, p, line, sizeof(line));
	fprintf(stderr, "\r%.*s\033[K", (int)terminal_width() - 1, line);
	r->printed = t;
	r->shown = true;
}

void report_clear(struct report *r)
{
	if (r->shown)
		fputs("\r\033[K", stderr);
	r->shown = false;
}

static void say(struct report *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void say(struct report *r, const char *fmt, ...)
{
	va_list ap;

	report_clear(r);
	fputs("snapmerge: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

void report_merged(struct report *r, const struct copier_progress *p)
{
	uint64_t total = total_bytes(r, p);
	double seconds = elapsed(r);

	report_clear(r);
	if (r->quiet)
		return;
	if (!p->exceptions)
		say(r, "nothing left to merge");
	else
		say(r, "merged %" PRIu64 " chunks, %s, in %.1f s (%s/s)",
		    p->exceptions, size_text(total).s, seconds,
		    size_text((uint64_t)((double)total / seconds)).s);
}

void report_error(struct report *r, const struct error *err)
{
	say(r, "%s%s%s%s%s", err->path ? err->path : "", err->path ? ": " : "",
	    err->what, err->sys ? ": " : "",
	    err->sys ? strerror(err->sys) : "");
}

/* Where a merge that began and did not end has left its two sides. */
static void say_half_merged(struct report *r, const struct copier_progress *p,
			    const char *next)
{
	say(r,
	    "%" PRIu64 " of %" PRIu64 " chunks are committed; the origin is "
	    "half merged, do not use it: %s",
	    p->committed, p->exceptions, next);
}

void report_advice(struct report *r, const struct error *err,
		   const struct copier_progress *p)
{
	if (p->touched)
		say_half_merged(r, p,
				"run the same command again once the cause is "
				"gone");
	else if (err->kind == ERROR_BUSY)
		say(r, "this run wrote nothing; run the same command again "
		       "when nothing else uses origin and COW");
	else if (err->kind == ERROR_REFUSED)
		say(r, "this run wrote nothing; check that these are the "
		       "right origin and COW");
	else
		say(r, "this run wrote nothing; run the same command again "
		       "once the cause is gone");
}

void report_stopped(struct report *r, const struct copier_progress *p)
{
	say(r, "stopped as asked");
	say_half_merged(r, p, "run the same command again to go on");
}

void report_warnings(struct report *r, const struct cowstore *store)
{
	if (store->stale)
		say(r,
		    "%s: warning: %" PRIu64 " stale entries behind the end of "
		    "the table, left by a torn write",
		    store->image->path, store->stale);
	if (store->no_end)
		say(r,
		    "%s: warning: the table is full and ends with the COW; "
		    "the kernel cannot load it",
		    store->image->path);
}
