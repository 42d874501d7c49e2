/*
 * pair.h - one merge from two paths, as snapmerge would run it
 *
 * The only place of the tests that knows how copier.h wants to be called.
 */
#ifndef PAIR_H
#define PAIR_H

#include "../copier.h"

#include <string.h>

struct pair {
	/* Wanted: */
	const char *origin, *cow;
	const char *undo; /* a sound store, empty at first; or NULL */
	struct copier_options options;
	copier_tick *tick; /* or NULL */
	void *context;
	int direct;	      /* 1: always, -1: never, 0: as planned */
	unsigned int workers; /* 0: as planned */
	bool clone;	      /* share blocks, whatever was planned */

	/* Found: */
	uint64_t exceptions, stale; /* when it began */
	struct copier_plan plan;
	struct copier_progress progress;
	struct error error;
};

static inline bool pair_go_on(void *context,
			      const struct copier_progress *progress)
{
	(void)context;
	(void)progress;
	return false;
}

static inline int pair_open_store(struct pair *p, struct cowstore *store,
				  const struct image *image,
				  const struct image *origin)
{
	static struct findings found;

	if (cowstore_open(store, image, false, &p->error) ||
	    cowstore_verify(store, origin->size, &found, &p->error))
		return -1;
	if (!found.count)
		return 0;
	p->error = found.first[0];
	return -1;
}

static inline int pair_merge_open(struct pair *p, const struct image *origin,
				  const struct image *cow,
				  const struct image *undo_image)
{
	struct cowstore store;
	struct copier_undo undo;

	if (pair_open_store(p, &store, cow, origin) ||
	    copier_recognise(&store, origin, &p->error))
		return -1;
	p->exceptions = store.exceptions;
	p->stale = store.stale;
	if (copier_plan(&store, origin, &p->options, &p->plan, &p->error))
		return -1;
	if (p->direct)
		p->plan.direct = p->direct > 0;
	if (p->workers)
		p->plan.workers = p->workers;
	p->plan.clone |= p->clone;
	if (undo_image &&
	    (pair_open_store(p, &undo.store, undo_image, origin) ||
	     copier_match_undo(&store, &undo, origin->size, &p->error)))
		return -1;
	return copier_merge(&store, origin, undo_image ? &undo : NULL,
			    &p->options, &p->plan,
			    p->tick ? p->tick : pair_go_on, p->context,
			    &p->progress, &p->error);
}

/* As copier_merge(); -1 and p->error also if it does not come to that. */
static inline int pair_merge(struct pair *p)
{
	struct image origin, cow, undo = { .fd = -1, .bypass_fd = -1 };
	struct error error;
	int result = -1;

	memset(&p->progress, 0, sizeof(p->progress));
	memset(&p->error, 0, sizeof(p->error));
	if (image_open(&origin, p->origin, IMAGE_WRITE, &p->error))
		return -1;
	if (!image_open(&cow, p->cow, IMAGE_WRITE, &p->error)) {
		if (!p->undo ||
		    !image_open(&undo, p->undo, IMAGE_WRITE, &p->error))
			result = pair_merge_open(p, &origin, &cow,
						 p->undo ? &undo : NULL);
		image_close(&undo, &error);
		image_close(&cow, &error);
	}
	image_close(&origin, &error);
	return result;
}

#endif
