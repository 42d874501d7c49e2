#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# Stores that a real kernel wrote, beside what its own merge made of them.
load helpers

setup_file() {
	if ! command -v xz > /dev/null; then
		skip "xz is missing"
	fi
}

unpack() {
	tar -xJf "$FIXTURES/$1.tar.xz"
	mv origin.before origin
}

like_the_kernel() {
	unpack "$1"
	run -0 merge
	cmp origin origin.merged
	cmp cow cow.merged
}

@test "kernel store: mixed writes, three areas" {
	like_the_kernel dev-mixed4k
}

@test "kernel store: an origin that ends inside a chunk" {
	like_the_kernel dev-tail16k
}

@test "kernel store: a file system" {
	like_the_kernel dev-ext4
}

@test "kernel store: merged in tiny batches it is the same" {
	unpack dev-mixed4k
	run -0 merge --batch-size 1
	cmp origin origin.merged
	cmp cow cow.merged
}

@test "kernel store: what the kernel has merged has nothing left" {
	unpack dev-mixed4k
	mv origin.merged origin
	mv cow.merged cow
	remember origin cow
	run -0 merge
	unchanged
	[ "$output" = "snapmerge: nothing left to merge" ]
}

@test "kernel store: one that overflowed is refused and untouched" {
	unpack dev-overflow
	remember origin cow
	run -4 --separate-stderr merge
	message_is cow "invalid: the kernel gave this snapshot up (it overflowed or failed), chunks are missing" \
		"$UNTOUCHED_REFUSED"
	unchanged
}
