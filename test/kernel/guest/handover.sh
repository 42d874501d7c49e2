# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Look at what snapmerge left and finish it; leave work half done for it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /lab/lib.sh

# Used again as what it is: a snapshot, changed on both sides.
live_on()
{
	snapshot "$1" "$2" P "$3"
	labtool scribble 3 20 /dev/mapper/snap /dev/mapper/orig
	fact "view.v.$name" "$(sum /dev/mapper/snap)"
	unsnapshot
}

while read -r copy name chunk left; do
	set -- "/dev/lab/${copy}o.$name" "/dev/lab/${copy}c.$name" "$chunk"
	case $copy in
	m | t)
		kernel_merge "$@" "$left"
		;;
	v)
		live_on "$@"
		;;
	*)
		fact "view.$copy.$name" "$(view "$@")"
		kernel_merge "$@"
		;;
	esac
done < /job/pairs

# An undo store that the kernel does not take must fail its own cases only.
undo()
{
	chunk=$(od -An -t u4 -j 12 -N 4 /dev/lab/undo | tr -d ' ')
	fact undo "$(view /dev/lab/uo /dev/lab/undo "$chunk")"
	kernel_merge /dev/lab/uo /dev/lab/undo "$chunk"
}

[ ! -e /dev/lab/undo ] || undo || :
