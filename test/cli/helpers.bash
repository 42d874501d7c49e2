# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# What the files of this directory share. Each test runs in a directory of its
# own; what it attached, mounted or started is gone when it ends, also if it
# failed. SNAPMERGE and MKSTORE name the programs, if not those of this tree.

bats_require_minimum_version 1.5.0

SNAPMERGE=$(realpath -- "${SNAPMERGE:-$BATS_TEST_DIRNAME/../../snapmerge}")
MKSTORE=$(realpath -- "${MKSTORE:-$BATS_TEST_DIRNAME/../../build/mkstore}")
# shellcheck disable=SC2034 # used by the tests
FIXTURES=$BATS_TEST_DIRNAME/../fixtures

# What the advice says after each kind of failure.
# shellcheck disable=SC2034 # used by the tests
UNTOUCHED='snapmerge: origin and COW are as they were; run the same command again once the cause is gone'
# shellcheck disable=SC2034
UNTOUCHED_BUSY='snapmerge: origin and COW are as they were; run the same command again when nothing else uses them'
# shellcheck disable=SC2034
UNTOUCHED_REFUSED='snapmerge: origin and COW are as they were; check that they are the right ones'

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	devices=()
	mounts=()
	running=()
}

teardown() {
	local it

	for it in "${running[@]}"; do
		kill -KILL "$it" 2> /dev/null || true
		wait "$it" 2> /dev/null || true
	done
	for it in "${mounts[@]}"; do
		umount "$it" || umount --lazy "$it"
	done
	for it in "${devices[@]}"; do
		losetup --detach "$it"
	done
	cd /
}

snapmerge() {
	"$SNAPMERGE" "$@"
}

merge() {
	snapmerge --origin origin --cow cow "$@"
}

# store ARGUMENT...: an origin, a cow, and what must come of them in merged.
store() {
	"$MKSTORE" "$@" origin cow merged > store.log
}

need_root() {
	[ "$(id -u)" = 0 ] || skip "only root can $1"
}

need() {
	command -v "$1" > /dev/null || skip "$1 is missing"
}

# attach FILE [OPTION]...: $device is then a loop device over FILE.
attach() {
	local file=$1

	shift
	need_root "attach loop devices"
	need losetup
	device=$(losetup --find --show "$@" "$file" 2> losetup.log) ||
		skip "no loop device: $(cat losetup.log)"
	devices+=("$device")
}

detach_all() {
	local it

	for it in "${devices[@]}"; do
		losetup --detach "$it"
	done
	devices=()
}

# mounted DIRECTORY ARGUMENT...: mount there, until the test ends.
mounted() {
	local dir=$1

	shift
	need_root mount
	mkdir -p "$dir"
	mount "$@" "$dir" 2> mount.log || skip "no mount: $(cat mount.log)"
	mounts+=("$dir")
}

# start COMMAND...: in the background, as $pid, with signals as in a terminal.
start() {
	env --default-signal=INT,HUP,TERM "$@" \
		> started.out 2> started.err 3>&- &
	pid=$!
	running+=("$pid")
}

# finish STATUS: what was started ends with it.
finish() {
	local status=0

	wait "$pid" || status=$?
	running=()
	[ "$status" = "$1" ] || {
		echo "ended with $status, not $1:"
		cat started.err
		return 1
	}
}

# until_true COMMAND...: wait for it, ten seconds at most.
until_true() {
	local i

	for ((i = 0; i < 1000; i++)); do
		"$@" && return
		sleep 0.01
	done
	echo "never true: $*"
	return 1
}

differ() {
	! cmp -s "$1" "$2"
}

# slowly [OPTION]...: a merge in the background that takes seconds; returns as
# soon as it has committed something.
slowly() {
	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow --rate-limit 1M \
		--batch-size 256K "$@"
	until_true differ cow cow.before
}

# The number of exceptions that the store has now, from its bytes alone; the
# snapshot's view is as it was.
live() {
	"$MKSTORE" --view origin cow view > live.log || return
	cmp view merged >&2 || return
	rm view
	sed 's/ .*//' live.log
}

# remember FILE...: their contents and times. unchanged: they have them still.
remember() {
	local file

	remembered=("$@")
	touch --date=@1000000000 "$@"
	for file in "$@"; do
		cp --sparse=always "$file" "$file.remembered"
	done
}

unchanged() {
	local file

	for file in "${remembered[@]}"; do
		cmp "$file" "$file.remembered" || return
		[ "$(stat --format=%Y "$file")" = 1000000000 ] || {
			echo "$file was written to"
			return 1
		}
	done
}

# The whole of stderr after `run --separate-stderr`, line by line.
stderr_is() {
	# shellcheck disable=SC2154 # stderr is set by run
	diff <(printf '%s\n' "$@") <(printf '%s\n' "$stderr")
}

# message_is FILE REASON ADVICE: what a failure says, and nothing on stdout.
message_is() {
	# shellcheck disable=SC2154 # output is set by run
	[ -z "$output" ] || {
		echo "stdout: $output"
		return 1
	}
	stderr_is "snapmerge: $1: $2" "$3"
}
