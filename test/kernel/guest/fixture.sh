# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# One fixture: its job as it will be archived, then the kernel's merge of a
# copy, of which the console, being the archive's log, shows nothing.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /lab/lib.sh

read -r chunk < /job/chunk
status=0
sh /job/fixture-job || status=$?
echo "=== job exit $status"
copy /dev/lab/o /dev/lab/ko
copy /dev/lab/c /dev/lab/kc
# An invalidated store cannot be merged.
[ "$(od -An -t u4 -j 4 -N 4 /dev/lab/c | tr -d ' ')" = 0 ] ||
	kernel_merge /dev/lab/ko /dev/lab/kc "$chunk"
exit "$status"
