#!/bin/sh
# The loop over groups and devices that every text on VFIO shows: one line "GROUP ADDRESS VENDOR:DEVICE DRIVER" a function,
# then each group's node and what the sysfs links say.
for group in /sys/kernel/iommu_groups/*; do
  for device in "$group"/devices/*; do
    driver=-
    [ ! -e "$device/driver" ] || driver=$(basename "$(readlink "$device/driver")")
    echo "${group##*/} ${device##*/} $(cat "$device/vendor"):$(cat "$device/device") $driver"
    link=$(readlink "/sys/bus/pci/devices/${device##*/}/iommu_group")
    [ "${link##*/}" = "${group##*/}" ] || echo "WRONG link $link of ${device##*/}"
    [ "$(cd "$device" && pwd -P)" = "$(cd "/sys/bus/pci/devices/${device##*/}" && pwd -P)" ] || echo "WRONG path of $device"
  done
  node=/dev/vfio/${group##*/}
  if [ -c "$node" ]; then echo "node $node"; fi
done
for device in /sys/bus/pci/devices/*; do
  [ ! -d "$device/vfio-dev" ] || for cdev in "$device"/vfio-dev/*; do
    [ -c "/dev/vfio/devices/${cdev##*/}" ] || echo "WRONG no node of ${cdev##*/}"
    echo "cdev ${device##*/} ${cdev##*/}"
  done
  lines=$(wc -l <"$device/resource")
  [ "$lines" -ge 7 ] || echo "WRONG resource of ${device##*/} has $lines lines"
done
[ -c /dev/vfio/vfio ] && [ -c /dev/iommu ] || echo "WRONG no container node"
