# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Cases and how they are told.  All claims are known before the first one is
# tried, so a lab that dies half way is seen to have done so.

readonly skipped=77
claims=()
commands=()
reason=
declare -A done_once=()

# claim TEXT FUNCTION [ARGUMENT]...
claim()
{
	claims+=("$1")
	shift
	commands+=("$*")
}

# Why a case is about to fail; for use as `... || why TEXT`.
why()
{
	echo "# $*"
	return 1
}

skip()
{
	reason=$*
	return "$skipped"
}

# once FUNCTION [ARGUMENT]...: what several cases build upon, done for the
# first of them.  All of them fail if it did.
once()
{
	if [[ -z ${done_once["$*"]:-} ]]; then
		"$@"
		done_once["$*"]=$?
	fi
	((done_once["$*"] == 0)) || why "what this builds upon failed: $*"
}

same()
{
	cmp -- "$1" "$2" 2>&1 | sed 's/^/# /'
	return "${PIPESTATUS[0]}"
}

# equal WHAT ONE OTHER: two facts, of which neither may be missing.
equal()
{
	[[ -n $2 && $2 == "$3" ]] || why "$1: '$2' is not '$3'"
}

run_claims()
{
	local i status passed=0 failed=0 skips=0 words

	echo "1..${#claims[@]}"
	for i in "${!claims[@]}"; do
		read -ra words <<< "${commands[i]}"
		"${words[@]}"
		status=$?
		if ((status == 0)); then
			echo "ok $((i + 1)) - ${claims[i]}"
			((++passed))
		elif ((status == skipped)); then
			echo "ok $((i + 1)) - ${claims[i]} # SKIP $reason"
			((++skips))
		else
			echo "not ok $((i + 1)) - ${claims[i]}"
			((++failed))
		fi
	done
	echo "kernel lab: $passed passed, $failed failed, $skips skipped"
	((failed == 0))
}
