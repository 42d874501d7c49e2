# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Words that the jobs are written in.  A job runs under set -e: whatever goes
# wrong ends it, and the facts that are missing then fail their cases.

fact()
{
	echo "$*" > /dev/ttyS1
}

sectors()
{
	blockdev --getsz "$1"
}

# There is no udev in here: nodes are made after each step, by hand.
layer()
{
	dmsetup create "$1" --table "$2"
	dmsetup mknodes
}

unlayer()
{
	dmsetup remove "$1"
	dmsetup mknodes
}

sum()
{
	sha256sum < "$1" | cut -d ' ' -f 1
}

copy()
{
	dd if="$1" of="$2" bs=1M conv=fsync 2> /dev/null
}

# snapshot ORIGIN COW TYPE CHUNK: both sides of it, as snap and orig.
snapshot()
{
	size=$(sectors "$1")
	layer snap "0 $size snapshot $1 $2 $3 $4"
	layer orig "0 $size snapshot-origin $1"
}

unsnapshot()
{
	unlayer snap
	unlayer orig
}

# view ORIGIN COW CHUNK: what the kernel shows of a pair.
view()
{
	layer view "0 $(sectors "$1") snapshot $1 $2 P $3"
	sum /dev/mapper/view
	unlayer view
}

# kernel_merge ORIGIN COW CHUNK [LEFT]: by the kernel, to the end or until it
# is halted with LEFT exceptions left, which it is after the batch in flight.
kernel_merge()
{
	layer merge "0 $(sectors "$1") snapshot-merge $1 $2 P $3"
	if [ $# -eq 4 ]; then
		labtool halt merge "$4" "$3" 300
		dmsetup mknodes
	else
		labtool wait merge 0 "$3" 300
		unlayer merge
	fi
}
