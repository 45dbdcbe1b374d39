#!/bin/busybox sh
# Runs /t/program, reboots, runs it once more. A byte of the clock's memory tells which time it is.
cmos() { # cmos [VALUE] : sets or shows byte 0x50
  printf '\120' | dd of=/dev/port bs=1 seek=112 conv=notrunc 2>/dev/null
  [ -z "$1" ] && dd if=/dev/port bs=1 skip=113 count=1 2>/dev/null | od -An -tu1 | tr -d ' ' && return
  printf "\\$(printf %03o $1)" | dd of=/dev/port bs=1 seek=113 conv=notrunc 2>/dev/null
}
times=$(cmos)
echo "reboot: time $times"
/t/program || exit 1
[ "$times" = 1 ] && exit 0
cmos 1
reboot -f
sleep 60
