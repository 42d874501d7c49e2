/*
 * scratch.h - a directory for a test program, and its last line
 *
 * Tests run in a scratch directory of their own, made before the first one and
 * removed after the last, whatever became of them. What a machine lacks is
 * told by skip(): the tests are not run, and the last line counts them.
 */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <check.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch[4096];
static char *home;
static unsigned int skipped;

static int scratch_unlink(const char *path, const struct stat *st, int type,
			  struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

/* Unchecked fixtures: they run in the parent, also around failed tests. */
static void scratch_enter(void)
{
	const char *tmp = getenv("TMPDIR");

	home = getcwd(NULL, 0);
	snprintf(scratch, sizeof(scratch), "%s/snapmerge-test.XXXXXX",
		 tmp ? tmp : "/tmp");
	if (!home || !mkdtemp(scratch) || chdir(scratch)) {
		perror(scratch);
		exit(99);
	}
}

static void scratch_leave(void)
{
	if (chdir(home) ||
	    nftw(scratch, scratch_unlink, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT))
		perror(scratch);
	free(home);
}

/* So many tests cannot run here. */
static inline void skip(unsigned int tests, const char *which,
			const char *reason)
{
	printf("skipped: %s (%u): %s\n", which, tests, reason);
	skipped += tests;
}

/* A test case of its own scratch directory. */
static inline TCase *scratch_case(Suite *suite, const char *name, int seconds)
{
	TCase *tc = tcase_create(name);

	tcase_add_unchecked_fixture(tc, scratch_enter, scratch_leave);
	tcase_set_timeout(tc, seconds);
	suite_add_tcase(suite, tc);
	return tc;
}

static inline int run(Suite *suite, const char *name)
{
	SRunner *runner = srunner_create(suite);
	int failed, all;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	all = srunner_ntests_run(runner);
	srunner_free(runner);
	printf("%s: %d passed, %d failed, %u skipped\n", name, all - failed,
	       failed, skipped);
	return failed || fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
