#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# --discard: the COW's space comes back while it is merged.
load helpers

# used FILE: KiB on the disk.
used() {
	du --block-size=1K "$1" | cut -f1
}

shrunk() {
	[ "$(used "$1")" -lt "$2" ]
}

# Header and areas are as in the COW that was merged without.
same_table() {
	local area

	cmp --bytes=4096 cow plain.cow || return
	for ((area = 1; area * 4096 < $(stat --format=%s cow); area += 257)); do
		cmp --bytes=4096 --ignore-initial=$((area * 4096)) \
			cow plain.cow || return
	done
}

@test "the COW shrinks to its metadata, and that is as without" {
	store --count 1500 --origin-size 16M --prealloc --pattern shuffled
	cp origin plain.origin
	cp cow plain.cow
	[ "$(used cow)" -ge 6000 ]
	run -0 snapmerge --origin plain.origin --cow plain.cow
	run -0 merge --discard --batch-size 1M
	cmp origin merged
	same_table
	[ "$(used cow)" -ge $((7 * 4)) ] # header and six areas keep their blocks
	[ "$(used cow)" -lt 128 ]
	[ "$(stat --format=%s cow)" = "$(stat --format=%s plain.cow)" ]
	run -0 merge
	[ "$output" = "snapmerge: nothing left to merge" ]
}

@test "space that is not taken back does not unmake the merge" {
	need strace
	store --count 20 --pattern one
	run -1 --separate-stderr strace --quiet=all --follow-forks \
		--output=/dev/null --trace=fallocate \
		--inject=fallocate:error=EIO:when=2 \
		"$SNAPMERGE" --origin origin --cow cow --discard
	[[ ${stderr_lines[0]} == "snapmerge: cow: cannot discard "*": Input/output error" ]]
	[ "${stderr_lines[1]}" = \
		"snapmerge: all chunks are committed; the origin is merged and may be used" ]
	cmp origin merged
	run -0 merge
	[ "$output" = "snapmerge: nothing left to merge" ]
}

@test "the metadata stay at every moment, whatever the chunk size" {
	local sectors

	for sectors in 1 8 64; do
		store --chunk "$sectors" --count 400 --origin-size 16M \
			--pattern shuffled
		cp cow cow.before
		start "$SNAPMERGE" --origin origin --cow cow --discard \
			--rate-limit $((sectors * 100))K --batch-size 1
		until_true differ cow cow.before
		sleep 0.1
		kill -KILL "$pid"
		finish 137
		[ "$(live)" -gt 0 ]
		run -0 merge --discard
		cmp origin merged
	done
}

@test "the COW shrinks while it is merged" {
	store --count 1500 --origin-size 16M --prealloc
	slowly --discard
	until_true shrunk cow 5500
	kill -STOP "$pid" # both files at one moment
	[ "$(live)" -gt 0 ]
	kill -CONT "$pid"
	kill -TERM "$pid"
	finish 3
	[ "$(live)" -gt 0 ]
	run -0 merge --discard
	cmp origin merged
}

@test "stopped at once after a commit, the origin is known again" {
	local left

	store --count 300 --pattern one
	run -3 merge --discard --max-time 1s --rate-limit 256K --batch-size 16K
	left=$(live)
	run -0 --separate-stderr merge --discard --json
	[[ $output == *'"merged_before": '$((300 - left))', '* ]]
	cmp origin merged
}

# On what is left of the disk there is no room for what the origin takes.
@test "origin and COW on a disk that would overflow" {
	need mkfs.ext4
	truncate --size 64M image
	mkfs.ext4 -q -m 0 -O ^has_journal image
	mounted disk -o loop image
	"$MKSTORE" --sparse-origin --origin-size 64M --count 9500 \
		disk/origin disk/cow merged > log
	run -1 --separate-stderr snapmerge --origin disk/origin --cow disk/cow
	[[ $stderr == *"No space left on device"* ]]
	"$MKSTORE" --sparse-origin --origin-size 64M --count 9500 \
		disk/origin disk/cow merged > log
	run -0 snapmerge --origin disk/origin --cow disk/cow --discard
	cmp disk/origin merged
	[ "$(used disk/cow)" -lt 1024 ]
}

# With a little room, batches begin tiny, and must not stay so.
@test "a disk that has overflowed goes on with --discard" {
	need mkfs.ext4
	truncate --size 20M image
	mkfs.ext4 -q -m 0 -O ^has_journal image
	mounted disk -o loop image
	fallocate -l 512K disk/room
	"$MKSTORE" --sparse-origin --origin-size 20M --count 2800 \
		disk/origin disk/cow merged > log
	run -1 snapmerge --origin disk/origin --cow disk/cow
	rm disk/room
	run -0 timeout 60 "$SNAPMERGE" --origin disk/origin --cow disk/cow \
		--discard --verbose
	[ "$(grep -c ": commit " <<< "$output")" -lt 200 ]
	cmp disk/origin merged
}

@test "blocks that are shared" {
	need mkfs.xfs
	truncate --size 320M xfs
	mkfs.xfs -q -m reflink=1 xfs || skip "mkfs.xfs cannot make one"
	mounted "$PWD/disk" -o loop xfs
	"$MKSTORE" --count 1500 --origin-size 16M disk/origin disk/cow merged \
		> log
	run -0 snapmerge --origin disk/origin --cow disk/cow --discard \
		--reflink always --batch-size 1M
	cmp disk/origin merged
	[ "$(used disk/cow)" -lt 1024 ]
}

# device_shrinks [OPTION]...: over the COW, which gives back what it is told to.
device_shrinks() {
	attach cow "$@"
	[ "$(used cow)" -gt 3000 ]
	run -0 snapmerge --origin origin --cow "$device" --discard \
		--batch-size 512K
	detach_all
	cmp origin merged
	[ "$(used cow)" -lt 1024 ]
	run -0 merge
	[ "$output" = "snapmerge: nothing left to merge" ]
}

@test "a device is told what is free" {
	store --count 1000 --pattern shuffled
	device_shrinks
	store --count 1000
	device_shrinks --sector-size 4096
}

@test "a device with sectors larger than the chunks" {
	store --chunk 1 --count 3000 --pattern shuffled --origin-size 4M \
		--cow-size 2M
	attach cow --sector-size 4096
	run -0 snapmerge --origin origin --cow "$device" --discard
	detach_all
	cmp origin merged
}

@test "a file system that cannot is an error before anything is written" {
	mounted "$PWD/memory" -t ramfs none
	"$MKSTORE" --count 20 memory/origin memory/cow > log
	cd memory || return
	remember origin cow
	run -1 --separate-stderr merge --discard
	message_is cow "cannot give space back: Operation not supported" \
		"$UNTOUCHED"
	unchanged
	cd "$BATS_TEST_TMPDIR" || return
}

@test "a dry run with --discard" {
	store
	remember origin cow
	run -0 --separate-stderr merge --dry-run --discard
	[ -z "$stderr" ]
	unchanged
}

@test "nothing is given back of what is refused" {
	store --list 1:2,1:3
	remember origin cow
	run -4 merge --discard
	unchanged
}

# The first request is the question whether it can be had at all.
broken_punch() {
	cat > punch.c << 'END'
#include <errno.h>
#include <sys/stat.h>
#include <sys/types.h>

static int fail(int fd, off_t at)
{
	struct stat st;

	if (!fstat(fd, &st) && at >= st.st_size)
		return 0;
	errno = EIO;
	return -1;
}

int fallocate(int fd, int mode, off_t at, off_t len);
int fallocate64(int fd, int mode, off_t at, off_t len);

int fallocate(int fd, int mode, off_t at, off_t len)
{
	(void)mode;
	(void)len;
	return fail(fd, at);
}

int fallocate64(int fd, int mode, off_t at, off_t len)
{
	(void)mode;
	(void)len;
	return fail(fd, at);
}
END
	"${CC:-cc}" -shared -fPIC -o punch.so punch.c ||
		skip "the library cannot be built"
}

@test "a request that fails is an error, and what it says is true" {
	local committed

	broken_punch
	store --count 300
	status=0
	LD_PRELOAD=$PWD/punch.so "$SNAPMERGE" --origin origin --cow cow \
		--discard --batch-size 256K 2> err || status=$?
	[ "$status" = 1 ] || skip "the program does without the C library"
	cat err
	[[ $(sed -n 1p err) == "snapmerge: cow: cannot discard "*": Input/output error" ]]
	[[ $(sed -n 2p err) =~ ^snapmerge:\ ([0-9]+)\ of\ 300\ chunks\ are\ committed ]]
	committed=${BASH_REMATCH[1]}
	[ "$(live)" = $((300 - committed)) ]
	run -0 merge
	cmp origin merged
}
