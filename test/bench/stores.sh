# SPDX-License-Identifier: MIT
# The workloads and the contenders, for test/bench/run.
#
# A workload is a directory with cow and zero.cow, two stores with the same
# table. The first one's data is random, the second one's zeros: merged into a
# result, it makes that origin all zeros again, whose blocks stay where they
# are. So one preallocated origin serves all runs. Expected is the builder's
# image of the result.

# What is only read, and lies in many pieces, is kept aside on XFS if there is
# one: some file systems discard each piece when such a file is deleted.

# The XFS of this run: in a file, mounted on xfs.
make_xfs()
{
	aside=.
	if ! ((root)) || ! have mkfs.xfs; then
		skip "XFS: needs root and mkfs.xfs"
		return
	fi
	must fallocate --length $((origin_mib * 3))M xfs.image
	must mkfs.xfs -q -m reflink=1 xfs.image
	attach xfs.image
	mkdir xfs
	must mount "$loop" xfs
	xfs_loop=$loop
	loops=()
	aside=xfs
}

# attach FILE: its loop device, in $loop; around the page cache if it can.
attach()
{
	loop=$(losetup --find --show --direct-io=on "$1" 2> log ||
		losetup --find --show "$1" 2> log) ||
		broken "no loop device for $1"
	loops+=("$loop")
}

detach_all()
{
	local device

	for device in "${loops[@]}"; do
		must losetup --detach "$device"
	done
	loops=()
}

# make_store DIR PATTERN CHUNK-SECTORS [CHUNKS [ORIGIN-MIB]]: the data is the
# same amount for each chunk size.
make_store()
{
	local dir=$1 pattern=$2 sectors=$3 number=${4:-$chunks} mib=${5:-}
	local options side=$aside/${1##*/}.side file

	number=$((number * 8 / sectors))
	((number > 0)) || number=1
	options=(--pattern "$pattern" --chunk "$sectors" --count "$number"
		--origin-size "${mib:-$origin_mib}M" --sparse-origin)
	mkdir -p "$dir" "$side"
	for file in hole zero.cow expected; do
		ln -s "$PWD/$side/$file" "$dir/$file"
	done
	must "$mkstore" "${options[@]}" --metadata-only "$dir/hole" \
		"$dir/zero.cow"
	must "$mkstore" "${options[@]}" "$dir/hole" "$dir/cow" "$dir/expected"
}

drop_store()
{
	rm -rf "$1" "$aside/${1##*/}.side"
}

# The bytes that a merge of DIR copies.
payload()
{
	"$snapmerge" --list --cow "$1/cow" |
		awk -v chunk="$2" '{ n += $3 } END { printf "%.0f", n * chunk }'
}

# make_origin FILE MIB: written throughout.
make_origin()
{
	must dd if=/dev/zero of="$1" bs=1M count="$2" oflag=direct conv=fsync
	dirty[$1]=0
}

declare -A dirty	# ORIGIN: it holds a result

# A fresh copy of a store that a run may consume: restore FILE COPY
restore()
{
	rm -f "$2"
	must cp --reflink=never --sparse=never "$1" "$2"
}

# clean_origin DIR ORIGIN: zeros, as before the first run.
clean_origin()
{
	((${dirty[$2]})) || return 0
	rm -f "$aside/zero.run"
	must cp --reflink=never --sparse=always "$1/zero.cow" "$aside/zero.run"
	must "$snapmerge" --quiet --reflink=never --origin "$2" \
		--cow "$aside/zero.run"
	dirty[$2]=0
}

# merge KEY DIR ORIGIN [OPTION]...: one measured and proved run.
merge()
{
	local key=$1 dir=$2 origin=$3

	shift 3
	clean_origin "$dir" "$origin"
	restore "$dir/cow" "$dir/cow.run"
	dirty[$origin]=1
	measure "$key" "$snapmerge" --quiet --origin "$origin" \
		--cow "$dir/cow.run" "$@"
	note_cached "$key" "$origin" "$dir/cow.run"
	same "$key" "$origin" "$dir/expected"
	rm -f "$dir/cow.run"
}

# merge_sparse KEY DIR [OPTION]...: into an origin that is one hole.
merge_sparse()
{
	local key=$1 dir=$2

	shift 2
	rm -f "$dir/sparse"
	must truncate --reference="$dir/expected" "$dir/sparse"
	dirty[$dir/sparse]=0
	merge "$key" "$dir" "$dir/sparse" "$@"
}

merge_undo()
{
	local key=$1 dir=$2 origin=$3

	merge "$key" "$dir" "$origin" --undo "$dir/undo"
	rm -f "$dir/undo"
}

# make_overlay DIR CHUNK-BYTES: the merged image as qcow2. What the origin does
# not have is all it holds: the rest are holes, and become the backing file's.
make_overlay()
{
	local clusters

	have qemu-img || return 0
	must qemu-img convert -O qcow2 -f raw -o "cluster_size=$2" -S "$2" \
		"$1/expected" "$1/overlay"
	must qemu-img rebase -u -f qcow2 -F raw -b "$PWD/origin" "$1/overlay"
	clusters=$(qemu-img map --output=json "$1/overlay" |
		awk -F '[:,]' '/"depth": 0/ { n += $4 } END { printf "%.0f", n }')
	[[ $clusters == "$(payload "$1" "$2")" ]] ||
		broken "$1: the overlay does not hold what the store holds"
}

# commit WORKLOAD [-d]: the peer that does the same work: the result is the
# origin, the overlay is emptied, unless -d says not to.
commit()
{
	local key="$1/qemu-img commit${2:+ $2}"

	have qemu-img || return 0
	clean_origin "$1" origin
	restore "$1/overlay" "$1/overlay.run"
	dirty[origin]=1
	measure "$key" qemu-img commit -q ${2:+"$2"} -f qcow2 "$1/overlay.run"
	same "$key" origin "$1/expected"
	rm -f "$1/overlay.run"
}

# plain KEY DIR COMMAND...: a copy of the same bytes by COMMAND to DIR/copy.
plain()
{
	local key=$1 dir=$2

	shift 2
	measure "$key" "$@"
	same "$key" "$dir/copy" "$dir/cow"
}

# The blocks stay, the data does not.
clear_copy()
{
	must dd if=/dev/zero of="$1/copy" bs=1M iflag=count_bytes \
		count="$(stat --format=%s "$1/cow")" conv=notrunc,fsync
}

# A plain synced copy to a new file.
plain_cp()
{
	local dir=$1

	# shellcheck disable=SC2016 # the inner shell's
	plain "$dir/cp" "$dir" sh -c 'cp --reflink=never --sparse=never \
		"$1" "$2" && sync "$2"' sh "$dir/cow" "$dir/copy"
	rm -f "$dir/copy"
}

# Plain synced copies that overwrite, as a merge does.
plain_copies()
{
	local dir=$1

	must fallocate --length "$(stat --format=%s "$dir/cow")" "$dir/copy"
	clear_copy "$dir"
	plain "$dir/dd direct" "$dir" dd if="$dir/cow" of="$dir/copy" bs=4M \
		iflag=direct oflag=direct conv=notrunc,fsync
	clear_copy "$dir"
	plain "$dir/dd buffered" "$dir" dd if="$dir/cow" of="$dir/copy" bs=1M \
		conv=notrunc,fsync
	rm -f "$dir/copy"
}

# The writes of a merge as fio replays them, in table order.
make_iolog()
{
	have fio || return 0
	{
		printf 'fio version 2 iolog\n%s add\n%s open\n' origin origin
		"$snapmerge" --list --cow "$1/cow" | awk -v chunk="$2" '{
			printf "origin write %.0f %.0f\n", $1 * chunk, $3 * chunk
		}'
	} > "$1/iolog"
}

# fio_time FIELD OPTION...: what fio says a job took, without its own start.
fio_time()
{
	local field=$1

	shift
	cold
	fio --name=limit --ioengine=libaio --direct=1 --output-format=terse \
		--terse-version=3 "$@" 2> log | cut --delimiter=';' \
		--fields="$field"
}

# limit WORKLOAD: what the disk can do. The zeros make the origin clean again.
limit()
{
	local millis

	have fio || return 0
	millis=$(fio_time 50 --iodepth=32 --zero_buffers=1 --end_fsync=1 \
		--read_iolog="$1/iolog") || broken "$1: fio failed to write"
	record "$1/fio write" $((millis * 1000))
	same "$1/fio write" origin "$1/hole"
	dirty[origin]=0
	millis=$(fio_time 9 --iodepth=4 --rw=read --bs=1M \
		--filename="$1/cow") || broken "$1: fio failed to read"
	record "$1/fio read" $((millis * 1000))
}
