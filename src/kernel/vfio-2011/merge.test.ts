/** Groups of 2011 that share an address space: every rule, and every refusal with nothing changed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unitPresets } from '../../hw/iommu/registers.ts';
import { failAt } from '../../lib/failpoint.ts';
import { VFIO_GROUP_MERGE, VFIO_GROUP_UNMERGE_FD } from '../../uapi/vfio-2011.ts';
import { refusal, type ToyDevice, type User, World, type WorldOptions } from './test-world.ts';

const VIABLE = 1;
const LOCKED = 2;
const NOTHING = { pins: 0, locked: 0, entries: 0, files: 0, owners: 0 };

interface Pair {
  world: World;
  a: ToyDevice;
  b: ToyDevice;
  user: User;
  groupA: number;
  groupB: number;
}

/** Two groups of one device each, bound, open in one program. */
function pair(options: WorldOptions = {}): Pair {
  const world = new World(options);
  const [a, b] = [world.add('1.0'), world.add('2.0')];
  const user = world.user();
  return { world, a, b, user, groupA: user.group(a.group), groupB: user.group(b.group) };
}

const { 'vtd-legacy-sc': coherent, 'legacy-nosc': incoherent } = unitPresets;
/** Slot 2 is behind a unit without snoop control. */
const differing: WorldOptions = {
  units: [
    { cap: coherent.cap, ecap: coherent.ecap },
    { cap: incoherent.cap, ecap: incoherent.ecap },
  ],
  unitOf: (fn) => (fn.devfn >> 3 === 2 ? 1 : 0),
};

test('C-11: after a merge both groups give descriptors of one address space', () => {
  const { world, a, b, user, groupA, groupB } = pair();
  user.merge(groupA, groupB);
  const [iommuA, iommuB] = [user.iommu(groupA), user.iommu(groupB)];
  const address = user.map(iommuA, 0x100);
  assert.equal(
    refusal(() => user.map(iommuB, 0x100)),
    'EBUSY',
  );
  assert.equal(world.dma(b, 0x100, 0x77), 'ok');
  assert.equal(user.byte(address), 0x77);
  user.unmap(iommuB, 0x100);
  assert.notEqual(world.dma(a, 0x100), 'ok');
  assert.ok(user.device(groupA, b.name) >= 0, "any device by any group's descriptor");
  user.exit();
  assert.deepEqual(world.held(), NOTHING);
});

test('C-12: a mergee sees what its merger had mapped, from the merge on', () => {
  const { world, b, user, groupA, groupB } = pair();
  const iommu = user.iommu(groupA);
  const address = user.map(iommu, 0x10, 4);
  assert.notEqual(world.dma(b, 0x12), 'ok');
  user.merge(groupA, groupB);
  assert.equal(world.dma(b, 0x12, 0x21), 'ok');
  assert.equal(user.byte(address + 2 * 4096), 0x21);
  user.device(groupB, b.name);
  assert.deepEqual(world.calls, [`open ${b.name}`]);
});

test('C-13: a mergee with an open device or IOMMU is EINVAL, after its close it is merged', () => {
  const { b, user, groupA, groupB } = pair();
  for (const open of [() => user.device(groupB, b.name), () => user.iommu(groupB)]) {
    const descriptor = open();
    assert.equal(
      refusal(() => user.merge(groupA, groupB)),
      'EINVAL',
    );
    assert.equal(user.info(groupB), VIABLE | LOCKED);
    user.close(descriptor);
  }
  assert.equal(user.merge(groupA, groupB), 0);
});

test('C-14 C-15: a group with an open device is not unmerged; after that its DMA faults, and the others go on', () => {
  const { world, a, b, user, groupA, groupB } = pair();
  user.merge(groupA, groupB);
  const iommu = user.iommu(groupA);
  user.device(groupA, a.name);
  const device = user.device(groupA, b.name);
  const address = user.map(iommu, 0x30);
  assert.equal(
    refusal(() => user.unmerge(groupB)),
    'EBUSY',
  );
  assert.equal(world.dma(b, 0x30), 'ok');
  user.close(device);
  assert.equal(user.unmerge(groupB), 0);
  assert.notEqual(world.dma(b, 0x30), 'ok');
  assert.equal(world.dma(a, 0x30, 0x12), 'ok');
  assert.equal(user.byte(address), 0x12);
  assert.equal(user.info(groupB), VIABLE, 'free, and nobody has its address space');
  assert.equal(
    refusal(() => user.unmerge(groupB)),
    'EINVAL',
    'alone already',
  );
});

test('the form of UNMERGE before the documentation names the group to be removed', () => {
  const { world, user, groupA, groupB } = pair();
  const third = user.group(world.add('3.0').group);
  const remove = (group: number): string =>
    refusal(() => user.call(groupA, VFIO_GROUP_UNMERGE_FD, new Uint8Array(Int32Array.of(group).buffer)));
  user.merge(groupA, groupB);
  assert.equal(remove(third), 'EINVAL', 'not in the set');
  assert.equal(remove(user.openForeign()), 'EINVAL');
  assert.equal(remove(4711), 'EBADF');
  assert.equal(remove(-1), 'EINVAL');
  assert.equal(remove(groupB), 'ok');
  assert.equal(remove(groupB), 'EINVAL');
});

test('MERGE refuses what it cannot merge, in order, and changes nothing', () => {
  const { world, a, b, user, groupA, groupB } = pair();
  const merge = (merger: number, mergee: number): string => refusal(() => user.merge(merger, mergee));
  assert.equal(
    refusal(() => user.call(groupA, VFIO_GROUP_MERGE, 0x10)),
    'EFAULT',
  );
  assert.equal(merge(groupA, -1), 'EINVAL');
  assert.equal(merge(groupA, 4711), 'EBADF');
  assert.equal(merge(groupA, user.openForeign()), 'EINVAL');
  assert.equal(merge(groupA, groupA), 'EINVAL');
  assert.equal(merge(groupA, user.group(a.group)), 'EINVAL', 'the same group by another descriptor');
  const iommu = user.iommu(groupA);
  assert.equal(merge(groupB, iommu), 'EINVAL', "an IOMMU's descriptor");
  user.close(iommu);

  const other = world.add('4.0', true, { name: 'other', isHotplug: true });
  assert.equal(merge(groupA, user.group(other.group)), 'EINVAL', 'another bus');

  const third = world.add('3.0', false);
  const groupC = user.group(third.group);
  assert.equal(merge(groupA, groupC), 'EBUSY', 'the mergee is not viable');
  assert.equal(merge(groupC, groupA), 'EBUSY', 'the merger is not viable');
  world.bind(third);
  assert.equal(merge(groupA, groupB), 'ok');
  assert.equal(merge(groupA, groupB), 'EINVAL', 'one set already');
  assert.equal(merge(groupC, groupB), 'EINVAL', 'merged with another');
  assert.equal(merge(groupA, groupC), 'ok', 'a set takes a third one');
  assert.deepEqual(
    user.device(groupC, a.name) >= 0 && user.device(groupA, b.name) >= 0 && user.device(groupB, third.name) >= 0,
    true,
  );
  user.exit();
  assert.deepEqual(world.held(), NOTHING);
});

test('a merge that cannot attach leaves the mergee as it was', () => {
  const { world, a, b, user, groupA, groupB } = pair();
  const iommu = user.iommu(groupA);
  user.map(iommu, 0x50);
  for (let skip = 0; skip < 2; skip++) {
    using order = failAt('iommu:attach_device', skip);
    assert.equal(
      refusal(() => user.merge(groupA, groupB)),
      'ENOMEM',
    );
    assert.equal(order.failed.length, 1);
  }
  assert.equal(user.info(groupB), VIABLE);
  assert.notEqual(world.dma(b, 0x50), 'ok');
  assert.equal(world.dma(a, 0x50), 'ok');
  assert.ok(user.iommu(groupB) >= 0, 'it is usable by itself');
});

test('C-17: groups whose units differ in coherency are not merged, and both stay usable', () => {
  const { world, a, b, user, groupA, groupB } = pair(differing);
  assert.equal(
    refusal(() => user.merge(groupA, groupB)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => user.merge(groupB, groupA)),
    'EINVAL',
  );
  const iommuA = user.iommu(groupA);
  assert.equal(
    refusal(() => user.merge(groupA, groupB)),
    'EINVAL',
    'also while one is in use',
  );
  const iommuB = user.iommu(groupB);
  user.map(iommuA, 1);
  user.map(iommuB, 2);
  assert.equal(world.dma(a, 1), 'ok');
  assert.equal(world.dma(b, 2), 'ok');
  assert.notEqual(world.dma(a, 2), 'ok');
});

test('C-18: the last close dissolves a set; while a descriptor of a group is open it stays', () => {
  const { world, a, b, user, groupA, groupB } = pair();
  user.merge(groupA, groupB);
  const iommu = user.iommu(groupA);
  user.map(iommu, 7);
  user.close(iommu);
  assert.equal(user.mm.pins, 0, 'the address space ended with its last descriptor');
  assert.equal(user.info(groupB), VIABLE);
  user.close(groupB);
  const again = user.iommu(groupA);
  user.map(again, 8);
  assert.equal(world.dma(b, 8), 'ok', 'merged still');
  user.close(groupA);
  user.close(again);
  const [newA, newB] = [user.group(a.group), user.group(b.group)];
  const only = user.iommu(newA);
  user.map(only, 9);
  assert.equal(world.dma(a, 9), 'ok');
  assert.notEqual(world.dma(b, 9), 'ok');
  assert.equal(user.info(newB), VIABLE);
});

test('C-21: mergePolicy never refuses all, sameCoherency what differs, always nothing that the units can do', () => {
  const outcomes = (['never', 'sameCoherency', 'always'] as const).map((mergePolicy) =>
    [{}, differing].map((hardware) => {
      const { world, a, b, user, groupA, groupB } = pair({ ...hardware, core: { mergePolicy } });
      const outcome = refusal(() => user.merge(groupA, groupB));
      if (outcome !== 'ok') return outcome;
      user.map(user.iommu(groupB), 3);
      return `${world.dma(a, 3)} ${world.dma(b, 3)}`;
    }),
  );
  assert.deepEqual(outcomes, [
    ['EINVAL', 'EINVAL'],
    ['ok ok', 'EINVAL'],
    ['ok ok', 'ok ok'],
  ]);
});

test('C-22: automatic merging is off by default; on, a new group joins the first of the program that takes it', () => {
  for (const automaticMerge of [undefined, true]) {
    const core = automaticMerge === undefined ? {} : { automaticMerge };
    const { world, a, b, user, groupA, groupB } = pair({ core });
    const iommu = user.iommu(groupA);
    const address = user.map(iommu, 0x44);
    assert.equal(
      refusal(() => user.device(groupB, 'nobody')),
      'ENODEV',
    );
    assert.notEqual(world.dma(b, 0x44), 'ok', 'a refused call merges nothing');
    const device = user.device(groupB, b.name);
    const isMerged = automaticMerge === true;
    assert.equal(world.dma(b, 0x44, 0x99) === 'ok', isMerged);
    assert.equal(user.byte(address), isMerged ? 0x99 : 0);
    assert.equal(world.dma(a, 0x44), 'ok');
    user.close(device);
  }
  const { world, b, user, groupB } = pair({ ...differing, core: { automaticMerge: true } });
  user.iommu(user.group('toy:0'));
  user.device(groupB, b.name);
  assert.notEqual(world.dma(b, 0x44), 'ok', 'what cannot be merged is opened alone');
  const stranger = world.user();
  assert.equal(
    refusal(() => stranger.device(stranger.group('toy:0'), '00:01.0')),
    'EPERM',
  );
});
