# SPDX-License-Identifier: MIT
# Timing, statistics and the proof of a result, for test/bench/run.
# Times are whole microseconds, ratios whole thousandths.

declare -A samples	# WORKLOAD/CONTENDER: times of its runs
declare -A peaks	# the same: highest resident KiB
declare -A cached	# WORKLOAD: KiB in the page cache after a merge, highest
keys=()			# of samples, in order

# Nothing of the files at hand is in memory, nothing is left to be written.
cold()
{
	local file

	sync
	if ((root)); then
		echo 3 > /proc/sys/vm/drop_caches
		return
	fi
	for file in *; do
		[[ ! -f $file ]] ||
			dd if="$file" iflag=nocache count=0 status=none
	done
}

# record KEY MICROSECONDS
record()
{
	[[ -n ${samples[$1]-} ]] || keys+=("$1")
	samples[$1]+="$2 "
}

# record_peak KEY: what GNU time has left in rss.
record_peak()
{
	local kib

	((${#meter[@]})) || return 0
	kib=$(tail -n 1 rss)
	((kib <= ${peaks[$1]:-0})) || peaks[$1]=$kib
}

# measure KEY COMMAND...: one run of a whole process, from cold caches.
measure()
{
	local key=$1 begin end

	shift
	cold
	begin=${EPOCHREALTIME/./}
	"${meter[@]}" "$@" > log 2>&1 || broken "$key: failed: $*"
	end=${EPOCHREALTIME/./}
	record "$key" $((end - begin))
	record_peak "$key"
}

# must COMMAND...: what is not measured must not fail either.
must()
{
	"$@" > log 2>&1 || broken "failed: $*"
}

# same KEY RESULT EXPECTED: outside of all times.
same()
{
	./samebytes "$2" "$3" > log 2>&1 || broken "$1: the result is wrong"
}

# more ROUND ROUNDS LEAST SECONDS: whether another round is due. Late, a
# workload has only its least number of them.
more()
{
	(($1 <= $2 && ($1 <= $3 || SECONDS < $4)))
}

sorted_times()
{
	tr ' ' '\n' <<< "${samples[$1]% }" | sort -n
}

median()
{
	local sorted n

	mapfile -t sorted < <(sorted_times "$1")
	n=${#sorted[@]}
	echo $(((sorted[(n - 1) / 2] + sorted[n / 2]) / 2))
}

# The shortest or longest run: extreme KEY head|tail
extreme()
{
	sorted_times "$1" | "$2" -n 1
}

count_of()
{
	wc -w <<< "${samples[$1]-}"
}

# measured KEY...: whether all of them were.
measured()
{
	local key

	for key; do
		[[ -n ${samples[$key]-} ]] || return 1
	done
}

# The median of the fastest of those measured, if any: fastest KEY...
fastest()
{
	local key time best=

	for key; do
		measured "$key" || continue
		time=$(median "$key")
		((time > ${best:-time})) || best=$time
	done
	echo "$best"
}

# thousandths A B: A in B.
thousandths()
{
	echo $((($1 * 1000 + $2 / 2) / $2))
}

# What is left of these files in the page cache: note_cached WORKLOAD FILE...
note_cached()
{
	local workload=$1 kib

	shift
	have fincore || return 0
	kib=$(fincore --bytes --noheadings --output RES "$@" |
		awk '{ n += $1 } END { print int(n / 1024) }')
	((kib <= ${cached[$workload]:--1})) || cached[$workload]=$kib
}
