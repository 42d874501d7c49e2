# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Programs that only look at a store see no difference between one untouched,
# one half merged and one merged.

say()
{
	case $1 in
	file) file -b "$2" ;;
	blkid) "$(program blkid)" -p -o export "$2" | grep -v '^DEVNAME=' ;;
	esac
}

half_merge()
{
	once boot_stores && count_calls s8po && pair s8po half || return
	LAB_INT=$((total_syncs[s8po] / 2)) \
		slowly "$work/halfo.s8po" "$work/halfc.s8po" > /dev/null 2>&1
	half_way s8po "$("$tools/labtool" live "$work/halfc.s8po")"
}

# A program that knows no such store would say the same of anything.
identify()
{
	local untouched

	once half_merge || return
	untouched=$(say "$1" "$work/c.s8po")
	[[ $untouched == *[Ss]napshot* ]] || why "untouched: $untouched" ||
		return
	equal "half merged" "$(say "$1" "$work/halfc.s8po")" "$untouched" &&
		equal "merged" "$(say "$1" "$work/hc.s8po")" "$untouched"
}

claim "file(1) says the same of a store untouched, half merged and merged" \
	identify file
claim "blkid says the same of a store untouched, half merged and merged" \
	identify blkid
