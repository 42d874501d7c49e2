# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The recipes of the manual, run to the letter on a volume group of two disks.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /lab/lib.sh

quietly()
{
	"$@" > /run/log 2>&1 || { cat /run/log; false; }
}

# recipe NAME [FROM [TO]]: those of its lines.  The operator answers yes, and
# makes the nodes after each step, since nobody else does in here.
recipe()
{
	sed -n "s/^$1 //p" /job/recipes | sed -n "${2:-1},${3:-\$}p" > /run/lines
	while read -r line; do
		echo "$1: $line"
		yes | sh -c "$line" || { fact "failed.$1 $line"; return 1; }
		vgmknodes
		dmsetup mknodes
	done < /run/lines
}

# make_snapshot NAME SEED: a fresh base and snap, changed on both sides.
make_snapshot()
{
	quietly lvcreate -y -Zn -l 4 -n base VG
	quietly vgmknodes
	copy /dev/lab/content /dev/VG/base
	quietly lvcreate -y -s -c 4k -l 4 -n snap VG/base
	quietly vgmknodes
	labtool chunks "$2" 500 1 4096 /dev/VG/snap
	labtool scribble "$2" 60 /dev/VG/snap /dev/VG/base
	fact "view.$1" "$(sum /dev/VG/snap)"
	fact "live.$1" "$(labtool live /dev/mapper/VG-snap-cow)"
}

# What is left to see: one volume, without a snapshot, and its content.
look()
{
	fact "merged.$1" "$(sum /dev/VG/base)"
	fact "volumes.$1" "$(lvs --noheadings -o lv_name,lv_attr VG |
		awk '{ print $1 ":" substr($2, 1, 1) }' | tr '\n' ' ')"
}

forget()
{
	quietly lvremove -y VG/base
}

recipe_A()
{
	make_snapshot A 1
	recipe A 1 3
	recipe back
	quietly vgchange -ay VG
	vgmknodes
	fact view.back "$(sum /dev/VG/snap)"
	recipe A
	look A
	forget
}

# The merge is asked for while base is in use, so LVM puts it off.
recipe_B()
{
	make_snapshot B 2
	exec 3< /dev/VG/base
	quietly lvconvert --merge VG/snap
	exec 3<&-
	quietly vgchange -an VG
	fact attributes.B "$(lvs -a --noheadings -o lv_attr VG |
		awk '{ print substr($1, 1, 1) }' | sort | tr -d '\n')"
	recipe B 1 2
	fact left.B "$(labtool live /dev/mapper/VG-snap-cow)"
	recipe B 3
	# The removal is done by LVM's poller, in the background.
	for _ in $(seq 60); do
		[ "$(lvs --noheadings VG | wc -l)" -gt 1 ] || break
		sleep 0.5
	done
	vgmknodes
	look B
	forget
}

recipe_C()
{
	make_snapshot C 3
	recipe C
	quietly lvchange -ay VG/base
	vgmknodes
	look C
	forget
}

quietly vgcreate VG /dev/lab/pv0 /dev/lab/pv1
recipe_A
recipe_B
recipe_C
