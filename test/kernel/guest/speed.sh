# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The same store on the same disks, merged by the kernel and by snapmerge.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /lab/lib.sh

read -r scattered gathered seed < /job/speed
size=$(sectors /dev/lab/o)

# Flush requests and sectors written, of both disks together.
counts()
{
	for disk in o c; do
		cat "/sys/block/$(basename "$(readlink "/dev/lab/$disk")")/stat"
	done | awk '{ flushes += $16; sectors += $7 } END { print flushes, sectors }'
}

# measure KEY COMMAND...: states hundredths of a second, flushes and
# sectors.  Nothing is cached and nothing is owed when it begins.
measure()
{
	key=$1
	shift
	sync
	echo 3 > /proc/sys/vm/drop_caches
	set -- "$(counts)" "$(cut -d ' ' -f 1 /proc/uptime)" "$@"
	before=$1 start=$2
	shift 2
	"$@"
	end=$(cut -d ' ' -f 1 /proc/uptime)
	fact "$key" "$(echo "$start $end $before $(counts)" |
		awk '{ print int(($2 - $1) * 100 + 0.5), $5 - $3, $6 - $4 }')"
}

by_kernel()
{
	layer merge "0 $size snapshot-merge /dev/lab/o /dev/lab/c P 8"
	labtool wait merge 0 8 800
	unlayer merge
}

by_snapmerge()
{
	snapmerge -q -o /dev/lab/o -c /dev/lab/c
}

# restored KEY COMMAND...: measured on the store as it was written.
restored()
{
	copy /dev/lab/bo /dev/lab/o
	copy /dev/lab/bc /dev/lab/c
	measure "$@"
}

# compare PATTERN COUNT RUN TRIES: what takes no time is tried more than once, in
# turns, because other work on the host disturbs it.
compare()
{
	dd if=/dev/zero of=/dev/lab/c bs=4096 count=1 conv=fsync 2> /dev/null
	layer snap "0 $size snapshot /dev/lab/o /dev/lab/c P 8"
	labtool chunks "$seed" "$2" "$3" 4096 /dev/mapper/snap
	unlayer snap
	copy /dev/lab/o /dev/lab/bo
	copy /dev/lab/c /dev/lab/bc
	for try in $(seq "$4"); do
		restored "kernel.$1.$try" by_kernel
		if [ "$try" = "$4" ]; then
			copy /dev/lab/o "/dev/lab/ko.$1"
			copy /dev/lab/c "/dev/lab/kc.$1"
		fi
		restored "snapmerge.$1.$try" by_snapmerge
	done
	copy /dev/lab/o "/dev/lab/so.$1"
	copy /dev/lab/c "/dev/lab/sc.$1"
}

compare scattered "$scattered" 1 1
compare runs "$gathered" 16 3
compare one "$gathered" "$gathered" 3
