/*
 * snapmerge.c - the command line
 *
 * Signals, exit codes, and which of the other rooms run.
 */
#include "options.h"
#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SECOND UINT64_C(1000000000)

/* One run of the program: what it holds, and what came of it. */
struct job {
	const struct settings *settings;
	struct image origin, cow, undo_image, output;
	struct cowstore store;
	struct copier_undo undo;
	struct findings found;
	struct copier_plan plan;
	struct copier_progress progress;
	struct report report;
	sigset_t stops; /* signals that ask to stop */
	struct error err;
};

/* The signals that ask to stop, but for those that are ignored (nohup). */
static void find_stops(sigset_t *set)
{
	static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction now;

	sigemptyset(set);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		if (!sigaction(signals[i], NULL, &now) &&
		    now.sa_handler != SIG_IGN)
			sigaddset(set, signals[i]);
}

static void write_all(int fd, const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = write(fd, text, len);

		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

static void leave_at_once(int sig)
{
	(void)sig;
	write_all(STDERR_FILENO, "snapmerge: stopped as asked; "
				 "origin and COW are as they were\n");
	_exit(EXIT_STOPPED);
}

static void leave_at_once_json(int sig)
{
	write_all(STDOUT_FILENO, "{\"result\": \"stopped\", \"exit_code\": 3, "
				 "\"committed\": 0}\n");
	leave_at_once(sig);
}

/*
 * Until the first write, whoever asks to stop can have it at once. SIGUSR1
 * waits until there is progress to tell, and a reader of stderr that goes away
 * does not decide over a merge.
 */
static void watch_signals(struct job *job)
{
	struct sigaction leave = { .sa_handler = job->settings->json
							 ? leave_at_once_json
							 : leave_at_once };

	find_stops(&job->stops);
	for (int sig = 1; sig < NSIG; sig++)
		if (sigismember(&job->stops, sig) == 1)
			sigaction(sig, &leave, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* From here on they are collected by tick(), in all threads. */
static void hold_signals(const struct job *job)
{
	sigprocmask(SIG_BLOCK, &job->stops, NULL);
}

static bool tick(void *context, const struct copier_progress *progress)
{
	static const struct timespec at_once;
	struct job *job = context;
	bool stop = false;
	sigset_t set = job->stops;
	int sig;

	report_progress(&job->report, progress);
	sigaddset(&set, SIGUSR1);
	while ((sig = sigtimedwait(&set, NULL, &at_once)) > 0) {
		if (sig == SIGUSR1)
			report_progress_now(&job->report, progress);
		else
			stop = true;
	}
	return stop;
}

/* Open what the mode works on, for use. 0, or -1 and job->err. */
static int open_pair(struct job *job, enum image_use use)
{
	const struct settings *s = job->settings;
	struct error *err = &job->err;

	if (s->origin && image_same(s->origin, s->cow))
		return error_set(err, ERROR_BUSY, 0, s->cow,
				 "origin and COW are the same");
	if (s->origin && image_open(&job->origin, s->origin, use, err))
		return -1;
	return image_open(&job->cow, s->cow, use, err);
}

/* Verify a store against the origin, if there is one; findings are no error. */
static int verify(struct job *job, struct cowstore *store)
{
	return cowstore_verify(store,
			       job->settings->origin ? job->origin.size
						     : COWSTORE_ANY_ORIGIN,
			       &job->found, &job->err);
}

/* The same, where the first finding is one. */
static int verify_strictly(struct job *job, struct cowstore *store)
{
	if (verify(job, store))
		return -1;
	if (!job->found.count)
		return 0;
	job->err = job->found.first[0];
	return -1;
}

/* All that precedes the plan. 0, or -1 and job->err. */
static int prepare(struct job *job, enum image_use use)
{
	const struct settings *s = job->settings;

	if (open_pair(job, use) ||
	    cowstore_open(&job->store, &job->cow, s->accept_invalid,
			  &job->err) ||
	    verify_strictly(job, &job->store))
		return -1;
	job->report.chunk_size = job->store.chunk_size;
	report_warnings(&job->report, &job->store);
	if (s->accept_changed)
		return 0;
	return copier_recognise(&job->store, &job->origin, &job->err);
}

static int plan(struct job *job, const struct image *target,
		const struct copier_options *options)
{
	bool writes = job->settings->mode == MERGE; /* else nobody may ask */
	int sys = options->discard && writes ? image_can_discard(&job->cow) : 0;

	if (sys)
		return error_set(&job->err, ERROR_SYSTEM, sys, job->cow.path,
				 "cannot give space back");
	if (copier_plan(&job->store, target, options, &job->plan, &job->err))
		return -1;
	report_decisions(&job->report, &job->plan);
	return 0;
}

/* An undo file that is there must be one of this merge. */
static int reopen_undo(struct job *job, enum image_use use)
{
	struct copier_undo *undo = &job->undo;

	if (image_open(&job->undo_image, job->settings->undo, use, &job->err) ||
	    cowstore_open(&undo->store, &job->undo_image, false, &job->err) ||
	    verify_strictly(job, &undo->store))
		return -1;
	return copier_match_undo(&job->store, undo, job->origin.size,
				 &job->err);
}

static int create_undo(struct job *job, enum image_use use)
{
	struct image *image = &job->undo_image;
	uint64_t chunk = job->store.chunk_size;

	if (job->store.recorded)
		return error_set(&job->err, ERROR_REFUSED, 0,
				 job->settings->undo,
				 "is missing, but this merge is under way: "
				 "what was merged cannot be saved any more");
	if (use != IMAGE_WRITE)
		return 0;
	job->undo.unsaved = job->store.exceptions;
	if (image_create(image, job->settings->undo,
			 cowstore_size(chunk, job->undo.unsaved), &job->err))
		return -1;
	if (cowstore_create(&job->undo.store, image, chunk, &job->err) ||
	    image_publish(image, &job->err)) {
		image_abandon(image);
		return -1;
	}
	return 0;
}

/* 0 also if no undo file is wanted, or none is needed. */
static int open_undo(struct job *job, enum image_use use)
{
	const struct settings *s = job->settings;
	bool exists = s->undo && !access(s->undo, F_OK);

	if (!s->undo || !job->store.exceptions)
		return 0;
	if (image_same(s->undo, s->origin) || image_same(s->undo, s->cow))
		return error_set(&job->err, ERROR_BUSY, 0, s->undo,
				 "the undo file is origin or COW");
	if (exists)
		return reopen_undo(job, use);
	return create_undo(job, use);
}

/* The modes: each returns its exit code, or -1 and job->err. */

static int merge(struct job *job)
{
	struct copier_options options = job->settings->copier;
	struct timespec t;
	int result;

	clock_gettime(CLOCK_MONOTONIC, &t);
	if (job->settings->max_time)
		options.deadline = (uint64_t)t.tv_sec * SECOND +
				   (uint64_t)t.tv_nsec +
				   job->settings->max_time;
	watch_signals(job);
	if (prepare(job, IMAGE_WRITE) || plan(job, &job->origin, &options))
		return -1;
	hold_signals(job);
	if (open_undo(job, IMAGE_WRITE))
		return -1;
	result = copier_merge(&job->store, &job->origin,
			      job->undo.store.image ? &job->undo : NULL,
			      &options, &job->plan, tick, job, &job->progress,
			      &job->err);
	if (result < 0 || image_close(&job->cow, &job->err) ||
	    image_close(&job->origin, &job->err))
		return -1;
	if (result) {
		report_stopped(&job->report, EXIT_STOPPED, &job->progress);
		return EXIT_STOPPED;
	}
	report_merged(&job->report, &job->progress);
	if (job->undo.store.image)
		report_undo(&job->report, job->settings->origin,
			    job->settings->undo);
	return EXIT_DONE;
}

struct hole {
	const struct job *job;
	uint64_t bytes;
};

static void add_hole(void *context, const struct run *run)
{
	struct hole *hole = context;
	const struct job *job = hole->job;
	uint64_t offset = run->old_chunk * job->store.chunk_size;
	uint64_t len = run->length * job->store.chunk_size;

	if (len > job->origin.size - offset)
		len = job->origin.size - offset;
	hole->bytes += image_hole(&job->origin, offset, len);
}

static int dry_run(struct job *job)
{
	struct copier_options options = job->settings->copier;
	struct hole hole = { .job = job };

	if (prepare(job, IMAGE_PROBE) || plan(job, &job->origin, &options) ||
	    open_undo(job, IMAGE_PROBE) ||
	    cowstore_runs(&job->store, 0, UINT64_MAX, add_hole, &hole,
			  &job->err))
		return -1;
	if (options.skip_identical) {
		struct copier_plan all;

		options = (struct copier_options){ .task = COPIER_COUNT,
						   .reflink = REFLINK_NEVER };
		if (copier_plan(&job->store, &job->origin, &options, &all,
				&job->err) ||
		    copier_merge(&job->store, &job->origin, NULL, &options,
				 &all, tick, job, &job->progress, &job->err))
			return -1;
	}
	report_plan(
		&job->report, &job->store, &job->origin, &job->plan, hole.bytes,
		job->settings->copier.skip_identical ? &job->progress : NULL);
	return EXIT_DONE;
}

static int check(struct job *job)
{
	if (open_pair(job, IMAGE_PEEK) ||
	    cowstore_open(&job->store, &job->cow, job->settings->accept_invalid,
			  &job->err) ||
	    verify(job, &job->store))
		return -1;
	report_warnings(&job->report, &job->store);
	if (job->found.count) {
		report_findings(&job->report, EXIT_REFUSED, &job->found);
		return EXIT_REFUSED;
	}
	report_sound(&job->report, &job->store);
	return EXIT_DONE;
}

static int info(struct job *job)
{
	int code;

	if (open_pair(job, IMAGE_PEEK) ||
	    cowstore_open(&job->store, &job->cow, true, &job->err) ||
	    verify(job, &job->store))
		return -1;
	code = job->found.count ? EXIT_REFUSED : EXIT_DONE;
	report_info(&job->report, code, &job->store, &job->found);
	return code;
}

static void list_run(void *context, const struct run *run)
{
	report_run(context, run);
}

static int list(struct job *job)
{
	if (open_pair(job, IMAGE_PEEK) ||
	    cowstore_open(&job->store, &job->cow, true, &job->err) ||
	    cowstore_runs(&job->store, 0, UINT64_MAX, list_run, &job->report,
			  &job->err))
		return -1;
	report_runs_end(&job->report);
	return EXIT_DONE;
}

static bool no_progress(void *context)
{
	struct job *job = context;

	return tick(job, &job->progress);
}

/* Where the merged image goes: a new file, or a device that is large enough. */
static int open_output(struct job *job)
{
	const char *path = job->settings->output;
	struct image *output = &job->output;
	struct stat st;

	if (stat(path, &st) || !S_ISBLK(st.st_mode))
		return image_create(output, path, job->origin.size, &job->err);
	if (image_open(output, path, IMAGE_WRITE, &job->err))
		return -1;
	if (output->size >= job->origin.size)
		return 0;
	return error_set(&job->err, ERROR_REFUSED, 0, path,
			 "too small: %" PRIu64
			 " bytes, the origin has %" PRIu64,
			 output->size, job->origin.size);
}

/* 0, 1 if stopped, -1. */
static int write_output(struct job *job)
{
	struct copier_options options = job->settings->copier;
	bool share = options.reflink != REFLINK_NEVER;
	int result;

	options.task = COPIER_OVERLAY;
	if (plan(job, &job->output, &options))
		return -1;
	result = image_copy(&job->output, &job->origin, share, no_progress, job,
			    &job->err);
	if (!result)
		result = copier_merge(&job->store, &job->output, NULL, &options,
				      &job->plan, tick, job, &job->progress,
				      &job->err);
	if (result)
		return result;
	return job->output.is_device ? image_sync(&job->output, &job->err)
				     : image_publish(&job->output, &job->err);
}

static int output(struct job *job)
{
	int result;

	watch_signals(job);
	if (prepare(job, IMAGE_SHARE))
		return -1;
	hold_signals(job);
	result = open_output(job) ? -1 : write_output(job);
	if (result)
		image_abandon(&job->output);
	job->progress.touched = false; /* the origin is as it was */
	if (result < 0)
		return -1;
	report_output(&job->report, result ? EXIT_STOPPED : EXIT_DONE,
		      job->settings->output, job->output.is_device,
		      &job->progress);
	return result ? EXIT_STOPPED : EXIT_DONE;
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

static int run(const struct settings *s)
{
	static const struct {
		enum mode mode;
		const char *name;
		int (*run)(struct job *job);
	} modes[] = {
		{ MERGE, "merge", merge }, { DRY_RUN, "dry-run", dry_run },
		{ CHECK, "check", check }, { INFO, "info", info },
		{ LIST, "list", list },	   { OUTPUT, "output", output },
	};
	struct job job = { .settings = s,
			   .origin = { .fd = -1, .bypass_fd = -1 },
			   .cow = { .fd = -1, .bypass_fd = -1 },
			   .undo_image = { .fd = -1, .bypass_fd = -1 },
			   .output = { .fd = -1, .bypass_fd = -1 } };
	struct report_style style = { .quiet = s->quiet,
				      .verbose = s->verbose,
				      .json = s->json,
				      .progress = s->progress };
	struct error ignored;
	sigset_t tell;
	size_t i = 0;
	int code;

	/* Waits until there is progress to tell, and harms no other mode. */
	sigemptyset(&tell);
	sigaddset(&tell, SIGUSR1);
	sigprocmask(SIG_BLOCK, &tell, NULL);
	while (modes[i].mode != s->mode)
		i++;
	style.mode = modes[i].name;
	report_open(&job.report, &style);
	code = modes[i].run(&job);
	if (code < 0) {
		code = exit_code(&job.err);
		report_failed(&job.report, code, &job.err, &job.progress);
	}
	image_close(&job.output, &ignored);
	image_close(&job.undo_image, &ignored);
	image_close(&job.cow, &ignored);
	image_close(&job.origin, &ignored);
	if (!report_flush(&job.report) && code == EXIT_DONE)
		code = EXIT_FAILED;
	return code;
}

int main(int argc, char **argv)
{
	struct settings settings = { 0 };
	int code = options_parse(argc, argv, &settings);

	return code < 0 ? run(&settings) : code;
}
