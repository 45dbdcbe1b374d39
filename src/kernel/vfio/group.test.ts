import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { ManualClock } from '../../hw/pci/clock.ts';
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_CHECK_EXTENSION,
  VFIO_DEVICE_BIND_IOMMUFD,
  VFIO_GROUP_GET_DEVICE_FD,
  VFIO_GROUP_UNSET_CONTAINER,
  VFIO_IOMMU_GET_INFO,
  VFIO_NOIOMMU_IOMMU,
  VFIO_SET_IOMMU,
} from '../../uapi/vfio.ts';
import { refusal, type TestTask } from '../core/test-task.ts';
import type { IommufdContext } from '../iommufd/context.ts';
import { IommufdCore } from '../iommufd/core.ts';
import {
  deviceFile,
  getDeviceFd,
  groupStatus,
  setContainer,
  TestContainer,
  type TestDevice,
  TestWorld,
} from './test-world.ts';

const EDU = '0000:00:04.0';

function box() {
  const world = new TestWorld();
  const task = world.task();
  const { device, group } = world.device(EDU);
  const container = world.container(task, [group]);
  return { world, task, device, group, container };
}

function openGroup(world: TestWorld, task: TestTask, id: number) {
  return task.open(world.core.openGroup(id, task));
}

test('G-50 C-41: a group opens once, and not while a device is held by its own node', () => {
  const world = new TestWorld();
  const task = world.task();
  const { device, group } = world.device(EDU);
  device.cdevOpened = true;
  assert.equal(
    refusal(() => world.core.openGroup(group.id, task)),
    'EBUSY',
  );
  device.cdevOpened = false;
  const { descriptor } = openGroup(world, task, group.id);
  assert.equal(world.core.groupOf(device)?.hasGroupOpen, true);
  assert.equal(
    refusal(() => world.core.openGroup(group.id, task)),
    'EBUSY',
  );
  task.close(descriptor);
  openGroup(world, task, group.id);
});

test('G-51 G-52 G-53: a group is viable while no host driver holds it, and goes back to them', () => {
  const world = new TestWorld();
  const task = world.task();
  const { group } = world.device(EDU);
  const { file, descriptor } = openGroup(world, task, group.id);
  assert.equal(groupStatus(task, file), 1);
  const container = task.open(world.core.openContainer(task));
  setContainer(task, file, container.descriptor);
  assert.equal(groupStatus(task, file), 3);
  assert.equal(
    refusal(() => group.useDefaultDomain()),
    'EBUSY',
    'the user holds the group',
  );
  task.close(container.descriptor);
  task.close(descriptor);
  group.useDefaultDomain();
  const again = openGroup(world, task, group.id).file;
  assert.equal(groupStatus(task, again), 0);
});

test('G-54: when the last device goes, the open file of its group answers ENODEV and closes cleanly', () => {
  const world = new TestWorld();
  const task = world.task();
  const { device, group } = world.device(EDU);
  const container = new TestContainer(world, task);
  const file = container.add(group);
  container.setIommu(3);
  container.map(0, task.memory.map(4096), 4096);
  assert.equal(
    world.core.unregister(device, () => assert.fail('nobody waits')),
    'done',
  );
  assert.deepEqual([world.core.groups(), world.core.devices(), group.ownerCount, task.mm.pins], [[], [], 0, 0]);
  assert.equal(
    refusal(() => groupStatus(task, file)),
    'ENODEV',
  );
  assert.equal(
    refusal(() => setContainer(task, file, container.descriptor)),
    'ENODEV',
  );
  assert.equal(
    refusal(() => getDeviceFd(task, file, EDU)),
    'ENODEV',
  );
  assert.equal(
    refusal(() => task.ioctl(file, VFIO_GROUP_UNSET_CONTAINER)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => world.core.openGroup(group.id, task)),
    'ENODEV',
  );
  world.core.register(device);
  openGroup(world, task, group.id);
  task.exit();
  openGroup(world, task, group.id);
});

test('C-50 C-51: a device that is held goes when its last file is closed, and is asked for every ten seconds', () => {
  const clock = new ManualClock();
  const world = new TestWorld({ clock });
  const task = world.task();
  const { device, group } = world.device(EDU);
  const container = world.container(task, [group]);
  const [first, second] = [container.open(group, EDU), container.open(group, EDU)];
  let isGone = false;
  assert.equal(
    world.core.unregister(device, () => {
      isGone = true;
    }),
    'busy',
  );
  assert.equal(
    refusal(() => container.open(group, EDU)),
    'ENODEV',
  );
  assert.deepEqual(world.core.devices(), []);
  clock.advance(25e9);
  assert.equal(device.requests, 3);
  task.close(first);
  assert.equal(isGone, false);
  task.close(second);
  assert.equal(isGone, true);
  clock.advance(100e9);
  assert.equal(device.requests, 3);
  assert.deepEqual(device.events, ['open', 'close']);
  assert.deepEqual(world.core.groups(), []);
});

test('C-50: a program that lets go as soon as it is asked ends the waiting at once', () => {
  const world = new TestWorld({ clock: new ManualClock() });
  const task = world.task();
  const { device, group } = world.device(EDU);
  const descriptor = world.container(task, [group]).open(group, EDU);
  let isGone = false;
  device.onRequest = () => task.close(descriptor);
  world.core.unregister(device, () => {
    isGone = true;
  });
  assert.equal(isGone, true);
});

test('devices and groups get the lowest free numbers', () => {
  const world = new TestWorld();
  const made = ['a', 'b', 'c'].map((name) => world.device(name));
  assert.deepEqual(
    made.map(({ device }) => device.index),
    [0, 1, 2],
  );
  assert.deepEqual(
    world.core.groups().map((group) => [group.id, group.minor, group.name]),
    [
      [3, 0, '3'],
      [4, 1, '4'],
      [5, 2, '5'],
    ],
  );
  world.core.unregister(made[0]!.device, () => {});
  assert.equal(world.device('d').device.index, 0);
  assert.deepEqual(
    world.core.groups().map((group) => [group.id, group.minor]),
    [
      [4, 1],
      [5, 2],
      [6, 0],
    ],
  );
});

test('C-55: the files carry the names that /proc shows', () => {
  const { task, group, container } = box();
  const device = deviceFile(task, container.open(group, EDU));
  assert.equal(device.path, 'anon_inode:[vfio-device]');
  assert.equal(container.groups.get(group)!.file.path, `/dev/vfio/${group.id}`);
  assert.equal(container.file.path, '/dev/vfio/vfio');
});

test('C-53: several files of a device are one open device', () => {
  const { task, device, group, container } = box();
  const one = container.open(group, EDU);
  const two = container.open(group, EDU);
  const copy = task.dup(one);
  assert.deepEqual([device.openCount, device.events], [2, ['open']]);
  task.close(one);
  task.close(two);
  assert.deepEqual(device.events, ['open']);
  task.close(copy);
  assert.deepEqual([device.openCount, device.events], [0, ['open', 'close']]);
});

test('C-54: the end of a process gives everything back, in whatever order it closes', () => {
  for (const order of [
    [0, 1, 2],
    [2, 1, 0],
    [1, 0, 2],
    [1, 2, 0],
    [0, 2, 1],
    [2, 0, 1],
  ]) {
    const { world, task, device, group, container } = box();
    container.map(0, task.memory.map(0x4000), 0x4000);
    const descriptors = [container.descriptor, container.groups.get(group)!.descriptor, container.open(group, EDU)];
    for (const i of order) task.close(descriptors[i]!);
    assert.deepEqual(
      [task.mm.pins, task.mm.lockedPages, group.ownerCount, device.openCount, world.liveDomains.length],
      [0, 0, 0, 0, 0],
    );
  }
});

test('C-36: names are matched by the device, and the text has to end within a page', () => {
  const { task, group, container } = box();
  const { file } = container.groups.get(group)!;
  assert.equal(
    refusal(() => getDeviceFd(task, file, `${EDU} extra`)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => getDeviceFd(task, file, 'x'.repeat(4095))),
    'ENODEV',
  );
  assert.equal(
    refusal(() => getDeviceFd(task, file, 'x'.repeat(4096))),
    'EINVAL',
  );
  // The text ends just before memory that is not there.
  const page = task.memory.map(4096);
  const text = new TextEncoder().encode(`${EDU}\0`);
  task.memory.write(page + 4096 - text.length, text);
  assert.ok(task.ioctl(file, VFIO_GROUP_GET_DEVICE_FD, page + 4096 - text.length) > 0);
  task.memory.write(page + 4096 - text.length, new Uint8Array(text.length).fill(0x61));
  assert.equal(
    refusal(() => task.ioctl(file, VFIO_GROUP_GET_DEVICE_FD, page + 4096 - text.length)),
    'EFAULT',
  );
});

test('a device that refuses to open leaves nothing open', () => {
  const { world, task, device, group, container } = box();
  device.refusesOpen = new Errno('EIO', 'no power');
  assert.equal(
    refusal(() => container.open(group, EDU)),
    'EIO',
  );
  assert.equal(device.openCount, 0);
  container.remove(group);
  assert.equal(
    world.core.unregister(device, () => {}),
    'done',
  );
  task.exit();
});

test('a refused SET_IOMMU leaves the groups in the container and no driver', () => {
  const world = new TestWorld();
  const task = world.task();
  const one = world.device(EDU).group;
  const two = world.device('0000:05:00.0').group;
  two.refuses = new Errno('EBUSY', 'in reset');
  const container = new TestContainer(world, task);
  container.add(one);
  container.add(two);
  assert.equal(
    refusal(() => container.setIommu(3)),
    'EBUSY',
  );
  assert.deepEqual([container.file.driver, one.domain, world.liveDomains.length], [undefined, undefined, 0]);
  assert.equal(
    refusal(() => container.setIommu(9)),
    'EINVAL',
    'an extension is not a version',
  );
  two.refuses = undefined;
  container.setIommu(3);
  assert.equal(one.domain, two.domain);
});

test('groups without an IOMMU need the mode, the right, and a container of their own', () => {
  const world = new TestWorld();
  const group = world.group(undefined);
  assert.equal(
    refusal(() => world.device('usb', group)),
    'EINVAL',
  );
  world.core.options.noiommu = true;
  const { device } = world.device('usb', group);
  assert.equal(world.core.groupOf(device)?.name, `noiommu-${group.id}`);
  const poor = world.task();
  assert.equal(
    refusal(() => world.core.openGroup(group.id, poor)),
    'EPERM',
  );
  const task = world.task({ capabilities: ['CAP_SYS_RAWIO'] });
  const container = new TestContainer(world, task);
  const real = world.device(EDU).group;
  container.add(group);
  assert.equal(
    refusal(() => container.add(real)),
    'EPERM',
  );
  const extension = (number: number): number => task.ioctl(container.file, VFIO_CHECK_EXTENSION, number);
  assert.deepEqual([extension(1), extension(VFIO_NOIOMMU_IOMMU)], [0, 1]);
  assert.equal(
    refusal(() => poor.ioctl(container.file, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU)),
    'EPERM',
  );
  assert.equal(
    refusal(() => container.setIommu(3)),
    'ENODEV',
  );
  container.setIommu(VFIO_NOIOMMU_IOMMU);
  assert.equal(
    refusal(() => task.ioctl(container.file, VFIO_IOMMU_GET_INFO)),
    'ENOTTY',
  );
  container.open(group, 'usb');
  assert.deepEqual([device.events, group.ownerCount], [['open'], 0]);
});

/** A device that keeps books of its place in an iommufd. */
function bindable(device: TestDevice, refuses: { bind?: Errno; attach?: Errno } = {}): string[] {
  const events: string[] = [];
  const context: { held?: IommufdContext } = {};
  device.bindIommufd = (held) => {
    if (refuses.bind !== undefined) throw refuses.bind;
    context.held = held;
    events.push('bind');
    return {
      id: 1,
      isAttached: () => events.includes('attach'),
      attach(ptId) {
        if (refuses.attach !== undefined) throw refuses.attach;
        events.push('attach');
        return ptId;
      },
      replace: (ptId) => ptId,
      detach() {},
      unbind: () => events.push('unbind'),
    };
  };
  return events;
}

test("a group on an iommufd: no driver to choose, the device binds at its open, and outlives the group's file", () => {
  const world = new TestWorld();
  const task = world.task();
  const { device, group } = world.device(EDU);
  const refuses: { bind?: Errno; attach?: Errno } = {};
  const events = bindable(device, refuses);
  const iommufd = task.open(new IommufdCore({ physical: new PhysicalMemory() }).open(task));
  const { file, descriptor } = openGroup(world, task, group.id);
  setContainer(task, file, iommufd.descriptor);
  assert.equal(groupStatus(task, file), 3);
  assert.equal(group.ownerCount, 0, 'the group is taken by the device, not by the container');
  refuses.bind = new Errno('EPERM', 'a host driver holds the group');
  assert.equal(
    refusal(() => getDeviceFd(task, file, EDU)),
    'EPERM',
  );
  refuses.bind = undefined as never;
  refuses.attach = new Errno('ENODEV', 'no address space');
  assert.equal(
    refusal(() => getDeviceFd(task, file, EDU)),
    'ENODEV',
  );
  assert.deepEqual(
    [events.splice(0), device.events.splice(0), device.openCount],
    [['bind', 'unbind'], ['open', 'close'], 0],
  );
  refuses.attach = undefined as never;
  const opened = getDeviceFd(task, file, EDU);
  assert.equal(
    refusal(() => task.ioctl(deviceFile(task, opened), VFIO_DEVICE_BIND_IOMMUFD)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => task.ioctl(file, VFIO_GROUP_UNSET_CONTAINER)),
    'ok',
    'a device does not keep the iommufd set',
  );
  assert.equal(
    refusal(() => task.ioctl(file, VFIO_GROUP_UNSET_CONTAINER)),
    'EINVAL',
  );
  task.close(descriptor);
  openGroup(world, task, group.id);
  task.close(opened);
  assert.deepEqual(
    [events, device.events],
    [
      ['bind', 'attach', 'unbind'],
      ['open', 'close'],
    ],
  );
});
