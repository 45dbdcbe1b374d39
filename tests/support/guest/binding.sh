#!/bin/sh
# What the files of sysfs answer to good and bad writes: the same script runs on a real kernel and in the box, and must say the same.
# binding.sh EDU PF HOLD: an edu and a function with virtual ones, both without a driver; the program that holds a device.
EDU=$1 PF=$2 HOLD=$3
P=/sys/bus/pci
# w NAME FILE TEXT: one write, its status and the system's words for it.
w() {
  words=$( (echo "$3" >"$2") 2>&1)
  status=$?
  [ $status = 0 ] && words=: || status=1
  echo "$1: $status ${words##*: }"
}
driver() { [ -e "$P/devices/$1/driver" ] && basename "$(readlink "$P/devices/$1/driver")" || echo none; }
say() { echo "$1: $2"; }

w unbind-unbound $P/drivers/vfio-pci/unbind $EDU
w bind-no-match $P/drivers/vfio-pci/bind $EDU
w bind-unknown $P/drivers/vfio-pci/bind 0000:00:1e.7
w probe-unknown $P/drivers_probe 0000:00:1e.7
w probe-nobody $P/drivers_probe $EDU
w new_id-short $P/drivers/vfio-pci/new_id 1234
w new_id-garbage $P/drivers/vfio-pci/new_id zzz
w new_id $P/drivers/vfio-pci/new_id "1234 11e8"
say bound "$(driver $EDU)"
w new_id-again $P/drivers/vfio-pci/new_id "0x1234 0x11e8"
w bind-again $P/drivers/vfio-pci/bind $EDU
w remove_id $P/drivers/vfio-pci/remove_id "1234 11e8"
w remove_id-again $P/drivers/vfio-pci/remove_id "1234 11e8"
say kept "$(driver $EDU)"
w new-file $P/devices/$EDU/nothing 1
w override $P/devices/$EDU/driver_override vfio-pci
w remove-zero $P/devices/$EDU/remove 0
w remove-garbage $P/devices/$EDU/remove x
w rescan-garbage $P/rescan x
w rescan-zero $P/rescan 0
w device-rescan $P/devices/$EDU/rescan 1

group=$(basename "$(readlink $P/devices/$EDU/iommu_group)")
type=/sys/kernel/iommu_groups/$group/type
for word in nonsense DMA DMA-FQ auto; do
  w "type-$word" $type $word
done
# DMA or DMA-FQ, as the machine has it.
say type "$(cut -c1-3 $type)"

$HOLD $EDU 4 &
holder=$!
sleep 1
w type-held $type auto
w type-held-fq $type DMA-FQ
(echo $EDU >$P/drivers/vfio-pci/unbind; echo "unbind-held: $?") &
writer=$!
sleep 1
kill -0 $writer && echo "writer waits"
say link "$(driver $EDU)"
say in-driver "$(ls $P/drivers/vfio-pci | grep -c $EDU)"
say node "$(ls /dev/vfio | grep -c "^$group\$")"
say uevent "$(grep DRIVER $P/devices/$EDU/uevent)"
wait $holder
wait $writer
say after "$(driver $EDU) $(ls /dev/vfio | grep -c "^$group\$")"

w remove $P/devices/$EDU/remove 1
say removed "$(ls $P/devices | grep -c $EDU) $(ls -d /sys/kernel/iommu_groups/$group 2>/dev/null | grep -c .)"
w rescan $P/rescan 1
say found "$(ls $P/devices | grep -c $EDU) $(cat $P/devices/$EDU/driver_override) $(driver $EDU) $(basename "$(readlink $P/devices/$EDU/iommu_group)" | grep -c "^$group\$")"

V=$P/devices/$PF/sriov_numvfs
total=$(cat $P/devices/$PF/sriov_totalvfs)
w vfs-no-driver $V 1
w vfs-zero $V 0
w vfs-too-many $V $((total + 1))
w vfs-garbage $V -1
w pf-override $P/devices/$PF/driver_override vfio-pci
w pf-probe $P/drivers_probe $PF
say pf "$(driver $PF)"
w param-off /sys/module/vfio_pci/parameters/enable_sriov N
w vfs-param-off $V 1
w param-garbage /sys/module/vfio_pci/parameters/enable_sriov maybe
w param-on /sys/module/vfio_pci/parameters/enable_sriov Y
w vfs $V 2
say vfs "$(cat $V)"
w vfs-same $V 2
w vfs-other $V 1
for i in 0 1; do
  vf=$(basename "$(readlink $P/devices/$PF/virtfn$i)")
  say "vf$i" "$(driver $vf) $(cat $P/devices/$vf/driver_override) $(basename "$(readlink $P/devices/$vf/physfn)" | grep -c $PF) $([ -e $P/devices/$vf/sriov_numvfs ]; echo $?)"
done
say own-group "$([ "$(readlink $P/devices/$PF/virtfn0/iommu_group)" != "$(readlink $P/devices/$PF/virtfn1/iommu_group)" ]; echo $?)"
w vfs-gone $V 0
say vfs "$(cat $V) $(ls $P/devices/$PF | grep -c virtfn)"
w vfs-one $V 1
w pf-unbind $P/drivers/vfio-pci/unbind $PF
say vfs-with-driver "$(cat $V) $(driver $PF)"
w autoprobe-garbage $P/devices/$PF/sriov_drivers_autoprobe maybe
w autoprobe $P/devices/$PF/sriov_drivers_autoprobe 0
say autoprobe "$(cat $P/devices/$PF/sriov_drivers_autoprobe)"

M=$P/devices/$PF/reset_method
w reset-garbage $M nonsense
w reset-flr $M flr
say methods "$(cat $M)"
w reset-none $M ""
say methods "$(cat $M)"
w reset-without $P/devices/$PF/reset 1
w reset-default $M default
w reset $P/devices/$PF/reset 1
w reset-two $P/devices/$PF/reset 2
