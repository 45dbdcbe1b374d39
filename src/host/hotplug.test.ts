/** Functions that come and go while the machine runs. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Blocked } from '../kernel/core/blocked.ts';
import { refusal, TestEventfd, TestTask } from '../kernel/core/test-task.ts';
import * as uapi from '../uapi/vfio.ts';
import type { FunctionConfig } from './host-file.ts';
import { HostFileError } from './host-file.ts';
import { TestHost } from './test-host.ts';

const EDU = '0000:00:04.0';
const PCI = '/sys/bus/pci/devices';
const DRIVERS = '/sys/bus/pci/drivers';

const board: readonly FunctionConfig[] = [
  { at: '00:00.0', model: 'host-bridge' },
  { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
  { at: '00:02.0', model: 'pcie-pci-bridge', secondary: 2 },
  { at: '00:04.0', model: 'edu', driver: 'vfio-pci' },
];

function s32(...values: number[]): Uint8Array {
  return new Uint8Array(Int32Array.from(values).buffer);
}

/** Registers an eventfd for the request to let go. */
function watchRequests(task: TestTask, file: Parameters<TestTask['ioctl']>[0]): TestEventfd {
  const { file: eventfd, descriptor } = task.openEventfd();
  const flags = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER;
  task.ioctl(file, uapi.VFIO_DEVICE_SET_IRQS, s32(24, flags, uapi.VFIO_PCI_REQ_IRQ_INDEX, 0, 1, descriptor));
  assert.ok(eventfd instanceof TestEventfd);
  return eventfd;
}

test('a function that is plugged in gets its group, its folder, its driver and its nodes, and loses them again', () => {
  const host = new TestHost(board);
  const { machine } = host;
  const before = machine.iommu.groups().length;
  const fn = machine.hotplug.plug({ at: '01:00.0', model: 'testdev', driver: 'vfio-pci' });
  assert.equal(fn.name, '0000:01:00.0');
  assert.equal(machine.iommu.groups().length, before + 1);
  const id = host.groupId(fn.name);
  assert.ok(host.has(`/sys/kernel/iommu_groups/${id}/devices/${fn.name}`));
  assert.ok(host.has(`${PCI}/${fn.name}/vfio-dev/vfio1`));
  assert.equal(host.read(`${PCI}/${fn.name}/driver_override`), 'vfio-pci\n');
  assert.match(machine.tree.readlink(`${PCI}/${fn.name}/driver`) ?? '', /drivers\/vfio-pci$/);
  const bars = host.read(`${PCI}/${fn.name}/resource`).split('\n')[0]!;
  assert.notEqual(Number(bars.split(' ')[0]), 0, 'it has addresses');
  const held = host.hold(fn.name);
  held.task.exit();
  let done = false;
  machine.hotplug.unplug(fn, 'ask', () => {
    done = true;
  });
  assert.equal(done, true);
  assert.equal(machine.pci.find('0000:01:00.0'), undefined);
  assert.equal(machine.iommu.groups().length, before);
  for (const gone of [
    `${PCI}/${fn.name}`,
    `/sys/kernel/iommu_groups/${id}`,
    `/dev/vfio/${id}`,
    '/dev/vfio/devices/vfio1',
  ])
    assert.equal(host.has(gone), false, gone);
  assert.equal(machine.tree.has(`${DRIVERS}/vfio-pci/${fn.name}`), false);
});

test('plug says what is wrong: no bus, a slot that is taken, no model, no driver, and nothing has changed', () => {
  const { machine } = new TestHost(board);
  const count = machine.functions().length;
  for (const [config, message] of [
    [{ at: '07:00.0', model: 'edu' }, /no bus 0000:07/],
    [{ at: '00:04.0', model: 'edu' }, /already there/],
    [{ at: '00:05.0', model: 'none' }, /no device model 'none'/],
    [{ at: '00:05.0', model: 'edu', driver: 'nobody' }, /no driver 'nobody'/],
    [{ at: '00:05.0', model: 'edu', options: { bad: 1 } }, /bad/],
  ] as const) {
    assert.throws(
      () => machine.hotplug.plug(config),
      (error) => error instanceof HostFileError && message.test(error.message),
    );
  }
  assert.equal(machine.functions().length, count);
});

test('unbind of a device in use blocks, asks every ten seconds, hides it from others, and ends with the last close', () => {
  const host = new TestHost(board);
  const { machine, clock } = host;
  const { task, file } = host.hold(EDU);
  const eventfd = watchRequests(task, file);
  const blocked = host.write(`${DRIVERS}/vfio-pci/unbind`, EDU);
  assert.ok(blocked instanceof Blocked);
  assert.equal(blocked.result, EDU.length + 1);
  let ended = 0;
  blocked.onEnd((error) => {
    assert.equal(error, undefined);
    ended++;
  });
  assert.equal(eventfd.take(), 1, 'D-21: asked at once');
  clock.advance(9.9e9);
  assert.equal(eventfd.take(), 0);
  clock.advance(20.2e9);
  assert.equal(eventfd.take(), 3, 'D-21 G-46: and every ten seconds');
  assert.equal(host.has(`${PCI}/${EDU}/driver`), false, 'its driver is on the way out');
  assert.equal(host.has('/dev/vfio/devices/vfio0'), false);
  // Others may wait, too; a bind waits for the unbind.
  const second = host.write(`${DRIVERS}/vfio-pci/unbind`, EDU);
  const bind = host.write(`${DRIVERS}/vfio-pci/bind`, EDU);
  assert.ok(second instanceof Blocked && bind instanceof Blocked);
  second.onEnd(() => ended++);
  bind.onEnd((error) => {
    assert.equal(error, undefined);
    ended++;
  });
  // The device still works for its user.
  assert.equal(file.read(task, new Uint8Array(4), 7 * 2 ** 40), 4);
  task.exit();
  assert.equal(ended, 3);
  assert.equal(machine.drivers.driverOf(host.fn(EDU)), 'vfio-pci', 'the bind came last');
  assert.ok(host.has('/dev/vfio/devices/vfio0'));
  assert.deepEqual(machine.invariants(), { pins: 0, maps: 0, objects: 0, files: 0, blocks: 0 });
});

test('G-46: a device in use that is asked to go goes with the last close; its slot is free then', () => {
  const host = new TestHost(board);
  const { machine } = host;
  const { task, file } = host.hold(EDU);
  const eventfd = watchRequests(task, file);
  let done = false;
  machine.hotplug.unplug(host.fn(EDU), 'ask', () => {
    done = true;
  });
  assert.equal(done, false);
  assert.equal(eventfd.take(), 1);
  host.clock.advance(10e9);
  assert.equal(eventfd.take(), 1);
  assert.ok(machine.pci.find(EDU) !== undefined);
  task.exit();
  assert.equal(done, true);
  assert.equal(machine.pci.find(EDU), undefined);
  assert.equal(machine.hotplug.plug({ at: '00:04.0', model: 'edu' }).name, EDU);
});

test('a card that is pulled out: its user reads all ones and gets EIO, the slot is taken until he closes', () => {
  const host = new TestHost(board);
  const { machine } = host;
  const { task, file } = host.hold(EDU);
  const eventfd = watchRequests(task, file);
  machine.hotplug.unplug(host.fn(EDU), 'pull');
  assert.equal(machine.pci.find(EDU), undefined);
  assert.equal(eventfd.take(), 1);
  const bytes = new Uint8Array(4);
  file.read(task, bytes, 7 * 2 ** 40 + 8);
  assert.deepEqual([...bytes], [0xff, 0xff, 0xff, 0xff]);
  assert.throws(() => machine.hotplug.plug({ at: '00:04.0', model: 'edu' }), /still holds/);
  task.exit();
  assert.equal(machine.hotplug.plug({ at: '00:04.0', model: 'edu', driver: 'vfio-pci' }).name, EDU);
  host.hold(EDU).task.exit();
  assert.deepEqual(machine.invariants(), { pins: 0, maps: 0, objects: 0, files: 0, blocks: 0 });
});

test('remove and rescan: the kernel forgets a function and finds it again, without its override', () => {
  const host = new TestHost(board);
  const group = host.groupId(EDU);
  assert.equal(host.write(`${PCI}/${EDU}/remove`, '0'), 2);
  assert.ok(host.has(`${PCI}/${EDU}`));
  assert.equal(host.write(`${PCI}/${EDU}/remove`, 'x'), 'EINVAL');
  assert.equal(host.write(`${PCI}/${EDU}/remove`, '1'), 2);
  assert.equal(host.has(`${PCI}/${EDU}`), false);
  assert.equal(host.has(`/dev/vfio/${group}`), false);
  assert.equal(host.write('/sys/bus/pci/rescan', '0'), 2);
  assert.equal(host.has(`${PCI}/${EDU}`), false);
  assert.equal(host.write(`${PCI}/0000:00:00.0/rescan`, '1'), 2);
  assert.ok(host.has(`${PCI}/${EDU}`));
  assert.equal(host.groupId(EDU), group);
  assert.equal(host.read(`${PCI}/${EDU}/driver_override`), '(null)\n');
  assert.equal(host.machine.drivers.driverOf(host.fn(EDU)), undefined);
});

test('remove of a bridge takes what is behind it, the last first, and waits for users there', () => {
  const host = new TestHost([
    ...board,
    { at: '01:00.0', model: 'testdev', driver: 'vfio-pci' },
    { at: '01:00.1', model: 'testdev', driver: 'vfio-pci' },
  ]);
  const { task } = host.hold('0000:01:00.0');
  const blocked = host.write(`${PCI}/0000:00:01.0/remove`, '1');
  assert.ok(blocked instanceof Blocked);
  assert.equal(host.has(`${PCI}/0000:00:01.0/driver`), true, 'the bridge comes after what is behind it');
  assert.equal(host.has(`${PCI}/0000:01:00.1/driver`), false);
  assert.equal(host.has(`${PCI}/0000:01:00.1`), true, 'all let go before one is forgotten');
  task.exit();
  for (const name of ['0000:00:01.0', '0000:01:00.0', '0000:01:00.1']) assert.equal(host.has(`${PCI}/${name}`), false);
  assert.equal(host.write('/sys/bus/pci/rescan', '1'), 2);
  assert.equal(host.machine.drivers.driverOf(host.fn('0000:00:01.0')), 'pcieport');
  assert.ok(host.has(`${PCI}/0000:01:00.1`));
});

test('G-53: a function that is plugged into a group which a user holds gets no host driver, and vfio-pci may have it', () => {
  const host = new TestHost([...board, { at: '02:01.0', model: 'edu', driver: 'vfio-pci' }]);
  const { machine } = host;
  const { task } = host.hold('0000:02:01.0');
  const fn = machine.hotplug.plug({ at: '02:02.0', model: 'serial' });
  assert.equal(host.groupId(fn.name), host.groupId('0000:02:01.0'));
  assert.equal(machine.drivers.driverOf(fn), undefined);
  assert.equal(host.write(`${DRIVERS}/serial/bind`, fn.name), 'EBUSY');
  assert.equal(host.write(`${PCI}/${fn.name}/driver_override`, 'vfio-pci'), 9);
  assert.equal(host.write('/sys/bus/pci/drivers_probe', fn.name), fn.name.length + 1);
  assert.equal(machine.drivers.driverOf(fn), 'vfio-pci');
  task.exit();
  assert.equal(host.write(`${DRIVERS}/vfio-pci/unbind`, fn.name), fn.name.length + 1);
  assert.equal(host.write(`${PCI}/${fn.name}/driver_override`, ''), 1);
  assert.equal(host.write(`${DRIVERS}/serial/bind`, fn.name), fn.name.length + 1, 'G-52: the host may have it again');
});

test('G-54: the last member goes while the file of its group is open: ioctls say ENODEV, and the close is clean', () => {
  const host = new TestHost(board);
  const { machine } = host;
  const task = host.task();
  const group = host.open(task, `/dev/vfio/${host.groupId(EDU)}`);
  const container = host.open(task, '/dev/vfio/vfio');
  task.ioctl(group.file, uapi.VFIO_GROUP_SET_CONTAINER, s32(container.descriptor));
  machine.hotplug.unplug(host.fn(EDU), 'ask');
  assert.equal(machine.pci.find(EDU), undefined, 'an open group holds no device');
  for (const [request, argument] of [
    [uapi.VFIO_GROUP_GET_STATUS, s32(8, 0)],
    [uapi.VFIO_GROUP_SET_CONTAINER, s32(container.descriptor)],
  ] as const) {
    assert.equal(
      refusal(() => task.ioctl(group.file, request, argument)),
      'ENODEV',
    );
  }
  task.exit();
  assert.deepEqual(machine.invariants(), { pins: 0, maps: 0, objects: 0, files: 0, blocks: 0 });
});

test('T-21: what was mapped for a function that is gone is not reached by another one in its slot', () => {
  const host = new TestHost([...board, { at: '01:00.0', model: 'testdev', driver: 'vfio-pci' }]);
  const { machine } = host;
  const first = host.fn('0000:01:00.0');
  const { task, container } = host.hold(first.name);
  const memory = task.memory.map(4096);
  const map = new DataView(new ArrayBuffer(32));
  map.setUint32(0, 32, true);
  map.setUint32(4, 3, true);
  map.setBigUint64(8, BigInt(memory), true);
  map.setBigUint64(16, 0x10_0000n, true);
  map.setBigUint64(24, 4096n, true);
  task.ioctl(container.file, uapi.VFIO_IOMMU_MAP_DMA, new Uint8Array(map.buffer));
  first.config.write(4, 2, 6);
  assert.equal(first.dma.write(0x10_0000n, Uint8Array.of(1, 2, 3, 4)), undefined);
  const { requesterId } = first;
  machine.hotplug.unplug(first, 'pull');
  assert.notEqual(first.dma.write(0x10_0000n, Uint8Array.of(9)), undefined, 'a card that is out does no DMA');
  // Its user still holds the mapping; a card that came into the slot would have the same requester.
  assert.throws(() => machine.hotplug.plug({ at: '01:00.0', model: 'testdev' }), /still holds/);
  task.exit();
  const second = machine.hotplug.plug({ at: '01:00.0', model: 'testdev' });
  assert.equal(second.requesterId, requesterId);
  second.config.write(4, 2, 6);
  assert.notEqual(second.dma.write(0x10_0000n, Uint8Array.of(5, 6, 7, 8)), undefined);
  const bytes = new Uint8Array(4);
  task.memory.read(memory, bytes);
  assert.deepEqual([...bytes], [1, 2, 3, 4]);
});

test('reset_method: the order of the methods, none, all again; EINVAL changes nothing', () => {
  const host = new TestHost([...board, { at: '01:00.0', model: 'testdev' }]);
  const path = `${PCI}/0000:01:00.0/reset_method`;
  const all = host.read(path).trim();
  assert.match(all, /^flr /);
  assert.equal(host.write(path, 'bus flr'), 8);
  assert.equal(host.read(path), 'bus flr\n');
  assert.equal(host.write(path, 'flr af_flr'), 'EINVAL');
  assert.equal(host.write(path, 'none'), 'EINVAL');
  assert.equal(host.read(path), 'bus flr\n');
  assert.equal(host.write(path, ''), 1);
  assert.equal(host.read(path), '\n');
  assert.equal(host.write(`${PCI}/0000:01:00.0/reset`, '1'), 'ENOTTY');
  assert.equal(host.write(path, 'default'), 8);
  assert.equal(host.read(path).trim(), all);
  assert.equal(host.write(`${PCI}/0000:01:00.0/reset`, '1'), 2);
  assert.equal(host.write(`${PCI}/0000:01:00.0/reset`, '2'), 'EINVAL');
});

test('type of a group: EINVAL for other words, EPERM while a host driver or a user has it, DMA to DMA-FQ always; DMA goes as it says', () => {
  const host = new TestHost([
    ...board,
    { at: '00:05.0', model: 'testdev', untrusted: true },
    { at: '00:06.0', model: 'testdev' },
  ]);
  const path = (name: string): string => `/sys/kernel/iommu_groups/${host.groupId(name)}/type`;
  const port = path('0000:00:01.0');
  assert.equal(host.read(port), 'DMA-FQ\n');
  assert.equal(host.write(port, 'dma'), 'EINVAL');
  assert.equal(host.write(port, ''), 'EINVAL');
  const { file } = host.open(host.task(), port, 1);
  const stranger = new TestTask({ capabilities: ['CAP_SYS_ADMIN'] });
  assert.equal(
    refusal(() => file.write(stranger, Uint8Array.of(65), 0)),
    'EACCES',
  );
  assert.equal(
    host.write(port, 'identity'),
    9,
    'a port does no DMA of its own, and its driver does not hold the group',
  );
  assert.equal(host.read(port), 'identity\n');
  const untrusted = path('0000:00:05.0');
  assert.equal(host.write(untrusted, 'identity'), 'EINVAL', 'T-23: who is not trusted is translated');
  const free = path('0000:00:06.0');
  const fn = host.fn('0000:00:06.0');
  fn.config.write(4, 2, 6);
  const page = host.task().memory.map(4096);
  assert.notEqual(fn.dma.read(BigInt(page), new Uint8Array(4)), undefined);
  for (const [word, shown] of [
    ['DMA', 'DMA\n'],
    ['DMA-FQ', 'DMA-FQ\n'],
    ['auto', 'DMA-FQ\n'],
  ] as const) {
    assert.equal(host.write(free, word), word.length + 1);
    assert.equal(host.read(free), shown);
  }
  host.write(`${PCI}/0000:00:06.0/driver_override`, 'vfio-pci');
  host.write('/sys/bus/pci/drivers_probe', '0000:00:06.0');
  assert.equal(host.write(free, 'DMA'), 4, 'a device that nobody has open is no hindrance');
  const { task } = host.hold('0000:00:06.0');
  assert.equal(host.write(free, 'auto'), 'EPERM');
  assert.equal(host.write(free, 'DMA-FQ'), 7);
  assert.equal(host.write(free, 'DMA'), 'EPERM');
  task.exit();
  assert.equal(host.write(free, 'DMA'), 4);
});

test('behind a removal that waits: rescan finds the function afterwards, a new_id that it matches gives it away then', () => {
  const host = new TestHost(board);
  const { task } = host.hold(EDU);
  const remove = host.write(`${PCI}/${EDU}/remove`, '1');
  const rescan = host.write('/sys/bus/pci/rescan', '1');
  const other = host.write(`${PCI}/0000:00:00.0/rescan`, '1');
  assert.ok(remove instanceof Blocked && rescan instanceof Blocked && other instanceof Blocked);
  const matching = host.write(`${DRIVERS}/vfio-pci/new_id`, '1234 11e8');
  assert.ok(matching instanceof Blocked);
  assert.equal(host.write(`${DRIVERS}/serial/new_id`, 'abcd 1234'), 10, 'others go on');
  let ended = 0;
  for (const call of [remove, rescan, other, matching]) call.onEnd(() => ended++);
  task.exit();
  assert.equal(ended, 4);
  assert.equal(host.machine.drivers.driverOf(host.fn(EDU)), 'vfio-pci');
});
