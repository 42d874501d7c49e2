# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Stores that the kernel writes, merged three times: by the kernel, by
# snapmerge here on files, and by snapmerge in the machine on its disks.

# name, sectors per chunk, persistence, how it is changed, and how much
stores=(
	"s1p 1 P scribble 160" "s8po 8 PO scribble 160"
	"s32p 32 P scribble 120" "s1024po 1024 PO scribble 12"
	"ext4 8 P ext4 0" "full 1 P chunks 64" "none 8 P none 0"
	"scat 8 P chunks 600"
)
((quick)) || stores+=(
	"s1po 1 PO scribble 160" "s8p 8 P scribble 160"
	"s32po 32 PO scribble 120" "s1024p 1024 P scribble 12"
)
# Sourced from a function, hence -g.
declare -gA chunk_of=() view_of=()

bytes_of()
{
	case $1 in
	ext4 | scat) echo $((8 << 20)) ;;
	# No multiple of any chunk but the smallest: the last one is cut.
	*) echo $(((4 << 20) + 7 * 512)) ;;
	esac
}

# Pairs are called o.NAME and c.NAME, with a letter before for whose copy.
boot_stores()
{
	local line name chunk bytes whose

	printf '%s\n' "${stores[@]}" > "$work/stores"
	for line in "${stores[@]}"; do
		read -r name chunk _ <<< "$line"
		chunk_of[$name]=$chunk
		bytes=$(bytes_of "$name")
		"$tools/labtool" fill "$work/o.$name" "$bytes" "$RANDOM" || return
		for whose in k g; do
			truncate -s "$bytes" "$work/${whose}o.$name"
			disk "${whose}o.$name" "$work/${whose}o.$name"
		done
		for whose in "" k g; do
			truncate -s $(((bytes >> 20) + 8))M "$work/${whose}c.$name"
			disk "${whose}c.$name" "$work/${whose}c.$name"
		done
		disk "o.$name" "$work/o.$name"
	done
	echo "$RANDOM" > "$work/seed"
	boot stores 400 stores "$work/stores" "$work/seed" || return
	for line in "${stores[@]}"; do
		read -r name _ <<< "$line"
		view_of[$name]=${fact[stores.view.$name]:-}
		host_merge "$name"
	done
}

pair()
{
	cp --sparse=always "$work/o.$1" "$work/$2o.$1" &&
		cp --sparse=always "$work/c.$1" "$work/$2c.$1"
}

host_merge()
{
	pair "$1" h
	"$snapmerge" -q -o "$work/ho.$1" -c "$work/hc.$1" \
		> "$work/host.$1" 2>&1
	fact[host.exit.$1]=$?
	[[ ! -s $work/host.$1 ]] || sed 's/^/#   /' "$work/host.$1"
}

sum_of()
{
	sha256sum < "$1" | cut -d ' ' -f 1
}

stores_count()
{
	once boot_stores || return
	equal "exceptions of $1" "$("$tools/labtool" live "$work/c.$1")" \
		"${fact[stores.live.$1]:-}"
}

stores_origin()
{
	once boot_stores || return
	equal "exit" "${fact[host.exit.$1]}" 0 &&
		equal "kernel's merge and view" \
			"$(sum_of "$work/ko.$1")" "${view_of[$1]}" &&
		same "$work/ko.$1" "$work/ho.$1"
}

stores_cow()
{
	once boot_stores || return
	same "$work/kc.$1" "$work/hc.$1"
}

stores_machine()
{
	once boot_stores || return
	equal "exit" "${fact[stores.exit.$1]:-}" 0 &&
		same "$work/ko.$1" "$work/go.$1" &&
		same "$work/kc.$1" "$work/gc.$1"
}

stores_claims()
{
	local line name chunk type how what

	for line in "${stores[@]}"; do
		read -r name chunk type how _ <<< "$line"
		what="$name ($type, $chunk sectors a chunk, $how)"
		claim "$what: the lab counts as many exceptions as the kernel" \
			stores_count "$name"
		claim "$what: kernel's merge, snapmerge's and the view are equal" \
			stores_origin "$name"
		claim "$what: the COW that snapmerge leaves is the kernel's" \
			stores_cow "$name"
		claim "$what: and so in the machine, on its disks" \
			stores_machine "$name"
	done
}

stores_claims
