#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# Stopped by a signal, or killed; and what a terminal shows meanwhile.
load helpers

# stops SIGNAL: it ends the merge after a commit, and tells the truth.
stops() {
	local committed left

	store --count 2000 --pattern shuffled
	slowly
	kill -"$1" "$pid"
	finish 3
	[ ! -s started.out ]
	[ "$(sed -n 1p started.err)" = "snapmerge: stopped as asked" ]
	[[ $(sed -n 2p started.err) =~ ^snapmerge:\ ([0-9]+)\ of\ 2000\ chunks\ are\ committed\;\ the\ origin\ is\ half\ merged,\ do\ not\ use\ it:\ run\ the\ same\ command\ again\ to\ go\ on$ ]]
	committed=${BASH_REMATCH[1]}
	[ "$(wc -l < started.err)" = 2 ]
	left=$(live)
	[ "$left" -gt 0 ]
	[ "$left" = $((2000 - committed)) ]
	run -0 --separate-stderr merge
	[[ $stderr == "snapmerge: merged $left chunks, "* ]]
	cmp origin merged
}

@test "SIGINT finishes the batch, and the same command the rest" {
	stops INT
}

@test "SIGTERM finishes the batch, and the same command the rest" {
	stops TERM
}

@test "SIGHUP finishes the batch, and the same command the rest" {
	stops HUP
}

@test "many signals are like one" {
	store
	slowly
	kill -INT "$pid"
	kill -TERM "$pid"
	kill -HUP "$pid"
	finish 3
	[ "$(live)" -gt 0 ]
	run -0 merge
	cmp origin merged
}

@test "stopped again and again, it gets there" {
	local rounds=0 left=300 status

	store --count 300
	while [ "$left" -gt 0 ]; do
		start "$SNAPMERGE" --origin origin --cow cow --rate-limit 4M \
			--batch-size 64K
		sleep 0.08
		kill -TERM "$pid" 2> /dev/null || true
		status=0
		wait "$pid" || status=$?
		[ "$status" = 3 ] || [ "$status" = 0 ]
		left=$(live)
		rounds=$((rounds + 1))
		[ "$rounds" -lt 60 ]
	done
	running=()
	cmp origin merged
	[ "$rounds" -gt 1 ]
}

@test "an ignored SIGHUP does not stop it, as under nohup" {
	store
	slow_ignoring HUP
	kill -HUP "$pid"
	finish 0
	cmp origin merged
}

@test "an ignored SIGINT does not stop it, as in the background of a script" {
	store
	slow_ignoring INT
	kill -INT "$pid"
	finish 0
	cmp origin merged
}

slow_ignoring() {
	cp cow cow.before
	env --ignore-signal="$1" "$SNAPMERGE" --origin origin --cow cow \
		--rate-limit 2M --batch-size 128K > started.out 2> started.err \
		3>&- &
	pid=$!
	running+=("$pid")
	until_true differ cow cow.before
}

@test "killed, the view is whole, and the same command finishes" {
	store --count 2000 --pattern shuffled
	slowly
	kill -KILL "$pid"
	finish 137
	[ "$(live)" -gt 0 ]
	run -0 merge
	cmp origin merged
}

@test "stderr that is closed does not stop it" {
	store
	"$SNAPMERGE" --origin origin --cow cow 2>&-
	cmp origin merged
}

@test "a reader of stderr that goes away does not stop it" {
	store
	{ "$SNAPMERGE" --origin origin --cow cow --rate-limit 4M; } 2>&1 | :
	[ "${PIPESTATUS[0]}" = 0 ]
	cmp origin merged
}

# on_terminal COMMAND: in a terminal, whose output is in typescript.
on_terminal() {
	need script
	TERM=${TERMINAL:-xterm} script --quiet --return --command "$1" \
		typescript < /dev/null > /dev/null
}

@test "progress is on the terminal, and gone at the end" {
	local last

	store --count 1024
	on_terminal "'$SNAPMERGE' --origin origin --cow cow --rate-limit 4M"
	cmp origin merged
	grep -q '[0-9] %' typescript
	grep -q 'MiB/s' typescript
	# what follows the last time that the line was taken away
	last=$(tr -d '\r' < typescript | sed 's/.*\x1b\[K//' |
		grep '^snapmerge: ')
	[[ $last == "snapmerge: merged 1024 chunks, 4.0 MiB, "* ]]
	[[ $last != *%* ]]
}

@test "progress comes a few times a second at most" {
	store --count 1024
	on_terminal "'$SNAPMERGE' --origin origin --cow cow --rate-limit 4M --batch-size 64K"
	[ "$(tr '\r' '\n' < typescript | grep -c '[0-9] %')" -le 12 ]
}

@test "--quiet shows no progress on a terminal" {
	store --count 1024
	on_terminal "'$SNAPMERGE' --origin origin --cow cow --rate-limit 4M --quiet"
	cmp origin merged
	run ! grep -q '%' <(sed '/^Script /d' typescript)
}

@test "a dumb terminal gets no progress line" {
	store --count 1024
	TERMINAL=dumb on_terminal "'$SNAPMERGE' --origin origin --cow cow --rate-limit 4M"
	run ! grep -q '[0-9] %' <(sed '/^Script /d' typescript)
	grep -q 'merged 1024 chunks' typescript
}

@test "without a terminal there is no progress" {
	store --count 1024
	run -0 --separate-stderr merge --rate-limit 4M
	[ "${#stderr_lines[@]}" = 1 ]
	[[ $stderr != *%* ]]
}
