#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# What is told before, during and after: info, list, check, the plan, progress,
# a limit of time, the decisions.
load helpers

# unpack FIXTURE: its cow, origin and the log of its making.
unpack() {
	need xz
	tar -xJf "$FIXTURES/$1.tar.xz"
	mv origin.before origin
}

# line LABEL: what stands behind it in the output.
line() {
	sed -n "s/^$1: *//p" <<< "$output"
}

# facts LABEL VALUE...: the output says so.
facts() {
	while [ $# -gt 0 ]; do
		[ "$(line "$1")" = "$2" ] || {
			echo "$1: not $2:"
			echo "$output"
			return 1
		}
		shift 2
	done
}

# percent STATUS: what lvs makes of dmsetup's words: nothing for an empty store.
percent() {
	awk -v "status=$1" 'BEGIN {
		split(status, s, "[/ ]")
		printf("%.2f\n", s[1] == s[3] ? 0 : 100 * s[1] / s[2])
	}'
}

# the_kernels FIXTURE: --info has the figures that the kernel printed.
the_kernels() {
	local words

	unpack "$1"
	words=$(sed -n 's/^snap: 0 [0-9]* snapshot //p' create.log | tail -n 1)
	[[ $words =~ ^[0-9]+/[0-9]+\ [0-9]+$ ]]
	run -0 --separate-stderr snapmerge --info --cow cow
	[ -z "$stderr" ]
	facts status "$words" "percent used" "$(percent "$words")" \
		valid yes version 1 merged no state "to be merged" \
		"stale entries" 0 problems 0 exceptions "$(live_in_fixture)"
	[[ $(line "left to merge") == "$(bytes_left) bytes ("* ]]

	words=$(sed -n 's/^snap: 0 [0-9]* snapshot //p' create.log | head -n 1)
	mv cow.merged cow
	run -0 snapmerge --info --cow cow
	facts status "$words" "percent used" 0.00 exceptions 0 merged yes \
		"left to merge" "0 bytes" state "nothing left to merge"
}

bytes_left() {
	local chunk

	chunk=$(line "chunk size")
	echo $(($(line exceptions) * ${chunk%% *}))
}

live_in_fixture() {
	"$MKSTORE" --view origin cow view | sed 's/ .*//'
	cmp view origin.merged >&2
}

@test "--info: the kernel's figures, three areas, and merged" {
	the_kernels dev-mixed4k
}

@test "--info: the kernel's figures, chunks of 16 KiB, and merged" {
	the_kernels dev-tail16k
	facts "chunk size" "16384 bytes (16.0 KiB)"
}

@test "--info: the kernel's figures, a file system, and merged" {
	the_kernels dev-ext4
}

@test "--info: what the kernel calls Invalid is Invalid" {
	unpack dev-overflow
	[ "$(sed -n 's/^snap: 0 [0-9]* snapshot //p' create.log | tail -n 1)" = Invalid ]
	run -0 snapmerge --info --cow cow
	facts status Invalid state Invalid valid no "percent used" 100.00 \
		version 1
}

@test "--info: a half merged store says so" {
	store --count 2000 --pattern shuffled
	run -3 merge --max-time 1s --rate-limit 4M --batch-size 64K
	local left
	left=$(live)
	run -0 snapmerge --info --cow cow
	facts exceptions "$left" merged no state \
		"half merged, $(awk "BEGIN { print int(100 * (2000 - $left) / 2000) }") % done, do not mount the origin"
	run -0 merge
	run -0 snapmerge --info --cow cow
	facts state "nothing left to merge" merged yes
}

@test "--info: stale entries are counted" {
	store --count 10 --stale 7
	run -0 snapmerge --info --cow cow
	facts exceptions 10 "stale entries" 7
}

@test "--info: what is no store is refused" {
	head -c 1M /dev/urandom > cow
	run -4 --separate-stderr snapmerge --info --cow cow
	message_is cow "not a persistent snapshot store: no magic" \
		"$UNTOUCHED_REFUSED"
}

@test "--info, --list and --check take no lock" {
	local mode

	store
	slowly
	for mode in --info --list --check; do
		snapmerge "$mode" --cow cow > out
	done
	kill -TERM "$pid"
	finish 3
}

@test "--list: the runs, in the order of the table" {
	# three that rise together, a gap on one side, on the other, a fall
	store --list 5:2,6:3,7:4,19:5,20:7,9:8,8:9 --cow-size 1M
	run -0 --separate-stderr snapmerge --list --cow cow
	[ -z "$stderr" ]
	diff - <(echo "$output") <<- END
		5 2 3
		19 5 1
		20 7 1
		9 8 1
		8 9 1
	END
}

@test "--list: a run goes on over the end of an area only with its chunks" {
	# the area between them takes a chunk of the store
	store --count 300 --pattern one
	run -0 snapmerge --list --cow cow
	[ "${#lines[@]}" = 2 ]
	[[ ${lines[0]} == *" 2 256" ]]
	[[ ${lines[1]} == *" 259 44" ]]
}

@test "--list: nothing for an empty table" {
	store --count 0
	run -0 snapmerge --list --cow cow
	[ -z "$output" ]
}

@test "--list: a million exceptions, in 8 MiB of memory" {
	env time --quiet true 2> /dev/null || skip "the command time is missing"
	"$MKSTORE" --origin-size 8G --sparse-origin --metadata-only \
		--count 1000000 --pattern scattered origin cow > store.log
	env time --format=%M --output=peak "$SNAPMERGE" --list --cow cow > list
	[ "$(wc -l < list)" = 1000000 ]
	[ "$(cat peak)" -lt 8192 ]
	# the chunks of the store rise; those that are areas are left out
	awk '{ want++; if (want % 257 == 1) want++ }
		$2 != want || $3 != 1 { exit 1 }' want=1 list
	rm origin cow list
}

@test "--list: what stdout does not take is an error" {
	store
	# shellcheck disable=SC2016 # bash -c expands them
	run -1 bash -c '"$1" --list --cow cow 2>&1 > /dev/full' - "$SNAPMERGE"
	[ "$output" = "snapmerge: standard output: No space left on device" ]
}

@test "--check: a sound store, without and with its origin" {
	store --count 300
	remember origin cow
	run -0 --separate-stderr snapmerge --check --cow cow
	[ "$output" = "cow: sound, 300 exceptions, 1.2 MiB to merge" ]
	run -0 --separate-stderr snapmerge --check --cow cow --origin origin
	[ "$output" = "cow: sound, 300 exceptions, 1.2 MiB to merge" ]
	run -0 snapmerge --check --cow cow --quiet
	[ -z "$output" ]
	unchanged
}

@test "--check: only an origin shows what is past its end" {
	store --list 1,2000
	truncate --size 4M origin
	run -0 snapmerge --check --cow cow
	run -4 --separate-stderr snapmerge --check --cow cow --origin origin
	[ -z "$output" ]
	stderr_is "snapmerge: cow: exception 1: origin chunk 2000 is past the end (the origin has 1024 chunks)" \
		"snapmerge: cow: 1 problem; nothing was written"
}

@test "--check: all problems, not only the first" {
	store --list 1,2:900,5000,1 --cow-size 1M
	remember origin cow
	run -4 --separate-stderr snapmerge --check --cow cow --origin origin
	stderr_is \
		"snapmerge: cow: exception 1: COW chunk 900 is past the end (the COW has 256 chunks)" \
		"snapmerge: cow: exception 2: origin chunk 5000 is past the end (the origin has 2048 chunks)" \
		"snapmerge: cow: exception 3: origin chunk 1 is named twice (the origin has 2048 chunks)" \
		"snapmerge: cow: 3 problems; nothing was written"
	unchanged
}

@test "--check: the first 20 problems, then how many there are" {
	store --list "1$(printf ',1%.0s' {1..25})"
	run -4 --separate-stderr snapmerge --check --cow cow
	[ "${#stderr_lines[@]}" = 21 ]
	[[ ${stderr_lines[0]} == *"exception 1: origin chunk 1 is named twice"* ]]
	[[ ${stderr_lines[19]} == *"exception 20: origin chunk 1 is named twice"* ]]
	[ "${stderr_lines[20]}" = "snapmerge: cow: 25 problems; nothing was written" ]
}

@test "--dry-run: nothing is written, not even a time" {
	local before mode

	store --count 600 --pattern shuffled --stale 3
	remember origin cow
	touch -a --date=@1000000000 origin cow
	before=$(stat --format='%n %s %b %X %Y %Z' origin cow)
	for mode in "" --skip-identical "--undo undo" "--verify --json"; do
		# shellcheck disable=SC2086 # the options are words
		run -0 merge --dry-run $mode
		[ "$(stat --format='%n %s %b %X %Y %Z' origin cow)" = "$before" ]
	done
	unchanged
	[ ! -e undo ]
}

@test "--dry-run: works on what is read-only" {
	mkdir ro
	(cd ro && store)
	mounted ro --bind ro
	mount -o remount,bind,ro ro
	run -0 snapmerge --dry-run --origin ro/origin --cow ro/cow
	facts exceptions 300
}

@test "--dry-run: busy, as the merge would be" {
	store
	slowly
	run -5 --separate-stderr merge --dry-run
	message_is origin "in use: another snapmerge or a virtual machine holds a lock on it" \
		"$UNTOUCHED_BUSY"
	kill -TERM "$pid"
	finish 3
}

@test "--dry-run: refused, as the merge would be" {
	store --list 1,1
	run -4 --separate-stderr merge --dry-run
	message_is cow "exception 1: origin chunk 1 is named twice (the origin has 2048 chunks)" \
		"$UNTOUCHED_REFUSED"
}

@test "--dry-run: the plan is what the merge then does" {
	local batch=$((64 * 1024 / 4096)) first end
	local -a changed

	store --list "$(seq --separator=, 100 150),$(seq --separator=, 300 2 400)"
	cp origin before
	run -0 --separate-stderr merge --dry-run --batch-size 64K
	[ -z "$stderr" ]
	# 51 in a row, 51 with gaps
	facts exceptions 102 "left to merge" "$((102 * 4096)) bytes (408.0 KiB)" \
		runs 52 "batch chunks" "$batch" batches $(((102 + batch - 1) / batch)) \
		syncs $((2 * ((102 + batch - 1) / batch))) \
		"first byte" $((100 * 4096)) "end byte" $((401 * 4096)) \
		"origin size" "8388608 bytes (8.0 MiB)" "space needed" "0 bytes" \
		"can share blocks" no
	[ "$(snapmerge --list --cow cow | wc -l)" = 52 ]
	run -0 --separate-stderr merge --batch-size 64K --verbose
	[ "$(grep -c ': commit ' <<< "$stderr")" = $(((102 + batch - 1) / batch)) ]
	mapfile -t changed < <(cmp -l before origin | awk '{ print $1 - 1 }')
	first=${changed[0]}
	end=${changed[-1]}
	[ "$first" -ge $((100 * 4096)) ]
	[ "$first" -lt $((101 * 4096)) ]
	[ "$end" -lt $((401 * 4096)) ]
	[ "$end" -ge $((400 * 4096)) ]
}

@test "--dry-run: the range ends with the origin" {
	store --origin-size 1000003 --list 244
	run -0 merge --dry-run
	facts "first byte" $((244 * 4096)) "end byte" 1000003
}

@test "--dry-run: the space that a sparse origin will take" {
	local blocks planned taken

	# every other ten chunks of the first 200 have their blocks already
	store --sparse-origin --list "$(seq --separator=, 0 299)"
	for ((i = 0; i < 200; i += 20)); do
		dd if=/dev/urandom of=origin bs=4096 seek="$i" count=10 \
			conv=notrunc status=none
	done
	sync origin
	blocks=$(stat --format=%b origin)
	planned=$((200 * 4096))
	run -0 merge --dry-run
	facts "space needed" "$planned bytes (800.0 KiB)"
	run -0 merge
	cmp origin merged
	taken=$((($(stat --format=%b origin) - blocks) * 512))
	# but for what the file system itself takes, or no longer needs
	[ "$taken" -ge $((planned - 16384)) ]
	[ "$taken" -le $((planned + 16384)) ]
}

@test "--dry-run: whether blocks can be shared" {
	need mkfs.xfs
	need_root mount
	truncate --size 320M image
	mkfs.xfs -q -m reflink=1 image
	mounted shares -o loop image
	(cd shares && store --chunk 32 --count 20)
	cd shares
	remember origin cow
	run -0 merge --dry-run
	facts "can share blocks" yes method "shared blocks"
	run -0 merge --dry-run --reflink always
	facts "can share blocks" yes
	run -0 merge --dry-run --reflink never
	facts "can share blocks" no
	unchanged
	run -0 merge --reflink always
	cmp origin merged
	cd "$BATS_TEST_TMPDIR"
}

@test "--dry-run: where blocks cannot be shared" {
	mounted other -t tmpfs none
	store
	mv cow other
	run -0 snapmerge --dry-run --origin origin --cow other/cow
	facts "can share blocks" no
	run -1 --separate-stderr snapmerge --dry-run --reflink always \
		--origin origin --cow other/cow
	[[ ${stderr_lines[0]} == "snapmerge: origin: cannot share blocks with the COW: "* ]]
}

@test "--dry-run --skip-identical: what need not be written is counted" {
	store --list "$(seq --separator=, 0 2 198)"
	# the first 30 are in place
	dd if=merged of=origin bs=4096 count=60 conv=notrunc status=none
	run -0 merge --dry-run --skip-identical
	facts identical "$((30 * 4096)) bytes (120.0 KiB)"
	run -0 merge --dry-run
	run ! grep -q identical <<< "$output"
}

@test "--progress: a line every five seconds, and one at once for SIGUSR1" {
	local line='^snapmerge: [0-9]+ %, [0-9.]+ [KM]iB of 5\.9 MiB(, [0-9.]+ [KM]iB/s, [0-9:]+ left)?$'

	store --count 1500 --pattern shuffled
	cp cow cow.before
	start "$SNAPMERGE" --origin origin --cow cow --rate-limit 1M \
		--batch-size 64K --progress
	until_true differ cow cow.before
	[ ! -s started.err ]
	kill -USR1 "$pid"
	until_true test -s started.err
	grep -Eq "$line" started.err
	finish 0
	cat started.err
	# at once, after five seconds, and the summary; no escape codes
	[ "$(grep -Ec "$line" started.err)" = 2 ]
	[[ $(tail -n 1 started.err) == "snapmerge: merged 1500 chunks, "* ]]
	[ "$(wc -l < started.err)" = 3 ]
	run ! grep -q $'[\x1b\r]' started.err
	cmp origin merged
}

@test "SIGUSR1 is answered without --progress, and with --quiet" {
	store --count 2000 --pattern shuffled
	slowly --quiet
	kill -USR1 "$pid"
	until_true test -s started.err
	kill -TERM "$pid"
	finish 3
	[[ $(sed -n 1p started.err) =~ ^snapmerge:\ [0-9]+\ %,\ .*\ of\ 7\.8\ MiB ]]
}

# limited BATCH MOST: stopped by one second of --max-time, after at most MOST
# microseconds; the table is shorter and the view whole. The same command
# finishes.
limited() {
	local begin took left

	store --count 4000 --origin-size 20M --pattern shuffled
	begin=${EPOCHREALTIME/[.,]/}
	run -3 --separate-stderr merge --max-time 1s --rate-limit 5M \
		--batch-size "$1"
	took=$((${EPOCHREALTIME/[.,]/} - begin))
	echo "$took µs"
	[ "$took" -lt "$2" ]
	[ "${stderr_lines[0]}" = "snapmerge: stopped as asked" ]
	left=$(live)
	[ "$left" -lt 4000 ]
	[ "$left" -gt 0 ]
	[[ ${stderr_lines[1]} == "snapmerge: $((4000 - left)) of 4000 chunks are committed; the origin is half merged, do not use it: run the same command again to go on" ]]
	run -0 --separate-stderr merge --max-time 1h
	[[ $stderr == "snapmerge: merged $left chunks, "* ]]
	cmp origin merged
}

@test "--max-time: stops at a commit, in time" {
	limited 256K 1800000
}

@test "--max-time: a batch that would take longer is cut short" {
	limited 1G 2500000
}

@test "--max-time: each run does something, however little time it has" {
	store --chunk 2048 --count 4 --pattern one
	run -3 timeout 20 "$SNAPMERGE" --origin origin --cow cow \
		--max-time 1s --rate-limit 640K --batch-size 1M
	[ "$(live)" = 3 ]
	run -0 merge
	cmp origin merged
}

@test "--verbose: the decisions, and a line for each commit" {
	store --count 100 --pattern shuffled
	run -0 --separate-stderr merge --verbose --batch-size 128K \
		--reflink never
	[ -z "$output" ]
	[ "${stderr_lines[0]}" = "snapmerge: method: page cache, because the chunks are scattered" ]
	[[ ${stderr_lines[1]} =~ ^snapmerge:\ batch:\ 32\ chunks,\ 128\.0\ KiB,\ hence\ 4\ commits\;\ [0-9]+\ buffers\ of\ 64\.0\ KiB$ ]]
	[ "${stderr_lines[2]}" = "snapmerge: commit 1: 32 of 100 chunks" ]
	[ "${stderr_lines[3]}" = "snapmerge: commit 2: 64 of 100 chunks" ]
	[ "${stderr_lines[4]}" = "snapmerge: commit 3: 96 of 100 chunks" ]
	[ "${stderr_lines[5]}" = "snapmerge: commit 4: 100 of 100 chunks" ]
	[[ ${stderr_lines[6]} == "snapmerge: merged 100 chunks, "* ]]
	[ "${#stderr_lines[@]}" = 7 ]
}

@test "--verbose: long runs go around the page cache" {
	store --count 1000 --pattern one
	run -0 --separate-stderr merge --verbose --reflink never
	[ "${stderr_lines[0]}" = "snapmerge: method: direct, because the runs are long" ]
	cmp origin merged
}

@test "SIGUSR1 harms none of the modes that only read" {
	"$MKSTORE" --count 20000 --origin-size 200M --metadata-only \
		--pattern scattered origin cow > store.log
	mkfifo pipe
	env --default-signal=USR1 "$SNAPMERGE" --list --cow cow > pipe 3>&- &
	pid=$!
	running+=("$pid")
	exec 5< pipe
	# it waits for a reader, with most of its list
	sleep 0.1
	kill -USR1 "$pid"
	[ "$(wc -l <&5)" = 20000 ]
	exec 5<&-
	wait "$pid"
}
