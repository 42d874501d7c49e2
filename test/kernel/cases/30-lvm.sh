# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# From a volume group to two raw devices and back, with LVM2 in the machine.

boot_lvm()
{
	local pv

	"$tools/labtool" fill "$work/content" $((16 << 20)) "$RANDOM" || return
	disk content "$work/content"
	for pv in pv0 pv1; do
		truncate -s 40M "$work/$pv"
		# Slow enough for the kernel's merge to be caught at it.
		disk "$pv" "$work/$pv" throttling.iops-write=200
	done
	boot lvm 300 lvm "$here/guest/recipes"
}

lvm_recipe()
{
	once boot_lvm || return
	equal "view and merged origin" "${fact[lvm.view.$1]:-}" \
		"${fact[lvm.merged.$1]:-}" &&
		equal "volumes left" "${fact[lvm.volumes.$1]:-}" "base:-"
}

lvm_back()
{
	once boot_lvm || return
	equal "view" "${fact[lvm.view.A]:-}" "${fact[lvm.view.back]:-}"
}

# Proof that recipe B met what it is for: an origin with a merge that is
# planned (O, S), and a kernel that had begun and not finished it.
lvm_interrupted()
{
	local left

	once boot_lvm || return
	left=${fact[lvm.left.B]:-0}
	equal "attributes" "${fact[lvm.attributes.B]:-}" OS || return
	((left > 0 && left < ${fact[lvm.live.B]:-0})) ||
		why "the kernel left $left of ${fact[lvm.live.B]:-}"
}

claim "LVM, A: split, merge: the origin is what the snapshot showed" \
	lvm_recipe A
claim "LVM, A: a volume split off becomes the same snapshot again" lvm_back
claim "LVM, B: the merge is planned, and the kernel is stopped at it" \
	lvm_interrupted
claim "LVM, B: merge in the kernel's stead: the origin is as the snapshot was" \
	lvm_recipe B
claim "LVM, C: merge without splitting: the origin is as the snapshot was" \
	lvm_recipe C
