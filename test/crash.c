/*
 * crash.c - merges that end in a power cut
 *
 * Records merges call by call, and rebuilds the disks as they could be after a
 * power cut at any moment: what was synced is there, and of every later write
 * any subset of its sectors, on each disk by itself. On each such state the
 * snapshot must read right, and the merge, run again, must finish; some of
 * these runs meet a power cut too.
 *
 *   crash [--states N] [--seed S] [--long] [--store NAME]
 *         [--replay STORE/ENGINE/STATE] [DIRECTORY...]
 *
 * N states of each store and engine. A directory holds origin.before, cow and
 * origin.merged, as a kernel has made them. The same seed makes the same
 * states; it is also taken from $SEED.
 */
#include "builder.h"
#include "pair.h"
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512u

/* States of a second generation have a parent that is one too, and so on. */
#define GENERATIONS 4

#define LONG_STATES  10000u /* of each store, all engines together */
#define SLICE_STATES 12

enum { ORIGIN, COW, UNDO, FILES };

static const char *const names[FILES] = { "origin", "cow", "undo" };

struct disk {
	unsigned char *bytes;
	size_t size;
};

/* A part of a disk that merges write to. */
struct extent {
	size_t offset, len;
};

struct store {
	const char *name;
	struct disk initial[FILES];
	struct disk wanted; /* what the origin must become */
	size_t chunk;	    /* bytes */
	struct extent *extents[FILES];
	size_t extent_count[FILES];
};

/* One way to merge. */
struct engine {
	const char *name;
	int direct;
	unsigned int workers;
	size_t batch; /* chunks; 0: all at once */
	bool undo, verify, skip, discard, clone;
};

static const struct engine engines[] = {
	{ .name = "chunk by chunk", .direct = -1, .batch = 1 },
	{ .name = "small batches", .direct = -1, .batch = 7 },
	{ .name = "one worker", .direct = -1, .workers = 1, .batch = 45 },
	{ .name = "one batch", .direct = -1 },
	{ .name = "small direct batches", .direct = 1, .batch = 13 },
	{ .name = "one direct batch", .direct = 1 },
	{ .name = "undo", .direct = -1, .batch = 11, .undo = true },
	{ .name = "undo, direct", .direct = 1, .batch = 37, .undo = true },
	{ .name = "undo, verify, skip, discard",
	  .direct = -1,
	  .batch = 17,
	  .undo = true,
	  .verify = true,
	  .skip = true,
	  .discard = true },
	{ .name = "discard", .direct = -1, .batch = 9, .discard = true },
	{ .name = "skip", .direct = -1, .batch = 20, .skip = true },
	{ .name = "verify", .direct = -1, .batch = 23, .verify = true },
	{ .name = "shared blocks", .direct = -1, .batch = 19, .clone = true },
	{ .name = "shared blocks, undo, discard",
	  .direct = -1,
	  .batch = 29,
	  .undo = true,
	  .discard = true,
	  .clone = true },
};
#define ENGINES (sizeof(engines) / sizeof(*engines))

/* What a merge did to the disks, in the order of trace_canonical(). */
struct history {
	struct trace_event *events;
	uint64_t *durable;
	size_t count;
};

/* Where merges run: files that are mapped, and room to think. */
static struct {
	char dir[4096];
	char paths[FILES][4200];
	struct disk map[FILES];	  /* the files themselves */
	struct disk saved[FILES]; /* before a run that meets a power cut */
	struct disk view;
} arena;

static struct {
	uint64_t seed;
	unsigned int states; /* of each store and engine; 0: LONG_STATES */
	const char *store;   /* this one alone, or NULL */
	char replay_store[64];
	unsigned int replay_engine, replay_state;
	bool replay;
} options;

static struct counts {
	uint64_t states, later, losses;
} sum, all, by_engine[ENGINES];

static void die(const char *fmt, ...)
	__attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *fmt, ...)
{
	va_list ap;

	fputs("crash: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(2);
}

static void *must(void *p)
{
	if (!p)
		die("no memory");
	return p;
}

/* Random numbers: splitmix64 */

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t roll(uint64_t *rng, uint64_t sides)
{
	*rng += UINT64_C(0x9e3779b97f4a7c15);
	return mix(*rng) % sides;
}

/* Files */

static void load(struct disk *d, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	size_t done = 0;

	if (fd < 0 || fstat(fd, &st))
		die("%s: %s", path, strerror(errno));
	d->size = (size_t)st.st_size;
	d->bytes = must(malloc(d->size + 1));
	while (done < d->size) {
		ssize_t n = read(fd, d->bytes + done, d->size - done);

		if (n <= 0)
			die("%s: %s", path, n ? strerror(errno) : "too short");
		done += (size_t)n;
	}
	close(fd);
}

/* Make a file of this content and map it. */
static void map_file(struct disk *map, const char *path, const struct disk *d)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)d->size))
		die("%s: %s", path, strerror(errno));
	map->size = d->size;
	map->bytes = mmap(NULL, d->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			  0);
	if (map->bytes == MAP_FAILED)
		die("%s: %s", path, strerror(errno));
	close(fd);
	memcpy(map->bytes, d->bytes, d->size);
}

/* In memory where there is such a place, else where temporary files are. */
static void make_directory(char *dir, size_t size, bool in_memory)
{
	const char *tmp = getenv("TMPDIR");

	if (in_memory && !access("/dev/shm", W_OK))
		tmp = "/dev/shm";
	snprintf(dir, size, "%s/snapmerge-crash.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		die("%s: %s", dir, strerror(errno));
}

static void arena_enter(struct store *s, bool in_memory)
{
	make_directory(arena.dir, sizeof(arena.dir), in_memory);
	for (int f = 0; f < FILES; f++) {
		snprintf(arena.paths[f], sizeof(arena.paths[f]), "%s/%s",
			 arena.dir, names[f]);
		map_file(&arena.map[f], arena.paths[f], &s->initial[f]);
		trace_watch(f, arena.paths[f]);
		arena.saved[f].size = s->initial[f].size;
		arena.saved[f].bytes = must(malloc(s->initial[f].size + 1));
	}
	arena.view.size = s->initial[ORIGIN].size;
	arena.view.bytes = must(malloc(arena.view.size + 1));
}

static void arena_leave(void)
{
	for (int f = 0; f < FILES; f++) {
		munmap(arena.map[f].bytes, arena.map[f].size);
		free(arena.saved[f].bytes);
		unlink(arena.paths[f]);
	}
	free(arena.view.bytes);
	rmdir(arena.dir);
}

/* Copy what merges write to; the rest is the same. */
static void copy_extents(const struct store *s, struct disk *to,
			 const struct disk *from)
{
	for (int f = 0; f < FILES; f++) {
		for (size_t i = 0; i < s->extent_count[f]; i++) {
			const struct extent *e = &s->extents[f][i];

			memcpy(to[f].bytes + e->offset,
			       from[f].bytes + e->offset, e->len);
		}
	}
}

/* Merging and remembering */

static int run(const struct store *s, const struct engine *engine,
	       struct pair *p)
{
	int result;

	*p = (struct pair){
		.origin = arena.paths[ORIGIN],
		.cow = arena.paths[COW],
		.direct = engine->direct,
		.workers = engine->workers,
		.clone = engine->clone,
	};
	if (engine->undo)
		p->undo = arena.paths[UNDO];
	p->options.reflink = REFLINK_NEVER; /* unless the engine says so */
	p->options.verify = engine->verify;
	p->options.skip_identical = engine->skip;
	p->options.discard = engine->discard;
	p->options.batch_size = engine->batch ? engine->batch * s->chunk
					      : s->initial[COW].size + s->chunk;
	result = pair_merge(p);
	if (p->plan.workers && p->plan.clone != engine->clone)
		die("%s: not the engine that was asked for", engine->name);
	return result;
}

static int run_recorded(const struct store *s, const struct engine *engine,
			struct pair *p, struct history *h)
{
	int result;

	trace_pretend_syncs(true);
	trace_pretend_clones(true);
	trace_start();
	result = run(s, engine, p);
	trace_stop();
	trace_canonical();
	h->count = trace_count();
	h->events = must(calloc(h->count + 1, sizeof(*h->events)));
	h->durable = must(calloc(h->count + 1, sizeof(*h->durable)));
	for (size_t i = 0; i < h->count; i++) {
		struct trace_event *event = &h->events[i];

		*event = *trace_event(i);
		h->durable[i] = trace_durable(i);
		if (!event->data)
			continue;
		event->data = must(malloc((size_t)event->len + 1));
		memcpy(event->data, trace_event(i)->data, (size_t)event->len);
	}
	return result;
}

static void forget(struct history *h)
{
	for (size_t i = 0; i < h->count; i++)
		free(h->events[i].data);
	free(h->events);
	free(h->durable);
}

static void add_extent(struct store *s, int file, size_t offset, size_t len)
{
	size_t n = s->extent_count[file];
	struct extent *e = s->extents[file];

	if (n && e[n - 1].offset + e[n - 1].len == offset) {
		e[n - 1].len += len;
		return;
	}
	e = must(realloc(e, (n + 1) * sizeof(*e)));
	e[n] = (struct extent){ offset, len };
	s->extents[file] = e;
	s->extent_count[file] = n + 1;
}

/*
 * Whatever a merge has written, any merge may write, and it may make notes in
 * the header chunk. Undo stores may differ by their batches.
 */
static void learn_extents(struct store *s, const struct history *h)
{
	for (int f = 0; f < FILES; f++) {
		unsigned char *seen =
			must(calloc(1, s->initial[f].size / SECTOR + 2));

		for (size_t i = 0; i < h->count; i++) {
			const struct trace_event *e = &h->events[i];

			if (e->file != f || !trace_changes(e))
				continue;
			for (uint64_t at = e->offset / SECTOR;
			     at * SECTOR < e->offset + e->len; at++)
				seen[at] = 1;
		}
		if (f == COW)
			memset(seen, 1, s->chunk / SECTOR);
		if (f == UNDO)
			memset(seen, 1, s->initial[f].size / SECTOR);
		for (size_t at = 0; at * SECTOR < s->initial[f].size; at++) {
			size_t left = s->initial[f].size - at * SECTOR;

			if (seen[at])
				add_extent(s, f, at * SECTOR,
					   left < SECTOR ? left : SECTOR);
		}
		free(seen);
	}
}

/*
 * Power cuts
 */

/* What became of the writes that were not durable. */
enum fate {
	ALL_LOST,
	ALL_KEPT,
	ORIGIN_LOST, /* and everything else kept */
	ORIGIN_KEPT, /* and everything else lost */
	MIXED	     /* each write by itself, kept, lost or torn */
};

static const char *const fates[] = {
	"everything lost",	  "everything kept", "origin lost, rest kept",
	"origin kept, rest lost", "mixed",
};

struct cut {
	uint64_t when;
	enum fate fate;
	uint64_t rng;		  /* for MIXED */
	unsigned int odds[FILES]; /* of a write being kept, in eighths */
};

/*
 * A moment at which something began or ended, or just after. An aim at the
 * start of the syncs is worth it: most is under way there.
 */
static struct cut choose_cut(const struct history *h, uint64_t *rng)
{
	struct cut cut = { 0 };
	const struct trace_event *event;

	if (h->count) {
		event = &h->events[roll(rng, h->count)];
		for (int i = 0;
		     i < 8 && event->call != TRACE_SYNC && roll(rng, 4) == 0;
		     i++)
			event = &h->events[roll(rng, h->count)];
		cut.when = (roll(rng, 2) ? event->begin : event->end) +
			   roll(rng, 2);
	}
	switch (roll(rng, 10)) {
	case 0:
		cut.fate = ALL_LOST;
		break;
	case 1:
		cut.fate = ALL_KEPT;
		break;
	case 2:
	case 3:
		cut.fate = ORIGIN_LOST;
		break;
	case 4:
		cut.fate = ORIGIN_KEPT;
		break;
	default:
		cut.fate = MIXED;
		break;
	}
	for (int f = 0; f < FILES; f++)
		cut.odds[f] = (unsigned int)roll(rng, 9);
	cut.rng = roll(rng, UINT64_MAX);
	return cut;
}

/* Some of a write's sectors. */
static void tear(const struct trace_event *event, uint64_t *rng,
		 struct disk *disk)
{
	uint64_t end = event->offset + event->len, at = event->offset;
	uint64_t how = roll(rng, 3), sectors = event->len / SECTOR + 1;
	uint64_t place = roll(rng, sectors);

	for (uint64_t n = 0; at < end; n++) {
		uint64_t next = (at / SECTOR + 1) * SECTOR;
		bool kept;

		if (how == 0)
			kept = n < place;
		else if (how == 1)
			kept = n >= place;
		else
			kept = roll(rng, 2);
		if (next > end)
			next = end;
		if (kept)
			trace_apply(event, at - event->offset,
				    next - event->offset, disk->bytes,
				    disk->size);
		at = next;
	}
}

/* Let the cut decide over a write that was under way; tell says it. */
static void meet(const struct cut *cut, const struct trace_event *event,
		 uint64_t *rng, struct disk *disk, bool tell)
{
	const char *became = "lost";
	bool kept;

	if (cut->fate == MIXED) {
		kept = roll(rng, 8) < cut->odds[event->file];
		if (roll(rng, 3) == 0) {
			became = "torn";
			tear(event, rng, disk);
			kept = false;
		}
	} else if (event->file == ORIGIN) {
		kept = cut->fate == ALL_KEPT || cut->fate == ORIGIN_KEPT;
	} else {
		kept = cut->fate == ALL_KEPT || cut->fate == ORIGIN_LOST;
	}
	if (kept) {
		became = "kept";
		trace_apply(event, 0, TRACE_NEVER, disk->bytes, disk->size);
	}
	if (tell)
		printf("    %s: %" PRIu64 " bytes at %" PRIu64 " of the %s\n",
		       became, event->len, event->offset, names[event->file]);
}

/* The disks were as at the start; make them as after the cut. */
static void apply_cut(const struct history *h, const struct cut *cut,
		      struct disk *disks, bool tell)
{
	uint64_t rng = cut->rng;

	if (tell)
		printf("  power cut at %" PRIu64 ", %s\n", cut->when,
		       fates[cut->fate]);
	for (size_t i = 0; i < h->count; i++) {
		const struct trace_event *event = &h->events[i];
		struct disk *disk = &disks[event->file];

		if (!trace_changes(event) || event->begin >= cut->when)
			continue;
		if (h->durable[i] < cut->when)
			trace_apply(event, 0, TRACE_NEVER, disk->bytes,
				    disk->size);
		else
			meet(cut, event, &rng, disk, tell);
	}
}

/*
 * What must hold on the disks at every moment
 */

/* Look at the origin through a store; how many exceptions it has, or -1. */
static int look_through(int file)
{
	return view_of(arena.map[ORIGIN].bytes, arena.map[ORIGIN].size,
		       arena.map[file].bytes, arena.map[file].size,
		       arena.view.bytes);
}

/* M7 */
static const char *snapshot_reads_right(const struct store *s)
{
	if (look_through(COW) < 0)
		return "the store is unsound";
	if (memcmp(arena.view.bytes, s->wanted.bytes, s->wanted.size))
		return "the snapshot has changed";
	return NULL;
}

/* An undo store shows the origin as it was, whether it is used or empty. */
static const char *undo_reads_right(const struct store *s)
{
	if (look_through(UNDO) < 0)
		return "the undo store is unsound";
	if (memcmp(arena.view.bytes, s->initial[ORIGIN].bytes,
		   s->initial[ORIGIN].size))
		return "the undo store does not lead back";
	return NULL;
}

static const char *ask_oracles(const struct store *s, bool undo)
{
	const char *answer = snapshot_reads_right(s);

	return !answer && undo ? undo_reads_right(s) : answer;
}

/* What must hold when the merge has finished. */
static const char *is_finished(const struct store *s, bool undo)
{
	if (memcmp(arena.map[ORIGIN].bytes, s->wanted.bytes, s->wanted.size))
		return "the merged origin is wrong";
	if (look_through(COW) != 0)
		return "the table is not empty";
	if (memcmp(arena.map[COW].bytes, s->initial[COW].bytes, s->chunk))
		return "the header has changed";
	return undo ? undo_reads_right(s) : NULL;
}

/* Some other engine, but what the merge began with, it goes on with. */
static struct engine next_engine(const struct engine *before, uint64_t *rng)
{
	struct engine engine = engines[roll(rng, ENGINES)];

	engine.undo = before->undo;
	engine.discard = before->discard;
	return engine;
}

static const char *run_to_the_end(const struct store *s,
				  const struct engine *before, uint64_t *rng)
{
	static char answer[400];
	struct engine engine = { .direct = -1, .undo = before->undo };
	struct pair p;
	int result;

	if (roll(rng, 8) == 0)
		engine = next_engine(before, rng);
	result = run(s, &engine, &p);
	if (!result)
		return is_finished(s, before->undo);
	snprintf(answer, sizeof(answer), "the rerun returned %d: %s (%s)",
		 result, p.error.what, strerror(p.error.sys));
	return answer;
}

/* Run again, up to another power cut, from the state that is there. */
static const char *crash_again(const struct store *s,
			       const struct engine *before, uint64_t *rng,
			       bool tell)
{
	struct engine engine = next_engine(before, rng);
	const char *answer = "the rerun failed";
	struct history h;
	struct cut cut;
	struct pair p;

	engine.batch = 1 + (size_t)roll(rng, 60);
	copy_extents(s, arena.saved, arena.map);
	if (!run_recorded(s, &engine, &p, &h)) {
		cut = choose_cut(&h, rng);
		copy_extents(s, arena.map, arena.saved);
		if (tell)
			printf("  run again, %s, batches of %zu\n", engine.name,
			       engine.batch);
		apply_cut(&h, &cut, arena.map, tell);
		answer = ask_oracles(s, before->undo);
	}
	forget(&h);
	return answer;
}

/* One state and its consequences; what is wrong, or NULL. */
static const char *try_state(const struct store *s, const struct history *h,
			     const struct engine *engine, uint64_t rng,
			     bool tell)
{
	struct cut cut = choose_cut(h, &rng);
	const char *answer;

	copy_extents(s, arena.map, s->initial);
	apply_cut(h, &cut, arena.map, tell);
	sum.states++;
	answer = ask_oracles(s, engine->undo);
	for (int i = 1; !answer && i < GENERATIONS && roll(&rng, 4) == 0; i++) {
		answer = crash_again(s, engine, &rng, tell);
		sum.states++;
		sum.later++;
	}
	return answer ? answer : run_to_the_end(s, engine, &rng);
}

/* The same for the same seed, whatever else is run. */
static uint64_t state_rng(const struct store *s, size_t engine, uint64_t state)
{
	uint64_t x = mix(options.seed + 1);

	for (const char *c = s->name; *c; c++)
		x = mix(x + (unsigned char)*c);
	return mix(mix(x + engine) + state);
}

static void lost(const struct store *s, const struct history *h, size_t engine,
		 uint64_t state, const char *answer)
{
	sum.losses++;
	if (sum.losses > 3)
		return;
	printf("%s, %s: %s\n", s->name, engines[engine].name, answer);
	try_state(s, h, &engines[engine], state_rng(s, engine, state), true);
	printf("  crash --seed %" PRIu64 " --replay '%s/%zu/%" PRIu64 "'\n",
	       options.seed, s->name, engine, state);
}

/*
 * Merge and record, where temporary files are: memory may lack O_DIRECT.
 * False if the merge fails even without a power cut.
 */
static bool record(struct store *s, const struct engine *engine,
		   struct history *h)
{
	const char *answer = NULL;
	struct pair p;

	arena_enter(s, false);
	if (run_recorded(s, engine, &p, h))
		answer = p.error.what;
	else
		answer = is_finished(s, engine->undo);
	if (!answer && !h->count)
		die("no call was recorded: is trace.c linked in?");
	arena_leave();
	if (answer) {
		printf("%s, %s: without a power cut: %s\n", s->name,
		       engine->name, answer);
		sum.losses++;
	}
	return !answer;
}

static void try_engine(struct store *s, size_t engine, uint64_t states)
{
	struct history h;
	uint64_t first = 0;

	if (options.replay) {
		if (options.replay_engine != engine)
			return;
		first = options.replay_state;
		states = first + 1;
	}
	if (!record(s, &engines[engine], &h)) {
		forget(&h);
		return;
	}
	learn_extents(s, &h);
	arena_enter(s, true);
	for (uint64_t n = first; n < states; n++) {
		const char *answer = try_state(s, &h, &engines[engine],
					       state_rng(s, engine, n),
					       options.replay);

		if (answer)
			lost(s, &h, engine, n, answer);
	}
	arena_leave();
	forget(&h);
	for (int f = 0; f < FILES; f++) {
		free(s->extents[f]);
		s->extents[f] = NULL;
		s->extent_count[f] = 0;
	}
}

/* An empty store with room for all that the merge overwrites. */
static void make_undo(struct store *s)
{
	uint32_t sectors = (uint32_t)(s->chunk / SECTOR);
	int live = view_of(s->initial[ORIGIN].bytes, s->initial[ORIGIN].size,
			   s->initial[COW].bytes, s->initial[COW].size,
			   s->wanted.bytes);
	char dir[4096], paths[2][4200];
	struct builder b;

	if (live < 0)
		die("%s: not a sound store", s->name);
	make_directory(dir, sizeof(dir), false);
	snprintf(paths[0], sizeof(paths[0]), "%s/origin", dir);
	snprintf(paths[1], sizeof(paths[1]), "%s/undo", dir);
	builder_init(&b, sectors, s->chunk, 0);
	/* Up to where the data of one more would be. */
	b.cow_size = builder_new_chunk(sectors, (uint64_t)live) * s->chunk;
	builder_write(&b, paths[0], paths[1]);
	load(&s->initial[UNDO], paths[1]);
	unlink(paths[0]);
	unlink(paths[1]);
	rmdir(dir);
}

static void tell(const char *name, const struct counts *counts)
{
	printf("%s: %" PRIu64 " states, %" PRIu64 " of them after another, "
	       "%" PRIu64 " losses\n",
	       name, counts->states, counts->later, counts->losses);
	fflush(stdout);
}

static bool is_wanted(const struct store *s)
{
	if (options.store)
		return !strcmp(options.store, s->name);
	return !options.replay || !strcmp(options.replay_store, s->name);
}

static void try_store(struct store *s)
{
	uint64_t states = options.states;

	make_undo(s);

	sum = (struct counts){ 0 };
	if (!states)
		states = (LONG_STATES + ENGINES - 1) / ENGINES;
	if (is_wanted(s)) {
		for (size_t i = 0; i < ENGINES; i++) {
			struct counts before = sum;

			try_engine(s, i, states);
			by_engine[i].states += sum.states - before.states;
			by_engine[i].later += sum.later - before.later;
			by_engine[i].losses += sum.losses - before.losses;
		}
		tell(s->name, &sum);
	}
	all.states += sum.states;
	all.later += sum.later;
	all.losses += sum.losses;
	free(s->wanted.bytes);
	for (int f = 0; f < FILES; f++)
		free(s->initial[f].bytes);
}

/*
 * The stores
 */

static void try_built(const char *name, struct builder *b)
{
	char dir[4096], paths[2][4200];
	struct store s = { .name = name,
			   .chunk = (size_t)b->chunk_sectors * SECTOR };

	make_directory(dir, sizeof(dir), false);
	for (int f = ORIGIN; f <= COW; f++)
		snprintf(paths[f], sizeof(paths[f]), "%s/%s", dir, names[f]);
	builder_write(b, paths[ORIGIN], paths[COW]);
	for (int f = ORIGIN; f <= COW; f++) {
		load(&s.initial[f], paths[f]);
		unlink(paths[f]);
	}
	rmdir(dir);
	s.wanted.size = s.initial[ORIGIN].size;
	s.wanted.bytes = must(malloc(s.wanted.size + 1));
	builder_expect(b, 0, s.wanted.bytes, s.wanted.size);
	builder_free(b);
	try_store(&s);
}

static void try_pattern(const char *name, enum builder_pattern pattern,
			uint32_t chunk_sectors, uint64_t origin_size,
			size_t count)
{
	struct builder b;

	builder_init(&b, chunk_sectors, origin_size, options.seed);
	builder_fill(&b, pattern, count);
	try_built(name, &b);
}

static void try_odd_stores(void)
{
	struct builder b;

	builder_init(&b, 1, 200 * SECTOR, options.seed);
	builder_fill(&b, BUILDER_RUNS, 70);
	b.stale_entries = 20;
	try_built("stale entries", &b);

	builder_init(&b, 1, 200 * SECTOR, options.seed);
	builder_fill(&b, BUILDER_SHUFFLED, 64);
	b.garbage_after_table = true;
	try_built("old areas behind full ones", &b);

	builder_init(&b, 1, 200 * SECTOR, options.seed);
	builder_fill(&b, BUILDER_SHUFFLED, 64);
	b.cow_size = (builder_new_chunk(1, 63) + 1) * SECTOR;
	try_built("full area at the very end", &b);
}

static void try_all_built(void)
{
	/* Chunks of one sector have 32 entries to an area. */
	try_pattern("contiguous", BUILDER_ONE, 1, 200 * SECTOR, 110);
	try_pattern("reversed", BUILDER_REVERSED, 1, 200 * SECTOR, 110);
	try_pattern("scattered", BUILDER_SCATTERED, 1, 300 * SECTOR, 110);
	try_pattern("shuffled", BUILDER_SHUFFLED, 1, 200 * SECTOR, 150);
	try_pattern("partial tail", BUILDER_RUNS, 2, 90 * 1024 + 300, 60);
	try_pattern("exactly full areas", BUILDER_RUNS, 1, 200 * SECTOR, 96);
	try_pattern("larger chunks", BUILDER_RUNS, 8, 400 * 4096 + 77, 300);
	try_odd_stores();
}

static void try_directory(const char *dir)
{
	struct store s = { .name = dir };
	const char *slash = strrchr(dir, '/');
	const unsigned char *size;
	char path[4200];

	if (slash && slash[1])
		s.name = slash + 1;
	snprintf(path, sizeof(path), "%s/origin.merged", dir);
	if (access(path, R_OK)) {
		printf("%s: skipped, it was not merged\n", s.name);
		return;
	}
	load(&s.wanted, path);
	snprintf(path, sizeof(path), "%s/origin.before", dir);
	load(&s.initial[ORIGIN], path);
	snprintf(path, sizeof(path), "%s/cow", dir);
	load(&s.initial[COW], path);
	if (s.initial[COW].size < 16 || s.wanted.size != s.initial[ORIGIN].size)
		die("%s: not a fixture", dir);
	size = s.initial[COW].bytes + 12;
	s.chunk = SECTOR *
		  (size[0] | (size_t)size[1] << 8 | (size_t)size[2] << 16);
	try_store(&s);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = text ? strtoull(text, &end, 0) : 0;

	if (!text || !*text || *end)
		die("not a number: %s", text ? text : "nothing");
	return n;
}

static void parse_replay(const char *text)
{
	if (!text || sscanf(text, "%63[^/]/%u/%u", options.replay_store,
			    &options.replay_engine, &options.replay_state) != 3)
		die("--replay STORE/ENGINE/STATE");
	options.replay = true;
}

/* Returns the index of the first directory. */
static int parse(int argc, char **argv)
{
	int i;

	options.seed = getenv("SEED") ? number(getenv("SEED")) : 1;
	options.states = SLICE_STATES;
	for (i = 1; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--long"))
			options.states = 0;
		else if (!strcmp(argv[i], "--states"))
			options.states = (unsigned int)number(argv[++i]);
		else if (!strcmp(argv[i], "--seed"))
			options.seed = number(argv[++i]);
		else if (!strcmp(argv[i], "--store") && argv[i + 1])
			options.store = argv[++i];
		else if (!strcmp(argv[i], "--replay"))
			parse_replay(argv[++i]);
		else
			die("unknown option %s", argv[i]);
	}
	return i;
}

int main(int argc, char **argv)
{
	int dirs = parse(argc, argv);

	printf("seed %" PRIu64 "\n", options.seed);
	try_all_built();
	for (int i = dirs; i < argc; i++)
		try_directory(argv[i]);
	for (size_t i = 0; i < ENGINES; i++)
		tell(engines[i].name, &by_engine[i]);
	printf("all: %" PRIu64 " states, %" PRIu64 " losses\n", all.states,
	       all.losses);
	return all.losses || fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}
