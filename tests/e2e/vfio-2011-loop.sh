for i in /sys/devices/virtual/vfio/pci:240/devices/*; do
	dir=$(readlink -f $i)
	if [ -L $dir/driver ]; then
		echo $(basename $i) > $dir/driver/unbind
	fi
	vendor=$(cat $dir/vendor)
	device=$(cat $dir/device)
	echo $vendor $device > /sys/bus/pci/drivers/vfio/new_id
	echo $(basename $i) > /sys/bus/pci/drivers/vfio/bind
done
