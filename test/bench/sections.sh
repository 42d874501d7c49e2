# SPDX-License-Identifier: MIT
# What is run, in which order and how often, for test/bench/run: first what has
# a bound, last what may be left out when time is short.

# Regular files, 4 KiB chunks: all contenders in turn.
section_files()
{
	local dir

	say "files: making the preallocated origin"
	make_origin origin "$origin_mib"
	files_workload scattered 38
	files_workload runs 60
	files_workload one 71
}

# files_workload PATTERN PERCENT: of the time, by which it should be done.
files_workload()
{
	local dir=$1 late=$((seconds * $2 / 100)) round

	say "files, $dir: making the store"
	make_store "$dir" "$dir" 8
	make_overlay "$dir" 4096
	make_iolog "$dir" 4096
	for ((round = 1; ; round++)); do
		more $round "$runs" 3 $late || break
		say "files, $dir: round $round"
		files_round "$dir" $round
	done
	clean_origin "$dir" origin
	drop_store "$dir"
}

# All that a bound needs in each round; the rest in fewer.
files_round()
{
	local dir=$1 round=$2 early=$(($2 <= 2))

	merge "$dir/snapmerge" "$dir" origin
	if [[ $dir == scattered ]] || ((early)); then
		limit "$dir"
	fi
	commit "$dir"
	if [[ $dir != scattered ]] || ((early)); then
		plain_copies "$dir"
	fi
	((round > 1)) || files_once "$dir"
	if [[ $dir != one ]]; then
		merge "$dir/snapmerge --verify" "$dir" origin --verify
		merge_undo "$dir/snapmerge --undo" "$dir" origin
	fi
}

files_once()
{
	commit "$1" -d
	plain_cp "$1"
	merge "$1/snapmerge --batch-size 4M" "$1" origin --batch-size 4M
}

# For scattered chunks half of the size will do: they have no bound.
section_shared()
{
	[[ $aside == xfs ]] || return 0
	shared_workload runs "$runs" "$chunks" "$origin_mib"
	shared_workload scattered 2 $((chunks / 2)) $((origin_mib / 2))
}

# shared_workload PATTERN ROUNDS CHUNKS ORIGIN-MIB
shared_workload()
{
	local dir=xfs/$1 round

	say "XFS, $1: making the store"
	make_store "$dir" "$1" 8 "$3" "$4"
	make_origin xfs/never "$4"
	make_origin xfs/auto "$4"
	for ((round = 1; ; round++)); do
		more $round "$2" 2 $((seconds * 82 / 100)) || break
		say "XFS, $1: round $round"
		merge "$dir/copied" "$dir" xfs/never --reflink=never
		merge "$dir/shared" "$dir" xfs/auto --reflink=always
	done
	drop_store "$dir"
	rm -f xfs/never xfs/auto
}

section_table()
{
	local round mib=$((table / 256)) cow=$aside/cow

	say "table: making one of $table exceptions"
	must "$mkstore" --chunk 8 --origin-size "${mib}M" --count "$table" \
		--pattern scattered --sparse-origin --metadata-only "$aside/hole" "$cow"
	for ((round = 1; ; round++)); do
		more $round "$runs" 1 $((seconds * 95 / 100)) || break
		say "table: round $round"
		measure "table/snapmerge --check" "$snapmerge" --check \
			--cow "$cow"
		grep -q " $table exceptions" log ||
			broken "not the table that was made"
		((round == 1)) || continue # a minute each
		measure "table/plain reads" ./readmeta 4096 "$cow"
		grep -qx "$((table / 256 + 1)) areas" log ||
			broken "not as many areas as were made"
	done
	rm -f "$aside/hole" "$cow"
}

# Chunks larger than any batch: the most that could be held at once.
section_memory()
{
	((${#meter[@]})) || return 0
	say "memory"
	make_store memory runs 131072
	merge_sparse "memory/snapmerge" memory
	merge_sparse "memory/snapmerge --batch-size 4M" memory --batch-size 4M
	drop_store memory
}

# As fast as takes ten seconds.
section_rate()
{
	say "rate limit"
	make_store one one 8
	merge_sparse "rate/snapmerge --rate-limit, 10 s" one \
		--rate-limit $((chunks * 4096 / 10))
	drop_store one
}

# Both sides are block devices; the origin's file is then what to compare.
section_loop()
{
	local pattern round

	if ! ((root)); then
		skip "loop devices: need root"
		return
	fi
	[[ -e origin ]] || make_origin origin "$origin_mib"
	for pattern in scattered runs; do
		in_time "loop devices, $pattern" || continue
		make_store loop "$pattern" 8
		for round in 1 2 3; do
			in_time "" || break
			say "loop devices, $pattern: round $round"
			merge_loop "loop/$pattern"
		done
		clean_origin loop origin
		drop_store loop
	done
}

merge_loop()
{
	local origin cow

	clean_origin loop origin
	restore loop/cow loop/cow.run
	attach origin
	origin=$loop
	attach loop/cow.run
	cow=$loop
	dirty[origin]=1
	measure "$1/snapmerge" "$snapmerge" --quiet --origin "$origin" \
		--cow "$cow"
	detach_all
	same "$1" origin loop/expected
}

# in_time WHAT: whether there is time left for it.
in_time()
{
	((SECONDS < seconds * 93 / 100)) && return
	[[ -z $1 ]] || skip "$1: out of time"
	return 1
}

section_others()
{
	[[ -e origin ]] || make_origin origin "$origin_mib"
	other_workload "reversed runs, 4 KiB" reversed 8 origin
	other_workload "scattered, 64 KiB" scattered 128 origin
	other_workload "runs, 64 KiB" runs 128 origin
	other_workload "runs, 4 KiB, sparse" runs 8 sparse
	[[ $aside == xfs ]] || return 0
	other_workload "XFS, runs, 4 KiB, sparse" runs 8 sparse xfs/other
	other_workload "XFS, scattered, 4 KiB, sparse" scattered 8 sparse \
		xfs/other
}

# other_workload NAME PATTERN CHUNK-SECTORS origin|sparse [DIR]: many small
# pieces on a sparse origin are for XFS alone, see make_xfs.
other_workload()
{
	local round dir=${5:-other}

	in_time "$1" || return 0
	say "others, $1"
	make_store "$dir" "$2" "$3"
	for round in 1 2 3; do
		in_time "" || break
		other_round "$1" "$dir" "$4"
	done
	[[ $4 == sparse ]] || clean_origin "$dir" origin
	drop_store "$dir"
}

other_round()
{
	local name=$1 dir=$2

	if [[ $3 == sparse ]]; then
		merge_sparse "$name/snapmerge" "$dir" --reflink=never
	else
		merge "$name/snapmerge" "$dir" origin
	fi
	rm -f "$dir/copy"
	plain "$name/dd direct" "$dir" dd if="$dir/cow" of="$dir/copy" bs=4M \
		iflag=direct oflag=direct conv=fsync
}
