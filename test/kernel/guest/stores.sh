# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Write all stores, take their views, and merge two copies of each.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /lab/lib.sh

read -r seed < /job/seed

# A file system that lives through its snapshot: removed, added, renamed files.
# The origin is made before the snapshot, its files changed within.
make_ext4()
{
	/sbin/mke2fs -q -F -t ext4 -b 1024 "$1"
	mount -t ext4 "$1" /mnt
	mkdir /mnt/d
	for i in 1 2 3 4 5 6; do
		seq "$i" 15000 > "/mnt/d/f$i"
	done
	umount /mnt
}

change_ext4()
{
	mount -t ext4 /dev/mapper/snap /mnt
	rm /mnt/d/f3 /mnt/d/f5
	for i in 7 8 9; do
		seq "$i" 12000 > "/mnt/d/f$i"
	done
	mv /mnt/d/f1 /mnt/moved
	umount /mnt
}

change()
{
	case $1 in
	scribble)
		labtool scribble "$seed" "$2" /dev/mapper/snap /dev/mapper/orig
		;;
	chunks)
		labtool chunks "$seed" "$2" 1 $(($3 * 512)) /dev/mapper/snap
		;;
	ext4)
		change_ext4
		;;
	esac
}

# The kernel's own count: chunks in use beside those of metadata.
count()
{
	dmsetup status snap | sed 's,/, ,' |
		awk -v chunk="$1" '{ print ($4 - $6) / chunk }'
}

write_store()
{
	o=/dev/lab/o.$1 c=/dev/lab/c.$1
	[ "$4" != ext4 ] || make_ext4 "$o"
	snapshot "$o" "$c" "$3" "$2"
	change "$4" "$5" "$2"
	fact "view.$1" "$(sum /dev/mapper/snap)"
	fact "live.$1" "$(count "$2")"
	unsnapshot
}

while read -r name chunk type how amount; do
	seed=$((seed + 1))
	write_store "$name" "$chunk" "$type" "$how" "$amount"
	for whose in k g; do
		copy "/dev/lab/o.$name" "/dev/lab/${whose}o.$name"
		copy "/dev/lab/c.$name" "/dev/lab/${whose}c.$name"
	done
	kernel_merge "/dev/lab/ko.$name" "/dev/lab/kc.$name" "$chunk"
	status=0
	snapmerge -q -o "/dev/lab/go.$name" -c "/dev/lab/gc.$name" || status=$?
	fact "exit.$name" "$status"
done < /job/stores
