# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Merge slowly, and be killed.  The view is taken first: what the last death
# left must still show all of it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. /lab/lib.sh

fact view "$(view /dev/lab/o /dev/lab/c 8)"
[ ! -e /dev/lab/ko ] || layer merge \
	"0 $(sectors /dev/lab/ko) snapshot-merge /dev/lab/ko /dev/lab/kc P 8"
fact merging
status=0
snapmerge -q -b 64K -o /dev/lab/o -c /dev/lab/c || status=$?
fact status "$status"
