# SPDX-License-Identifier: MIT
# What test/bench/run prints: the machine, the times, the bounds.

# row WIDTHS CELL...: one line of a table, as Markdown or in columns.
row()
{
	local widths cell i=0

	read -ra widths <<< "$1"
	shift
	for cell; do
		if ((markdown)); then
			printf '| %s ' "$cell"
		else
			printf '%-*s' "${widths[i++]}" "$cell"
		fi
	done
	((markdown)) && echo '|' || echo
}

heading()
{
	row "$@"
	((markdown)) || return 0
	shift
	printf '|---%.0s' "$@"
	echo '|'
}

seconds_of()
{
	printf '%d.%03d' $(($1 / 1000000)) $(($1 / 1000 % 1000))
}

times_of()
{
	printf '%d.%02d' $(($1 / 1000)) $(($1 % 1000 / 10))
}

tenths_of()
{
	printf '%d.%d' $(($1 / 10)) $(($1 % 10))
}

workload_name()
{
	case $1 in
	scattered | runs) echo "$1, 4 KiB" ;;
	one) echo "one run, 4 KiB" ;;
	xfs/*) echo "XFS, ${1#*/}, 4 KiB" ;;
	loop/*) echo "loop devices, ${1#*/}, 4 KiB" ;;
	table) echo "$((table >> 20)) Mi exceptions" ;;
	memory) echo "runs, 64 MiB, sparse" ;;
	rate) echo "one run, 4 KiB" ;;
	*) echo "$1" ;;
	esac
}

# own KEY: whether it is a merge of ours, or a check.
own()
{
	[[ ! ${1##*/} =~ ^(qemu|cp|dd|fio|plain) ]]
}

# in_ours KEY: its time in that of the plain merge of the same store.
in_ours()
{
	local base

	for base in snapmerge copied "snapmerge --check"; do
		measured "${1%/*}/$base" || continue
		times_of "$(thousandths "$(median "$1")" \
			"$(median "${1%/*}/$base")")"
		return
	done
	echo -
}

print_machine()
{
	local disk cpu

	disk=$(findmnt --noheadings --output FSTYPE,SOURCE --target . |
		awk '{ sub(".*/", "", $2); print $1 " on " $2 }')
	cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)
	printf 'Date: %s\n' "$(date --utc +%F)"
	printf 'Machine: %s CPUs (%s), %s GiB, Linux %s, %s\n' "$(nproc)" \
		"${cpu:-$(uname -m)}" \
		"$(awk '/^MemTotal/ { print int($2 / 1048576 + .5) }' \
			/proc/meminfo)" "$(uname -r)" "$disk"
	printf 'Load before: %s\n' "$load"
	printf 'Against: %s\n' "$(peers)"
	printf 'Sizes: %d MiB of chunks, origin of %d MiB\n' \
		$((chunks / 256)) "$origin_mib"
}

peers()
{
	local list=

	! have qemu-img || list+="$(qemu-img --version |
		sed -n '1s/ *(.*//p'), "
	! have fio || list+="$(fio --version), "
	echo "$list$(dd --version | head -n 1)"
}

print_times()
{
	local shape="36 30 10 16 6 8 8" key peak

	heading "$shape" store what "median s" "(min-max)" runs "x ours" \
		"MiB RSS"
	for key in "${keys[@]}"; do
		peak=-
		! own "$key" || [[ -z ${peaks[$key]-} ]] ||
			peak=$(((${peaks[$key]} + 1023) / 1024))
		row "$shape" "$(workload_name "${key%/*}")" "${key##*/}" \
			"$(seconds_of "$(median "$key")")" \
			"$(seconds_of "$(extreme "$key" head)")-$(
			seconds_of "$(extreme "$key" tail)")" \
			"$(count_of "$key")" "$(in_ours "$key")" "$peak"
	done
}

# bound TEXT MEASURED BOUND UNIT RUNS: thousandths of what the unit says; a
# MEASURED that is empty was not measured.
bound()
{
	local verdict=met value=-

	if [[ -z $2 ]]; then
		verdict='not measured'
	else
		(($2 <= $3)) || verdict='NOT MET'
		value=$(value_of "$2" "$4")
	fi
	row "$bound_shape" "$1" "$value" "$(value_of "$3" "$4")" "$5" "$verdict"
}

value_of()
{
	case $2 in
	x) printf '%s x' "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))" ;;
	%) printf '%s %%' "$(tenths_of "$1")" ;;
	MiB) printf '%s MiB' "$(tenths_of $((($1 + 99) / 100)))" ;;
	esac
}

# bound_ratio TEXT KEY BOUND KEY...: KEY's time in the sum of the others'.
bound_ratio()
{
	local text=$1 key=$2 most=$3 other sum=0 value=

	shift 3
	if measured "$key" "$@"; then
		for other; do
			sum=$((sum + $(median "$other")))
		done
		value=$(thousandths "$(median "$key")" "$sum")
	fi
	bound "$text" "$value" "$most" x "$(fewest "$key" "$@")"
}

# How many runs a ratio of these rests on.
fewest()
{
	local key number least=

	for key; do
		number=$(count_of "$key")
		((number > ${least:-$number})) || least=$number
	done
	echo "$least"
}

# The faster of the plain copies counts.
bound_plain()
{
	local best value=

	best=$(fastest "$1/dd direct" "$1/dd buffered")
	if [[ -n $best ]] && measured "$1/snapmerge"; then
		value=$(thousandths "$(median "$1/snapmerge")" "$best")
	fi
	bound "$2: in the fastest plain copy" "$value" 1100 x \
		"$(fewest "$1/snapmerge" "$1/dd direct")"
}

# highest_peak batch|default: in thousandths of a MiB.
highest_peak()
{
	local key kind highest=0

	for key in "${!peaks[@]}"; do
		if ! own "$key" || [[ $key == table/* ]]; then
			continue
		fi
		kind=default
		[[ $key != *--batch-size* ]] || kind='batch'
		[[ $kind == "$1" ]] || continue
		((${peaks[$key]} <= highest)) || highest=${peaks[$key]}
	done
	((highest == 0)) || echo $((highest * 1000 / 1024))
}

bound_memory()
{
	local check=${peaks["table/snapmerge --check"]-}

	bound "memory, any merge" "$(highest_peak default)" 96000 MiB all
	bound "memory, --batch-size 4M" "$(highest_peak batch)" 24000 MiB all
	bound "memory, --check of the large table" \
		"${check:+$((check * 1000 / 1024))}" 96000 MiB all
}

bound_cache()
{
	local store value

	for store in scattered runs one; do
		value=${cached[$store/snapmerge]-}
		bound "$(workload_name $store): left in the page cache" \
			"${value:+$(thousandths "$value" $((chunks * 4)))}" 50 % all
	done
}

bound_rate()
{
	local key="rate/snapmerge --rate-limit, 10 s" off=

	if measured "$key"; then
		off=$(($(median "$key") - 10000000))
		off=$(thousandths ${off#-} 10000000)
	fi
	bound "rate limit over 10 s, off by" "$off" 50 % 1
}

print_bounds()
{
	local bound_shape="52 12 12 6 12" store name

	heading "$bound_shape" claim measured bound runs met
	bound_ratio "scattered: in qemu-img commit" scattered/snapmerge 100 \
		"scattered/qemu-img commit"
	bound_ratio "scattered: in the disk's own writes and read (fio)" \
		scattered/snapmerge 1500 "scattered/fio write" \
		"scattered/fio read"
	for store in runs one; do
		name=${store/one/one run}
		bound_ratio "$name: in qemu-img commit" $store/snapmerge 600 \
			"$store/qemu-img commit"
		bound_plain $store "$name"
	done
	bound_ratio "shared blocks, runs: in our own copying" xfs/runs/shared \
		150 xfs/runs/copied
	bound_ratio "$(workload_name table): --check in plain reads" \
		"table/snapmerge --check" 1500 "table/plain reads"
	bound_memory
	for store in scattered runs; do
		bound_ratio "$store: --undo in the plain merge" \
			"$store/snapmerge --undo" 2500 $store/snapmerge
		bound_ratio "$store: --verify in the plain merge" \
			"$store/snapmerge --verify" 2000 $store/snapmerge
	done
	bound_cache
	bound_rate
}

print_all()
{
	print_machine
	echo
	print_times
	echo
	print_bounds
	echo
	((${#skipped[@]} == 0)) || printf 'Skipped: %s\n' "${skipped[@]}"
	printf 'All results were compared and right. Took %d s.\n' "$SECONDS"
}
