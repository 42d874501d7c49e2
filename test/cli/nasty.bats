#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# The corpus of nasty stores: its table says what is made and what must come
# of it.
load helpers

CORPUS=$BATS_TEST_DIRNAME/../nasty/corpus

# trim NAME: take the blanks around that variable's text away.
trim() {
	local -n text=$1

	text=${text#"${text%%[![:blank:]]*}"}
	text=${text%"${text##*[![:blank:]]}"}
}

# one LINE: make the store, merge, and say what is wrong, if anything is.
one() {
	local arguments change code message status=0
	local -a said

	IFS='|' read -r _ arguments change code message <<< "$1"
	trim code
	trim message
	rm -f origin cow merged
	# shellcheck disable=SC2086 # the arguments are words
	"$MKSTORE" --origin-size 2M $arguments origin cow merged > store.log
	[ "$change" = ' ' ] || bash -c "$change"
	[ "$code" = 0 ] || remember origin cow
	"$SNAPMERGE" --origin origin --cow cow > out 2> err || status=$?
	mapfile -t said < err
	[ "$status" = "$code" ] || echo "exit $status, not $code"
	[ ! -s out ] || echo "it printed on stdout"
	[ -z "$message" ] || [ "${said[0]}" = "snapmerge: $message" ] ||
		echo "not: $message"
	if [ "$code" = 0 ]; then
		[[ ${said[-1]} =~ ^snapmerge:\ (merged|nothing\ left)\  ]] ||
			echo "no summary"
		[ "${#said[@]}" = $((1 + (${#message} > 0))) ] ||
			echo "${#said[@]} lines"
		cmp origin merged
	else
		[ "${said[1]}" = "$UNTOUCHED_REFUSED" ] || echo "no advice"
		[ "${#said[@]}" = 2 ] || echo "${#said[@]} lines"
		unchanged
	fi
} 2>&1

@test "nasty stores are refused and untouched, odd ones merged" {
	local line wrong count=0 bad=0

	while IFS= read -r line; do
		case $line in '#'* | '') continue ;; esac
		count=$((count + 1))
		wrong=$(one "$line") || true
		[ -n "$wrong" ] || continue
		bad=$((bad + 1))
		echo "$line"
		printf '    %s\n' "$wrong"
		sed 's/^/    stderr: /' err
	done < "$CORPUS"
	echo "$bad of $count"
	[ "$count" -gt 30 ]
	[ "$bad" = 0 ]
}
