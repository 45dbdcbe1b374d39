#!/bin/busybox sh
# The guest's first and only service: mounts, the modules in the order of /m/order, then /t/test, then power off.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /m/order); do
  insmod /m/$module || echo "guest: cannot load $module"
done
echo "guest: ready"
/t/test
echo "guest: exit $?"
poweroff -f
