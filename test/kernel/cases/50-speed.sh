# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Speed, side by side: one store, one pair of disks, one machine.  Time under
# emulation says little by itself; beside the kernel's it does.

# Chunks scattered, and in runs or one run, of which the kernel does more a
# second.
scattered=$((quick ? 2048 : 16384))
gathered=$((quick ? 8192 : 16384))
patterns=(scattered runs one)

boot_speed()
{
	local pattern whose origin=$((gathered * 8192))
	local cow=$((gathered * 4096 + (2 << 20)))

	for whose in "" b; do
		truncate -s "$origin" "$work/${whose}o"
		truncate -s "$cow" "$work/${whose}c"
		disk "${whose}o" "$work/${whose}o"
		disk "${whose}c" "$work/${whose}c"
	done
	for pattern in "${patterns[@]}"; do
		for whose in k s; do
			truncate -s "$origin" "$work/${whose}o.$pattern"
			truncate -s "$cow" "$work/${whose}c.$pattern"
			disk "${whose}o.$pattern" "$work/${whose}o.$pattern"
			disk "${whose}c.$pattern" "$work/${whose}c.$pattern"
		done
	done
	"$tools/labtool" fill "$work/o" "$origin" "$RANDOM" || return
	echo "$scattered $gathered $RANDOM" > "$work/speed"
	boot speed 900 speed "$work/speed" || return
	speed_table
}

# best WHO PATTERN: the figures of its quickest try.
best()
{
	local try

	for try in 1 2 3; do
		echo "${fact[speed.$1.$2.$try]:-}"
	done | grep . | sort -n | head -n 1
}

speed_row()
{
	local hundredths flushes sectors

	read -r hundredths flushes sectors <<< "$(best "$1" "$2")"
	printf '# %-10s %-10s %5d.%02d s %8d flushes %9d KiB written\n' \
		"$2" "$1" $((hundredths / 100)) $((hundredths % 100)) \
		"$flushes" $((sectors / 2))
}

speed_table()
{
	local pattern

	echo "# chunks of 4 KiB: $scattered scattered, otherwise $gathered"
	for pattern in "${patterns[@]}"; do
		speed_row kernel "$pattern"
		speed_row snapmerge "$pattern"
	done
}

speed_equal()
{
	once boot_speed || return
	same "$work/ko.$1" "$work/so.$1" && same "$work/kc.$1" "$work/sc.$1"
}

# at_most PATTERN FIELD PART WHOLE: of the kernel's figure, at most PART in
# WHOLE; FIELD is 0 for time, 1 for flushes, 2 for sectors.
at_most()
{
	local kernel ours

	once boot_speed || return
	read -ra kernel <<< "$(best kernel "$1")"
	read -ra ours <<< "$(best snapmerge "$1")"
	((${kernel[$2]:-0} > 0 && ${ours[$2]:-0} > 0 &&
		${ours[$2]:-0} * $4 <= ${kernel[$2]:-0} * $3)) ||
		why "${ours[$2]:-none} is more than $3/$4 of ${kernel[$2]:-none}"
}

speed_claims()
{
	local pattern

	for pattern in "${patterns[@]}"; do
		claim "speed, $pattern: both leave the same origin and COW" \
			speed_equal "$pattern"
	done
	claim "speed, scattered: at most 8 % of the kernel's time" \
		at_most scattered 0 8 100
	claim "speed, scattered: at most a thousandth of the kernel's flushes" \
		at_most scattered 1 1 1000
	claim "speed, runs: at most 60 % of the kernel's time" \
		at_most runs 0 60 100
	claim "speed, one run: at most 60 % of the kernel's time" \
		at_most one 0 60 100
}

speed_claims
