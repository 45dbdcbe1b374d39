"""Opens a device by its group and holds it until a line comes on standard input (or for SECONDS): hold.py BDF [SECONDS]."""
import fcntl
import os
import struct
import sys
import time

VFIO_SET_IOMMU, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD = 0x3B66, 0x3B68, 0x3B6A
device = sys.argv[1]
group = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{device}/iommu_group"))
container = os.open("/dev/vfio/vfio", os.O_RDWR)
g = os.open(f"/dev/vfio/{group}", os.O_RDWR)
fcntl.ioctl(g, VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
fcntl.ioctl(container, VFIO_SET_IOMMU, 1)
fd = fcntl.ioctl(g, VFIO_GROUP_GET_DEVICE_FD, device.encode() + b"\0")
print("held", flush=True)
if len(sys.argv) > 2:
    time.sleep(float(sys.argv[2]))
else:
    sys.stdin.readline()
