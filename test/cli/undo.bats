#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# --undo: a merge that can be taken back, wherever it was stopped.
load helpers

# original ARGUMENT...: a store, and the origin as it was.
original() {
	rm -f undo undo.*
	store "$@"
	cp origin original
}

# shows COW FILE: the origin, seen through that store, reads like that file.
shows() {
	"$MKSTORE" --view origin "$1" seen > seen.log && cmp seen "$2" &&
		rm seen
}

# At every stop: both oracles hold, and no chunk is saved twice.
whole() {
	shows cow merged
	[ -e undo ] || return 0
	shows undo original
	run -0 snapmerge --check --cow undo --origin origin
}

# undone [OPTION]...: taken back, and nothing is left over.
undone() {
	run -0 snapmerge --origin origin --cow undo "$@"
	cmp origin original
	[ ! -e undo.snapmerge-partial ]
}

# there_and_back [OPTION]...: the merge is right, and so is taking it back.
there_and_back() {
	run -0 merge --undo undo "$@"
	cmp origin merged
	shows undo original
	run -0 snapmerge --check --cow undo --origin origin
	undone
}

# unpack FIXTURE: what a kernel wrote.
unpack() {
	need xz
	tar -xJf "$FIXTURES/$1.tar.xz"
	cp origin.before origin
	mv origin.before original
	mv origin.merged merged
}

@test "every pattern is taken back bit for bit" {
	local pattern

	for pattern in scattered runs one reversed shuffled; do
		original --pattern "$pattern" --count 700
		there_and_back --batch-size 512K
	done
}

@test "chunks of 512 bytes, 4 KiB and 64 KiB are taken back" {
	local sectors

	for sectors in 1 8 128; do
		original --chunk "$sectors" --count 90 --pattern shuffled
		there_and_back
		original --chunk "$sectors" --count 90 --pattern runs
		there_and_back --batch-size 64K
	done
}

@test "a chunk that the end of the origin cuts off is taken back" {
	original --chunk 32 --origin-size 1000001 --list 0,61,5
	there_and_back
	original --chunk 1 --origin-size 1000001 --list 1953,0,1952
	there_and_back
	original --chunk 128 --origin-size 65537 --list 1,0
	there_and_back --batch-size 1
}

@test "areas that are just full, and nearly, are taken back" {
	local count

	for count in 31 32 33 64; do
		original --chunk 1 --count "$count"
		there_and_back
	done
	original --chunk 1 --count 64
	there_and_back --batch-size 16K
	for count in 256 512; do
		original --count "$count" --pattern shuffled
		there_and_back
	done
	original --count 512
	there_and_back --batch-size 1M
}

@test "stores that a kernel wrote are taken back" {
	unpack dev-mixed4k
	there_and_back
	rm -rf ./*
	unpack dev-tail16k
	there_and_back --batch-size 64K
}

@test "chunks that travel in pieces are taken back" {
	original --chunk 16384 --count 2 --origin-size 20000001
	there_and_back --batch-size 1M
}

@test "with blocks that are shared it is taken back" {
	need mkfs.xfs
	truncate --size 320M xfs
	mkfs.xfs -q -m reflink=1 xfs || skip "mkfs.xfs cannot make one"
	mounted "$PWD/disk" -o loop xfs
	cd disk || return
	original --count 600 --pattern runs
	there_and_back --reflink always --batch-size 512K
	cd "$BATS_TEST_TMPDIR" || return
}

# A moment is a number of commits; 0 is as soon as the file is there.
@test "killed at many moments, both oracles hold, and the end is right" {
	local moment

	original --count 500 --pattern shuffled
	for moment in 0 1 2 3 4 5; do
		cp cow cow.before
		start "$SNAPMERGE" --origin origin --cow cow --undo undo \
			--rate-limit 2M --batch-size 64K
		if [ "$moment" = 0 ]; then
			until_true test -e undo
		else
			until_true differ cow cow.before
			sleep "0.0$((moment * 17 % 10))"
		fi
		kill -KILL "$pid"
		finish 137
		whole
	done
	run -0 merge --undo undo
	cmp origin merged
	whole
	undone
}

@test "SIGINT at many moments, both oracles hold, and the end is right" {
	local moment

	original --count 500
	for moment in 1 4 7; do
		cp cow cow.before
		start "$SNAPMERGE" --origin origin --cow cow --undo undo \
			--rate-limit 1M --batch-size 64K
		until_true differ cow cow.before
		sleep "0.0$moment"
		kill -INT "$pid"
		finish 3
		whole
	done
	run -0 merge --undo undo
	cmp origin merged
	undone
}

@test "chunks of 512 bytes, killed, go on in the same file" {
	original --chunk 1 --count 2000 --pattern shuffled
	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow --undo undo \
		--rate-limit 256K --batch-size 16K
	until_true differ cow cow.before
	kill -KILL "$pid"
	finish 137
	whole
	run -0 merge --undo undo
	cmp origin merged
	undone
}

@test "a merge taken back half way is as if it had not been" {
	local left

	original --count 1000 --pattern shuffled
	slowly --undo undo
	kill -TERM "$pid"
	finish 3
	left=$(live)
	[ "$left" -gt 0 ]
	[ "$left" -lt 1000 ]
	undone
}

@test "taking it back, interrupted, is finished by the same command" {
	original --count 500
	run -0 merge --undo undo
	cp undo undo.before
	start "$SNAPMERGE" --origin origin --cow undo --rate-limit 1M \
		--batch-size 64K
	until_true differ undo undo.before
	kill -KILL "$pid"
	finish 137
	shows undo original
	undone
}

@test "an undo store that is being merged itself is refused" {
	original --count 500
	run -0 merge --undo undo
	start "$SNAPMERGE" --origin origin --cow undo --rate-limit 1M \
		--batch-size 64K
	cp undo undo.before
	until_true differ undo undo.before
	kill -TERM "$pid"
	finish 3
	store --count 500 --seed 2
	refused "is itself being merged: finish that first"
}

@test "taking back the taking back is equal to the merge" {
	original --count 600 --pattern shuffled
	"$MKSTORE" --view origin cow expected > first
	run -0 merge --undo undo
	run -0 snapmerge --origin origin --cow undo --undo redo
	cmp origin original
	"$MKSTORE" --view origin redo seen > second
	cmp seen expected
	cmp first second
	run -0 snapmerge --origin origin --cow redo --undo undo2
	cmp origin merged
	shows undo2 original
}

# refused REASON [OPTION]...: exit 4 for it, and nothing is written anywhere.
refused() {
	local reason=$1

	shift
	remember origin cow undo
	run -4 --separate-stderr merge --undo undo "$@"
	echo "$stderr"
	[[ ${stderr_lines[0]} == "snapmerge: undo: "*"$reason"* ]]
	[ "${stderr_lines[1]}" = "$UNTOUCHED_REFUSED" ]
	unchanged
	run -4 merge --undo undo --dry-run "$@"
	unchanged
}

@test "a file that is no store is refused" {
	original
	printf 'my diary\n' > undo
	refused "not a persistent snapshot store"
	: > undo
	refused "not a persistent snapshot store"
	head -c 100000 /dev/urandom > undo
	refused "not a persistent snapshot store"
	truncate --size 0 undo
	truncate --size 4M undo
	refused "blank"
}

@test "a store with chunks of another size is refused" {
	original
	"$MKSTORE" --chunk 16 --count 10 other undo > log
	refused "chunks of 8192 bytes, not of 4096 as in the COW"
}

@test "a store that was invalidated, or is damaged, is refused" {
	original
	"$MKSTORE" --invalid --count 10 other undo > log
	refused "invalid"
	"$MKSTORE" --list 1:2,1:3 other undo > log
	refused "twice"
}

@test "a store of a larger origin is refused" {
	original
	"$MKSTORE" --origin-size 16M --list 2500 other undo > log
	refused "past the end"
}

@test "the undo store of a merge that was finished is refused" {
	original --count 100
	run -0 merge --undo undo
	store --count 100 --seed 2
	refused ""
}

# The file has room for it, and no chunk is in both.
@test "the undo store of another merge that was not finished is refused" {
	original --origin-size 8M --count 500 --pattern one
	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow --undo undo \
		--rate-limit 1M --batch-size 64K
	until_true differ cow cow.before
	kill -TERM "$pid"
	finish 3
	"$MKSTORE" --list 1900,1901,1902 other cow > log
	refused "not the undo store of this merge"
}

@test "a file that is too small for the rest of the merge is refused" {
	original --count 500
	slowly --undo undo
	kill -TERM "$pid"
	finish 3
	truncate --size $((258 * 4096)) undo
	refused ""
}

# begun [OPTION]...: a merge that has committed something, and was stopped.
begun() {
	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow --rate-limit 1M \
		--batch-size 64K "$@"
	until_true differ cow cow.before
	kill -TERM "$pid"
	finish 3
}

@test "a file with a gap, of a merge that went on without it, is refused" {
	original --count 700
	begun --undo undo
	begun
	refused "not the undo store of this merge"
}

# What was merged by then cannot be saved any more.
@test "a merge that is under way without an undo file cannot get one" {
	original --count 500
	begun
	remember origin cow
	run -4 --separate-stderr merge --undo undo
	[[ ${stderr_lines[0]} == "snapmerge: undo: "* ]]
	unchanged
	[ ! -e undo ]
	run -0 merge
	cmp origin merged
}

@test "origin or COW as the undo file is refused, by whatever name" {
	local file

	original
	ln cow hard
	ln --symbolic origin soft
	remember origin cow
	for file in origin cow hard soft ./cow "$PWD/origin"; do
		run -5 --separate-stderr merge --undo "$file"
		message_is "$file" "the undo file is origin or COW" \
			"$UNTOUCHED_BUSY"
		run -5 merge --undo "$file" --dry-run
	done
	unchanged
}

@test "an undo file that cannot be made is an error, and nothing is written" {
	original
	mkdir dir
	ln --symbolic nowhere dangling
	remember origin cow
	run -1 --separate-stderr merge --undo missing/undo
	message_is missing/undo "cannot create: No such file or directory" \
		"$UNTOUCHED"
	run -1 merge --undo dir
	run -1 merge --undo dangling
	unchanged
	[ ! -e nowhere ]
}

@test "an undo file that another snapmerge writes is busy" {
	original --count 500
	mkdir two
	cp origin cow two
	slowly --undo undo
	run -5 snapmerge --origin two/origin --cow two/cow --undo undo
	cmp two/origin original
	kill -TERM "$pid"
	finish 3
}

# small SIZE: a file system of that size to put the undo file on.
small() {
	mounted small -t tmpfs -o "size=$1" none
}

@test "a full disk under the undo file stops it before the origin is touched" {
	original --count 500
	small 1M
	remember origin cow
	run -1 --separate-stderr merge --undo small/undo
	[[ ${stderr_lines[0]} == "snapmerge: small/undo: "*": No space left on device" ]]
	[ "${stderr_lines[1]}" = "$UNTOUCHED" ]
	unchanged
	mount -o remount,size=8M small
	run -0 merge --undo small/undo
	cmp origin merged
	run -0 snapmerge --origin origin --cow small/undo
	cmp origin original
}

@test "a full disk under the undo file half way: both oracles hold" {
	original --count 500
	small 1M
	run -1 --separate-stderr merge --undo small/undo --batch-size 128K
	[[ $stderr == *"No space left on device"*"half merged"* ]]
	shows cow merged
	shows small/undo original
	run -1 merge --undo small/undo --batch-size 128K
	shows cow merged
	shows small/undo original
	mount -o remount,size=8M small
	run -0 merge --undo small/undo --batch-size 128K
	cmp origin merged
	run -0 snapmerge --origin origin --cow small/undo
	cmp origin original
}

# The last line on stderr is a command.
@test "the command that takes it back works as it is printed" {
	local dir

	for dir in plain "two  words" "it's" "\$HOME \`id\` \"x\" * \\ ;" \
		-dash $'new\nline' "café"; do
		mkdir -p "./$dir"
		"$MKSTORE" --count 20 "./$dir/origin" "./$dir/cow" > log
		cp "./$dir/origin" original
		"$SNAPMERGE" --origin "$dir/origin" --cow "$dir/cow" \
			--undo "$dir/the undo" 2> err
		differ "./$dir/origin" original
		eval "$(sed '1,/^snapmerge: to take it back: /{
			s/^snapmerge: to take it back: //
			t
			d
			}' err)"
		cmp "./$dir/origin" original
	done
}

@test "the file is sparse while it is empty, private, and under one name" {
	original --count 1000
	start "$SNAPMERGE" --origin origin --cow cow --undo undo \
		--rate-limit 256K --batch-size 64K
	until_true test -e undo
	kill -KILL "$pid"
	finish 137
	[ "$(stat --format=%a undo)" = 600 ]
	[ "$(stat --format=%s undo)" -gt 4000000 ]
	[ "$(du --block-size=1K undo | cut -f1)" -lt 2048 ]
}

@test "what a killed run left of the file is used again, not followed" {
	original --count 50
	head -c 9000000 /dev/urandom > undo.snapmerge-partial
	there_and_back
	store --count 50
	rm undo
	echo precious > precious
	ln --symbolic precious undo.snapmerge-partial
	run -1 merge --undo undo
	[ "$(cat precious)" = precious ]
}

# Killed between giving it its name and taking the other away.
@test "an undo file that kept its first name is not overwritten later" {
	original --count 50
	run -0 merge --undo undo
	ln undo undo.snapmerge-partial
	mv undo kept
	cp kept kept.before
	cp origin origin.before
	store --count 50 --seed 2
	run merge --undo undo
	[ "$status" = 0 ] || [ "$status" = 5 ]
	cmp kept kept.before
}

@test "with nothing to merge no undo file is made" {
	original --count 10
	run -0 merge
	run -0 merge --undo undo
	[ "$output" = "snapmerge: nothing left to merge" ]
	[ ! -e undo ]
	[ ! -e undo.snapmerge-partial ]
}

@test "a dry run makes no undo file" {
	original
	remember origin cow
	run -0 merge --undo undo --dry-run
	[ ! -e undo ]
	unchanged
}

@test "--quiet says nothing, --json says it beside stdout" {
	original --count 10
	run -0 merge --undo undo --quiet
	[ -z "$output" ]
	original --count 10
	run -0 --separate-stderr merge --undo undo --json
	[[ $output == "{"*"}" ]]
	[ "$stderr" = "snapmerge: to take it back: snapmerge --origin origin --cow undo" ]
}

@test "all options at once, interrupted, and taken back" {
	local all=(--undo undo --verify --discard --skip-identical --json)

	original --count 900 --pattern shuffled
	dd if=merged of=origin bs=1M count=2 conv=notrunc status=none
	cp origin original
	run -3 --separate-stderr merge "${all[@]}" --max-time 1s \
		--rate-limit 1M --batch-size 128K
	[[ $output == '{"mode": "merge", "result": "stopped", "exit_code": 3, '* ]]
	whole
	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow "${all[@]}" \
		--rate-limit 512K --batch-size 64K
	until_true differ cow cow.before
	kill -KILL "$pid"
	finish 137
	whole
	run -0 --separate-stderr merge "${all[@]}" --max-time 1h
	[[ $output == '{"mode": "merge", "result": "merged", "exit_code": 0, '* ]]
	[[ $output == *'"merged_before": '[1-9]* ]]
	cmp origin merged
	whole
	[ "$(du --block-size=1K cow | cut -f1)" -lt 1500 ]
	undone --verify --discard --skip-identical
}
