# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# The machine: a distribution kernel, an initramfs made of this host's own
# tools, and QEMU.  Everything that knows about booting is in this file.

# What `run --packages` prints.  The kernel is fetched and unpacked, never
# installed, so its package is not among them.
readonly packages=(busybox-static cpio dmsetup e2fsprogs file gcc libc6-dev
	lvm2 qemu-system-x86 util-linux xz-utils)

readonly host_programs=(apt-get cpio dpkg file gcc qemu-system-x86_64 xz)
readonly guest_programs=(busybox dmsetup lvm mke2fs)
readonly modules=(crc32c_generic virtio_pci virtio_blk dm_mod dm_snapshot ext4)

cache=${LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/snapmerge-lab}
snapmerge=
vmlinuz=
base_image=
qemu_pid=
qemu_started=0
qemu_deadline=0
disks=()
declare -A fact=()

# program NAME: its path.  Administrators' programs may not be on PATH.
program()
{
	PATH=$PATH:/usr/sbin:/sbin command -v "$1"
}

# Prints what this host lacks, nothing if it lacks nothing.
lacking()
{
	local name

	for name in "${host_programs[@]}" "${guest_programs[@]}"; do
		program "$name" > /dev/null || echo "$name"
	done
	[[ -e $(gcc -print-file-name=libc.a) ]] || echo libc.a
}

# The distribution's current kernel, or the newest in the cache if apt does
# not know one.
kernel_package()
{
	local name

	name=${LAB_KERNEL:-$(apt-cache depends linux-image-amd64 2> /dev/null |
		awk '/Depends: linux-image/ { print $2; exit }')}
	[[ -n $name ]] ||
		name=$(find "$cache" -maxdepth 1 -name 'linux-image-*' \
			-printf '%f\n' 2> /dev/null | sort -V | tail -n 1)
	echo "$name"
}

# Of a package of 400 MiB the lab needs a few files.
unpack_kernel()
{
	local part parts=()

	for part in crypto lib fs drivers/md drivers/block drivers/virtio; do
		parts+=("*/modules/*/kernel/$part/*")
	done
	dpkg --fsys-tarfile "$1" |
		tar -x --wildcards '*/boot/vmlinuz-*' "${parts[@]}"
}

fetch_kernel()
{
	local name=$1 dir=$cache/$1

	[[ -d $dir ]] && return
	echo "# fetching $name into $cache (to be unpacked, not installed)"
	rm -rf "$dir.new"
	mkdir -p "$dir.new" &&
		(cd "$dir.new" && apt-get -qq download "$name" 2> /dev/null &&
			unpack_kernel ./*.deb && rm ./*.deb) &&
		mv "$dir.new" "$dir" && return
	rm -rf "$dir.new"
	return 1
}

plain()
{
	case $1 in
	*.xz) xz -dc "$1" ;;
	*.zst) zstd -dcq "$1" ;;
	*) cat "$1" ;;
	esac
}

# add_module TREE NAME: its file to $stage/modules, and its name to the order
# of loading, after all that it depends on.  A name without a file is built in.
add_module()
{
	local file need needs
	local name=${2//-/_}

	[[ -e $stage/modules/$name ]] && return
	file=$(find "$1" -name "${name//_/[-_]}.ko*" -print -quit)
	[[ -n $file ]] || return 0
	plain "$file" > "$stage/modules/$name"
	needs=$(tr '\0' '\n' < "$stage/modules/$name" |
		sed -n 's/^depends=//p')
	for need in ${needs//,/ }; do
		add_module "$1" "$need"
	done
	echo "$name" >> "$stage/modules/order"
}

# add_program ROOT FILE [AS]: and the shared libraries that it wants.
add_program()
{
	local lib

	install -D "$2" "$1${3:-$2}"
	# A static program has no libraries, and ldd fails to say so politely.
	for lib in $(ldd "$2" 2> /dev/null | grep -o '/[^ ]*'); do
		install -D "$lib" "$1$lib"
	done
}

pack()
{
	(cd "$1" && find . | LC_ALL=C sort |
		cpio --quiet -o -H newc -R 0:0) > "$2"
}

build_base_image()
{
	local tree=$1 stage=$2 name

	mkdir -p "$stage"/{bin,sbin,dev,proc,sys,run,tmp,mnt,job,modules}
	add_program "$stage" "$(program busybox)" /bin/busybox
	for name in $("$stage/bin/busybox" --list); do
		[[ $name == busybox ]] || ln -s busybox "$stage/bin/$name"
	done
	# The whole path, because busybox has a mke2fs of its own.
	add_program "$stage" "$(program mke2fs)" /sbin/mke2fs
	add_program "$stage" "$(program dmsetup)" /sbin/dmsetup
	add_program "$stage" "$(program lvm)" /sbin/lvm
	for name in $("$(program lvm)" help 2>&1 | awk '{ print $1 }' |
			grep -E '^(vg|lv|pv)[a-z]+$'); do
		ln -s lvm "$stage/sbin/$name"
	done
	install -D -m 644 "$here/guest/lvm.conf" "$stage/etc/lvm/lvm.conf"
	[[ ! -e /etc/mke2fs.conf ]] ||
		install -D -m 644 /etc/mke2fs.conf "$stage/etc/mke2fs.conf"
	for name in "${modules[@]}"; do
		add_module "$tree" "$name"
	done
	install "$here/guest/init" "$stage/init"
	install -D -m 644 "$here/guest/lib.sh" "$stage/lab/lib.sh"
	add_program "$stage" "$tools/labtool" /bin/labtool
}

# The initramfs is kept, one per set of inputs: repeated runs need not build it.
prepare_machine()
{
	local name tree key

	name=$(kernel_package)
	[[ -n $name ]] || why "no kernel package known or cached" || return
	fetch_kernel "$name" || why "cannot fetch $name" || return
	tree=$cache/$name
	vmlinuz=$(find "$tree/boot" -name 'vmlinuz-*' -print -quit)
	key=$(cat "$here/machine.sh" "$here"/guest/{init,lib.sh,lvm.conf} \
		"$tools/labtool" "$(program busybox)" "$(program lvm)" \
		"$(program dmsetup)" "$(program mke2fs)" | sha256sum)
	base_image=$tree/initramfs-${key:0:16}
	[[ -e $base_image ]] && return
	rm -f "$tree"/initramfs-*
	build_base_image "$tree" "$work/stage" &&
		pack "$work/stage" "$base_image.new" &&
		mv "$base_image.new" "$base_image"
}

# disk SERIAL FILE [OPTION,...]: for the next boot.  Eight to a slot, since
# there are few slots.
disk()
{
	local n=$((${#disks[@]} / 4))

	disks+=(-drive "if=none,id=d$n,format=raw,cache=writeback,file=$2${3:+,$3}"
		-device "virtio-blk-pci,drive=d$n,serial=$1,num-queues=1,$(
			printf 'addr=%x.%x' $((2 + n / 8)) $((n % 8))),multifunction=on")
}

# The q35 machine, because the older one's ACPI tables cost a quarter of a
# second for every disk.
#
# boot_start NAME SECONDS JOB [FILE...]: start the machine with the disks
# collected so far; the files lie beside the job.
boot_start()
{
	local name=$1 seconds=$2 job=$3
	local root=$work/$name.root

	shift 3
	mkdir -p "$root/job"
	install -m 644 "$here/guest/$job.sh" "$root/job/job"
	[[ $# -eq 0 ]] || cp "$@" "$root/job/"
	[[ ! -x $snapmerge ]] || add_program "$root" "$snapmerge" /bin/snapmerge
	pack "$root" "$root.cpio"
	cat "$base_image" "$root.cpio" > "$work/initramfs"
	rm -rf "$root" "$root.cpio"
	: > "$work/$name.facts"
	qemu-system-x86_64 -accel tcg -machine q35 -cpu qemu64 -smp 1 -m 512 \
		-nodefaults -no-user-config -display none -no-reboot \
		-serial "file:$work/$name.console" \
		-serial "file:$work/$name.facts" \
		-kernel "$vmlinuz" -initrd "$work/initramfs" \
		-append "console=ttyS0 quiet panic=-1 tsc=unstable" \
		"${disks[@]}" < /dev/null > "$work/$name.qemu" 2>&1 &
	qemu_pid=$!
	qemu_started=$SECONDS
	qemu_deadline=$((SECONDS + seconds))
	disks=()
}

# End the machine as a power cut would, as far as a program can.
boot_kill()
{
	kill -KILL "$qemu_pid" 2> /dev/null
	wait "$qemu_pid" 2> /dev/null
	qemu_pid=
}

boot_running()
{
	kill -0 "$qemu_pid" 2> /dev/null && ((SECONDS < qemu_deadline))
}

# boot_saw NAME FACT: wait until the machine has stated it.
boot_saw()
{
	while ! grep -q "^$2" "$work/$1.facts"; do
		boot_running || return
		sleep 0.02
	done
}

# read_facts NAME: what the machine has stated, as fact[NAME.KEY].
read_facts()
{
	local key value

	while read -r key value; do
		fact[$1.$key]=$value
	done < <(tr -d '\r' < "$work/$1.facts")
}

# boot_end NAME: wait for the machine, read its facts, and fail unless its job
# came to a good end on a kernel that found nothing wrong with itself.
boot_end()
{
	while boot_running; do
		sleep 0.05
	done
	boot_kill
	echo "# boot $1: $((SECONDS - qemu_started)) s"
	read_facts "$1"
	if [[ ${fact[$1.exit]:-none} != 0 ]] ||
	   grep -qE 'BUG:|Oops|Call Trace' "$work/$1.console"; then
		echo "# boot $1 went wrong, exit ${fact[$1.exit]:-none}:"
		cat "$work/$1.qemu" "$work/$1.console" | tr -d '\r' |
			tail -n 25 | sed 's/^/#   /'
		return 1
	fi
}

boot()
{
	boot_start "$@" && boot_end "$1"
}
