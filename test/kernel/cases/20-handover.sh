# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Who stops and who goes on: snapmerge stopped in good order or killed, and
# the kernel takes over; the kernel stopped half way, and snapmerge does.

handover=(s8po scat)
((quick)) || handover+=(s1p s32p)
# Per cent of a run's syncs, 1 being the very first; and deaths at random calls.
stops_in_order=(1 50)
stops_dead=(1)
((quick)) || stops_in_order+=(25 75)
((quick)) || stops_dead+=(2 3)
declare -gA total_syncs=() total_calls=()

# The lives of a pair after snapmerge has stopped, by letter: i, d the kernel
# finishes; t the kernel goes on, stops, and snapmerge finishes; v the kernel
# uses it as a snapshot again, and snapmerge merges that.

# Few chunks between commits, so that there are many places to stop at.
slowly()
{
	LD_PRELOAD=$tools/halt.so "$snapmerge" -q -b 64K -o "$1" -c "$2"
}

count_calls()
{
	pair "$1" n
	LAB_COUNT=$work/count slowly "$work/no.$1" "$work/nc.$1" || return
	rm -f "$work/no.$1" "$work/nc.$1"
	read -r "total_syncs[$1]" "total_calls[$1]" < "$work/count"
	echo "# $1: ${total_syncs[$1]} syncs among ${total_calls[$1]} calls"
}

# Stop a copy of NAME, and tell the machine what to do with it.
#
# stop_at NAME COPY VARIABLE CALL STATUS
stop_at()
{
	local status

	pair "$1" "$2"
	(export "$3=$4"; slowly "$work/$2o.$1" "$work/$2c.$1") \
		> "$work/stop" 2>&1
	status=$?
	if ((status != $5)); then
		echo "# $1, $3=$4: exit $status instead of $5"
		sed 's/^/#   /' "$work/stop"
	fi
	fact[stop.$2.$1]=$status
	fact[stopped.live.$2.$1]=$("$tools/labtool" live "$work/$2c.$1")
	hand_over "$1" "$2" $((${fact[stopped.live.$2.$1]} / 2))
}

# hand_over NAME COPY LEFT: where the kernel has to be stopped with LEFT to do,
# the disks are slow enough for that.
hand_over()
{
	local options=

	[[ $2 != [mt]* ]] || options=throttling.iops-write=150
	echo "$2 $1 ${chunk_of[$1]} $3" >> "$work/pairs"
	disk "$2o.$1" "$work/$2o.$1" "$options"
	disk "$2c.$1" "$work/$2c.$1" "$options"
}

stop_everywhere()
{
	local name=$1 at n

	count_calls "$name" || return
	for at in "${stops_in_order[@]}"; do
		n=$((total_syncs[$name] * at / 100))
		stop_at "$name" "i$at" LAB_INT $((n ? n : 1)) 3
	done
	for at in "${stops_dead[@]}"; do
		n=$((1 + RANDOM % total_calls[$name]))
		stop_at "$name" "d$at" LAB_KILL "$n" 137
	done
	n=$((total_syncs[$name] / 2))
	stop_at "$name" t LAB_INT "$n" 3
	stop_at "$name" v LAB_INT "$n" 3
	pair "$name" m
	hand_over "$name" m $((${fact[stores.live.$name]} / 2))
}

boot_handover()
{
	local name

	once boot_stores || return
	: > "$work/pairs"
	for name in "${handover[@]}"; do
		stop_everywhere "$name" || return
	done
	prepare_undo || return
	boot handover 400 handover "$work/pairs"
}

# While a merge is under way snapmerge keeps a record in the second sector,
# which nobody else reads.  If another finishes the merge, it stays there.
same_but_record()
{
	((chunk_of[$1] == 1)) ||
		dd if=/dev/zero of="$3" bs=512 seek=1 count=1 conv=notrunc \
			2> /dev/null
	same "$2" "$3"
}

# The kernel saw the whole view where snapmerge was stopped, and finished.
taken_over()
{
	equal "the kernel's view" "${fact[handover.view.$2.$1]:-}" \
		"${view_of[$1]}" &&
		same "$work/ko.$1" "$work/$2o.$1" &&
		same_but_record "$1" "$work/kc.$1" "$work/$2c.$1"
}

# half_way NAME LEFT: of that store, some is merged and some is not.
half_way()
{
	((${2:-0} > 0 && ${2:-0} < ${fact[stores.live.$1]:-0})) ||
		why "$1 was not stopped half way, but with '$2' left"
}

handover_in_order()
{
	local at

	once boot_handover || return
	for at in "${stops_in_order[@]}"; do
		equal "exit at $at %" "${fact[stop.i$at.$1]}" 3 || return
		((at == 1)) || half_way "$1" "${fact[stopped.live.i$at.$1]}" ||
			return
		taken_over "$1" "i$at" || return
	done
}

handover_dead()
{
	local at

	once boot_handover || return
	for at in "${stops_dead[@]}"; do
		equal "exit of kill $at" "${fact[stop.d$at.$1]}" 137 &&
			taken_over "$1" "d$at" || return
	done
}

# handover_kernel NAME COPY: the kernel was stopped in it half way.
handover_kernel()
{
	once boot_handover || return
	half_way "$1" "$("$tools/labtool" live "$work/$2c.$1")" || return
	"$snapmerge" -q -o "$work/$2o.$1" -c "$work/$2c.$1" ||
		why "snapmerge failed on what the kernel left" || return
	same "$work/ko.$1" "$work/$2o.$1" && same "$work/kc.$1" "$work/$2c.$1"
}

handover_lived_on()
{
	once boot_handover || return
	"$snapmerge" -q -o "$work/vo.$1" -c "$work/vc.$1" ||
		why "snapmerge failed on a store that lived on" || return
	[[ ${fact[handover.view.v.$1]:-} != "${view_of[$1]}" ]] ||
		why "nothing was changed" || return
	equal "view and merged origin" "${fact[handover.view.v.$1]:-}" \
		"$(sum_of "$work/vo.$1")"
}

handover_claims()
{
	local name

	for name in "${handover[@]}"; do
		claim "$name: snapmerge stops in order, the kernel shows the view and finishes" \
			handover_in_order "$name"
		claim "$name: snapmerge is killed, the kernel shows the view and finishes" \
			handover_dead "$name"
		claim "$name: the kernel is stopped half way, snapmerge finishes" \
			handover_kernel "$name" m
		claim "$name: snapmerge stops, the kernel goes on and stops, snapmerge finishes" \
			handover_kernel "$name" t
		claim "$name: snapmerge stops, the snapshot is used again, snapmerge merges it" \
			handover_lived_on "$name"
	done
}

# An undo store is written by snapmerge and read by the kernel.  Its origin is
# what the merge made, and its view what the merge took away.
can_undo()
{
	"$snapmerge" --help | grep -q -e --undo
}

prepare_undo()
{
	can_undo || return 0
	pair s8po u
	"$snapmerge" -q --undo "$work/undo" -o "$work/uo.s8po" \
		-c "$work/uc.s8po" || why "merge with --undo failed" || return
	truncate -s %512 "$work/undo"
	disk uo "$work/uo.s8po"
	disk undo "$work/undo"
}

undo_view()
{
	can_undo || skip "snapmerge has no --undo" || return
	once boot_handover || return
	equal "the undo store's view" "${fact[handover.undo]:-}" \
		"$(sum_of "$work/o.s8po")"
}

undo_merge()
{
	can_undo || skip "snapmerge has no --undo" || return
	once boot_handover || return
	same "$work/o.s8po" "$work/uo.s8po"
}

handover_claims
claim "the kernel reads an undo store as the old origin" undo_view
claim "the kernel merges an undo store: the old origin is back" undo_merge
