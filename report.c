/*
 * report.c - words and figures
 *
 * Knows how sizes, times and mishaps are told to people and to programs. It is
 * given facts and computes none but rates and percentages.
 */
#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SECOND UINT64_C(1000000000)

/* Between two progress lines: on a terminal, and elsewhere. */
#define TERMINAL_INTERVAL (SECOND / 4)
#define PLAIN_INTERVAL	  (5 * SECOND)

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
	struct text t = { "a long time" };
	uint64_t s;

	if (seconds >= 1e6)
		return t;
	s = (uint64_t)(seconds + 0.5);
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
	return (double)(now() - r->started + 1) / (double)SECOND;
}

/* --- lines on stderr --- */

static void clear_progress(struct report *r)
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

	clear_progress(r);
	fputs("snapmerge: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static uint64_t total_bytes(const struct report *r,
			    const struct copier_progress *p)
{
	return (p->before + p->exceptions) * r->chunk_size;
}

static uint64_t done_bytes(const struct report *r,
			   const struct copier_progress *p)
{
	return p->before * r->chunk_size + p->copied;
}

/* Rounded down: 100 only when all is done. */
static unsigned int percent(uint64_t part, uint64_t whole)
{
	return part < whole ? (unsigned int)(100 * (double)part / (double)whole)
			    : 100;
}

static void progress_text(const struct report *r,
			  const struct copier_progress *p, char *line,
			  size_t size)
{
	double total = (double)total_bytes(r, p);
	double done = (double)done_bytes(r, p);
	double rate = (double)p->copied / elapsed(r);
	int n;

	n = snprintf(line, size, "%u %%, %s of %s",
		     percent(done_bytes(r, p), total_bytes(r, p)),
		     size_text(done_bytes(r, p)).s,
		     size_text(total_bytes(r, p)).s);
	if (rate >= 1 && n > 0 && (size_t)n < size)
		snprintf(line + n, size - (size_t)n, ", %s/s, %s left",
			 size_text((uint64_t)rate).s,
			 duration_text((total - done) / rate).s);
}

static int terminal_width(void)
{
	struct winsize w;

	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) || !w.ws_col)
		return 80;
	return w.ws_col;
}

void report_open(struct report *r, const struct report_style *style)
{
	const char *term = getenv("TERM");
	bool tty = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;

	*r = (struct report){
		.mode = style->mode,
		.quiet = style->quiet,
		.verbose = style->verbose,
		.json = style->json,
		.terminal = tty && !style->quiet,
		.plain = style->progress && !tty,
		.started = now(),
	};
	r->printed = r->started;
}

void report_progress_now(struct report *r, const struct copier_progress *p)
{
	char line[160];

	progress_text(r, p, line, sizeof(line));
	say(r, "%s", line);
	r->printed = now();
}

static void show_progress(struct report *r, const struct copier_progress *p)
{
	int width = terminal_width();
	char line[160];

	progress_text(r, p, line, sizeof(line));
	/* With room for the ^C that a terminal echoes. */
	fprintf(stderr, "\r%.*s\033[K", width > 4 ? width - 3 : 1, line);
	r->printed = now();
	r->shown = true;
}

void report_progress(struct report *r, const struct copier_progress *p)
{
	uint64_t since = now() - r->printed;

	if (r->verbose && p->commits > r->commits)
		say(r, "commit %" PRIu64 ": %" PRIu64 " of %" PRIu64 " chunks",
		    p->commits, p->before + p->committed,
		    p->before + p->exceptions);
	r->commits = p->commits;
	if (r->terminal && since >= TERMINAL_INTERVAL)
		show_progress(r, p);
	else if (r->plain && since >= PLAIN_INTERVAL)
		report_progress_now(r, p);
}

void report_warnings(struct report *r, const struct cowstore *store)
{
	if (store->stale)
		say(r,
		    "%s: warning: %" PRIu64 " stale entries behind the end of "
		    "the table, left by a torn write",
		    store->image->path, store->stale);
	if (!store->valid)
		say(r,
		    "%s: warning: the kernel has invalidated this store: what "
		    "changed afterwards is not in it",
		    store->image->path);
	if (store->no_end)
		say(r,
		    "%s: warning: the table is full and ends with the COW; "
		    "the kernel cannot load it",
		    store->image->path);
}

static const char *method(const struct copier_plan *plan)
{
	if (plan->clone)
		return "shared blocks";
	return plan->direct ? "direct" : "page cache";
}

void report_decisions(struct report *r, const struct copier_plan *plan)
{
	if (!r->verbose)
		return;
	say(r, "method: %s, because %s", method(plan),
	    plan->clone	   ? "origin and COW lie on one file system that can"
	    : plan->direct ? "the runs are long"
			   : "the chunks are scattered");
	say(r,
	    "batch: %" PRIu64 " chunks, %s, hence %" PRIu64 " commits; "
	    "%u buffers of %s",
	    plan->batch_chunks, size_text(plan->batch_chunks * r->chunk_size).s,
	    plan->batches, plan->workers, size_text(plan->buffer).s);
}

/* --- facts on stdout: one list makes the text and the object --- */

enum fact_kind { COUNT, BYTES, TEXT, FLAG, NUMBER };

struct fact {
	const char *name; /* as in JSON; the text has spaces for _ */
	enum fact_kind kind;
	uint64_t value;
	const char *text; /* for TEXT; NULL leaves the fact out */
	double number;	  /* for NUMBER */
};

/* Length of the UTF-8 sequence at s, or 0 if that is none. */
static size_t utf8_length(const uint8_t *s)
{
	size_t len = *s < 0x80 ? 1 : *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : 4;

	if ((*s >= 0x80 && *s < 0xc2) || *s > 0xf4)
		return 0;
	for (size_t i = 1; i < len; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, past the last code point. */
	if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f) ||
	    (*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f))
		return 0;
	return len;
}

static void json_string(const char *text)
{
	const uint8_t *s = (const uint8_t *)text;

	putchar('"');
	while (*s) {
		size_t len = utf8_length(s);

		if (!len)
			fputs("\\ufffd", stdout);
		else if (*s < 0x20 || *s == 0x7f)
			printf("\\u%04x", *s);
		else if (*s == '"' || *s == '\\')
			printf("\\%c", *s);
		else
			fwrite(s, 1, len, stdout);
		s += len ? len : 1;
	}
	putchar('"');
}

static void json_key(struct report *r, const char *name)
{
	fputs(r->open ? ", " : "{", stdout);
	r->open = true;
	json_string(name);
	fputs(": ", stdout);
}

static void json_fact(struct report *r, const struct fact *f)
{
	json_key(r, f->name);
	switch (f->kind) {
	case COUNT:
	case BYTES:
		printf("%" PRIu64, f->value);
		break;
	case FLAG:
		fputs(f->value ? "true" : "false", stdout);
		break;
	case NUMBER:
		printf("%.2f", f->number);
		break;
	case TEXT:
		json_string(f->text);
		break;
	}
}

static void text_fact(const struct fact *f)
{
	char label[40];
	size_t i;

	for (i = 0; i < sizeof(label) - 2 && f->name[i]; i++)
		label[i] = f->name[i] == '_' ? ' ' : f->name[i];
	label[i++] = ':';
	label[i] = '\0';
	printf("%-20s ", label);
	switch (f->kind) {
	case COUNT:
		printf("%" PRIu64 "\n", f->value);
		break;
	case BYTES:
		printf("%" PRIu64 " bytes", f->value);
		printf(f->value < 1024 ? "\n" : " (%s)\n",
		       size_text(f->value).s);
		break;
	case FLAG:
		puts(f->value ? "yes" : "no");
		break;
	case NUMBER:
		printf("%.2f\n", f->number);
		break;
	case TEXT:
		puts(f->text);
		break;
	}
}

static void facts(struct report *r, const struct fact *f, size_t count)
{
	for (; count--; f++) {
		if (f->kind == TEXT && !f->text)
			continue;
		if (r->json)
			json_fact(r, f);
		else
			text_fact(f);
	}
}

#define FACTS(r, f) facts(r, f, sizeof(f) / sizeof(*(f)))

/* An object begins with what it is about and how it ended. */
static void json_begin(struct report *r, const char *result, int code)
{
	const struct fact f[] = {
		{ "mode", TEXT, 0, r->mode, 0 },
		{ "result", TEXT, 0, result, 0 },
		{ "exit_code", COUNT, (uint64_t)code, NULL, 0 },
	};

	if (r->listing)
		putchar(']');
	r->listing = false;
	if (r->json)
		FACTS(r, f);
}

static void json_end(struct report *r)
{
	if (r->json)
		puts("}");
}

void report_info(struct report *r, int code, const struct cowstore *store,
		 const struct findings *found)
{
	struct cowstore_status s;
	char status[80], half_merged[80];
	double used = 0;

	cowstore_status(store, &s);
	if (s.allocated_sectors != s.metadata_sectors)
		used = 100 * (double)s.allocated_sectors /
		       (double)s.total_sectors;
	snprintf(status, sizeof(status), "%" PRIu64 "/%" PRIu64 " %" PRIu64,
		 s.allocated_sectors, s.total_sectors, s.metadata_sectors);
	snprintf(half_merged, sizeof(half_merged),
		 "half merged, %u %% done, do not mount the origin",
		 store->half_merged
			 ? percent(store->record.total - store->exceptions,
				   store->record.total)
			 : 0);

	const struct fact f[] = {
		{ "cow", TEXT, 0, store->image->path, 0 },
		{ "state", TEXT, 0,
		  !store->valid	       ? "Invalid"
		  : store->half_merged ? half_merged
		  : !store->exceptions ? "nothing left to merge"
				       : "to be merged",
		  0 },
		{ "cow_size", BYTES, store->image->size, NULL, 0 },
		{ "version", COUNT, store->version, NULL, 0 },
		{ "valid", FLAG, store->valid, NULL, 0 },
		{ "chunk_size", BYTES, store->chunk_size, NULL, 0 },
		{ "exceptions", COUNT, store->exceptions, NULL, 0 },
		{ "left_to_merge", BYTES, store->exceptions * store->chunk_size,
		  NULL, 0 },
		{ "merged", FLAG, !store->exceptions, NULL, 0 },
		{ "status", TEXT, 0, store->valid ? status : "Invalid", 0 },
		{ "percent_used", NUMBER, 0, NULL, store->valid ? used : 100 },
		{ "stale_entries", COUNT, store->stale, NULL, 0 },
		{ "problems", COUNT, found->count, NULL, 0 },
	};

	json_begin(r, found->count ? "corrupt" : "read", code);
	FACTS(r, f);
	json_end(r);
}

void report_sound(struct report *r, const struct cowstore *store)
{
	const struct fact f[] = {
		{ "cow", TEXT, 0, store->image->path, 0 },
		{ "exceptions", COUNT, store->exceptions, NULL, 0 },
		{ "left_to_merge", BYTES, store->exceptions * store->chunk_size,
		  NULL, 0 },
		{ "stale_entries", COUNT, store->stale, NULL, 0 },
		{ "problems", COUNT, 0, NULL, 0 },
	};

	if (r->json) {
		json_begin(r, "sound", 0);
		FACTS(r, f);
		json_end(r);
	} else if (!r->quiet) {
		printf("%s: sound, %" PRIu64 " exceptions, %s to merge\n",
		       store->image->path, store->exceptions,
		       size_text(store->exceptions * store->chunk_size).s);
	}
}

void report_plan(struct report *r, const struct cowstore *store,
		 const struct image *origin, const struct copier_plan *plan,
		 uint64_t hole, const struct copier_progress *counted)
{
	uint64_t first = 0, end = 0;

	if (store->exceptions) {
		first = store->first_old_chunk * store->chunk_size;
		end = (store->last_old_chunk + 1) * store->chunk_size;
		if (end > origin->size)
			end = origin->size;
	}

	const struct fact f[] = {
		{ "origin", TEXT, 0, origin->path, 0 },
		{ "origin_size", BYTES, origin->size, NULL, 0 },
		{ "cow", TEXT, 0, store->image->path, 0 },
		{ "chunk_size", BYTES, store->chunk_size, NULL, 0 },
		{ "exceptions", COUNT, store->exceptions, NULL, 0 },
		{ "left_to_merge", BYTES, store->exceptions * store->chunk_size,
		  NULL, 0 },
		{ "runs", COUNT, store->runs, NULL, 0 },
		{ "batch_chunks", COUNT, plan->batch_chunks, NULL, 0 },
		{ "batches", COUNT, plan->batches, NULL, 0 },
		{ "syncs", COUNT, 2 * plan->batches, NULL, 0 },
		{ "first_byte", COUNT, first, NULL, 0 },
		{ "end_byte", COUNT, end, NULL, 0 },
		{ "space_needed", BYTES, hole, NULL, 0 },
		{ "can_share_blocks", FLAG, plan->clone, NULL, 0 },
		{ "method", TEXT, 0, method(plan), 0 },
		{ "stale_entries", COUNT, store->stale, NULL, 0 },
	};
	const struct fact identical[] = {
		{ "identical", BYTES, counted ? counted->identical : 0, NULL,
		  0 },
	};

	clear_progress(r);
	json_begin(r, "planned", 0);
	FACTS(r, f);
	if (counted)
		FACTS(r, identical);
	json_end(r);
}

void report_run(struct report *r, const struct run *run)
{
	if (!r->json) {
		printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", run->old_chunk,
		       run->new_chunk, run->length);
		return;
	}
	if (!r->listing)
		json_key(r, "runs");
	printf("%s[%" PRIu64 ", %" PRIu64 ", %" PRIu64 "]",
	       r->listing ? ",\n" : "[", run->old_chunk, run->new_chunk,
	       run->length);
	r->listing = true;
}

void report_runs_end(struct report *r)
{
	if (r->json && !r->listing) {
		json_key(r, "runs");
		putchar('[');
		r->listing = true;
	}
	json_begin(r, "listed", 0);
	json_end(r);
}

static const char *kind_text(enum error_kind kind)
{
	static const char kinds[][8] = {
		[ERROR_SYSTEM] = "failed",
		[ERROR_REFUSED] = "refused",
		[ERROR_BUSY] = "busy",
	};

	return kinds[kind];
}

static void say_error(struct report *r, const struct error *err)
{
	say(r, "%s%s%s%s%s", err->path ? err->path : "", err->path ? ": " : "",
	    err->what, err->sys ? ": " : "",
	    err->sys ? strerror(err->sys) : "");
}

void report_findings(struct report *r, int code, const struct findings *found)
{
	uint64_t shown = found->count < COWSTORE_FINDINGS ? found->count
							  : COWSTORE_FINDINGS;
	const struct fact f[] = {
		{ "file", TEXT, 0, found->first[0].path, 0 },
		{ "problems", COUNT, found->count, NULL, 0 },
	};

	for (uint64_t i = 0; i < shown; i++)
		say_error(r, &found->first[i]);
	say(r, "%s: %" PRIu64 " problem%s; nothing was written",
	    found->first[0].path, found->count, found->count > 1 ? "s" : "");
	if (!r->json)
		return;
	json_begin(r, "corrupt", code);
	FACTS(r, f);
	json_key(r, "messages");
	for (uint64_t i = 0; i < shown; i++) {
		fputs(i ? ", " : "[", stdout);
		json_string(found->first[i].what);
	}
	putchar(']');
	json_end(r);
}

/* What a merge has done, for programs. */
static void progress_facts(struct report *r, const struct copier_progress *p)
{
	const struct fact f[] = {
		{ "exceptions", COUNT, p->exceptions, NULL, 0 },
		{ "merged_before", COUNT, p->before, NULL, 0 },
		{ "committed", COUNT, p->committed, NULL, 0 },
		{ "left", COUNT, p->exceptions - p->committed, NULL, 0 },
		{ "committed_bytes", BYTES, p->committed * r->chunk_size, NULL,
		  0 },
		{ "identical_bytes", BYTES, p->identical, NULL, 0 },
		{ "commits", COUNT, p->commits, NULL, 0 },
		{ "origin_touched", FLAG, p->touched, NULL, 0 },
		{ "seconds", NUMBER, 0, NULL, elapsed(r) },
	};

	FACTS(r, f);
}

void report_merged(struct report *r, const struct copier_progress *p)
{
	uint64_t total = p->exceptions * r->chunk_size;
	double seconds = elapsed(r);

	clear_progress(r);
	if (r->json) {
		json_begin(r, "merged", 0);
		progress_facts(r, p);
		json_end(r);
	} else if (!r->quiet && p->exceptions) {
		say(r, "merged %" PRIu64 " chunks, %s, in %.1f s (%s/s)",
		    p->exceptions, size_text(total).s, seconds,
		    size_text((uint64_t)((double)total / seconds)).s);
	} else if (!r->quiet) {
		say(r, "nothing left to merge");
	}
}

/* Where a merge that began and did not end has left its two sides. */
static void say_half_merged(struct report *r, const struct copier_progress *p,
			    const char *next)
{
	say(r,
	    "%" PRIu64 " of %" PRIu64 " chunks are committed; the origin is "
	    "half merged, do not use it: %s",
	    p->before + p->committed, p->before + p->exceptions, next);
}

/* As a shell reads it. */
static void quote(const char *path)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "abcdefghijklmnopqrstuvwxyz"
				    "0123456789_@%+=:,./-";

	if (path[strspn(path, plain)] == '\0') {
		fputs(path, stderr);
		return;
	}
	fputc('\'', stderr);
	for (; *path; path++)
		fputs(*path == '\'' ? "'\\''" : (char[]){ *path, '\0' },
		      stderr);
	fputc('\'', stderr);
}

void report_undo(struct report *r, const char *origin, const char *undo)
{
	if (r->quiet)
		return;
	fputs("snapmerge: to take it back: snapmerge --origin ", stderr);
	quote(origin);
	fputs(" --cow ", stderr);
	quote(undo);
	fputc('\n', stderr);
}

void report_stopped(struct report *r, int code, const struct copier_progress *p)
{
	say(r, "stopped as asked");
	if (p->before + p->committed)
		say_half_merged(r, p, "run the same command again to go on");
	else
		say(r, "origin and COW are as they were");
	if (r->json) {
		json_begin(r, "stopped", code);
		progress_facts(r, p);
		json_end(r);
	}
}

static void say_advice(struct report *r, const struct error *err,
		       const struct copier_progress *p)
{
	if (p->committed && p->committed == p->exceptions)
		say(r, "all chunks are committed; the origin is merged and "
		       "may be used");
	else if (p->touched || p->committed)
		say_half_merged(r, p,
				"run the same command again once the cause is "
				"gone");
	else if (err->kind == ERROR_BUSY)
		say(r, "origin and COW are as they were; run the same command "
		       "again when nothing else uses them");
	else if (err->kind == ERROR_REFUSED)
		say(r, "origin and COW are as they were; check that they are "
		       "the right ones");
	else
		say(r, "origin and COW are as they were; run the same command "
		       "again once the cause is gone");
}

void report_failed(struct report *r, int code, const struct error *err,
		   const struct copier_progress *p)
{
	char message[sizeof(err->what) + 128];
	const struct fact f[] = {
		{ "message", TEXT, 0, message, 0 },
		{ "file", TEXT, 0, err->path, 0 },
	};
	const struct fact offset[] = {
		{ "offset", COUNT, err->offset, NULL, 0 },
	};

	say_error(r, err);
	say_advice(r, err, p);
	if (!r->json)
		return;
	snprintf(message, sizeof(message), "%s%s%s", err->what,
		 err->sys ? ": " : "", err->sys ? strerror(err->sys) : "");
	json_begin(r, kind_text(err->kind), code);
	FACTS(r, f);
	if (err->has_offset)
		FACTS(r, offset);
	progress_facts(r, p);
	json_end(r);
}

void report_output(struct report *r, int code, const char *path, bool device,
		   const struct copier_progress *p)
{
	const struct fact f[] = { { "output", TEXT, 0, path, 0 } };

	clear_progress(r);
	if (r->json) {
		json_begin(r, code ? "stopped" : "written", code);
		FACTS(r, f);
		progress_facts(r, p);
		json_end(r);
	}
	if (code)
		say(r, "stopped as asked; %s %s", path,
		    device ? "is half written" : "was not written");
	else if (!r->quiet && !r->json)
		say(r, "%s: written, with %" PRIu64 " chunks merged", path,
		    p->exceptions);
}

bool report_flush(struct report *r)
{
	if (!fflush(stdout) && !ferror(stdout))
		return true;
	say(r, "standard output: %s", strerror(errno));
	return false;
}
