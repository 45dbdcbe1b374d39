#!/usr/bin/env python3
"""Maps two pages read-only at 0x100000 for the group of 0000:00:04.0 (preset default), says so, and holds them until its input ends."""
import ctypes
import fcntl
import mmap
import os
import struct
import sys

VFIO = 0x3B64
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open("/dev/vfio/4", os.O_RDWR)
fcntl.ioctl(group, VFIO + 4, struct.pack("i", container))
fcntl.ioctl(container, VFIO + 2, 1)
memory = mmap.mmap(-1, 8192)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(container, VFIO + 13, struct.pack("IIQQQ", 32, 1, address, 0x100000, 8192))
print("mapped", flush=True)
sys.stdin.read()
