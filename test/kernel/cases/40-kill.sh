# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# The machine dies in the middle of a merge, at random moments: QEMU is killed
# while snapmerge merges one pair and the kernel another.  After each death
# the kernel looks at the view, and the merge goes on until the next.

kills=$((quick ? 1 : 3))
lives=()

# Both disks are slow, so that a whole merge would take some ten seconds.
kill_disks()
{
	local options=throttling.iops-write=70

	disk o "$work/xo.scat" "$options"
	disk c "$work/xc.scat" "$options"
	[[ $1 != kill1 ]] || {
		disk ko "$work/yo.scat" "$options"
		disk kc "$work/yc.scat" "$options"
	}
}

# The first commit of this life is awaited, the rest is chance.
committed()
{
	while (($("$tools/labtool" live "$work/xc.scat") >= $1)); do
		boot_running || return
		sleep 0.02
	done
}

die_once()
{
	local name=kill$1 delay before

	before=$("$tools/labtool" live "$work/xc.scat")

	kill_disks "$name"
	boot_start "$name" 150 kill || return
	if ! boot_saw "$name" merging || ! committed "$before"; then
		boot_end "$name"
		why "no commit was seen in $name" || return
	fi
	delay=$((RANDOM % 2000))
	sleep "$((delay / 1000)).$(printf %03d $((delay % 1000)))"
	boot_kill
	read_facts "$name"
	lives+=("$("$tools/labtool" live "$work/xc.scat")")
	echo "# killed $delay ms after a commit: ${lives[-1]} exceptions left"
}

boot_kills()
{
	local i

	once boot_stores || return
	pair scat x
	pair scat y
	for ((i = 1; i <= kills; i++)); do
		die_once "$i" || return
	done
	kill_disks last
	boot last 150 kill
}

# Every death came during the merge, and each found less to do.
killed_half_way()
{
	local left before

	once boot_kills || return
	before=${fact[stores.live.scat]}
	for left in "${lives[@]}"; do
		((left > 0 && left < before)) ||
			why "killed with $left left of $before" || return
		before=$left
	done
}

killed_view()
{
	local i

	once boot_kills || return
	for ((i = 2; i <= kills; i++)); do
		equal "view after kill $((i - 1))" "${fact[kill$i.view]:-}" \
			"${view_of[scat]}" || return
	done
	equal "view after the last kill" "${fact[last.view]:-}" \
		"${view_of[scat]}"
}

killed_finished()
{
	once boot_kills || return
	equal exit "${fact[last.status]:-}" 0 &&
		same "$work/ko.scat" "$work/xo.scat" &&
		same "$work/kc.scat" "$work/xc.scat"
}

killed_kernel()
{
	local left

	once boot_kills || return
	left=$("$tools/labtool" live "$work/yc.scat")
	half_way scat "$left" || return
	"$snapmerge" -q -o "$work/yo.scat" -c "$work/yc.scat" ||
		why "snapmerge failed on what the kernel left" || return
	same "$work/ko.scat" "$work/yo.scat" &&
		same "$work/kc.scat" "$work/yc.scat"
}

claim "the machine is killed $kills times while snapmerge merges" \
	killed_half_way
claim "after each death the kernel shows the whole view" killed_view
claim "started again, snapmerge finishes: origin and COW are the kernel's" \
	killed_finished
claim "the machine is killed while the kernel merges, snapmerge finishes" \
	killed_kernel
