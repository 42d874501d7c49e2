#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# Wrong usage, and what is printed instead of a merge.
load helpers

# wrong MESSAGE ARGUMENT...: they are refused in these words.
wrong() {
	local message=$1

	shift
	run -2 --separate-stderr snapmerge "$@"
	[ -z "$output" ]
	stderr_is "snapmerge: $message" "Try 'snapmerge --help'."
}

@test "usage: nothing given" {
	wrong "--origin is missing"
}

@test "usage: one side is missing" {
	wrong "--cow is missing" --origin a
	wrong "--origin is missing" --cow b
}

@test "usage: unknown options" {
	wrong "unknown option --nonsense" --nonsense
	wrong "unknown option --nonsense=5" --nonsense=5
	wrong "unknown option -x" -x
	wrong "unknown option -x" -qx
}

@test "usage: an option without its value" {
	wrong "a value is missing after --origin" --origin
	wrong "a value is missing after --batch-size" -o a -c b --batch-size
	wrong "a value is missing after -c" -o a -c
}

@test "usage: an empty path" {
	wrong "not a value for this option: " --origin "" --cow b
	wrong "not a value for this option: " --origin a --cow ""
}

@test "usage: a value given twice" {
	run -2 --separate-stderr snapmerge -o a -c b --cow=d
	[ -z "$output" ]
	[ "${#stderr_lines[@]}" = 2 ]
	[[ ${stderr_lines[0]} == "snapmerge: given twice: "* ]]
	run -2 --separate-stderr snapmerge -b 1M -o a -c b -b 2M
	[[ ${stderr_lines[0]} == "snapmerge: given twice: "* ]]
}

@test "usage: sizes that do not parse" {
	local size

	for size in 0 "" K 1Q 4KB 1KiB -1 +1 1.5M 0x10 " 1" "1 " abc \
		18446744073709551616 16777216T 99999999999999999999; do
		wrong "not a value for this option: $size" \
			-o a -c b --batch-size "$size"
		wrong "not a value for this option: $size" \
			-o a -c b --rate-limit "$size"
	done
}

@test "usage: extra arguments" {
	wrong "extra argument extra" -o a -c b extra
	wrong "extra argument extra" extra -o a -c b
	wrong "extra argument --cow" -o a -c b -- --cow
}

@test "usage: is looked at before any file" {
	wrong "extra argument x" -o /nowhere/a -c /nowhere/b x
}

@test "--help goes to stdout" {
	local option

	for option in --help -h; do
		run -0 --separate-stderr snapmerge "$option"
		[ -z "$stderr" ]
		[[ ${lines[0]} == "Usage: snapmerge "* ]]
		[[ $output == *--origin* && $output == *--batch-size* ]]
		[[ $output == *"Exit status"* ]]
	done
}

@test "--help fits a terminal of 80 columns" {
	run -0 snapmerge --help
	run ! grep -E '^.{81}' <<< "$output"
}

@test "--version goes to stdout" {
	local option

	for option in --version -V; do
		run -0 --separate-stderr snapmerge "$option"
		[ -z "$stderr" ]
		[[ $output =~ ^snapmerge\ [0-9]+\.[0-9.]+$ ]]
	done
}

@test "what stdout does not take is an error" {
	local option

	[ -c /dev/full ] || skip "/dev/full is missing"
	for option in --help --version; do
		# shellcheck disable=SC2016 # bash -c expands them
		run -1 bash -c '"$1" "$2" 2>&1 > /dev/full' - "$SNAPMERGE" \
			"$option"
		[ "$output" = "snapmerge: standard output: No space left on device" ]
	done
}

@test "what stdout does not take of a report is an error" {
	local mode

	[ -c /dev/full ] || skip "/dev/full is missing"
	store
	for mode in --info --list --check; do
		# shellcheck disable=SC2016 # bash -c expands them
		run -1 bash -c '"$1" --cow cow "$2" 2>&1 > /dev/full' - \
			"$SNAPMERGE" "$mode"
		[ "$output" = "snapmerge: standard output: No space left on device" ]
	done
}
