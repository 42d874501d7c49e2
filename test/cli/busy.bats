#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# Hands off what somebody else uses: exit 5, and both files as they were.
load helpers

LOCKED='in use: another snapmerge or a virtual machine holds a lock on it'
MOUNTED='in use: mounted, or held by device mapper or another program'

# busy FILE REASON: a merge is refused so.
busy() {
	run -5 --separate-stderr merge
	message_is "$1" "$2" "$UNTOUCHED_BUSY"
}

locked() {
	grep -q ":$(stat --format=%i "$1") " /proc/locks
}

@test "a second snapmerge on the same files is busy" {
	store
	slowly
	run -5 --separate-stderr merge
	message_is origin "$LOCKED" "$UNTOUCHED_BUSY"
	kill -TERM "$pid"
	finish 3
	run -0 merge
	cmp origin merged
}

@test "a second snapmerge with one of the files is busy" {
	store
	cp origin origin2
	cp cow cow2
	slowly
	run -5 --separate-stderr snapmerge --origin origin2 --cow cow
	message_is cow "$LOCKED" "$UNTOUCHED_BUSY"
	run -5 --separate-stderr snapmerge --origin origin --cow cow2
	message_is origin "$LOCKED" "$UNTOUCHED_BUSY"
	kill -TERM "$pid"
	finish 3
}

# hold FILE: another process holds a lock on a byte of it.
hold() {
	need python3
	python3 -c '
import fcntl, sys, time
f = open(sys.argv[1], "r+b")
fcntl.lockf(f, fcntl.LOCK_SH, 1, 201)
time.sleep(60)' "$1" 3>&- &
	running+=("$!")
	until_true locked "$1"
}

@test "an origin with a byte locked by another program is busy" {
	store
	remember origin cow
	hold origin
	busy origin "$LOCKED"
	unchanged
}

@test "a COW with a byte locked by another program is busy" {
	store
	remember origin cow
	hold cow
	busy cow "$LOCKED"
	unchanged
}

# machine FILE: a virtual machine, as far as files can tell, has it open.
machine() {
	need qemu-io
	mkfifo control
	qemu-io -f raw "$1" < control > qemu.log 2>&1 3>&- &
	running+=("$!")
	exec 4> control
	until_true locked "$1"
}

@test "an origin that a virtual machine has open is busy" {
	store
	remember origin cow
	machine origin
	busy origin "$LOCKED"
	unchanged
}

@test "a COW that a virtual machine has open is busy" {
	store
	remember origin cow
	machine cow
	busy cow "$LOCKED"
	unchanged
}

@test "a virtual machine cannot open what is being merged" {
	need qemu-io
	store
	slowly
	run -1 qemu-io -f raw -c "read 0 512" origin
	echo "$output"
	[[ $output == *"Failed to "*lock* ]]
	run -1 qemu-io -f raw -c "read 0 512" cow
	kill -TERM "$pid"
	finish 3
	run -0 qemu-io -f raw -c "read 0 512" origin
}

@test "a file attached to a loop device is busy" {
	store
	remember origin cow
	attach origin --read-only
	busy origin "in use: attached to $device"
	detach_all
	attach cow --read-only
	busy cow "in use: attached to $device"
	unchanged
}

@test "a second name of a file attached to a loop device is busy" {
	store
	ln cow hard
	remember origin cow
	attach hard --read-only
	busy cow "in use: attached to $device"
	unchanged
}

@test "a mounted device is busy" {
	need mkfs.ext4
	store --origin-size 16M
	truncate --size 16M image
	mkfs.ext4 -q image
	attach image
	mounted mnt "$device"
	remember cow
	run -5 --separate-stderr snapmerge --origin "$device" --cow cow
	message_is "$device" "$MOUNTED" "$UNTOUCHED_BUSY"
	run -5 --separate-stderr snapmerge --origin origin --cow "$device"
	message_is "$device" "$MOUNTED" "$UNTOUCHED_BUSY"
	unchanged
}

@test "a device by two names is the same" {
	local name

	store
	attach cow
	mknod node b "$(stat --format=%Hr "$device")" \
		"$(stat --format=%Lr "$device")" || skip "no nodes can be made"
	: < node || skip "nodes cannot be opened here"
	remember cow
	for name in "$device" node; do
		run -5 --separate-stderr snapmerge --origin "$name" \
			--cow "$device"
		message_is "$device" "origin and COW are the same" \
			"$UNTOUCHED_BUSY"
	done
	unchanged
}

@test "a second snapmerge on the same devices is busy" {
	store
	attach origin
	local origin_device=$device
	attach cow
	cp cow cow.before
	start "$SNAPMERGE" --origin "$origin_device" --cow "$device" \
		--rate-limit 256K --batch-size 64K
	until_true differ cow cow.before
	run -5 --separate-stderr snapmerge --origin "$origin_device" \
		--cow "$device"
	message_is "$origin_device" "$MOUNTED" "$UNTOUCHED_BUSY"
	kill -TERM "$pid"
	finish 3
}
