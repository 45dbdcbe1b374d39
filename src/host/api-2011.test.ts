/** The API of 2011 on a whole machine: its PCI bus driver, hotplug, and beside today's API. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { privateShared } from '../hw/memory/backing.ts';
import { ManualClock } from '../hw/pci/clock.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import type { File } from '../kernel/core/file.ts';
import { refusal, TestTask } from '../kernel/core/test-task.ts';
import { VfioPciDevice } from '../kernel/vfio/pci/vfio-pci-core.ts';
import { VFIO_DEVICE_BIND_IOMMUFD, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER } from '../uapi/vfio.ts';
import * as uapi from '../uapi/vfio-2011.ts';
import * as late from '../uapi/vfio-2011-late.ts';
import { type HostConfig, HostFileError, loadHost } from './host-file.ts';
import { Machine } from './machine.ts';

const VIABLE = 1;
const CONFIG = 7 * 2 ** 40;
const ZERO = '0000:06:0d.0';
const ONE = '0000:06:0d.1';

class Box {
  readonly clock = new ManualClock();
  readonly log: string[] = [];
  readonly machine: Machine;

  constructor(config: HostConfig) {
    this.machine = new Machine(config, {
      clock: this.clock,
      allocateShared: privateShared,
      log: (text) => void this.log.push(text),
    });
  }

  fn(name: string): PciFunction {
    return this.machine.pci.find(name)!;
  }

  give(name: string, driver = 'vfio'): void {
    const { bus } = this.machine.drivers;
    const held = bus.driverOf(this.fn(name));
    if (held !== undefined) bus.unbind(held, name);
    bus.claim(driver, this.fn(name));
  }

  user(): User {
    return new User(this.machine);
  }
}

/** A program without any right but its descriptors. */
class User extends TestTask {
  readonly #machine: Machine;

  constructor(machine: Machine) {
    super({ physical: machine.physical, memlockLimit: 64 << 10 });
    this.#machine = machine;
  }

  group(name: string): File {
    return this.open(this.#machine.api2011!.core.openGroup(name)).file;
  }

  made(descriptor: number): File {
    return this.file(descriptor);
  }

  info(group: File): number {
    const bytes = uapi.vfio_group_info.write({ argsz: 8, flags: 0 });
    this.ioctl(group, uapi.VFIO_GROUP_GET_INFO, bytes);
    return uapi.vfio_group_info.read(bytes).flags;
  }

  device(group: File, name: string): File {
    return this.made(this.ioctl(group, uapi.VFIO_GROUP_GET_DEVICE_FD, Buffer.from(`${name}\0`)));
  }

  iommu(group: File): File {
    return this.made(this.ioctl(group, uapi.VFIO_GROUP_GET_IOMMU_FD));
  }

  map(iommu: File, iova: bigint): number {
    const vaddr = this.memory.map(4096);
    const map = uapi.vfio_dma_map.write({ argsz: 32, flags: 3, vaddr: BigInt(vaddr), iova, size: 4096n });
    this.ioctl(iommu, uapi.VFIO_IOMMU_MAP_DMA, map);
    return vaddr;
  }

  closeFile(file: File): void {
    let descriptor = 3;
    while (this.file(descriptor) !== file) descriptor++;
    this.close(descriptor);
  }

  write(file: File, at: number, value: number, size = 4): void {
    const bytes = new Uint8Array(size);
    for (let i = 0; i < size; i++) bytes[i] = Math.floor(value / 256 ** i);
    assert.equal(file.write(this, bytes, at), size);
  }

  read(file: File, at: number): number {
    const bytes = new Uint8Array(4);
    assert.equal(file.read(this, bytes, at), 4);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  eventfds(
    device: File,
    request: number,
    index: number,
    fds: number[],
    changes: { argsz?: number; flags?: number } = {},
  ) {
    const bytes = new Uint8Array(16 + 4 * fds.length);
    const header = { argsz: bytes.length, flags: 0, index, count: fds.length, ...changes };
    bytes.set(uapi.vfio_irq_eventfds.write(header));
    bytes.set(new Uint8Array(Int32Array.from(fds).buffer), 16);
    return refusal(() => this.ioctl(device, request, bytes));
  }
}

/** The machine of the documentation with both functions bound, the first one open. */
function opened(changes: Partial<HostConfig> = {}) {
  const box = new Box({ ...loadHost('seed-2011'), ...changes });
  box.give(ZERO);
  box.give(ONE);
  const user = box.user();
  const group = user.group('pci:240');
  const iommu = user.iommu(group);
  const device = user.device(group, ZERO);
  user.write(device, CONFIG + 4, 6, 2);
  return { box, user, group, iommu, device };
}

test('G-33: a program with nothing but the node has full use of the group', () => {
  const { box, user, iommu, device } = opened();
  assert.equal(user.capabilities.size, 0);
  const vaddr = user.map(iommu, 0x10_0000n);
  user.memory.write(vaddr, Buffer.from('by DMA'));
  const transfer = (from: number, to: number, command: number): void => {
    [from, to, 6, command].forEach((value, i) => {
      user.write(device, 0x80 + 8 * i, value, 8);
    });
    box.clock.advance(1e9);
  };
  transfer(0x10_0000, 0x40000, 1);
  transfer(0x40000, 0x10_0800, 3);
  const bytes = new Uint8Array(6);
  user.memory.read(vaddr + 0x800, bytes);
  assert.equal(Buffer.from(bytes).toString(), 'by DMA');
  user.exit();
  assert.deepEqual(new Set(Object.values(box.machine.invariants())), new Set([0]));
});

test('device, regions and interrupts are described as the header of December 2011 has them', () => {
  const { user, device } = opened();
  const info = uapi.vfio_device_info.write({ argsz: 16, flags: 0, num_regions: 0, num_irqs: 0 });
  user.ioctl(device, uapi.VFIO_DEVICE_GET_INFO, info);
  assert.deepEqual(uapi.vfio_device_info.read(info), { argsz: 16, flags: 3, num_regions: 8, num_irqs: 3 });
  info[0] = 15;
  assert.equal(
    refusal(() => user.ioctl(device, uapi.VFIO_DEVICE_GET_INFO, info)),
    'EINVAL',
  );
  const region = (index: number): string => {
    const bytes = uapi.vfio_region_info.write({ argsz: 32, flags: 0, index, resv: 0, size: 0n, offset: 0n });
    const outcome = refusal(() => user.ioctl(device, uapi.VFIO_DEVICE_GET_REGION_INFO, bytes));
    const { flags, size, offset } = uapi.vfio_region_info.read(bytes);
    return outcome === 'ok' ? `${flags} ${size} ${offset >> 40n}` : outcome;
  };
  assert.deepEqual([0, 1, 6, 7, 8].map(region), ['1 1048576 0', '0 0 1', '0 0 6', '0 256 7', 'EINVAL']);
  const { memory } = device.mmap(user, 0x10_0000, 3, 1, 0);
  assert.equal(memory.length, 0x10_0000);
  assert.equal(
    refusal(() => device.mmap(user, 4096, 3, 2, 0)),
    'EINVAL',
    'MAP_PRIVATE',
  );
  assert.equal(
    refusal(() => device.mmap(user, 0x20_0000, 3, 1, 0)),
    'EINVAL',
    'beyond the BAR',
  );
  assert.equal(
    refusal(() => device.mmap(user, 4096, 3, 1, CONFIG)),
    'EINVAL',
    'no BAR',
  );
  assert.equal(
    refusal(() => user.read(device, 8 * 2 ** 40)),
    'EINVAL',
  );
  assert.equal(user.ioctl(device, uapi.VFIO_DEVICE_RESET), 0);
  assert.equal(
    refusal(() => user.ioctl(device, 0x3b73)),
    'ENOTTY',
  );
});

test('RESET of a function that cannot be reset is EINVAL, and it says so before', () => {
  const config = loadHost('seed-2011');
  const functions = config.functions.map((fn) => (fn.model === 'edu' ? { ...fn, options: {} } : fn));
  const { user, device } = opened({ functions });
  assert.equal(
    refusal(() => user.ioctl(device, uapi.VFIO_DEVICE_RESET)),
    'EINVAL',
  );
});

test('the pin: a new eventfd replaces the old one, a refused one leaves none, count 0 ends it', () => {
  const { user, device } = opened();
  const { VFIO_DEVICE_SET_IRQ_EVENTFDS: SET, VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFDS: SET_UNMASK } = uapi;
  const [first, second, unmask] = [user.openEventfd(), user.openEventfd(), user.openEventfd()];
  const raise = (): void => user.write(device, 0x60, 1);
  const lower = (): void => user.write(device, 0x64, 1);
  const eoi = (changes: Partial<uapi.vfio_unmask_irq> = {}): string => {
    const bytes = uapi.vfio_unmask_irq.write({ argsz: 16, flags: 0, index: 0, subindex: 0, ...changes });
    return refusal(() => user.ioctl(device, uapi.VFIO_DEVICE_UNMASK_IRQ, bytes));
  };
  assert.equal(user.eventfds(device, SET, 0, [first.descriptor]), 'ok');
  assert.equal(user.eventfds(device, SET, 0, [second.descriptor]), 'ok');
  raise();
  assert.deepEqual([first.file.contexts, first.file.take(), second.file.take()], [0, 0, 1]);
  assert.equal(eoi(), 'ok');
  assert.equal(second.file.take(), 1, 'still asserted: signalled again');
  lower();
  assert.equal(eoi(), 'ok');
  assert.equal(second.file.take(), 0);
  for (const changes of [{ argsz: 15 }, { flags: 1 }, { index: 1 }, { subindex: 1 }])
    assert.equal(eoi(changes), 'EINVAL');

  assert.equal(user.eventfds(device, SET_UNMASK, 0, [unmask.descriptor]), 'ok');
  assert.equal(user.eventfds(device, SET_UNMASK, 0, [unmask.descriptor]), 'EBUSY');
  assert.equal(user.eventfds(device, SET_UNMASK, 1, [unmask.descriptor]), 'EINVAL');
  assert.equal(user.eventfds(device, SET_UNMASK, 0, [unmask.descriptor, 4]), 'EINVAL');
  raise();
  lower();
  unmask.file.add();
  raise();
  assert.equal(second.file.take(), 2);
  assert.equal(user.eventfds(device, SET_UNMASK, 0, []), 'ok');
  assert.equal(unmask.file.contexts, 0);

  assert.equal(user.eventfds(device, SET, 1, [first.descriptor]), 'EINVAL', 'MSI while the pin is enabled');
  assert.equal(user.eventfds(device, SET, 0, [user.openForeign()]), 'EINVAL');
  assert.equal(second.file.contexts, 0, 'dropped by the refused call');
  assert.equal(user.eventfds(device, SET, 0, [-1]), 'EINVAL');
  assert.equal(user.eventfds(device, SET, 0, []), 'ok');
  const bad = [
    user.eventfds(device, SET, 0, [first.descriptor], { argsz: 15 }),
    user.eventfds(device, SET, 0, [first.descriptor], { argsz: 19 }),
    user.eventfds(device, SET, 0, [first.descriptor], { flags: 1 }),
    user.eventfds(device, SET, 3, []),
    user.eventfds(device, SET, 0, [first.descriptor, second.descriptor]),
    user.eventfds(device, SET, 2, [first.descriptor]),
  ];
  assert.deepEqual(
    bad,
    bad.map(() => 'EINVAL'),
  );
  user.exit();
  assert.deepEqual([first.file.contexts, second.file.contexts, unmask.file.contexts], [0, 0, 0]);
});

test('messages: enabled once, disabled once, -1 is a vector without signal', () => {
  const { user, device } = opened();
  const { VFIO_DEVICE_SET_IRQ_EVENTFDS: SET } = uapi;
  const event = user.openEventfd();
  assert.equal(user.eventfds(device, SET, 1, []), 'EINVAL', 'not enabled');
  assert.equal(user.eventfds(device, SET, 1, [event.descriptor]), 'ok');
  assert.equal(user.eventfds(device, SET, 1, [event.descriptor]), 'EINVAL', 'enabled already');
  assert.equal(user.eventfds(device, SET, 0, [event.descriptor]), 'EINVAL', 'the pin while MSI is enabled');
  user.write(device, 0x60, 1);
  assert.equal(event.file.take(), 1);
  assert.equal(user.eventfds(device, SET, 1, []), 'ok');
  assert.equal(event.file.contexts, 0);
  assert.equal(user.eventfds(device, SET, 1, [-1]), 'ok');
  user.write(device, 0x60, 1);
  assert.equal(event.file.take(), 0);
});

test('the later revision sets interrupts as today, but for three kinds only, and has RESET under another number', () => {
  const { user, device } = opened({ vfio2011: { revision: 'late' } });
  const event = user.openEventfd();
  const set = (index: number): string => {
    const bytes = new Uint8Array(24);
    const flags = late.VFIO_IRQ_SET_DATA_EVENTFD | late.VFIO_IRQ_SET_ACTION_TRIGGER;
    bytes.set(late.vfio_irq_set.write({ argsz: 24, flags, index, start: 0, count: 1 }));
    bytes.set(new Uint8Array(Int32Array.of(event.descriptor).buffer), 20);
    return refusal(() => user.ioctl(device, late.VFIO_DEVICE_SET_IRQS, bytes));
  };
  assert.equal(set(1), 'ok');
  assert.equal(set(4), 'EINVAL', 'no request interrupt yet');
  user.write(device, 0x60, 1);
  assert.equal(event.file.take(), 1);
  assert.equal(user.ioctl(device, late.VFIO_DEVICE_RESET), 0);
  assert.equal(
    refusal(() => user.ioctl(device, uapi.VFIO_DEVICE_RESET)),
    'ENOTTY',
  );
});

test('G-12 G-31 G-32: numbers as pinned; GET_DEVICE_FD of a group that is not viable is EBUSY', () => {
  const box = new Box(loadHost('seed-2011'));
  const { tree } = box.machine;
  const folder = `/sys/bus/pci/devices/${ZERO}/iommu_group`;
  const found = tree.resolve(folder);
  assert.equal(found?.node.kind === 'file' && new TextDecoder().decode(found.node.content), '240\n');
  const stat = box.machine.stat('/dev/vfio/pci:240', 0);
  assert.deepEqual([stat?.major, stat?.minor, stat?.mode], [252, 27, 0o020660]);
  const user = box.user();
  const group = user.group('pci:240');
  assert.equal(user.info(group), 0);
  assert.equal(
    refusal(() => user.device(group, ZERO)),
    'EBUSY',
  );
  box.give(ZERO);
  assert.equal(
    refusal(() => user.device(group, ZERO)),
    'EBUSY',
    'one of two is bound',
  );
  box.give(ONE);
  assert.equal(user.info(group), VIABLE);
});

test('G-41 G-42: a card that is plugged into a used group is bound by its claim, sees the maps, and is usable', () => {
  const { box, user, group, iommu } = opened();
  const vaddr = user.map(iommu, 0x4000n);
  const fn = box.machine.hotplug.plug({ at: '06:0d.2', model: 'edu', options: { flr: true } });
  assert.equal(box.machine.drivers.driverOf(fn), 'vfio');
  assert.equal(user.info(group), VIABLE | 2);
  assert.equal(
    box.machine.tree.readlink('/sys/devices/virtual/vfio/pci:240/devices/0000:06:0d.2')?.split('/').pop(),
    fn.name,
  );
  const device = user.device(group, fn.name);
  user.write(device, CONFIG + 4, 6, 2);
  [0x4000, 0x40000, 4, 1].forEach((value, i) => {
    user.write(device, 0x80 + 8 * i, value, 8);
  });
  box.clock.advance(1e9);
  [0x40000, 0x4800, 4, 3].forEach((value, i) => {
    user.write(device, 0x80 + 8 * i, value, 8);
  });
  user.memory.write(vaddr, Uint8Array.of(1, 2, 3, 4));
  box.clock.advance(1e9);
  assert.equal(user.read(device, 0x98) & 1, 0);
  assert.ok(box.log.some((line) => /has appeared in group pci:240, which is in use/.test(line)));
});

test('G-44 G-45 G-46: a card in use is unplugged silently after the last close; its link stays as long', () => {
  const { box, user, group, iommu, device } = opened();
  const link = `/sys/devices/virtual/vfio/pci:240/devices/${ONE}`;
  let asked = 0;
  const { request } = VfioPciDevice.prototype;
  VfioPciDevice.prototype.request = () => void asked++;
  try {
    let gone = 0;
    box.machine.hotplug.unplug(box.fn(ONE), 'ask', () => gone++);
    box.clock.advance(60e9);
    assert.equal(asked, 0, 'nobody is asked to let go');
    assert.ok(box.machine.tree.readlink(link) !== undefined);
    assert.equal(user.info(group), VIABLE | 2);
    user.closeFile(device);
    assert.equal(gone, 0);
    user.closeFile(iommu);
    assert.equal(gone, 1);
    assert.equal(box.machine.tree.readlink(link), undefined);
    assert.equal(user.info(group), VIABLE);
  } finally {
    VfioPciDevice.prototype.request = request;
  }
});

test('a card that is pulled while it is in use is gone from its group when the program lets go', () => {
  const { box, user, group, device } = opened();
  box.machine.hotplug.unplug(box.fn(ZERO), 'pull');
  assert.equal(user.read(device, 0), 0xffff_ffff, 'nobody answers');
  assert.equal(user.info(group), VIABLE | 2);
  user.exit();
  const later = box.user();
  const again = later.group('pci:240');
  assert.equal(
    refusal(() => later.device(again, ZERO)),
    'ENODEV',
  );
  later.device(again, ONE);
  later.exit();
  assert.deepEqual(new Set(Object.values(box.machine.invariants())), new Set([0]));
});

test('a wait for unbinding can be given up: the function stays bound', () => {
  const { box, user, group } = opened();
  const fn = box.fn(ONE);
  let ended = 0;
  const { core } = box.machine.api2011!;
  const member = core
    .groups()
    .flatMap(({ devices }) => devices)
    .find(({ name }) => name === ONE)!;
  assert.equal(
    core.unbindDevice(member.device, () => ended++),
    'waiting',
  );
  assert.equal(core.cancelUnbind(member.device), true);
  user.exit();
  assert.equal(ended, 0);
  assert.equal(box.machine.drivers.driverOf(fn), 'vfio');
  assert.ok(group);
});

/** The preset `default` with all that vfio-pci has given to `vfio`. */
function both(): Box {
  const config = loadHost('default');
  const functions = config.functions.map((fn) => (fn.driver === 'vfio-pci' ? { ...fn, driver: 'vfio' } : fn));
  return new Box({ ...config, functions, api: 'both' });
}

test('G-60: both APIs show the same group numbers', () => {
  const { machine } = both();
  const { groups } = { groups: machine.api2011!.core.groups() };
  assert.ok(groups.length > 3);
  for (const { name, id, devices } of groups) {
    assert.equal(name, `pci:${id}`);
    for (const device of devices) {
      assert.ok(machine.tree.readlink(`/sys/kernel/iommu_groups/${id}/devices/${device.name}`) !== undefined);
      assert.ok(machine.tree.readlink(`/sys/devices/virtual/vfio/${name}/devices/${device.name}`) !== undefined);
    }
  }
  assert.deepEqual(
    machine.vfio.groups().map(({ id }) => id),
    groups.filter(({ isViable, devices }) => isViable && devices.length > 0).map(({ id }) => id),
  );
});

test('G-61: a group taken through one API is busy through the other, whichever was first', () => {
  const box = both();
  const { machine } = box;
  const user = box.user();
  const fn = '0000:00:04.0';
  const { id } = machine.iommu.groupOf(box.fn(fn))!;
  const old = user.group(`pci:${id}`);
  const today = user.open(machine.vfio.openGroup(id, user)).file;
  const container = user.open(machine.vfio.openContainer(user));
  const setContainer = (): string =>
    refusal(() =>
      user.ioctl(today, VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(container.descriptor).buffer)),
    );
  const iommufd = user.open(machine.iommufd.open(user)).descriptor;
  const bind = (): string => {
    const cdev = user.open(machine.vfio.openCdev(machine.vfio.devices()[0]!.index, user));
    const outcome = refusal(() =>
      user.ioctl(cdev.file, VFIO_DEVICE_BIND_IOMMUFD, new Uint8Array(Int32Array.of(24, 0, iommufd, 0, 0, 0).buffer)),
    );
    user.close(cdev.descriptor);
    return outcome;
  };

  const iommu = user.iommu(old);
  assert.equal(setContainer(), 'EBUSY');
  user.closeFile(iommu);
  assert.equal(setContainer(), 'ok');
  assert.equal(
    refusal(() => user.iommu(old)),
    'EBUSY',
  );
  assert.equal(
    refusal(() => user.device(old, fn)),
    'EBUSY',
  );
  user.ioctl(today, VFIO_GROUP_UNSET_CONTAINER);
  user.closeFile(today);
  const again = user.iommu(old);
  assert.equal(bind(), 'EBUSY');
  user.closeFile(again);
  assert.equal(bind(), 'ok');
  user.exit();
  assert.equal(machine.drivers.bus.unbind('vfio', fn), 'done');
  assert.equal(
    machine.vfio.groups().some((group) => group.id === id),
    false,
  );
});

test('one group may have the API of 2011 while the others have today’s', () => {
  const config = loadHost('default');
  const functions = config.functions.map((fn) => (fn.at === '00:04.0' ? { ...fn, driver: 'vfio' } : fn));
  const id = new Box(config).machine.iommu.groupOf(new Box(config).fn('0000:00:04.0'))?.id ?? 4;
  const { machine } = new Box({ ...config, functions, groups: { [id]: { api: 2011, minor: 5 } } });
  assert.deepEqual(
    machine.api2011!.core.groups().map(({ name }) => name),
    [`pci:${id}`],
  );
  assert.equal(
    machine.vfio.groups().some((group) => group.id === id),
    false,
  );
  assert.ok(machine.vfio.groups().length > 2);
  assert.equal(machine.stat(`/dev/vfio/pci:${id}`, 0)?.minor, 5);
  assert.equal(machine.stat('/dev/vfio/vfio', 0)?.major, 10);
  assert.throws(
    () => new Box({ ...config, groups: { '4711': { api: 2011 } } }),
    (error) => {
      assert.ok(error instanceof HostFileError);
      assert.match(error.message, /groups\.4711: the machine has no IOMMU group 4711/);
      return true;
    },
  );
});
