#!/usr/bin/env bats
# shellcheck disable=SC2030,SC2031,SC2154 # variables that run and helpers set
# Block devices: loop devices over the builder's files.
load helpers

# both [OPTION]...: $origin and $cow are devices over the files of that name.
both() {
	attach origin "$@"
	origin=$device
	attach cow "$@"
	cow=$device
}

@test "a device into a device" {
	store --count 1500 --pattern shuffled
	both
	run -0 --separate-stderr snapmerge --origin "$origin" --cow "$cow"
	[ "${#stderr_lines[@]}" = 1 ]
	detach_all
	cmp origin merged
}

@test "a file into a device" {
	store
	attach origin
	run -0 snapmerge --origin "$device" --cow cow
	detach_all
	cmp origin merged
}

@test "a device into a file" {
	store
	attach cow
	run -0 snapmerge --origin origin --cow "$device"
	cmp origin merged
}

@test "devices with sectors of 4096 bytes" {
	store --count 1500 --pattern shuffled
	both --sector-size 4096
	run -0 snapmerge --origin "$origin" --cow "$cow"
	detach_all
	cmp origin merged
}

@test "chunks smaller than a device's sectors" {
	store --chunk 1 --count 3000 --pattern shuffled --origin-size 4M \
		--cow-size 2M
	both --sector-size 4096
	run -0 snapmerge --origin "$origin" --cow "$cow"
	detach_all
	cmp origin merged
}

@test "long runs into a device" {
	store --count 2000 --pattern one --chunk 32 --origin-size 40M
	both
	run -0 snapmerge --origin "$origin" --cow "$cow"
	detach_all
	cmp origin merged
}

# Device mapper goes around the page cache of the device's node, which another
# program that has it open keeps in memory.
@test "what the page cache of a device still holds is not believed" {
	store
	mkdir new
	mv origin cow new
	truncate --size "$(stat --format=%s new/origin)" origin
	truncate --size "$(stat --format=%s new/cow)" cow
	both
	exec 5< "$origin" 6< "$cow"
	cat <&5 > /dev/null
	cat <&6 > /dev/null
	dd if=new/origin of=origin bs=1M conv=notrunc status=none
	dd if=new/cow of=cow bs=1M conv=notrunc status=none
	run -0 snapmerge --origin "$origin" --cow "$cow" 5<&- 6<&-
	exec 5<&- 6<&-
	detach_all
	cmp origin merged
}

# Recent kernels open such a device for writing and refuse the writes.
@test "a device that is read-only is an error before anything is written" {
	store
	remember origin cow
	attach origin --read-only
	run -1 --separate-stderr snapmerge --origin "$device" --cow cow
	echo "$stderr"
	[[ ${stderr_lines[0]} == "snapmerge: $device: cannot open for writing: "* ]]
	[ "${stderr_lines[1]}" = "$UNTOUCHED" ]
	detach_all
	attach cow --read-only
	run -1 --separate-stderr snapmerge --origin origin --cow "$device"
	echo "$stderr"
	[[ ${stderr_lines[0]} == "snapmerge: $device: cannot open for writing: "* ]]
	[ "${stderr_lines[1]}" = "$UNTOUCHED" ]
	unchanged
}

@test "a device that is too small is refused" {
	store --origin-size 8M
	attach origin --sizelimit 1048576
	remember origin cow
	run -4 --separate-stderr snapmerge --origin "$device" --cow cow
	[[ ${stderr_lines[0]} == *"is past the end (the origin has 256 chunks)" ]]
	unchanged
}

@test "a device stopped half way is finished" {
	store
	both
	cp cow cow.before
	start "$SNAPMERGE" --origin "$origin" --cow "$cow" --rate-limit 2M \
		--batch-size 128K
	until_true differ cow cow.before
	kill -TERM "$pid"
	finish 3
	run -0 snapmerge --origin "$origin" --cow "$cow"
	detach_all
	cmp origin merged
}
