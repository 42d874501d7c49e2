#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# The same options in --help, the manual and the completion, and in no
# combination that has no meaning.
load helpers

MAN=$BATS_TEST_DIRNAME/../../man/snapmerge.8
COMPLETION=$BATS_TEST_DIRNAME/../../man/snapmerge.bash

# Each option on a line, as in "-o --origin" or "--check".
options_of_help() {
	snapmerge --help | sed -n 's/^  \(-., \|    \)\(--[a-z-]*\).*/\1\2/p' |
		tr -d , | sed 's/^ *//' | sort
}

options_of_manual() {
	sed -n '/^\.Ss The two sides/,/^\.Ss Which option/{
		s/^\.It Fl \([a-z]*\) , -\([a-z-]*\).*/-\1 --\2/p
		s/^\.It Fl -\([a-z-]*\).*/--\1/p
		s/^\.It Fl \([A-Z]\) , -\([a-z-]*\).*/-\1 --\2/p
	}' "$MAN" | sort
}

# complete WORD...: what bash would propose for the last of them.
complete_words() {
	bash -c '
		source "$1"
		shift
		compopt() { :; }
		COMP_WORDS=("$@")
		COMP_CWORD=$(($# - 1))
		_snapmerge
		printf "%s\n" "${COMPREPLY[@]}"' - "$COMPLETION" "$@"
}

@test "options: --help and the manual have the same" {
	options_of_help > help
	[ "$(wc -l < help)" -gt 20 ]
	diff help <(options_of_manual)
}

@test "options: the completion proposes all long ones" {
	diff <(options_of_help | sed 's/^-. //' | sort) \
		<(complete_words snapmerge -- | sort)
}

@test "options: the manual's table has all but help and version" {
	diff <(options_of_help | sed 's/^-. //' | sort | grep -vxe --help \
		-e --version -e --dry-run -e --check -e --info -e --list \
		-e --output) \
		<(table | sed 's/ .*//' | sort)
}

@test "options: what --help says takes a value, does" {
	local name value

	while read -r name value; do
		if [ -n "$value" ]; then
			run -2 --separate-stderr snapmerge "$name"
			[ "${stderr_lines[0]}" = "snapmerge: a value is missing after $name" ]
		else
			run -2 --separate-stderr snapmerge "$name=value"
		fi
	done < <(snapmerge --help |
		sed -n 's/^  \(-., \|    \)\(--[a-z-]*\)\( [A-Z]*\|\) .*/\2\3/p')
}

@test "completion: values" {
	[ "$(complete_words snapmerge --reflink a)" = "$(printf 'auto\nalways')" ]
	[ "$(complete_words snapmerge --reflink = n)" = never ]
	[ "$(complete_words snapmerge --reflink =)" = "$(printf 'auto\nalways\nnever')" ]
	[ "$(complete_words snapmerge --skip)" = --skip-identical ]
	[ -z "$(complete_words snapmerge --max-time '')" ]
}

@test "completion: names of files, also with blanks" {
	local option

	touch 'disk one.img' other
	for option in -o --origin -c --cow --output --undo; do
		[ "$(complete_words snapmerge "$option" di)" = "disk one.img" ]
	done
	[ "$(complete_words snapmerge --cow = di)" = "disk one.img" ]
}

@test "completion: is for snapmerge, and leaves nothing else behind" {
	# shellcheck disable=SC2016 # bash -c expands it
	run -0 bash -c 'source "$1"; complete -p snapmerge' - "$COMPLETION"
	[ "$output" = "complete -F _snapmerge snapmerge" ]
	# shellcheck disable=SC2016 # bash -c expands them
	run -0 bash -c 'before=$(compgen -v); source "$1"
		COMP_WORDS=(snapmerge --); COMP_CWORD=1; _snapmerge
		comm -13 <(echo "$before" | sort) <(compgen -v | sort)' \
		- "$COMPLETION"
	run ! grep -vxe COMPREPLY -e COMP_WORDS -e COMP_CWORD -e before \
		-e PIPESTATUS -e _ <<< "$output"
}

# The table of the manual: --option, and must, may or - for each mode.
table() {
	sed -n '/^\.Ss Which option/,/^\.El/s/^\.It Fl -\(.*\)/--\1/p' "$MAN" |
		sed 's/ Ta / /g; s/\\-/-/g'
}

MODES=('' --dry-run --check --info --list --output=missing/new)

# code ARGUMENT...: $got is the exit status.
code() {
	got=0
	"$SNAPMERGE" "$@" > out 2> err || got=$?
}

# expect CODE ARGUMENT...
expect() {
	local want=$1

	shift
	code "$@"
	[ "$got" = "$want" ] || {
		echo "$got, not $want: $*"
		return 1
	}
}

@test "options: each goes with the modes that the manual's table says" {
	local -A value=([--origin]==missing/a [--cow]==missing/b
		[--undo]==missing/u [--batch-size]==1M [--rate-limit]==1M
		[--max-time]==1s [--reflink]==auto)
	local -a rows cells musts
	local row i it column bad=0

	mapfile -t rows < <(table)
	[ "${#rows[@]}" = 16 ]
	for i in "${!MODES[@]}"; do
		# what this mode cannot do without
		musts=()
		for row in "${rows[@]}"; do
			read -ra cells <<< "$row"
			[ "${#cells[@]}" = 7 ]
			[ "${cells[i + 1]}" != must ] || musts+=("${cells[0]}")
		done
		[ "${#musts[@]}" -gt 0 ]
		for row in "${rows[@]}"; do
			read -ra cells <<< "$row"
			option=${cells[0]}
			column=${cells[i + 1]}
			arguments=(${MODES[i]:+"${MODES[i]}"})
			for it in "${musts[@]}"; do
				[ "$it" = "$option" ] ||
					arguments+=("$it${value[$it]}")
			done
			[ "$column" != must ] || expect 2 "${arguments[@]}" ||
				bad=$((bad + 1))
			arguments+=("$option${value[$option]}")
			case $column in
			must | may) expect 1 "${arguments[@]}" ;;
			-) expect 2 "${arguments[@]}" &&
				grep -qx "snapmerge: has no meaning here: $option" err ;;
			*) false ;;
			esac || bad=$((bad + 1))
		done
	done
	[ "$bad" = 0 ]
}

@test "options: two modes at once have no meaning" {
	local a b

	for a in --dry-run --check --info --list --output=missing/new; do
		for b in --dry-run --check --info --list --output=missing/new; do
			[ "$a" != "$b" ] || continue
			expect 2 "$a" "$b" -o missing/a -c missing/b
			[ "$(head -n 1 err)" = "snapmerge: more than one thing to do" ]
		done
	done
}

@test "options: --quiet excludes what prints more" {
	expect 2 -q -v -o missing/a -c missing/b
	expect 2 -p -q -o missing/a -c missing/b
	expect 1 -p -v -o missing/a -c missing/b
	expect 1 -qq -o missing/a -c missing/b
}

@test "options: durations and words that do not parse" {
	local value

	for value in 0 "" s 1d 1ms -1 1.5h "1 h" 18446744073709551616 \
		99999999999h; do
		expect 2 -o missing/a -c missing/b --max-time "$value"
		[ "$(head -n 1 err)" = "snapmerge: not a value for this option: $value" ]
	done
	for value in "" Auto yes nev; do
		expect 2 -o missing/a -c missing/b --reflink "$value"
	done
	for value in 1 1s 1m 1h 5124095h; do
		expect 1 -o missing/a -c missing/b --max-time "$value"
	done
}
