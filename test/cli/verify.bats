#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# What is written, and whether it arrived: --verify and --skip-identical, over a
# library that watches the writes to one file, and spoils one of them.
load helpers

setup_file() {
	cat > "$BATS_FILE_TMPDIR/liar.c" << 'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int count;

static int is_victim(int fd)
{
	const char *path = getenv("VICTIM");
	struct stat a, b;

	return path && !stat(path, &a) && !fstat(fd, &b) &&
	       a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static void note(off_t at, ssize_t n)
{
	FILE *f = fopen(getenv("WRITES"), "a");

	if (!f)
		abort();
	fprintf(f, "%lld %lld\n", (long long)at, (long long)n);
	fclose(f);
}

static void spoil(off_t at)
{
	int fd = open(getenv("VICTIM"), O_RDWR);
	char c;

	if (fd < 0 || pread(fd, &c, 1, at) != 1)
		abort();
	c ^= 0x10;
	if (pwrite(fd, &c, 1, at) != 1 || fsync(fd))
		abort();
	close(fd);
}

static ssize_t watched(const char *name, int fd, const struct iovec *iov,
		       int n, off_t at)
{
	ssize_t (*real)(int, const struct iovec *, int, off_t);
	const char *lie = getenv("LIE"), *byte = getenv("BYTE");
	void *symbol = dlsym(RTLD_NEXT, name);
	ssize_t written;

	memcpy(&real, &symbol, sizeof(real));
	written = real(fd, iov, n, at);
	if (written <= 0 || !is_victim(fd))
		return written;
	note(at, written);
	if (__atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) ==
	    (lie ? atoi(lie) : -1))
		spoil(byte && !strcmp(byte, "last") ? at + written - 1
			      : at + (byte ? atoi(byte) : 0));
	return written;
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
	return watched("pwritev", fd, iov, n, at);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int n, off_t at)
{
	return watched("pwritev64", fd, iov, n, at);
}
END
	"${CC:-cc}" -shared -fPIC -o "$BATS_FILE_TMPDIR/liar.so" \
		"$BATS_FILE_TMPDIR/liar.c" -ldl || true
}

# watched COMMAND...: writes to $VICTIM, or origin, are noted in writes.
watched() {
	: > writes
	VICTIM=${VICTIM:-origin} WRITES=$PWD/writes \
		LD_PRELOAD=$BATS_FILE_TMPDIR/liar.so "$@"
}

# lying N COMMAND...: the N-th of them goes wrong.
lying() {
	local LIE=$1

	shift
	export LIE
	watched "$@"
}

MERGE=("$SNAPMERGE" --origin origin --cow cow)

# Not where the program takes no libraries.
setup_liar() {
	[ -e "$BATS_FILE_TMPDIR/liar.so" ] ||
		skip "the library could not be built"
	store --count 10
	lying 1 "${MERGE[@]}" --reflink never
	[ -s writes ] || skip "the program does without the C library"
	differ origin merged
}

@test "the library lies, and without --verify nobody sees it" {
	setup_liar
}

@test "a merge with --verify is right, of any kind of store" {
	local sectors pattern

	for pattern in scattered one reversed shuffled; do
		store --pattern "$pattern" --count 400 --origin-size 4M \
			--sparse-origin
		run -0 merge --verify --batch-size 256K
		cmp origin merged
	done
	for sectors in 1 128; do
		store --chunk "$sectors" --origin-size 1000001 --list 0,15,5
		run -0 merge --verify
		cmp origin merged
	done
	store --chunk 32 --origin-size 1000001 --list 61,0
	run -0 merge --verify
	cmp origin merged
	store --chunk 16384 --list 0,1 --origin-size 10000001
	run -0 merge --verify --batch-size 1M
	cmp origin merged
}

@test "a device with --verify is right" {
	store --count 400 --origin-size 4M --pattern shuffled
	attach origin
	run -0 snapmerge --origin "$device" --cow cow --verify
	detach_all
	cmp origin merged
}

@test "stopped and killed with --verify, it goes on" {
	store --count 500 --pattern shuffled
	slowly --verify
	kill -KILL "$pid"
	finish 137
	[ "$(live)" -gt 0 ]
	run -0 merge --verify
	cmp origin merged
}

# found [BYTE]: a lie in the first write is found, and what it says is true.
found() {
	local offset line

	export BYTE=${1:-0}
	cp cow cow.before
	run -1 --separate-stderr lying 1 "${MERGE[@]}" --verify --reflink never
	line=${stderr_lines[0]}
	echo "$line"
	[[ $line =~ ^snapmerge:\ origin:\ chunk\ ([0-9]+),\ ([0-9]+)\ bytes\ at\ offset\ ([0-9]+),\ does\ not\ read\ back\ as\ it\ was\ written: ]]
	[ "${BASH_REMATCH[3]}" = $((BASH_REMATCH[1] * chunk)) ]
	offset=$(head -n 1 writes)
	[ "$BYTE" = last ] || [ "${BASH_REMATCH[3]}" = $((${offset% *} + BYTE / chunk * chunk)) ]
	[[ ${stderr_lines[1]} == "snapmerge: 0 of "*" chunks are committed; the origin is half merged, do not use it: run the same command again once the cause is gone" ]]
	cmp cow cow.before
	run -0 merge --verify
	cmp origin merged
}

@test "a disk that lies is found out, and nothing is cleared" {
	chunk=4096
	setup_liar
	store --count 100
	found
	store --count 100 --pattern one
	found 5000
	store --count 100 --pattern reversed
	found last
	chunk=512
	store --chunk 1 --count 100 --pattern shuffled
	found 100
	chunk=65536
	store --chunk 128 --count 20
	found last
}

@test "a lie in the last bytes of a cut-off origin is found out" {
	chunk=16384
	setup_liar
	store --chunk 32 --origin-size 1000001 --list 61
	found last
	store --chunk 32 --origin-size 999425 --list 61
	found
}

@test "a lie in a later batch clears the earlier ones only" {
	setup_liar
	store --count 200 --pattern one
	run -1 lying 3 "${MERGE[@]}" --verify --reflink never --batch-size 64K
	[ "$(live)" = $((200 - 2 * 16)) ]
	run -0 merge --verify
	cmp origin merged
}

@test "a lie is told to programs, with its offset" {
	setup_liar
	store --count 100 --pattern one
	run -1 --separate-stderr lying 1 "${MERGE[@]}" --verify --json \
		--reflink never
	echo "$output"
	[[ $output == '{"mode": "merge", "result": "failed", "exit_code": 1, '*'"file": "origin", "offset": '"$(cut -d' ' -f1 writes | head -n 1)"', '*'"committed": 0, '* ]]
}

@test "a lie on the way to a new image: there is none" {
	setup_liar
	store --count 100
	remember origin cow
	run -0 "${MERGE[@]}" --verify --output new --reflink never
	cmp new merged
	rm new
	VICTIM=new.snapmerge-partial run -1 --separate-stderr lying 3 \
		"${MERGE[@]}" --verify --output new --reflink never
	[ "${stderr_lines[1]}" = "$UNTOUCHED" ]
	[ ! -e new ]
	[ ! -e new.snapmerge-partial ]
	unchanged
}

@test "what the origin holds already is not written" {
	store --count 300
	cp merged origin
	touch --date=@1000000000 origin
	run -0 --separate-stderr merge --skip-identical --json
	cmp origin merged
	[ "$(stat --format=%Y origin)" = 1000000000 ]
	[[ $output == *'"identical_bytes": '$((300 * 4096))', '*'"origin_touched": false'* ]]
	run -0 merge
	[ "$output" = "snapmerge: nothing left to merge" ]
}

# equal_but CHUNK...: origin holds what it must in all but those chunks.
equal_but() {
	local it

	cp merged half
	for it in "$@"; do
		dd if=origin of=half bs=4096 skip="$it" seek="$it" count=1 \
			conv=notrunc status=none
	done
	mv half origin
}

@test "only what differs is written" {
	setup_liar
	store --list 3,4,5,6,7,100,50,51,1
	equal_but 4 5 100
	run -0 watched "${MERGE[@]}" --skip-identical --reflink never
	cmp origin merged
	[ "$(sort -n writes)" = "16384 8192
409600 4096" ]
}

@test "a byte makes a chunk another" {
	setup_liar
	store --list 3,4
	cp merged origin
	printf x | dd of=origin bs=1 seek=20479 conv=notrunc status=none
	printf y | dd of=origin bs=1 seek=12288 conv=notrunc status=none
	run -0 watched "${MERGE[@]}" --skip-identical --reflink never
	cmp origin merged
}

@test "stores of all kinds with --skip-identical" {
	local pattern

	for pattern in scattered one reversed shuffled; do
		store --pattern "$pattern" --count 400 --origin-size 4M
		dd if=merged of=origin bs=1M count=2 conv=notrunc status=none
		run -0 merge --skip-identical --verify --batch-size 256K
		cmp origin merged
	done
	store --chunk 32 --origin-size 1000001 --list 61,0
	cp merged origin
	run -0 merge --skip-identical
	cmp origin merged
	store --chunk 16384 --list 0,1 --origin-size 10000001
	dd if=merged of=origin bs=1M seek=2 skip=2 conv=notrunc status=none
	run -0 merge --skip-identical --batch-size 1M
	cmp origin merged
}

@test "a merge that was killed writes the rest only, with --skip-identical" {
	store --count 500 --pattern shuffled
	slowly --skip-identical
	kill -KILL "$pid"
	finish 137
	[ "$(live)" -gt 0 ]
	run -0 merge --skip-identical
	cmp origin merged
}

@test "a dry run with --skip-identical says how much is equal" {
	store --list 3,4,5,6,7,100,50,51,1
	equal_but 4 5 100
	remember origin cow
	run -0 merge --dry-run --skip-identical --json
	[[ $output == *'"identical": '$((6 * 4096))[^0-9]* ]]
	run -0 merge --dry-run --skip-identical
	grep -q "^identical: *24576 bytes" <<< "$output"
	run -0 merge --dry-run
	run ! grep -q "^identical" <<< "$output"
	unchanged
}
