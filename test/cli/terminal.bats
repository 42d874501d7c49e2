#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2094,SC2154 # variables that run and helpers set
# What a terminal shows: a real one, that of tmux, as it stands on the screen.
load helpers

teardown() {
	[ ! -S "$BATS_TEST_TMPDIR/tmux" ] || mux kill-server || true
	cd /
}

mux() {
	tmux -S "$BATS_TEST_TMPDIR/tmux" -f /dev/null "$@"
}

# terminal COLUMNS ARGUMENT...: snapmerge in a terminal of that width.
terminal() {
	local columns=$1

	shift
	need tmux
	# shellcheck disable=SC2016 # the shell in there expands them
	mux new-session -d -x "$columns" -y 24 \
		sh -c 'trap : INT; echo begin; "$@"; echo "exit $?"; sleep 60' - \
		"$SNAPMERGE" "$@" 2> tmux.log ||
		skip "no terminal: $(cat tmux.log)"
}

# screen: its lines, without those that are empty.
screen() {
	mux capture-pane -p 2> tmux.log | grep .
}

# signal NAME: to the snapmerge in the terminal.
signal() {
	local shell

	shell=$(mux display-message -p '#{pane_pid}')
	kill -"$1" "$(cat "/proc/$shell/task/$shell/children")"
}

shows() {
	screen > screen
	grep -Eq -- "$1" screen
}

LINE='^[0-9]+ %, [0-9.]+ [KM]iB of 7\.8 MiB(, [0-9.]+ [KM]iB/s, [0-9:]+ left)?$'

@test "terminal: the line of progress, and the summary in its place" {
	store --count 2000 --pattern shuffled
	terminal 80 --origin origin --cow cow --rate-limit 4M --batch-size 256K
	until_true shows "$LINE"
	until_true shows ' left$'
	# one line, renewed in place
	[ "$(grep -c % screen)" = 1 ]
	sleep 0.6
	shows "$LINE"
	[ "$(grep -c % screen)" = 1 ]
	[ "$(wc -l < screen)" = 2 ]
	until_true shows '^exit 0$'
	cat screen
	[ "$(sed -n 1p screen)" = begin ]
	[[ $(sed -n 2p screen) == "snapmerge: merged 2000 chunks, 7.8 MiB, in "* ]]
	[ "$(sed -n 3p screen)" = "exit 0" ]
	cmp origin merged
}

@test "terminal: 40 columns hold the line, cut and not folded" {
	store --count 2000 --pattern shuffled
	terminal 40 --origin origin --cow cow --rate-limit 4M --batch-size 256K
	until_true shows '^[1-9][0-9]* %, .* of 7\.8 MiB, '
	sleep 0.6
	shows '^[1-9][0-9]* %, .* of 7\.8 MiB, '
	cat screen
	[ "$(wc -l < screen)" = 2 ]
	run ! grep -E '^.{40}' screen
	signal INT
	until_true shows '^exit 3$'
	run ! grep % screen
	[ "$(sed -n 2p screen)" = "snapmerge: stopped as asked" ]
}

@test "terminal: a window that becomes narrower is followed" {
	store --count 2000 --pattern shuffled
	terminal 80 --origin origin --cow cow --rate-limit 4M --batch-size 256K
	until_true shows ' left$'
	mux resize-window -x 24 -y 24 || skip "this tmux cannot resize"
	sleep 0.6
	shows % # whatever the terminal has made of older lines
	[[ $(tail -n 1 screen) =~ ^[0-9]+\ %,\ .{1,18}$ ]]
}

@test "terminal: --verbose and SIGUSR1 print lines above it" {
	store --count 2000 --pattern shuffled
	terminal 80 --origin origin --cow cow --rate-limit 4M --batch-size 2M \
		--verbose
	until_true shows '^snapmerge: commit 1: 512 of 2000 chunks$'
	signal USR1
	until_true shows "^snapmerge: ${LINE#^}"
	until_true shows '^exit 0$'
	cat screen
	# each line begins where lines begin, and no progress is left over
	run ! grep -vE '^(begin|exit 0|snapmerge: .*|[a-z0-9].*)$' screen
	run ! grep -E "$LINE" screen
	[ "$(grep -c '^snapmerge: commit ' screen)" = 4 ]
}

@test "terminal: --dry-run --skip-identical leaves only the plan" {
	"$MKSTORE" --count 150000 --origin-size 2G --sparse-origin \
		--metadata-only --pattern scattered origin cow > store.log
	terminal 80 --dry-run --skip-identical --origin origin --cow cow
	until_true shows '^exit 0$'
	cat screen
	run ! grep % screen
	run ! grep 'commit ' screen
	shows '^identical: '
}

@test "terminal: --quiet and the modes that only read show no progress" {
	store --count 100
	terminal 80 --quiet --origin origin --cow cow --rate-limit 400K
	until_true shows '^exit 0$'
	[ "$(cat screen)" = $'begin\nexit 0' ]
}
