#!/usr/bin/env python3
"""Drives an edu device (1234:11e8) through VFIO, with Python's own modules only.

edu_vfio.py group|cdev [BDF]

group: /dev/vfio/vfio and /dev/vfio/N. cdev: /dev/vfio/devices/vfioN and /dev/iommu.
Prints one line per check. Exit status 0 when all hold.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import sys

VFIO = 0x3B64
IOMMUFD = 0x3B80
API_VERSION, CHECK_EXTENSION, SET_IOMMU = VFIO + 0, VFIO + 1, VFIO + 2
GROUP_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, GET_DEVICE_FD = VFIO + 3, VFIO + 4, VFIO + 5, VFIO + 6
DEVICE_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, DEVICE_RESET = VFIO + 7, VFIO + 8, VFIO + 9, VFIO + 10, VFIO + 11
IOMMU_INFO, MAP_DMA, UNMAP_DMA = VFIO + 12, VFIO + 13, VFIO + 14
BIND_IOMMUFD, ATTACH_PT, DETACH_PT = VFIO + 18, VFIO + 19, VFIO + 20
IOMMU_DESTROY, IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP = IOMMUFD, IOMMUFD + 1, IOMMUFD + 5, IOMMUFD + 6
TYPE1, TYPE1V2 = 1, 3
INTX, MSI, MSIX = 0, 1, 2
CONFIG = 7
DATA_NONE, DATA_EVENTFD, MASK, UNMASK, TRIGGER = 1, 4, 8, 16, 32
READ, WRITE = 1, 2

ID, LIVENESS, FACTORIAL, STATUS, IRQ_STATUS, IRQ_RAISE, IRQ_ACK = 0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
DMA_SRC, DMA_DST, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
BUFFER = 0x40000

failures = 0


def check(what, got, wanted):
    global failures
    good = got == wanted
    failures += not good
    show = (lambda value: hex(value) if isinstance(value, int) else repr(value))
    print(f"{'ok' if good else 'WRONG'} {what}: {show(got)}" + ("" if good else f", not {show(wanted)}"), flush=True)


def refused(what, wanted, call, *arguments):
    try:
        call(*arguments)
        check(what, "accepted", errno.errorcode[wanted])
    except OSError as error:
        check(what, errno.errorcode.get(error.errno, error.errno), errno.errorcode[wanted])


def ioctl(fd, number, layout, *values):
    """The structure behind argsz (or size), which is filled in; returns its fields after the call."""
    argument = bytearray(struct.pack("=I" + layout, struct.calcsize("=I" + layout), *values))
    fcntl.ioctl(fd, number, argument, True)
    return struct.unpack("=I" + layout, argument)[1:]


def read_text(*path):
    with open(os.path.join(*path)) as file:
        return file.read().strip()


def find_edu():
    bus = "/sys/bus/pci/devices"
    for name in sorted(os.listdir(bus)):
        folder = os.path.join(bus, name)
        if (read_text(folder, "vendor"), read_text(folder, "device")) == ("0x1234", "0x11e8"):
            driver = os.path.join(folder, "driver")
            if os.path.islink(driver) and os.path.basename(os.readlink(driver)) == "vfio-pci":
                return name
    sys.exit("no edu device is bound to vfio-pci")


class Memory:
    """Anonymous pages and their address."""

    def __init__(self, size):
        self.size = size
        self.map = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


class GroupWay:
    """Group, container, type1v2."""

    def __init__(self, bdf):
        self.number = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{bdf}/iommu_group"))
        members = sorted(os.listdir(f"/sys/kernel/iommu_groups/{self.number}/devices"))
        check("the device is among its group's devices", bdf in members, True)
        self.container = os.open("/dev/vfio/vfio", os.O_RDWR)
        check("API version", fcntl.ioctl(self.container, API_VERSION), 0)
        check("type1v2 offered", fcntl.ioctl(self.container, CHECK_EXTENSION, TYPE1V2), 1)
        refused("SET_IOMMU without a group", errno.EINVAL, fcntl.ioctl, self.container, SET_IOMMU, TYPE1V2)
        self.group = os.open(f"/dev/vfio/{self.number}", os.O_RDWR)
        refused("second open of the group", errno.EBUSY, os.open, f"/dev/vfio/{self.number}", os.O_RDWR)
        check("group flags before", ioctl(self.group, GROUP_STATUS, "I", 0)[0], 1)
        name = bytearray(bdf.encode() + b"\0")
        refused("device before container", errno.EINVAL, fcntl.ioctl, self.group, GET_DEVICE_FD, name)
        fcntl.ioctl(self.group, GROUP_SET_CONTAINER, struct.pack("=i", self.container))
        check("group flags in a container", ioctl(self.group, GROUP_STATUS, "I", 0)[0], 3)
        check("SET_IOMMU", fcntl.ioctl(self.container, SET_IOMMU, TYPE1V2), 0)
        flags, page_sizes = ioctl(self.container, IOMMU_INFO, "IQ", 0, 0)
        check("IOMMU has 4 KiB pages", (flags & 1, page_sizes >> 12 & 1), (1, 1))
        refused("device that is not in the group", errno.ENODEV, fcntl.ioctl, self.group, GET_DEVICE_FD, bytearray(b"ffff:ff:1f.7\0"))
        self.device = fcntl.ioctl(self.group, GET_DEVICE_FD, name)

    def map(self, iova, memory, flags=READ | WRITE):
        ioctl(self.container, MAP_DMA, "IQQQ", flags, memory.address, iova, memory.size)

    def unmap(self, iova, size):
        return ioctl(self.container, UNMAP_DMA, "IQQ", 0, iova, size)[2]

    def unmap_nothing(self, iova, size):
        check("unmap of nothing", self.unmap(iova, size), 0)

    def close(self):
        refused("UNSET_CONTAINER with the device open", errno.EBUSY, fcntl.ioctl, self.group, GROUP_UNSET_CONTAINER)
        os.close(self.device)
        check("UNSET_CONTAINER", fcntl.ioctl(self.group, GROUP_UNSET_CONTAINER), 0)
        os.close(self.group)
        os.close(self.container)
        os.close(os.open(f"/dev/vfio/{self.number}", os.O_RDWR))
        print("ok the group opens again", flush=True)


class CdevWay:
    """The device's own node, and an IOAS of /dev/iommu."""

    def __init__(self, bdf):
        name = os.listdir(f"/sys/bus/pci/devices/{bdf}/vfio-dev")[0]
        numbers = read_text(f"/sys/bus/pci/devices/{bdf}/vfio-dev/{name}/dev")
        self.node = f"/dev/vfio/devices/{name}"
        self.device = os.open(self.node, os.O_RDWR)
        status = os.fstat(self.device)
        check("node number as in sysfs", f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}", numbers)
        self.iommu = os.open("/dev/iommu", os.O_RDWR)
        refused("info before bind", errno.EINVAL, ioctl, self.device, DEVICE_INFO, "IIIII", 0, 0, 0, 0, 0)
        refused("bind without an iommufd", errno.EINVAL, ioctl, self.device, BIND_IOMMUFD, "IiI", 0, -1, 0)
        self.devid = ioctl(self.device, BIND_IOMMUFD, "IiI", 0, self.iommu, 0)[2]
        self.ioas = ioctl(self.iommu, IOAS_ALLOC, "II", 0, 0)[1]
        refused("attach to nothing", errno.ENOENT, ioctl, self.device, ATTACH_PT, "II", 0, self.ioas + 1000)
        hwpt = ioctl(self.device, ATTACH_PT, "II", 0, self.ioas)[1]
        check("attach answers with a page table, not the IOAS", hwpt not in (0, self.ioas), True)
        refused("destroy of an IOAS in use", errno.EBUSY, ioctl, self.iommu, IOMMU_DESTROY, "I", self.ioas)

    def map(self, iova, memory, flags=READ | WRITE):
        fixed, writeable, readable = 1, 2, 4
        rights = (readable if flags & READ else 0) | (writeable if flags & WRITE else 0)
        ioctl(self.iommu, IOAS_MAP, "IIIQQQ", fixed | rights, self.ioas, 0, memory.address, memory.size, iova)

    def unmap(self, iova, size):
        return ioctl(self.iommu, IOAS_UNMAP, "IQQ", self.ioas, iova, size)[2]

    def unmap_nothing(self, iova, size):
        refused("unmap of nothing", errno.ENOENT, self.unmap, iova, size)

    def close(self):
        ioctl(self.device, DETACH_PT, "I", 0)
        ioctl(self.iommu, IOMMU_DESTROY, "I", self.ioas)
        os.close(self.device)
        os.close(self.iommu)
        os.close(os.open(self.node, os.O_RDWR))
        print("ok the node opens again", flush=True)


class Edu:
    """The card's registers and interrupts over a VFIO device descriptor."""

    def __init__(self, fd):
        self.fd = fd
        self.flags, regions, irqs = ioctl(fd, DEVICE_INFO, "IIIII", 0, 0, 0, 0, 0)[:3]
        check("a PCI device with 9 regions and 5 interrupts", (self.flags & 2, regions, irqs), (2, 9, 5))
        self.regions = [ioctl(fd, REGION_INFO, "IIIQQ", 0, index, 0, 0, 0) for index in range(8)]
        check("size of BAR 0", self.regions[0][3], 0x100000)
        check("size of BAR 1", self.regions[1][3], 0)
        check("BAR 0 reads and writes", self.regions[0][0] & 3, 3)
        check("interrupts of INTx, MSI", tuple(ioctl(fd, IRQ_INFO, "III", 0, i, 0)[2] for i in (INTX, MSI)), (1, 1))
        self.bar = None
        if self.regions[0][0] & 4:
            self.bar = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=self.regions[0][4])
            self.words = (ctypes.c_uint32 * 1024).from_buffer(self.bar)
        print(f"ok BAR 0 by {'mmap' if self.bar else 'read and write'}", flush=True)

    def config(self, offset, layout):
        return struct.unpack(layout, os.pread(self.fd, struct.calcsize(layout), self.regions[CONFIG][4] + offset))[0]

    def set_config(self, offset, layout, value):
        os.pwrite(self.fd, struct.pack(layout, value), self.regions[CONFIG][4] + offset)

    def get(self, offset):
        if self.bar:
            return self.words[offset // 4]
        return struct.unpack("=I", os.pread(self.fd, 4, self.regions[0][4] + offset))[0]

    def set(self, offset, value):
        if self.bar:
            self.words[offset // 4] = value
        else:
            os.pwrite(self.fd, struct.pack("=I", value), self.regions[0][4] + offset)

    def wait(self, offset, bits):
        for _ in range(5000):
            if not self.get(offset) & bits:
                return
            select.select([], [], [], 0.001)
        sys.exit(f"WRONG register {offset:#x} stays busy")

    def dma(self, source, target, length, flags):
        for offset, value in ((DMA_SRC, source), (DMA_DST, target), (DMA_COUNT, length), (DMA_COMMAND, flags | 1)):
            self.set(offset, value)
        self.wait(DMA_COMMAND, 1)

    def close(self):
        """A mapping would keep the device open."""
        if self.bar:
            self.words = None
            self.bar.close()

    def set_irqs(self, index, flags, *eventfds):
        count = len(eventfds) if flags & DATA_EVENTFD else int(flags & (MASK | UNMASK) != 0)
        ioctl(self.fd, SET_IRQS, "IIII" + "i" * len(eventfds), flags, index, 0, count, *eventfds)


def make_eventfd():
    fd = os.eventfd(0) if hasattr(os, "eventfd") else ctypes.CDLL(None).eventfd(0, 0)
    os.set_blocking(fd, False)
    return fd


def signals(fd, milliseconds):
    """What an eventfd counted; waits for the first. 0 when nothing comes."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return struct.unpack("=Q", os.read(fd, 8))[0] if poller.poll(milliseconds) else 0


def registers(edu):
    check("vendor and device", edu.config(0, "=I"), 0x11E81234)
    check("Bus Master of a fresh device", edu.config(4, "=H") & 4, 0)
    edu.set_config(4, "=H", 0x0002)
    check("identification", edu.get(ID), 0x010000ED)
    edu.set(LIVENESS, 0x12345678)
    check("liveness is the complement", edu.get(LIVENESS), 0xEDCBA987)
    edu.set(FACTORIAL, 12)
    edu.wait(STATUS, 1)
    check("12!", edu.get(FACTORIAL), 479001600)
    refused("config beyond its end", errno.EFAULT, os.pread, edu.fd, 4, edu.regions[CONFIG][4] + 0x10000)


def transfers(edu, way):
    low, high = 0x100000, 0x400000
    memory = Memory(16 * 4096)
    pattern = bytes((i * 13 + (i >> 8)) & 255 for i in range(4096))
    memory.map[:4096] = pattern
    way.map(low, memory)
    refused("a second map over the first", errno.EEXIST, way.map, low + 4096, memory)
    refused("a map without length", errno.EINVAL, way.map, high, type("Empty", (), {"address": memory.address, "size": 0}))

    edu.dma(low, BUFFER, 64, 0)
    edu.dma(BUFFER, low + 0x2000, 64, 2)
    check("bytes written without Bus Master", sum(memory.map[0x2000:0x2040]), 0)
    edu.set_config(4, "=H", 0x0006)
    edu.dma(low, BUFFER, 4096, 0)
    edu.dma(BUFFER, low + 0x3000, 4096, 2)
    check("4096 bytes to the card and back", memory.map[0x3000:0x4000] == pattern, True)
    edu.dma(BUFFER + 5, low + 0x4FF0, 0x20, 2)
    check("32 bytes across a page", bytes(memory.map[0x4FF0:0x5010]) == pattern[5:0x25], True)

    readable = Memory(4096)
    readable.map[:] = b"\x77" * 4096
    way.map(high, readable, READ)
    edu.dma(BUFFER, high, 64, 2)
    check("a read-only map keeps its bytes", readable.map[:64] == b"\x77" * 64, True)
    check("its unmap", way.unmap(high, 4096), 4096)
    edu.dma(BUFFER, high, 64, 2)
    check("so do pages that are no longer mapped", readable.map[:64] == b"\x77" * 64, True)
    way.unmap_nothing(high, 4096)
    check("the other map's unmap", way.unmap(low, memory.size), memory.size)


def msi(edu):
    event = make_eventfd()
    edu.set_irqs(MSI, DATA_EVENTFD | TRIGGER, event)
    for turn in (1, 2, 3):
        edu.set(IRQ_RAISE, turn)
        check("MSI signals", signals(event, 3000), 1)
        check("interrupt status", edu.get(IRQ_STATUS), turn)
        edu.set(IRQ_ACK, turn)
    edu.set(STATUS, 0x80)
    edu.set(FACTORIAL, 5)
    check("MSI signals at the end of a factorial", signals(event, 3000), 1)
    check("5!", edu.get(FACTORIAL), 120)
    edu.set(IRQ_ACK, 1)
    edu.set(STATUS, 0)
    ioctl(edu.fd, SET_IRQS, "IIII", DATA_NONE | TRIGGER, MSI, 0, 1)
    check("MSI signals by loopback", signals(event, 3000), 1)
    refused("INTx while MSI is on", errno.EINVAL, edu.set_irqs, INTX, DATA_EVENTFD | TRIGGER, event)
    edu.set_irqs(MSI, DATA_NONE | TRIGGER)
    edu.set(IRQ_RAISE, 1)
    check("MSI signals after the disable", signals(event, 50), 0)
    edu.set(IRQ_ACK, 1)
    os.close(event)


def intx(edu):
    event = make_eventfd()
    edu.set_irqs(INTX, DATA_EVENTFD | TRIGGER, event)
    edu.set(IRQ_RAISE, 2)
    check("INTx signals", signals(event, 3000), 1)
    check("more of them while masked", signals(event, 50), 0)
    edu.set_irqs(INTX, DATA_NONE | UNMASK)
    check("again after unmask: the level still holds", signals(event, 3000), 1)
    edu.set(IRQ_ACK, 2)
    edu.set_irqs(INTX, DATA_NONE | UNMASK)
    check("none after the acknowledge", signals(event, 50), 0)
    edu.set_irqs(INTX, DATA_NONE | MASK)
    edu.set(IRQ_RAISE, 4)
    check("none while masked by the program", signals(event, 50), 0)
    edu.set_irqs(INTX, DATA_NONE | UNMASK)
    check("one at the unmask", signals(event, 3000), 1)
    edu.set(IRQ_ACK, 4)
    edu.set_irqs(INTX, DATA_NONE | TRIGGER)
    os.close(event)


def main():
    ways = {"group": GroupWay, "cdev": CdevWay}
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ways:
        sys.exit(__doc__)
    bdf = sys.argv[2] if len(sys.argv) == 3 else find_edu()
    print(f"ok edu at {bdf}", flush=True)
    way = ways[sys.argv[1]](bdf)
    edu = Edu(way.device)
    registers(edu)
    transfers(edu, way)
    msi(edu)
    intx(edu)
    edu.close()
    way.close()
    print(f"{failures} wrong", flush=True)
    return failures != 0


if __name__ == "__main__":
    sys.exit(main())
