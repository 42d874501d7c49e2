#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# --output: the merged image as a new file, and nothing else is touched.
load helpers

HALF='another snapmerge or a virtual machine holds a lock on it'

preview() {
	merge --output new "$@"
}

# previews ARGUMENT...: such a store; new is right, the sides are untouched.
previews() {
	rm -f new
	store "$@"
	remember origin cow
	run -0 --separate-stderr preview
	[ -z "$output" ]
	[[ $stderr == "snapmerge: new: written, with "*" chunks merged" ]]
	cmp new merged
	unchanged
	only_new
}

only_new() {
	[ ! -e new.snapmerge-partial ]
}

no_new() {
	[ ! -e new ]
	only_new
}

# slow_preview [OPTION]...: in the background; returns when its file is there.
slow_preview() {
	start "$SNAPMERGE" --origin origin --cow cow --output new \
		--rate-limit 512K "$@"
	until_true test -s new.snapmerge-partial
	sleep 0.05
}

shared() {
	need mkfs.xfs
	truncate --size 320M xfs
	mkfs.xfs -q -m reflink=1 xfs || skip "mkfs.xfs cannot make one"
	mounted "$PWD/disk" -o loop xfs
}

free_blocks() {
	sync --file-system disk
	df --output=avail --block-size=1K disk | tail -n 1
}

@test "the new file is the merged image, of any kind of store" {
	local sectors pattern

	for pattern in scattered one reversed shuffled; do
		previews --pattern "$pattern" --count 400 --origin-size 4M
	done
	for sectors in 1 128; do
		previews --chunk "$sectors" --origin-size 8000001 --list 0,61,5
	done
	previews --chunk 32 --origin-size 1000001 --list 0,61,5
	previews --chunk 16384 --list 0,1 --origin-size 10000001
}

@test "with nothing to merge it is a copy" {
	previews --count 0
	cmp new origin
}

@test "stores that a kernel wrote" {
	need xz
	tar -xJf "$FIXTURES/dev-tail16k.tar.xz"
	mv origin.before origin
	remember origin cow
	run -0 preview
	cmp new origin.merged
	unchanged
}

@test "--json tells it to programs" {
	store --count 20
	run -0 --separate-stderr preview --json
	[ -z "$stderr" ]
	[[ $output == '{"mode": "output", "result": "written", "exit_code": 0, "output": "new", '*"}" ]]
}

@test "holes stay holes" {
	store --sparse-origin --origin-size 200M --count 100
	run -0 preview --reflink never
	cmp new merged
	[ "$(stat --format=%s new)" = $((200 << 20)) ]
	[ "$(du --block-size=1K new | cut -f1)" -lt 4096 ]
}

@test "on read-only media" {
	truncate --size 24M image
	need mkfs.ext4
	mkfs.ext4 -q image
	mounted media -o loop image
	store --count 200
	mv origin cow media
	umount media
	# shellcheck disable=SC2034 # used by teardown
	mounts=()
	mounted media -o loop,ro image
	run -0 snapmerge --origin media/origin --cow media/cow --output new
	cmp new merged
}

# Without capabilities even root needs permission.
@test "with files that may only be read" {
	need_root "drop capabilities"
	need setpriv
	store --count 200
	remember origin cow
	chmod 444 origin cow
	run -1 setpriv --bounding-set=-all --inh-caps=-all "$SNAPMERGE" \
		--origin origin --cow cow
	run -0 setpriv --bounding-set=-all --inh-caps=-all "$SNAPMERGE" \
		--origin origin --cow cow --output new
	cmp new merged
	unchanged
}

@test "what is there already is refused and stays" {
	store --count 20
	echo mine > new
	remember origin cow new
	run -1 --separate-stderr preview
	message_is new "cannot create: File exists" "$UNTOUCHED"
	unchanged
	rm new
	ln --symbolic nowhere new
	run -1 preview
	[ ! -e nowhere ]
	rm new
	mkdir new
	run -1 preview
	run -1 merge --output origin
	run -1 merge --output cow
	run -1 merge --output missing/new
	[ ! -e new.snapmerge-partial ]
	# shellcheck disable=SC2034 # used by unchanged
	remembered=(origin cow)
	unchanged
}

@test "what appears meanwhile stays, and nobody is told of a half merge" {
	store --count 100
	remember origin cow
	slow_preview
	echo mine > new
	finish 1
	[ "$(cat new)" = mine ]
	only_new
	[ "$(cat started.err)" = "snapmerge: new: cannot create: File exists
$UNTOUCHED" ]
	unchanged
}

@test "killed, there is no new file; what it left is used again" {
	store --count 200
	remember origin cow
	slow_preview
	kill -KILL "$pid"
	finish 137
	[ ! -e new ]
	[ -e new.snapmerge-partial ]
	head -c 20000000 /dev/urandom > new.snapmerge-partial
	run -0 preview
	cmp new merged
	only_new
	unchanged
}

# Such as a file that was killed between its two names, and then moved.
@test "what it left is not written to if it has another name by now" {
	store --count 20
	echo precious > kept
	ln kept new.snapmerge-partial
	run preview
	[ "$(cat kept)" = precious ]
	rm -f new.snapmerge-partial
	ln --symbolic kept new.snapmerge-partial
	rm -f new
	run -1 preview
	[ "$(cat kept)" = precious ]
	[ ! -e new ]
}

@test "SIGINT, SIGTERM: stopped, and nothing is left" {
	local signal

	store --count 200
	remember origin cow
	for signal in INT TERM; do
		slow_preview
		kill -"$signal" "$pid"
		finish 3
		[ "$(cat started.err)" = "snapmerge: stopped as asked; new was not written" ]
		no_new
	done
	slow_preview --json
	kill -INT "$pid"
	finish 3
	grep -q '^{"mode": "output", "result": "stopped", "exit_code": 3, .*}$' \
		started.out
	unchanged
}

@test "a full disk: nothing is left" {
	store --count 200
	remember origin cow
	mounted small -t tmpfs -o size=4M none
	run -1 --separate-stderr merge --output small/new
	[[ ${stderr_lines[0]} == "snapmerge: small/new: "*": No space left on device" ]]
	[ "${stderr_lines[1]}" = "$UNTOUCHED" ]
	[ -z "$(ls -A small)" ]
	unchanged
}

# device SIZE: a loop device of that size with something on it.
new_device() {
	head -c "$1" /dev/urandom > backing
	attach backing
}

@test "a device as the new image" {
	store --sparse-origin --origin-size 4M --count 100
	remember origin cow
	new_device 4M
	run -0 merge --output "$device"
	detach_all
	cmp backing merged
	unchanged
	new_device 5M
	run -0 merge --output "$device"
	detach_all
	cmp --bytes=4M backing merged
}

@test "a device that is too small is refused, and nothing is written" {
	store --origin-size 4M --count 100
	new_device 3M
	remember origin cow backing
	run -4 --separate-stderr merge --output "$device"
	[[ ${stderr_lines[0]} == "snapmerge: $device: too small"* ]]
	unchanged
}

@test "a device that is in use is busy" {
	need mkfs.ext4
	truncate --size 16M fs
	mkfs.ext4 -q fs
	attach fs
	mounted mnt "$device"
	store --origin-size 4M --count 100
	run -5 --separate-stderr merge --output "$device"
	message_is "$device" \
		"in use: mounted, or held by device mapper or another program" \
		"$UNTOUCHED_BUSY"
}

@test "a device that is the origin, or lies over it, is busy" {
	store --origin-size 4M --count 100
	cp origin original
	attach origin
	run -5 snapmerge --origin "$device" --cow cow --output "$device"
	run -5 merge --output "$device"
	detach_all
	cmp origin original
}

@test "a stop half way says what the device is now" {
	store --origin-size 4M --count 200
	new_device 4M
	start "$SNAPMERGE" --origin origin --cow cow --output "$device" \
		--rate-limit 256K
	sleep 0.5
	kill -INT "$pid"
	finish 3
	differ backing merged
	run ! grep -q "was not written" started.err
	grep -q "snapmerge: stopped as asked; $device " started.err
}

@test "blocks are shared where the file system can" {
	local before

	shared
	cd disk || return
	store --origin-size 64M --count 500 --prealloc
	cd ..
	before=$(free_blocks)
	run -0 snapmerge --origin disk/origin --cow disk/cow --output disk/new
	cmp disk/new disk/merged
	[ $((before - $(free_blocks))) -lt 8192 ]
}

@test "two previews of one origin at a time" {
	store --count 100
	slow_preview
	run -0 merge --output second
	cmp second merged
	finish 0
	cmp new merged
}

@test "no two previews of one name at a time" {
	store --count 100
	slow_preview
	run -5 preview
	finish 0
	cmp new merged
}

@test "while a merge runs it is busy, and so is a merge while it runs" {
	store --count 500
	slowly
	run -5 --separate-stderr preview
	message_is origin "in use: $HALF" "$UNTOUCHED_BUSY"
	no_new
	kill -TERM "$pid"
	finish 3
	slow_preview
	run -5 --separate-stderr merge
	message_is origin "in use: $HALF" "$UNTOUCHED_BUSY"
	kill -TERM "$pid"
	finish 3
}

@test "of a half merged store it is the merged image, of this origin only" {
	store --count 500
	slowly
	kill -TERM "$pid"
	finish 3
	remember origin cow
	run -0 preview
	cmp new merged
	unchanged
	rm new
	"$MKSTORE" --seed 2 --count 1 other other.cow > log
	run -4 snapmerge --origin other --cow cow --output new
	no_new
}

@test "a store that is refused makes no new file" {
	store --invalid
	run -4 preview
	no_new
	run -0 preview --accept-invalid
	rm new
	store --list 1:2,1:3
	run -4 preview
	no_new
}
