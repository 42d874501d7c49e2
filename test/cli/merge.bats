#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# The main job, on stores of the independent builder.
load helpers

# merges ARGUMENT...: such a store becomes what the builder says.
merges() {
	store "$@"
	run -0 --separate-stderr merge
	[ -z "$output" ]
	cmp origin merged
}

# entry N: where that exception lies, in units of 16 bytes (4 KiB chunks).
entry() {
	# shellcheck disable=SC2017 # the quotient is the area
	echo $(((1 + $1 / 256 * 257) * 256 + $1 % 256))
}

# empty N [COUNT]: zero exceptions N and those behind it in cow, within one
# area, as the kernel does behind its merge.
empty() {
	dd if=/dev/zero of=cow bs=16 seek="$(entry "$1")" count="${2:-1}" \
		conv=notrunc status=none
}

# move NEW OLD: copy that chunk of cow to that of origin.
move() {
	dd if=cow of=origin bs=4096 skip="$1" seek="$2" count=1 conv=notrunc \
		status=none
}

@test "every pattern of exceptions" {
	local pattern

	for pattern in scattered runs one reversed shuffled; do
		merges --pattern "$pattern" --count 1000
	done
}

@test "chunks of 512 bytes to 512 KiB" {
	local sectors

	for sectors in 1 2 4 8 16 32 64 128 256 512 1024; do
		merges --chunk "$sectors" --count 15 --pattern shuffled \
			--origin-size 16M
	done
}

@test "chunks larger than a buffer" {
	merges --chunk 32768 --count 3 --origin-size 80000001
}

@test "many chunks of one sector" {
	merges --chunk 1 --count 9000 --pattern shuffled
}

@test "an origin of any size" {
	local size

	for size in 1 511 4097 1000003; do
		merges --origin-size "$size" --count $(((size + 4095) / 4096))
		[ "$(stat --format=%s origin)" = "$size" ]
	done
}

@test "exactly full areas, with old bytes behind" {
	merges --count 512 --garbage
	merges --count 256
}

@test "a second run has nothing left to merge and writes nothing" {
	store
	run -0 merge
	remember origin cow
	run -0 merge
	[ "$output" = "snapmerge: nothing left to merge" ]
	unchanged
}

@test "a merged store keeps its header and data and has an empty table" {
	store --count 600
	cp cow want
	dd if=/dev/zero of=want bs=4096 seek=1 count=1 conv=notrunc status=none
	dd if=/dev/zero of=want bs=4096 seek=258 count=1 conv=notrunc status=none
	dd if=/dev/zero of=want bs=4096 seek=515 count=1 conv=notrunc status=none
	run -0 merge
	cmp cow want
}

@test "stale entries are told of and scrubbed" {
	store --count 10 --stale 5
	run -0 --separate-stderr merge
	[ "${stderr_lines[0]}" = "snapmerge: cow: warning: 5 stale entries behind the end of the table, left by a torn write" ]
	cmp origin merged
	cmp <(dd if=cow bs=4096 skip=1 count=1 status=none) \
		<(head -c 4096 /dev/zero)
}

@test "stale entries of an empty table are scrubbed, the origin untouched" {
	store --count 0 --stale 7
	remember origin
	run -0 merge
	unchanged
	cmp <(dd if=cow bs=4096 skip=1 count=1 status=none) \
		<(head -c 4096 /dev/zero)
}

@test "one summary line" {
	store --count 300
	run -0 --separate-stderr merge
	[ -z "$output" ]
	[ "${#stderr_lines[@]}" = 1 ]
	[[ $stderr == "snapmerge: merged 300 chunks, 1.2 MiB, in "*" s ("*"/s)" ]]
}

@test "--quiet says nothing" {
	local option

	for option in --quiet -q; do
		store --count 300
		run -0 merge "$option"
		[ -z "$output" ]
		cmp origin merged
	done
}

@test "--quiet does not silence errors and warnings" {
	store --list 1,1
	run -4 --separate-stderr merge --quiet
	message_is cow "exception 1: origin chunk 1 is named twice (the origin has 2048 chunks)" \
		"$UNTOUCHED_REFUSED"
	store --count 3 --stale 3
	run -0 --separate-stderr merge --quiet
	[ "${#stderr_lines[@]}" = 1 ]
	[[ $stderr == *warning* ]]
}

@test "any batch size" {
	local size

	for size in 1 512 4096 10000 64K 1M 1G 16T; do
		store --count 270 --pattern shuffled --origin-size 2M
		run -0 merge --batch-size "$size"
		cmp origin merged
	done
}

@test "--rate-limit holds the rate" {
	local begin=${EPOCHREALTIME/[.,]/} taken

	store --count 1024 # 4 MiB
	run -0 merge --rate-limit 4M
	taken=$((${EPOCHREALTIME/[.,]/} - begin))
	cmp origin merged
	[ "$taken" -gt 700000 ]
}

@test "a store that the kernel half merged is finished" {
	local new

	store --list 5,900,6,2047,0,1000
	for new in 7 6 5; do # the last three, from the end
		empty $((new - 2))
	done
	move 5 2047
	move 6 0
	move 7 1000
	[ "$(live)" = 3 ]
	run -0 --separate-stderr merge
	[[ $stderr == "snapmerge: merged 3 chunks, "* ]]
	cmp origin merged
}

@test "a store half merged over many areas is finished" {
	store --count 600 --pattern shuffled
	cp merged origin
	empty 512 88
	empty 256 256
	empty 250 6
	[ "$(live)" = 250 ]
	run -0 --separate-stderr merge
	[[ $stderr == "snapmerge: merged 250 chunks, "* ]]
	cmp origin merged
}

@test "chunks merged and not yet cleared are merged again" {
	store --list 5,900,6,2047
	move 5 2047
	move 4 6
	run -0 merge
	cmp origin merged
}

@test "a clear torn in the middle is finished and scrubbed" {
	# one sector of the area holds 32 exceptions: sector 1 was written
	store --count 200 --pattern shuffled
	cp merged origin
	empty 32 32
	run -0 --separate-stderr merge
	[[ ${stderr_lines[0]} == *"warning: 136 stale entries"* ]]
	cmp origin merged
	cmp <(dd if=cow bs=4096 skip=1 count=1 status=none) \
		<(head -c 4096 /dev/zero)
}

@test "an origin and a store past 2 TiB" {
	truncate --size 3T origin 2> /dev/null ||
		skip "the file system has no files of 3 TiB"
	# 3 TiB are 805306368 chunks
	"$MKSTORE" --origin-size 3T --cow-size 3T --sparse-origin \
		--list 805306367:805306367,600000000:2,0:700000000 \
		origin cow > store.log
	run -0 merge
	cmp <(dd if=origin bs=4096 skip=805306367 count=1 status=none) \
		<(dd if=cow bs=4096 skip=805306367 count=1 status=none)
	cmp <(dd if=origin bs=4096 skip=600000000 count=1 status=none) \
		<(dd if=cow bs=4096 skip=2 count=1 status=none)
	cmp <(head -c 4096 origin) \
		<(dd if=cow bs=4096 skip=700000000 count=1 status=none)
	[ "$(stat --format=%s origin)" = $((3 << 40)) ]
	[ "$(du --block-size=1M origin | cut -f1)" -lt 4 ]
}

@test "origin and COW by symbolic links and odd names" {
	store
	mkdir 'a b'
	mv origin $'a b/-or\nigin'
	ln -s cow 'c%s'
	run -0 snapmerge --origin $'a b/-or\nigin' --cow 'c%s'
	cmp $'a b/-or\nigin' merged
}

@test "an origin that cannot be written is an error" {
	store
	remember origin cow
	if [ "$(id -u)" = 0 ]; then
		need setpriv
		chmod 0444 origin
		chmod 0666 cow
		chmod 0755 . ..
		run -1 --separate-stderr setpriv --reuid 65534 --regid 65534 \
			--clear-groups "$SNAPMERGE" --origin origin --cow cow
		# what nobody may not look at says nothing about origins
		[ "$status" = 1 ] || skip "user nobody cannot run $SNAPMERGE"
		[[ $stderr != *"failed to execute"* ]] ||
			skip "user nobody cannot run $SNAPMERGE"
	else
		chmod 0444 origin
		run -1 --separate-stderr merge
	fi
	message_is origin "cannot open for writing: Permission denied" \
		"$UNTOUCHED"
	unchanged
}

@test "files on a medium that is read-only are an error" {
	mkdir ro
	(cd ro && store)
	mounted ro --bind ro
	mount -o remount,bind,ro ro
	run -1 --separate-stderr snapmerge --origin ro/origin --cow ro/cow
	message_is ro/origin "cannot open for writing: Read-only file system" \
		"$UNTOUCHED"
}

@test "files that are not there are an error" {
	store
	remember origin cow
	run -1 --separate-stderr snapmerge --origin missing --cow cow
	message_is missing "cannot open: No such file or directory" "$UNTOUCHED"
	run -1 --separate-stderr snapmerge --origin origin --cow missing
	message_is missing "cannot open: No such file or directory" "$UNTOUCHED"
	[ ! -e missing ]
	unchanged
}

# no_image PATH: it is refused on either side.
no_image() {
	run -1 --separate-stderr snapmerge --origin "$1" --cow cow
	message_is "$1" "neither a regular file nor a block device" "$UNTOUCHED"
	run -1 --separate-stderr snapmerge --origin origin --cow "$1"
	message_is "$1" "neither a regular file nor a block device" "$UNTOUCHED"
}

@test "only files and block devices are images" {
	store
	mkdir dir
	mkfifo fifo
	remember origin cow
	no_image dir
	no_image fifo
	no_image /dev/null
	unchanged
}

# fills DIRECTORY COMMAND...: a merge into the full file system there fails,
# and after COMMAND has made room the same command finishes.
fills() {
	local dir=$1 committed

	shift
	store --origin-size 16M --count 3000 --sparse-origin --pattern one
	cp --sparse=always origin "$dir/origin"
	rm origin
	ln -s "$dir/origin" origin
	run -1 --separate-stderr merge --batch-size 1M
	[ -z "$output" ]
	[ "${#stderr_lines[@]}" = 2 ]
	[[ ${stderr_lines[0]} =~ ^snapmerge:\ origin:\ cannot\ (write|sync).*:\ No\ space\ left\ on\ device$ ]]
	[[ ${stderr_lines[1]} =~ ^snapmerge:\ ([0-9]+)\ of\ 3000\ chunks\ are\ committed\;\ the\ origin\ is\ half\ merged,\ do\ not\ use\ it:\ run\ the\ same\ command\ again\ once\ the\ cause\ is\ gone$ ]]
	committed=${BASH_REMATCH[1]}
	[ "$committed" -gt 0 ]
	[ "$(live)" = $((3000 - committed)) ]
	run -1 merge --batch-size 1M
	"$@"
	run -0 --separate-stderr merge --batch-size 1M
	cmp origin merged
}

@test "a full tmpfs under a sparse origin: room is made, the rest merged" {
	mounted full -t tmpfs -o size=6M none
	fills full mount -o remount,size=40M full
}

@test "a full ext4 under a sparse origin: room is made, the rest merged" {
	need mkfs.ext4
	need_root mount
	truncate --size 40M image
	mkfs.ext4 -q -O ^has_journal -m 0 image
	mounted full -o loop image
	head -c 28M /dev/zero > full/filler
	fills full rm full/filler
}

@test "the same file on both sides is busy" {
	store
	ln cow hard
	ln -s cow soft
	remember cow
	for name in cow ./cow hard soft; do
		run -5 --separate-stderr snapmerge --origin "$name" --cow cow
		message_is cow "origin and COW are the same" "$UNTOUCHED_BUSY"
	done
	unchanged
}
