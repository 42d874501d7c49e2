# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Archives of stores that a real kernel wrote, with the commands that did it
# and, where it could, what the kernel's own merge made of them.

fixture_names=(dev-mixed4k dev-tail16k dev-overflow dev-ext4)

# Origin and COW in sectors, sectors a chunk, number of changes.
fixture_shape()
{
	case $1 in
	dev-mixed4k) echo 16384 32768 8 160 ;;
	dev-tail16k) echo 16391 32768 32 60 ;;
	dev-overflow) echo 16384 1024 8 110 ;;
	dev-ext4) echo 32768 32768 8 0 ;;
	esac
}

job_setup()
{
	cat <<END
dmsetup create snap --table "0 \$SZ snapshot /dev/vda /dev/vdb P $1"
dmsetup create orig --table "0 \$SZ snapshot-origin /dev/vda"
dmsetup mknodes
dmsetup status
END
}

# Random changes of both sides, from a disk of random data; the last sector
# of all is always among them.
job_changes()
{
	local size=$1 chunk=$2 tail=${4:-} i length at side
	local lengths=(1 1 3 "$chunk" "$chunk" $((4 * chunk)) $((17 * chunk)))

	for ((i = 0; i < $3; i++)); do
		length=${lengths[RANDOM % 7]}
		at=$(((RANDOM << 15 | RANDOM) % (size - length + 1)))
		side=$((RANDOM % 2))
		((i < $3 - 1)) || { length=1; at=$((size - 1)); side=0; }
		echo "dd if=/dev/vdc of=/dev/mapper/$( ((side)) &&
			echo orig || echo snap) bs=512 skip=$((RANDOM % 3500))" \
			"seek=$at count=$length conv=notrunc,fsync" \
			"2>/dev/null$tail"
	done
}

job_files()
{
	cat <<'END'
mount -t ext4 /dev/mapper/snap /mnt
rm /mnt/d/f3 /mnt/d/f5
for i in 9 10 11 12; do seq $i 15000 > /mnt/d/f$i; done
echo hello > /mnt/hello
mv /mnt/d/f1 /mnt/moved
umount /mnt
END
}

job_file_system()
{
	cat <<'END'
/sbin/mke2fs -q -F -t ext4 -b 1024 /dev/vda
mount -t ext4 /dev/vda /mnt
mkdir -p /mnt/d
for i in 1 2 3 4 5 6 7 8; do seq $i 20000 > /mnt/d/f$i; done
umount /mnt
END
}

# write_job NAME SECTORS CHUNK CHANGES
write_job()
{
	printf 'set -e\nSZ=%s\n' "$2"
	[[ $1 != dev-ext4 ]] || job_file_system
	job_setup "$3"
	case $1 in
	dev-ext4) job_files ;;
	# Writes that overflow the store fail, as they should.
	dev-overflow) job_changes "$2" "$3" "$4" " || true" ;;
	*) job_changes "$2" "$3" "$4" ;;
	esac
	cat <<'END'
dmsetup status
sha256sum /dev/mapper/snap | sed 's/^/VIEW /' || true
dmsetup remove snap; dmsetup remove orig; sync
END
}

# Disks in this order, because jobs call them vda, vdb and vdc.
boot_fixture()
{
	local name=$1 dir=$2 sectors=$3 cow=$4 chunk=$5 changes=$6

	write_job "$name" "$sectors" "$chunk" "$changes" > "$dir/job"
	"$tools/labtool" number "$dir/data" $((4096 * 512)) new || return
	"$tools/labtool" number "$dir/origin.before" $((sectors * 512)) \
		origin || return
	# What a file system leaves alone shall be zeros.
	[[ $name != dev-ext4 ]] || : > "$dir/origin.before"
	truncate -s $((sectors * 512)) "$dir/origin.before"
	truncate -s $((cow * 512)) "$dir/cow" "$dir/cow.merged"
	truncate -s $((sectors * 512)) "$dir/origin.merged"
	echo "$chunk" > "$work/chunk"
	cp "$dir/job" "$work/fixture-job"
	disk o "$dir/origin.before"
	disk c "$dir/cow"
	disk data "$dir/data"
	disk ko "$dir/origin.merged"
	disk kc "$dir/cow.merged"
	boot "$name" 120 fixture "$work/fixture-job" "$work/chunk" || return
	tr -d '\r' < "$work/$name.console" > "$dir/create.log"
}

# What must be true of an archive before anyone builds upon it.
check_fixture()
{
	local name=$1 dir=$2 view

	view=$(awk '$1 == "VIEW" { print $2 }' "$dir/create.log")
	if [[ $name == dev-overflow ]]; then
		grep -q 'snapshot Invalid' "$dir/create.log" ||
			why "$name: the store did not overflow"
		return
	fi
	equal "$name: view and kernel's merge" "$view" \
		"$(sha256sum < "$dir/origin.merged" | cut -d ' ' -f 1)"
}

make_fixture()
{
	local name=$1 to=$2 dir=$work/$1 members
	local shape

	members=(origin.before cow origin.merged cow.merged create.log job)
	[[ $name != dev-overflow ]] || members=(origin.before cow create.log job)
	mkdir -p "$dir"
	read -ra shape <<< "$(fixture_shape "$name")"
	boot_fixture "$name" "$dir" "${shape[@]}" || return
	check_fixture "$name" "$dir" || return
	tar -cJf "$to/$name.tar.xz.new" -C "$dir" --owner=root:0 --group=root:0 \
		"${members[@]}" &&
		mv "$to/$name.tar.xz.new" "$to/$name.tar.xz" &&
		echo "# $to/$name.tar.xz"
	rm -rf "$dir"
}

make_fixtures()
{
	local name

	mkdir -p "$1" || return
	for name in "${fixture_names[@]}"; do
		make_fixture "$name" "$1" || return
	done
}
