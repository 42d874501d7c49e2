/*
 * transfer.h - what a worker does with a slice
 *
 * Between engine.c, which hands out slices, and transfer.c, which moves their
 * data; the reason for the split is on top of those.
 */
#ifndef TRANSFER_H
#define TRANSFER_H

#include "engine.h"

/* One chunk, or piece of one, on its way. */
struct move {
	uint64_t from, to; /* chunks */
	uint8_t *data;
};

/* A part of one turn: exceptions [first, first + count). */
struct slice {
	uint64_t first;
	size_t count;
	uint64_t piece; /* offset in the chunk, if it travels in pieces */
	unsigned int pass;
};

struct worker {
	struct engine *engine;
	pthread_t thread;
	struct slice slice;
	uint8_t *buffer;	      /* the moves' data */
	uint8_t *other;		      /* what the origin holds, if compared */
	struct exception *exceptions; /* of the slice */
	struct move *moves;	      /* what is left to do of it */
	size_t count;		      /* of moves */
};

/* The pass that the worker's slice belongs to. */
enum pass transfer_pass(const struct worker *w);

/* Bytes of buffers that each worker needs; a multiple of IMAGE_ALIGNMENT. */
size_t transfer_memory(const struct engine *e);

/*
 * Set up a worker with buffers in memory, which stays the caller's and is
 * aligned; false: no memory for the rest. Close it in either case.
 */
bool transfer_open(struct worker *w, struct engine *e, uint8_t *memory);
void transfer_close(struct worker *w);

/*
 * Before the slice's turn: what can be had without a write. In its turn: the
 * rest. 0, or -1 and *err.
 */
int transfer_prepare(struct worker *w, struct error *err);
int transfer_deliver(struct worker *w, struct error *err);

#endif
