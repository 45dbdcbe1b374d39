#!/bin/busybox sh
# The gpio-idio driver on a PCI-IDIO-16: 16 outputs, and inputs that follow them; their interrupts. Ends with a count.
gpio=/sys/class/gpio
checks=0 wrong=0
check() { # check WHAT GOT WANTED
  checks=$((checks + 1))
  [ "$2" = "$3" ] && echo "gpio: ok $1: $2" && return
  wrong=$((wrong + 1))
  echo "gpio: WRONG $1: $2, not $3"
}
bound=$(ls -d /sys/bus/pci/drivers/pci-idio-16/0000:* 2>/dev/null)
check "device bound" "$(cat $bound/vendor) $(cat $bound/device)" "0x494f 0x0dc8"
chip=$(ls -d $gpio/gpiochip* | head -n 1)
check "lines" "$(cat $chip/ngpio)" 32
base=$(cat $chip/base)
line() { echo $gpio/gpio$((base + $1)); }
i=0
while [ $i -lt 32 ]; do
  echo $((base + i)) >$gpio/export
  i=$((i + 1))
done
set_outputs() { # set_outputs MASK : one line after the other
  i=0
  while [ $i -lt 16 ]; do
    echo $(($1 >> i & 1)) >$(line $i)/value
    i=$((i + 1))
  done
}
inputs() {
  i=0 sum=0
  while [ $i -lt 16 ]; do
    sum=$((sum | $(cat $(line $((16 + i)))/value) << i))
    i=$((i + 1))
  done
  printf '%#x' $sum
}
for mask in 0x1 0xa5c3 0xffff 0x5a3c; do
  set_outputs $mask
  check "inputs after the outputs" "$(inputs)" $mask
done
echo 0 >$(line 2)/value
# The driver hands its interrupt to all 16 inputs, mapped or not: an edge on one alone ends in a null pointer (docs/devices).
i=16
while [ $i -lt 32 ]; do
  echo both >$(line $i)/edge
  i=$((i + 1))
done
count() { grep gpiolib /proc/interrupts | head -n 1 | tr -s ' ' | cut -d' ' -f3; }
before=$(count)
for turn in 1 2 3; do
  echo 1 >$(line 2)/value
  echo 0 >$(line 2)/value
done
sleep 0.1
check "interrupts of six changes" $(($(count) - before)) 6
echo "gpio: $checks checks, $wrong wrong"
exit $wrong
