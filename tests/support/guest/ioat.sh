#!/bin/busybox sh
# What became of ioatdma's probe, whose memcpy self-test is part of it.
sleep 0.3
dmesg | grep -i ioat
for device in /sys/bus/pci/drivers/ioatdma/0000:*; do
  [ -e "$device" ] && echo "ioat: bound $(cat $device/vendor) $(cat $device/device)"
done
channels=$(ls /sys/class/dma | wc -l)
echo "ioat: $channels channel(s)"
dmesg | grep -qiE 'self-test.*(fail|timed)|ioatdma.*(fail|error)' && echo "ioat: WRONG the driver complains" && exit 1
[ "$channels" -gt 0 ]
