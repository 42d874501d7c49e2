#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# The record of a merge under way: never into the wrong origin. And
# --accept-invalid, the other way to insist.
load helpers

# half [OPTION]...: stopped after it has committed something.
half() {
	local rate=${RATE:-1M}

	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow --rate-limit "$rate" \
		--batch-size 64K "$@"
	until_true differ cow cow.before
	kill -TERM "$pid"
	finish 3
}

# sector FILE: the second of its header chunk.
sector() {
	dd if="$1" bs=512 skip=1 count=1 status=none
}

no_record() {
	cmp <(sector cow) <(head -c 512 /dev/zero)
}

# The number of exceptions, without a look at the contents.
left() {
	"$MKSTORE" --view origin cow seen | sed 's/ .*//'
}

# nth N: the old chunk of that exception of cow.before.
nth() {
	snapmerge --list --cow cow.before |
		awk -v n="$1" '{ if (n < $3) { print $1 + n; exit } n -= $3 }'
}

# spoil CHUNK: change a byte of it in the origin.
spoil() {
	printf '\377\0\377\0' |
		dd of=origin bs=1 seek=$(($1 * 4096 + 100)) conv=notrunc status=none
}

# entry N: where that exception lies, in units of 16 bytes (4 KiB chunks).
entry() {
	# shellcheck disable=SC2017 # the quotient is the area
	echo $(((1 + $1 / 256 * 257) * 256 + $1 % 256))
}

# kernel_merges N: exception N, the last, as the kernel does it.
kernel_merges() {
	local new old

	read -r old new < <(od --address-radix=n --format=u8 \
		--skip-bytes=$(($(entry "$1") * 16)) --read-bytes=16 cow)
	dd if=cow of=origin bs=4096 skip="$new" seek="$old" count=1 \
		conv=notrunc status=none
	dd if=/dev/zero of=cow bs=16 seek="$(entry "$1")" count=1 \
		conv=notrunc status=none
}

refused() {
	run -4 --separate-stderr snapmerge --cow cow --origin "$@"
	echo "$stderr"
	[[ ${stderr_lines[0]} == "snapmerge: $1: "* ]]
	[ "${stderr_lines[1]}" = "$UNTOUCHED_REFUSED" ]
}

@test "another image of the same size is refused" {
	store --count 500
	half
	"$MKSTORE" --count 500 --seed 2 other other.cow > log
	remember origin cow other
	refused other
	[[ ${stderr_lines[0]} == *"changed since the merge was interrupted, or not the origin"* ]]
	refused other --output new
	[ ! -e new ]
	refused other --dry-run
	unchanged
	run -0 merge
	cmp origin merged
}

@test "the origin as it was before the merge is refused" {
	store --count 500
	cp origin original
	half
	remember original cow
	refused original
	unchanged
}

@test "an image of another size is refused" {
	store --count 500
	half
	cp origin larger
	truncate --size +1 larger
	remember origin cow larger
	refused larger
	[[ ${stderr_lines[0]} == *"not the origin that was being merged into: it has 8388609 bytes, not 8388608"* ]]
	unchanged
}

@test "an origin that was changed where it was merged is refused" {
	local chunk

	store --count 500 --pattern shuffled
	half
	chunk=$(nth "$(left)")
	spoil "$chunk"
	remember origin cow
	refused origin
	[[ ${stderr_lines[0]} == *": chunk $chunk is not what was written" ]]
	refused origin --undo undo
	[ ! -e undo ]
	refused origin --verify --discard --skip-identical
	unchanged
}

@test "--accept-changed goes on all the same" {
	local chunk

	store --count 500
	half
	chunk=$(nth "$(left)")
	spoil "$chunk"
	run -0 merge --accept-changed
	differ origin merged
	dd if=merged of=origin bs=4096 skip="$chunk" seek="$chunk" count=1 \
		conv=notrunc status=none
	cmp origin merged
	no_record
}

@test "a change where nothing was merged yet does not matter" {
	store --count 500 --pattern shuffled
	half
	spoil "$(nth 0)"
	run -0 merge
	cmp origin merged
}

@test "--info says how far a half merged origin is" {
	local left percent

	store --count 500
	run -0 snapmerge --info --cow cow
	run ! grep -q "half merged" <<< "$output"
	half
	left=$(live)
	percent=$(awk -v l="$left" 'BEGIN { print int(100 * (500 - l) / 500) }')
	run -0 snapmerge --info --cow cow
	grep -q "^state: *half merged, $percent % done, do not mount the origin$" \
		<<< "$output"
	run -0 snapmerge --info --cow cow --json
	[[ $output == *"\"half merged, $percent % done, do not mount the origin\""* ]]
	run -0 merge
	run -0 snapmerge --info --cow cow
	grep -q "^state: *nothing left to merge$" <<< "$output"
}

@test "progress goes on where it was" {
	local left

	store --count 500
	half
	left=$(live)
	cp cow cow.half
	cp origin origin.half
	run -0 --separate-stderr merge --json
	[[ $output == *"\"exceptions\": $left, \"merged_before\": $((500 - left)), \"committed\": $left, \"left\": 0, "* ]]
	mv cow.half cow
	mv origin.half origin
	run -0 merge --verbose --batch-size 256K
	grep -qx "snapmerge: commit 1: $((500 - left + 64)) of 500 chunks" \
		<<< "$output"
	grep -qx "snapmerge: commit [0-9]*: 500 of 500 chunks" <<< "$output"
}

@test "stopped twice, it still knows the beginning" {
	local left

	store --count 500
	half
	half
	left=$(live)
	run -0 --separate-stderr merge --json
	[[ $output == *"\"merged_before\": $((500 - left)), "* ]]
	cmp origin merged
	no_record
}

@test "a kernel that goes on merging makes the record void" {
	local n i

	store --count 500 --pattern shuffled
	half
	n=$(live)
	for ((i = 1; i <= 3; i++)); do
		kernel_merges $((n - i))
	done
	[ "$(live)" = $((n - 3)) ]
	run -0 snapmerge --info --cow cow
	run ! grep -q "half merged" <<< "$output"
	half
	run -0 snapmerge --info --cow cow
	grep -q "half merged" <<< "$output"
	run -0 merge
	cmp origin merged
	no_record
}

@test "a kernel that merges all of the rest leaves a record to take away" {
	local n

	store --count 48
	RATE=128K half
	for ((n = $(live) - 1; n >= 0; n--)); do
		kernel_merges "$n"
	done
	cmp origin merged
	cp cow expected
	dd if=/dev/zero of=expected bs=512 seek=1 count=1 conv=notrunc status=none
	run -0 merge
	[ "$output" = "snapmerge: nothing left to merge" ]
	cmp cow expected
	cmp origin merged
}

@test "an exception that a kernel added makes the record void" {
	local n

	store --count 500 --pattern one
	half
	n=$(live)
	# the entry that was cleared last, back again
	dd if=cow.before of=cow bs=16 skip="$(entry "$n")" \
		seek="$(entry "$n")" count=1 conv=notrunc status=none
	[ "$(live)" = $((n + 1)) ]
	spoil "$(nth "$n")"
	run -0 merge
	cmp origin merged
	no_record
}

@test "a damaged record is void" {
	local at

	for at in 520 540 560 600 1000; do
		store --count 100
		half
		printf '\245' | dd of=cow bs=1 seek="$at" conv=notrunc status=none
		run -0 snapmerge --info --cow cow
		run ! grep -q "half merged" <<< "$output"
		run -0 merge
		cmp origin merged
		no_record
	done
}

@test "foreign bytes where the record would be are never overwritten" {
	store --count 500
	head -c 512 /dev/urandom | dd of=cow bs=512 seek=1 conv=notrunc status=none
	sector cow > foreign
	half
	cmp <(sector cow) foreign
	[ "$(live)" -gt 0 ]
	run -0 merge
	cmp origin merged
	cmp <(sector cow) foreign
	store --count 500
	printf x | dd of=cow bs=1 seek=1023 conv=notrunc status=none
	sector cow > foreign
	half
	cmp <(sector cow) foreign
	run -0 merge
	cmp <(sector cow) foreign
}

# like_the_kernel FIXTURE: interrupted and resumed, the COW ends as the kernel
# left it.
like_the_kernel() {
	need xz
	tar -xJf "$FIXTURES/$1.tar.xz"
	mv origin.before origin
	mv origin.merged merged
	half
	differ cow cow.merged
	run ! no_record
	half
	run -0 merge
	cmp origin merged
	cmp cow cow.merged
}

@test "interrupted and resumed, the store is what a kernel leaves, 4 KiB" {
	like_the_kernel dev-mixed4k
}

@test "interrupted and resumed, the store is what a kernel leaves, 16 KiB" {
	like_the_kernel dev-tail16k
}

@test "chunks of 512 bytes have no room for a record" {
	local n

	store --chunk 1 --count 3000 --pattern shuffled
	half
	n=$(live)
	run -0 snapmerge --info --cow cow
	run ! grep -q "half merged" <<< "$output"
	run -0 --separate-stderr merge --json
	[[ $output == *"\"exceptions\": $n, \"merged_before\": 0, "* ]]
	cmp origin merged
}

@test "chunks of 1 KiB have just enough" {
	store --chunk 2 --count 1500 --pattern shuffled
	half
	run -0 snapmerge --info --cow cow
	grep -q "half merged" <<< "$output"
	cp origin origin.half
	dd if=/dev/urandom of=origin bs=1M count=8 conv=notrunc status=none
	run -4 merge
	mv origin.half origin
	run -0 merge
	cmp origin merged
	no_record
}

@test "a merge in one commit never has a record" {
	store --count 100
	run -0 merge
	no_record
	cmp origin merged
}

# overflow: the store that a kernel gave up, and what it holds, in merged.
overflow() {
	need xz
	tar -xJf "$FIXTURES/dev-overflow.tar.xz"
	mv origin.before origin
	cp cow valid
	printf '\1' | dd of=valid bs=1 seek=4 conv=notrunc status=none
	"$MKSTORE" --view origin valid merged > log
	differ origin merged
}

@test "--accept-invalid merges what is left, and leaves the header" {
	overflow
	remember origin cow
	run -4 merge
	run -4 merge --dry-run
	unchanged
	head -c 4096 cow > header
	run -0 --separate-stderr merge --accept-invalid
	[ "${stderr_lines[0]}" = "snapmerge: cow: warning: the kernel has invalidated this store: what changed afterwards is not in it" ]
	cmp origin merged
	cmp --bytes=4096 cow header
	run -4 merge
}

@test "--accept-invalid, interrupted, is finished by the same command" {
	overflow
	half --accept-invalid
	run -4 merge
	run -0 merge --accept-invalid
	cmp origin merged
	cmp --bytes=4096 cow cow.before
	run -0 merge --accept-invalid
	grep -q "nothing left to merge" <<< "$output"
}

@test "--accept-invalid is taken back by an undo store that is valid" {
	overflow
	cp origin original
	run -0 merge --accept-invalid --undo undo
	cmp origin merged
	run -0 snapmerge --origin origin --cow undo
	cmp origin original
}
