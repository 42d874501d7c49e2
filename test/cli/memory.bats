#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# Memory is bounded, whatever the store says: the peak of what is resident, in
# MiB, as the kernel counted it.
load helpers

# below LIMIT OPTION...: a merge with them peaks below that.
below() {
	local limit=$1 peak status=0

	shift
	env time --format=%M --output=peak --quiet "$SNAPMERGE" \
		--origin origin --cow cow "$@" || status=$?
	peak=$(($(tail -n 1 peak) / 1024))
	echo "exit $status, peak: $peak MiB"
	if [ "$peak" = 0 ] || [ "$peak" -ge "$limit" ]; then
		return 99
	fi
	return "$status"
}

# room GIB: data of zeros takes as much space as any other.
room() {
	env time --quiet true 2> /dev/null || skip "the command time is missing"
	[ "$(df --output=avail --block-size=1G . | tail -n 1)" -ge "$1" ] ||
		skip "$1 GiB of space are missing"
}

# four_gib PATTERN: a store of 4 GiB in a million chunks.
four_gib() {
	"$MKSTORE" --origin-size 8G --sparse-origin --metadata-only \
		--count 1048576 --pattern "$1" origin cow
}

# All of the table has been verified by then, and all buffers have been in use:
# a small file system ends it sooner than four gibibytes would.
@test "a store of 4 GiB takes less than 96 MiB in its first 512 MiB" {
	room 1
	mounted small -t tmpfs -o size=512M none
	four_gib scattered
	cp --sparse=always origin small/origin
	rm origin
	ln -s small/origin origin
	run -1 below 96
	echo "$output"
	[[ $output == *"No space left on device"* ]]
	[[ $output == *"exit 1, peak: "* ]]
	[ "$(du --dereference --block-size=1M origin | cut -f1)" -ge 500 ]
}

@test "a store of 4 GiB takes less than 96 MiB to its end" {
	[ -n "$LONG" ] || skip "takes minutes: set LONG to run it"
	room 6
	four_gib one
	below 96
	rm origin
}

@test "chunks of 1 GiB take less than 96 MiB" {
	room 1
	"$MKSTORE" --chunk 2097152 --origin-size 256M --sparse-origin \
		--metadata-only --count 1 origin cow
	below 96
}

# Twice the buffers: what is compared is held beside what it is compared with.
@test "comparing takes less than 96 MiB, too" {
	room 1
	store --origin-size 128M --count 20000 --pattern shuffled
	below 96 --verify --skip-identical --undo undo
	cmp origin merged
}

@test "a batch size of 4 MiB takes less than 24 MiB" {
	room 1
	store --origin-size 64M --count 8000 --pattern shuffled
	below 24 --batch-size 4M
	cmp origin merged
}
