#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# --json: one object on stdout for each mode and each way to end, read by jq.
load helpers

# The fields that the manual tells of, as a list.
setup_file() {
	sed -n '/^\.Sh JSON FIELDS/,/^\.Sh EXAMPLES/s/^\.It Cm //p' \
		"$BATS_TEST_DIRNAME/../../man/snapmerge.8" | tr -d ' ' |
		sed 's/.*/["&"]/; s/,/","/g' | tr '\n' '+' |
		sed 's/]+\[/,/g; s/+$//' > "$BATS_FILE_TMPDIR/fields"
}

# object CODE RESULT ARGUMENT...: exactly one object, which says so, and all of
# whose fields are in the manual. It is then in the file object.
object() {
	local code=$1 result=$2

	shift 2
	run "-$code" --separate-stderr snapmerge --json "$@"
	is_object "$code" "$result"
}

is_object() {
	need jq
	printf '%s\n' "$output" > object
	jq --slurp --exit-status --arg result "$2" --argjson code "$1" \
		--slurpfile fields "$BATS_FILE_TMPDIR/fields" '
		length == 1 and (.[0] | type == "object" and
		.result == $result and .exit_code == $code and
		(keys - $fields[0] == []))' object > /dev/null || {
		echo "not one object, or not $2, or with unknown fields:"
		cat object
		return 1
	}
}

# has FILTER...: they are true of the object.
has() {
	local filter

	jq --exit-status "$(printf '(%s) and ' "$@") true" object > /dev/null &&
		return
	cat object
	for filter in "$@"; do
		jq --exit-status "$filter" object > /dev/null ||
			echo "not so: $filter"
	done
	return 1
}

@test "json: --info, of each kind of store" {
	store --count 300 --stale 3
	object 0 read --info --cow cow
	[ -z "$stderr" ]
	has '.mode == "info"' '.cow == "cow"' '.exceptions == 300' \
		'.left_to_merge == 300 * 4096' '.chunk_size == 4096' \
		".cow_size == $(stat --format=%s cow)" '.valid == true' \
		'.merged == false' '.stale_entries == 3' '.version == 1' \
		'.problems == 0' '.state == "to be merged"' \
		'.status | test("^[0-9]+/[0-9]+ [0-9]+$")'
	store --count 10 --invalid
	object 0 read --info --cow cow
	has '.status == "Invalid"' '.valid == false' '.percent_used == 100'
	store --count 0
	object 0 read --info --cow cow
	has '.merged == true' '.percent_used == 0' '.left_to_merge == 0'
	store --list 1,1
	object 4 corrupt --info --cow cow
	has '.problems == 1'
}

@test "json: --info has the same facts as the text" {
	store --count 300
	object 0 read --info --cow cow
	run -0 snapmerge --info --cow cow
	diff <(sed 's/:.*//; s/ /_/g' <<< "$output") \
		<(jq --raw-output 'keys_unsorted[3:][]' object)
}

@test "json: --list" {
	store --list 5,6,7,100,9
	object 0 listed --list --cow cow
	has '.runs == [[5, 2, 3], [100, 5, 1], [9, 6, 1]]'
	store --count 0
	object 0 listed --list --cow cow
	has '.runs == []'
}

@test "json: --list of many runs" {
	"$MKSTORE" --count 100000 --pattern scattered --origin-size 1G \
		--sparse-origin --metadata-only origin cow > store.log
	snapmerge --list --json --cow cow > object
	has '.runs | length == 100000'
	diff <(snapmerge --list --cow cow | sum) \
		<(jq --raw-output '.runs[] | "\(.[0]) \(.[1]) \(.[2])"' object |
			sum)
	rm origin cow object
}

@test "json: --check" {
	store --count 300
	object 0 sound --check --cow cow
	has '.exceptions == 300' '.problems == 0'
	store --list "1$(printf ',1%.0s' {1..25})"
	object 4 corrupt --check --cow cow --origin origin
	has '.problems == 25' '.messages | length == 20' '.file == "cow"' \
		'.messages[0] | test("^exception 1: origin chunk 1 is named twice")'
}

@test "json: --dry-run" {
	store --list 1,2,3,100
	object 0 planned --dry-run --origin origin --cow cow --batch-size 8K \
		--skip-identical
	has '.mode == "dry-run"' '.batches == 2' '.syncs == 4' '.runs == 2' \
		'.batch_chunks == 2' '.first_byte == 4096' \
		'.end_byte == 101 * 4096' '.space_needed == 0' \
		'.origin_size == 8388608' '.can_share_blocks | type == "boolean"' \
		'.method | type == "string"' '.identical | type == "number"'
}

@test "json: a merge, one that goes on, and nothing left" {
	local left

	store --count 2000 --pattern shuffled
	object 3 stopped --origin origin --cow cow --max-time 1s \
		--rate-limit 3M --batch-size 256K
	left=$(live)
	has ".left == $left" ".committed == 2000 - $left" '.merged_before == 0' \
		'.committed_bytes == .committed * 4096' '.exceptions == 2000' \
		'.origin_touched == true' '.commits > 1' '.seconds > 0.9' \
		'.mode == "merge"'
	object 0 merged --origin origin --cow cow
	has ".committed == $left" ".merged_before == 2000 - $left" '.left == 0' \
		".exceptions == $left" '.commits == 1'
	[ -z "$stderr" ]
	cmp origin merged
	object 0 merged --origin origin --cow cow
	has '.committed == 0' '.commits == 0' '.origin_touched == false'
}

@test "json: --skip-identical counts what it leaves" {
	store --list 1,2,3,4
	dd if=merged of=origin bs=4096 count=3 conv=notrunc status=none
	object 0 merged --origin origin --cow cow --skip-identical
	has '.identical_bytes == 8192' '.committed == 4'
}

@test "json: --undo, --verify and --discard print no second object" {
	store
	object 0 merged --origin origin --cow cow --undo undo --verify \
		--discard --verbose --progress
	cmp origin merged
}

@test "json: --output, and a file that exists" {
	store
	object 0 written --origin origin --cow cow --output new
	has '.mode == "output"' '.output == "new"' '.origin_touched == false'
	cmp new merged
	object 1 failed --origin origin --cow cow --output new
	has '.file == "new"' '.message == "cannot create: File exists"'
}

# stopped [OPTION]...: in the middle, by a signal.
stopped() {
	store --count 2000 --pattern shuffled
	start "$SNAPMERGE" --json --origin origin --cow cow --rate-limit 2M "$@"
	sleep 0.5
	kill -TERM "$pid"
	finish 3
	output=$(< started.out)
	is_object 3 stopped
	has '.committed + .left == 2000' '.exceptions == 2000'
}

@test "json: a merge that a signal has stopped" {
	stopped --batch-size 256K
	has '.mode == "merge"' '.committed > 0'
}

@test "json: --output that a signal has stopped" {
	stopped --output new
	has '.mode == "output"' '.output == "new"' '.origin_touched == false' \
		'.committed == 0'
	[ ! -e new ]
}

# Before the first write a signal ends it on the spot: here in the midst of the
# locking.
@test "json: a signal before the first write" {
	need strace
	store
	remember origin cow
	run -3 --separate-stderr strace --quiet=all --output=/dev/null \
		--signal=none --trace=fcntl \
		--inject=fcntl:signal=TERM:when=1 \
		"$SNAPMERGE" --json --origin origin --cow cow
	is_object 3 stopped
	has '.committed == 0'
	unchanged
}

@test "json: busy" {
	store --count 2000
	slowly
	object 5 busy --origin origin --cow cow
	has '.file == "origin"' '.message | test("^in use: ")' '.committed == 0' \
		'.origin_touched == false'
	object 5 busy --dry-run --origin origin --cow cow
	has '.mode == "dry-run"'
	kill -TERM "$pid"
	finish 3
}

@test "json: refused, in each mode" {
	local mode

	store
	head -c 1M /dev/urandom > cow
	for mode in --info --list --check "--dry-run --origin origin" \
		"--origin origin" "--output new --origin origin"; do
		# shellcheck disable=SC2086 # the options are words
		object 4 refused $mode --cow cow
		has '.file == "cow"' \
			'.message | test("^not a persistent snapshot store")'
	done
	[ ! -e new ]
}

@test "json: no such file, in each mode" {
	local mode

	store
	for mode in --info --list --check "--dry-run --origin origin" \
		"--origin origin" "--output new --origin origin"; do
		# shellcheck disable=SC2086 # the options are words
		object 1 failed $mode --cow missing
		has '.file == "missing"' \
			'.message == "cannot open: No such file or directory"'
	done
}

@test "json: an error of the medium, with its offset and what was committed" {
	local left

	store --origin-size 16M --count 3000 --sparse-origin --pattern one
	mounted full -t tmpfs -o size=6M none
	cp --sparse=always origin full/origin
	object 1 failed --origin full/origin --cow cow --batch-size 1M
	rm origin
	ln -s full/origin origin
	left=$("$MKSTORE" --view origin cow view | sed 's/ .*//')
	cmp view merged
	has '.file == "full/origin"' '.message | test("No space left on device")' \
		'.offset | type == "number"' '.origin_touched == true' \
		".left == $left" ".committed == 3000 - $left" '.committed > 0'
}

@test "json: wrong usage gives no object" {
	run -2 --separate-stderr snapmerge --json --info --list --cow cow
	[ -z "$output" ]
}

@test "json: what stdout does not take is an error" {
	store
	# shellcheck disable=SC2016 # bash -c expands them
	run -1 bash -c '"$1" --info --json --cow cow 2>&1 > /dev/full' - \
		"$SNAPMERGE"
	[ "$output" = "snapmerge: standard output: No space left on device" ]
}

@test "json: names of any bytes" {
	local all='' i name

	need jq
	store
	for ((i = 1; i < 256; i++)); do
		[ "$i" = 47 ] || all+=$(printf '\\x%02x' "$i")
	done
	# shellcheck disable=SC2059 # it is a format
	printf -v all "$all"
	: > objects
	# Not UTF-8: a lone byte, one that is cut, an overlong one, a surrogate,
	# past the last code point; and at last all bytes.
	for name in 'a"b\c' $'tab\tnew\nline' 'Grüße, 世界 🐄' $'x\xffy' \
		$'x\xe4\xb8' $'\xc0\xafz' $'\xed\xa0\x80' \
		$'\xf4\x90\x80\x80' "${all:0:200}" "${all:200}"; do
		mv cow "$name" || skip "the file system has no such names"
		snapmerge --info --json --cow "$name" >> objects
		mv "$name" cow
		snapmerge --info --json --cow "$name" >> objects 2> err || true
	done
	iconv --from-code UTF-8 objects > /dev/null
	jq --slurp --exit-status 'length == 20 and
		([range(0; 20; 2) as $i | .[$i].cow == .[$i + 1].file] | all) and
		[.[range(0; 16; 2)].cow] == ["a\"b\\c", "tab\tnew\nline",
		"Grüße, 世界 🐄", "x\ufffdy", "x\ufffd\ufffd",
		"\ufffd\ufffdz", "\ufffd\ufffd\ufffd",
		"\ufffd\ufffd\ufffd\ufffd"]' objects
}
