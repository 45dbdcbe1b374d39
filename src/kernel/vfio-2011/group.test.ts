/** Groups of 2011: viability, who has the address space, descriptors, and devices that come and go. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../lib/errno.ts';
import { failAt } from '../../lib/failpoint.ts';
import { VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_INFO, vfio_group_info } from '../../uapi/vfio-2011.ts';
import type { VfioDeviceOps } from './bus-driver.ts';
import { refusal, type ToyDevice, World } from './test-world.ts';

const VIABLE = 1;
const LOCKED = 2;
const NOTHING = { pins: 0, locked: 0, entries: 0, files: 0, owners: 0 };

test('C-10: GET_INFO shows viability, and the lock from the first descriptor on', () => {
  const world = new World();
  const [a, b] = [world.add('1.0'), world.add('1.1')];
  assert.equal(a.group, b.group);
  const user = world.user();
  const group = user.group(a.group);
  assert.equal(user.info(group), VIABLE);
  const iommu = user.iommu(group);
  assert.equal(user.info(group), VIABLE | LOCKED);
  user.close(iommu);
  assert.equal(user.info(group), VIABLE);
  assert.equal(world.core.unbindDevice(b, assert.fail), 'done');
  assert.equal(user.info(group), 0, 'one member is not bound: no flag, and no error');
  assert.equal(
    refusal(() => user.iommu(group)),
    'EBUSY',
  );
  assert.equal(
    refusal(() => user.device(group, a.name)),
    'EBUSY',
  );
});

test('GET_INFO: argsz one byte short is EINVAL and changes nothing, more is accepted; a bad pointer is EFAULT', () => {
  const world = new World();
  const user = world.user();
  const group = user.group(world.add('1.0').group);
  for (const [argsz, outcome] of [
    [7, 'EINVAL'],
    [8, 'ok'],
    [9, 'ok'],
  ] as const) {
    const bytes = vfio_group_info.write({ argsz, flags: 0 });
    assert.equal(
      refusal(() => user.call(group, VFIO_GROUP_GET_INFO, bytes)),
      outcome,
    );
    assert.deepEqual(vfio_group_info.read(bytes), { argsz, flags: outcome === 'ok' ? VIABLE : 0 });
  }
  assert.equal(
    refusal(() => user.call(group, VFIO_GROUP_GET_INFO, 8)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => user.call(group, VFIO_GROUP_GET_DEVICE_FD, 8)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => user.call(group, 0x3b6a)),
    'ENOTTY',
  );
  assert.equal(
    refusal(() => user.device(group, '00:09.0')),
    'ENODEV',
  );
  assert.equal(user.info(group), VIABLE, 'a refused open does not lock');
});

test('C-16: one process has the address space: another one gets EPERM, but for GET_INFO', () => {
  const world = new World();
  const a = world.add('1.0');
  const [user, other] = [world.user(), world.user()];
  const group = user.group(a.group);
  const iommu = user.iommu(group);
  const sent = other.open(user.file(group)).descriptor;
  const sentIommu = other.open(user.file(iommu)).descriptor;
  assert.equal(
    refusal(() => other.device(sent, a.name)),
    'EPERM',
  );
  assert.equal(
    refusal(() => other.iommu(sent)),
    'EPERM',
  );
  assert.equal(
    refusal(() => other.unmerge(sent)),
    'EPERM',
  );
  assert.equal(
    refusal(() => other.merge(sent, sent)),
    'EPERM',
  );
  assert.equal(
    refusal(() => other.map(sentIommu, 1)),
    'EPERM',
  );
  assert.equal(
    refusal(() => other.unmap(sentIommu, 1)),
    'EPERM',
  );
  assert.equal(other.info(sent), VIABLE | LOCKED);
  assert.ok(user.device(group, a.name) >= 0);
});

test('the node opens any number of times, and a device each time through its driver', () => {
  const world = new World();
  const a = world.add('1.0');
  const user = world.user();
  const groups = [user.group(a.group), user.group(a.group)];
  const devices = groups.map((group) => user.device(group, a.name));
  assert.deepEqual(world.calls, [`open ${a.name}`, `open ${a.name}`]);
  user.close(devices[0]!);
  assert.equal(user.info(groups[0]!), VIABLE | LOCKED);
  user.exit();
  assert.deepEqual(world.calls.slice(2), [`release ${a.name}`, `release ${a.name}`]);
  assert.deepEqual(world.held(), NOTHING);
});

test('what a bus driver says to open is the answer, and nothing stays', () => {
  const world = new World();
  const a = world.add('1.0');
  world.ops.open = () => {
    throw new Errno('EIO', 'broken');
  };
  const user = world.user();
  const group = user.group(a.group);
  assert.equal(
    refusal(() => user.device(group, a.name)),
    'EIO',
  );
  assert.equal(user.info(group), VIABLE);
  user.exit();
  assert.deepEqual(world.held(), NOTHING);
});

test('opening undoes all when one group of a set cannot be attached', () => {
  const world = new World();
  const [a, b] = [world.add('1.0'), world.add('2.0')];
  const user = world.user();
  const [groupA, groupB] = [user.group(a.group), user.group(b.group)];
  user.merge(groupA, groupB);
  for (let skip = 0; skip < 4; skip++) {
    using order = failAt('iommu:attach_device', skip);
    assert.equal(
      refusal(() => user.iommu(groupA)),
      'ENOMEM',
      `failure ${skip}`,
    );
    assert.equal(order.failed.length, 1);
    assert.equal(world.held().owners, 0);
  }
  assert.ok(user.iommu(groupA) >= 0);
});

test('G-40: a device that appears in an idle group is not claimed; the group is not viable until somebody binds it', () => {
  const world = new World();
  const a = world.add('1.0');
  const user = world.user();
  const group = user.group(a.group);
  const late = world.add('1.1', false);
  assert.equal(late.group, a.group);
  assert.deepEqual(world.calls, []);
  assert.equal(user.info(group), 0);
  world.bind(late);
  assert.equal(user.info(group), VIABLE);
});

test('G-41 G-42: a device that appears in a used, merged group is claimed once, sees the mappings, and is usable', () => {
  const world = new World();
  const [a, b] = [world.add('1.0'), world.add('2.0')];
  const user = world.user();
  const [groupA, groupB] = [user.group(a.group), user.group(b.group)];
  user.merge(groupA, groupB);
  const iommu = user.iommu(groupA);
  const address = user.map(iommu, 0x66, 2);
  let seen: number | undefined;
  world.onClaim = (device) => {
    // No lock is held: the core can be asked, and called.
    seen = user.info(groupA);
    assert.equal(
      refusal(() => user.device(groupA, a.name)),
      'EBUSY',
      'not viable before it is bound',
    );
    assert.equal(world.dma(a, 0x66), 'ok', 'what is open goes on');
    world.bind(device);
  };
  const late = world.add('2.1');
  assert.deepEqual(world.calls, [`claim ${late.name}`]);
  assert.equal(seen, LOCKED);
  assert.equal(user.info(groupB), VIABLE | LOCKED);
  assert.equal(world.dma(late, 0x67, 0x42), 'ok');
  assert.equal(user.byte(address + 4096), 0x42);
  user.close(user.device(groupA, late.name));
  user.exit();
  assert.deepEqual(world.held(), NOTHING);
});

test('G-43: a bus with hotplug needs drivers that can claim; any bus needs the other operations', () => {
  const world = new World();
  const { claim: _, ...without } = world.ops;
  const plain = { name: 'plain', isHotplug: false };
  const device = world.place('1.0', plain);
  assert.equal(
    refusal(() => world.core.groupAddDevice(world.place('2.0'), without)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => world.core.groupAddDevice(device, without)),
    'ok',
  );
  const { mmap: _mmap, ...broken } = world.ops;
  assert.equal(
    refusal(() => world.core.groupAddDevice(world.place('3.0', plain), broken as VfioDeviceOps<ToyDevice, ToyDevice>)),
    'EINVAL',
  );
  const nowhere = { ...world.place('4.0'), iommuGroup: undefined };
  assert.equal(
    refusal(() => world.core.groupAddDevice(nowhere, world.ops)),
    'ENODEV',
  );
  assert.equal(
    refusal(() => world.core.groupAddDevice(device, without)),
    'EEXIST',
  );
  assert.equal(
    refusal(() => world.core.bindDevice(nowhere, {})),
    'EINVAL',
  );
  world.core.bindDevice(device, {});
  assert.equal(
    refusal(() => world.core.bindDevice(device, {})),
    'EBUSY',
  );
});

test('G-44 C-19: unbinding waits while a merged peer is in use, and ends in the turn of the last close', () => {
  const world = new World();
  const [a, b] = [world.add('1.0'), world.add('2.0')];
  const user = world.user();
  const [groupA, groupB] = [user.group(a.group), user.group(b.group)];
  user.merge(groupA, groupB);
  const [iommu, device] = [user.iommu(groupB), user.device(groupB, b.name)];
  let ended = 0;
  assert.equal(
    world.core.unbindDevice(a, () => ended++),
    'waiting',
  );
  assert.equal(user.info(groupA), VIABLE | LOCKED, 'bound as long as it waits');
  user.close(iommu);
  assert.equal(ended, 0);
  user.close(device);
  assert.equal(ended, 1);
  assert.equal(user.info(groupA), 0);
  assert.equal(world.core.unbindDevice(b, assert.fail), 'done', 'an idle set does not make it wait');
});

test('a wait for unbinding ends also when its group is unmerged, and can be given up', () => {
  const world = new World();
  const [a, b] = [world.add('1.0'), world.add('2.0')];
  const user = world.user();
  const [groupA, groupB] = [user.group(a.group), user.group(b.group)];
  user.merge(groupA, groupB);
  user.device(groupA, a.name);
  let ended = 0;
  world.core.unbindDevice(b, () => ended++);
  assert.equal(world.core.cancelUnbind(b), true);
  assert.equal(world.core.cancelUnbind(b), false);
  world.core.unbindDevice(b, () => ended++);
  user.unmerge(groupB);
  assert.equal(ended, 1);
  assert.equal(user.info(groupB), 0);
  assert.equal(user.info(groupA), VIABLE | LOCKED);
});

test('G-45: removing a bound device is put off until it is unbound, then its group goes', () => {
  const world = new World();
  const changes: string[] = [];
  const [a, b] = [world.add('1.0'), world.add('1.1')];
  world.core.options.changed = (group) => {
    changes.push(world.core.has(group) ? group.devices.map(({ name }) => name).join(' ') : 'gone');
  };
  const user = world.user();
  const group = user.group(a.group);
  const iommu = user.iommu(group);
  assert.equal(world.unplug(a), 'waiting');
  assert.deepEqual(changes, [], 'its link is there as long as it is bound');
  assert.equal(user.info(group), VIABLE | LOCKED);
  user.close(iommu);
  assert.deepEqual(changes, [b.name]);
  assert.equal(world.unplug(b), 'done');
  assert.deepEqual(changes, [b.name, ''], 'the group is open, so it stays');
  user.close(group);
  assert.deepEqual(changes, [b.name, '', 'gone']);
  assert.equal(
    refusal(() => user.group(a.group)),
    'ENODEV',
  );
});

test('G-47: a group whose device escaped VFIO is never viable, until it is made anew', () => {
  for (const taint of ['claim', 'link'] as const) {
    const world = new World();
    const a = world.add('1.0');
    const user = world.user();
    const group = user.group(a.group);
    if (taint === 'claim') {
      const iommu = user.iommu(group);
      world.onClaim = () => {
        throw new Errno('EIO', 'the device does not answer');
      };
      const late = world.add('1.1', false);
      assert.equal(user.info(group), LOCKED);
      user.map(iommu, 5);
      assert.equal(world.dma(a, 5), 'ok', 'what is open goes on');
      world.bind(late);
      user.close(iommu);
    } else {
      using order = failAt('vfio2011:link');
      world.add('1.1');
      assert.equal(order.failed.length, 1);
    }
    assert.equal(user.info(group), 0, `all are bound, and it is tainted by ${taint}`);
    assert.equal(
      refusal(() => user.iommu(group)),
      'EBUSY',
    );
  }
});

test('with revokeOnNonViable, DMA of a used set is blocked while a member is not bound', () => {
  const world = new World({ core: { revokeOnNonViable: true } });
  const a = world.add('1.0');
  const user = world.user();
  const group = user.group(a.group);
  user.map(user.iommu(group), 5);
  world.onClaim = (device) => {
    assert.notEqual(world.dma(a, 5), 'ok');
    world.bind(device);
  };
  const late = world.add('1.1');
  assert.equal(world.dma(a, 5), 'ok');
  assert.equal(world.dma(late, 5), 'ok');
});

test('G-32: groups have the numbers that are pinned, others the lowest free ones', () => {
  const world = new World({ core: { minors: new Map([[1, 0]]) } });
  const devices = ['1.0', '2.0', '3.0'].map((at) => world.add(at));
  const minors = (): number[] => world.core.groups().map(({ minor }) => minor);
  assert.deepEqual(minors(), [1, 0, 2]);
  world.unplug(devices[0]!);
  world.add('4.0');
  assert.deepEqual(minors(), [1, 0, 2], 'group 0 is made anew, with the number that was free');
});
