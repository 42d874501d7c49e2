#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2094,SC2154 # variables that run and helpers set
# The manual and the README: well-formed, and their examples run as written.
load helpers

ROOT=$BATS_TEST_DIRNAME/../..
MAN=$ROOT/man/snapmerge.8
RECIPES=$ROOT/test/kernel/guest/recipes

# example NAME: the block below that mark in the manual, as a reader gets it.
example() {
	sed -n "/^\\.\\\\\" example $1\$/,/^\\.Ed\$/p" "$MAN" |
		sed '1,2d; $d; s/\\e/\\/g' > "example.$1"
	[ -s "example.$1" ] || {
		echo "the manual has no example $1"
		return 1
	}
	cat "example.$1"
}

# Their names.
examples() {
	sed -n 's/^\.\\" example //p' "$MAN"
}

# The programs as if installed, and stand-ins for what would do harm.
installed() {
	mkdir -p bin
	cp "$SNAPMERGE" bin/snapmerge
	PATH=$PWD/bin:$PATH
}

stand_in() {
	printf '#!/bin/sh\necho "%s $*" >> "%s"\n%s\n' "$1" "$PWD/called" \
		"$2" > "bin/$1"
	chmod +x "bin/$1"
}

# rehearse NAME: run that example where /dev, /srv and /usr/local/sbin are the
# directories of these names here.
rehearse() {
	need_root "mount over /dev and /srv"
	mkdir -p dev srv sbin
	cp "$SNAPMERGE" sbin/snapmerge
	: > dev/null
	if [ ! -d /srv ] || [ ! -d /usr/local/sbin ]; then
		skip "/srv or /usr/local/sbin is missing"
	fi
	# shellcheck disable=SC2016 # sh -c expands them
	unshare --mount sh -ec '
		mount --bind /dev/null dev/null
		mount --bind sbin /usr/local/sbin
		mount --bind srv /srv
		mount --rbind dev /dev
		exec "$@"' - "$@"
}

# pair ORIGIN COW [OPTION]...: and what must come of them in ORIGIN.merged.
pair() {
	"$MKSTORE" "${@:3}" "$1" "$2" "$(basename "$1").merged" > store.log
}

# slow_pair ORIGIN COW: one that is being merged, for many seconds.
slow_pair() {
	pair "$1" "$2" --count 2000
	cp "$2" before
	start "$SNAPMERGE" -o "$1" -c "$2" --rate-limit 256K --batch-size 16K
	until_true differ "$2" before
}

@test "manual: no warnings from mandoc" {
	need mandoc
	run -0 mandoc -Tlint -Wwarning "$MAN"
	[ -z "$output" ]
}

@test "manual: fits a terminal of 80 columns" {
	need mandoc
	mandoc -Tutf8 -O width=78 "$MAN" | col -b > text
	[ "$(wc -l < text)" -gt 300 ]
	run ! grep -E '^.{81}' text
}

@test "manual: an example reads as it runs" {
	local name

	need mandoc
	mandoc -Tascii -O width=78 "$MAN" | col -bx | sed 's/^ *//' | sort > text
	examples | while read -r name; do
		example "$name"
	done | expand | sed 's/^ *//' | grep . | sort -u > lines
	[ "$(wc -l < lines)" -gt 40 ]
	[ -z "$(comm -23 lines text)" ]
}

@test "manual: each example has a test" {
	local name

	while read -r name; do
		grep -Eq "^	(example|recipe) $name( |\$)" "$BATS_TEST_FILENAME"
	done < <(examples)
	[ "$(grep -c '^\.Bd' "$MAN")" = "$(grep -c '^\.\\" example ' "$MAN")" ]
}

@test "manual: each message of the program is explained" {
	local words missing=0

	# what error_set() is given, but for what stands in the place of %
	sed 's/Sy "\([^"]*\)"/\n\1\n/g' "$MAN" | sed -n '/^[a-z]/p' > explained
	for words in 'cannot open' 'cannot sync' 'named twice' 'is a metadata area' \
		'is past the end' 'not a persistent snapshot store' 'blank: ' \
		'invalid: ' 'cannot share blocks' 'does not read back' \
		'origin and COW are the same' 'not the undo store'; do
		grep -Fq "$words" "$ROOT"/*.c
		grep -Fq "$words" explained || {
			echo "not explained: $words"
			missing=1
		}
	done
	[ "$missing" = 0 ]
}

@test "example: a pair of image files" {
	installed
	pair disk.img snap.cow
	example pair > script
	run -0 sh -e script
	[[ $output == *"to be merged"* ]]
	cmp disk.img disk.img.merged
}

@test "example: an undo store, and the way back" {
	installed
	pair disk.img snap.cow
	cp disk.img before
	example undo > script
	run -0 sh -e <(head -n 1 script)
	cmp disk.img disk.img.merged
	[[ $output == *"to take it back: $(tail -n 1 script)" ]]
	run -0 sh -e <(tail -n 1 script)
	cmp disk.img before
}

@test "example: verify and discard" {
	local blocks

	installed
	pair disk.img snap.cow --prealloc
	blocks=$(stat --format=%b snap.cow)
	example verify > script
	run -0 sh -e script
	cmp disk.img disk.img.merged
	[ "$(stat --format=%b snap.cow)" -lt "$blocks" ]
}

@test "example: a script that goes by the exit status" {
	installed
	stand_in start_machine
	pair disk.img snap.cow
	example script > script
	run -0 sh script
	cmp disk.img disk.img.merged
	[ "$(cat called)" = "start_machine disk.img" ]
	rm called
	head -c 1M /dev/urandom > snap.cow
	run -1 sh script
	slow_pair disk.img snap.cow
	run -0 sh script
	[ "${lines[-1]}" = "still in use" ]
	[ ! -e called ]
	kill -TERM "$pid"
	finish 3
}

@test "example: the overlay of a live system, invalidated" {
	installed
	pair rootfs.img overlay --invalid
	remember rootfs.img overlay
	example live > script
	run -0 --separate-stderr sh -e script
	cmp new.img rootfs.img.merged
	unchanged
	[[ $output == *"Invalid"* ]]
}

@test "example: the overlays of a RAID" {
	local disk

	mkdir dev
	for disk in sdb sdc sdd; do
		pair dev/$disk overlay-$disk --seed "$(printf %d "'${disk#sd}")"
	done
	example raid > script
	# one of them does not fit: nothing is merged
	cp overlay-sdd good
	"$MKSTORE" --list 1,1 x overlay-sdd > store.log
	remember dev/sdb dev/sdc dev/sdd
	run -4 rehearse sh script
	unchanged
	mv good overlay-sdd
	run -0 rehearse sh script
	for disk in sdb sdc sdd; do
		cmp dev/$disk $disk.merged
	done
}

@test "example: block devices" {
	mkdir dev
	installed
	stand_in umount
	stand_in dmsetup
	pair dev/sdb1 dev/sdc1
	example devices > script
	run -0 rehearse sh -e script
	cmp dev/sdb1 sdb1.merged
	[ "$(cat called)" = "$(head -n 3 script)" ]
}

# Those of LVM run in the kernel laboratory, from this file.
recipe() {
	diff <(sed -n "s/^$1 //p" "$RECIPES") <(example "$1")
}

@test "example: the recipes for LVM are those that the laboratory runs" {
	[ -e "$RECIPES" ] || skip "the laboratory is missing"
	recipe A
	recipe back
	recipe B
	recipe C
}

@test "example: a slice each night, and a run that overlaps" {
	local schedule command

	example cron > table
	[[ $(sed -n 1p table) == PATH=*/usr/local/sbin* ]]
	read -r a b c d e command <<< "$(sed -n 2p table)"
	schedule="$a $b $c $d $e"
	[[ $schedule =~ ^[0-9]+\ [0-9]+(\ \*){3}$ ]]
	[[ $command == snapmerge* && $command != *%* ]]
	{ sed -n 1p table; echo "$command"; } > script
	mkdir srv
	slow_pair srv/a.img srv/a.cow
	run -5 rehearse sh script
	kill -TERM "$pid"
	finish 3
	run -0 rehearse sh script
	[ -z "$output" ]
	cmp srv/a.img a.img.merged
}

@test "example: a service and its timer" {
	local command

	mkdir -p srv units
	pair srv/a.img srv/a.cow
	example service > units/merge-a.service
	example timer > units/merge-a.timer
	command=$(sed -n '/^ExecStart=/,/[^\\]$/p' units/merge-a.service |
		sed 's/^ExecStart=//')
	echo "$command" > script
	run -0 rehearse sh script
	cmp srv/a.img a.img.merged
	need systemd-analyze
	run -0 rehearse systemd-analyze verify --man=no \
		units/merge-a.service units/merge-a.timer
	run ! grep merge-a <<< "$output"
	systemd-analyze calendar "$(sed -n 's/^OnCalendar=//p' units/merge-a.timer)"
}

@test "example: many pairs on one machine" {
	local name status

	installed
	for name in a 'b c' d e f; do
		pair "$name.img" "$name.img.cow" --seed "${#name}" --count 50
	done
	example xargs > script
	# one of them is refused: the others are merged
	mv d.img.cow good
	head -c 1M /dev/urandom > d.img.cow
	run -123 sh script
	for name in a 'b c' e f; do
		cmp "$name.img" "$name.img.merged"
	done
	mv good d.img.cow
	run -0 sh script
	cmp d.img d.img.merged
}

@test "example: many pairs on many machines" {
	local name

	need parallel
	parallel --version | grep -q GNU || skip "this parallel is not GNU's"
	installed
	# the machines are here
	# shellcheck disable=SC2016 # for the stand-in's shell
	stand_in ssh 'shift; exec "$@"'
	for name in a b c; do
		pair $name.img $name.img.cow --count 50
		echo "host-$name $PWD/$name.img" >> pairs
	done
	example parallel > script
	mv b.img.cow good
	head -c 1M /dev/urandom > b.img.cow
	run -1 sh script
	# host, exit status: of each in the log
	[ "$(awk 'NR > 1 { print $7 }' log | sort | tr -d '\n')" = 004 ]
	mv good b.img.cow
	run -0 sh script
	# only that one was run again
	[ "$(grep -c '^ssh host-b ' called)" = 2 ]
	[ "$(grep -c '^ssh host-a ' called)" = 1 ]
	for name in a b c; do
		cmp $name.img $name.img.merged
	done
}

# The transcript: what stands behind $, and what it printed, indented by four.
transcript() {
	sed -n '/^How it looks/,/^Exit status/s/^    //p' "$ROOT/README" |
		sed '0,/^PATH=/d'
}

# Rates, times and how far an interrupted merge came are another each time.
roughly() {
	sed -E 's/in [0-9.]+ s \([0-9.]+ [KMG]iB\/s\)/in N s (N)/
		/committed|half merged|^(exceptions|left to merge):|merged [0-9]+ chunks/s/[0-9.]+/N/g
		s/N [KM]iB/N iB/g
		/^(can share blocks|method):/s/: .*//'
}

@test "README: the two commands that set it up stand first, and are complete" {
	local -a setups

	mapfile -t setups < <(grep '^    apt-get' "$ROOT/README")
	[ "${#setups[@]}" = 2 ]
	[[ ${setups[0]} == *" && make demo" ]]
	[[ ${setups[1]} == *" && make check" ]]
	[ "$(grep -c . < <(sed '/^    apt-get/q' "$ROOT/README"))" -lt 16 ]
}

@test "README: its transcript is what happens" {
	local line got

	installed
	cp "$MKSTORE" bin/mkstore
	transcript > want
	[ "$(grep -c '^\$ ' want)" -ge 6 ]
	while IFS= read -r line; do
		case $line in
		'$ '*)
			echo "$line"
			got=0
			bash -c "${line#\$ }" 2>&1 || got=$?
			[ "$got" = 0 ] || echo "(exit status $got)"
			;;
		esac
	done < want > happened
	diff <(roughly < want) <(roughly < happened)
}
