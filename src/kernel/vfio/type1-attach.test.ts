import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../lib/errno.ts';
import { failNth } from '../../lib/failpoint.ts';
import {
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_DMA_UNMAP_FLAG_VADDR,
  VFIO_UPDATE_VADDR,
} from '../../uapi/vfio.ts';
import { refusal, type TestTask } from '../core/test-task.ts';
import type { ReservedType } from '../iommu/group.ts';
import { type TestContainer, type TestDomain, TestUnit, TestWorld } from './test-world.ts';

const IOVA = 0x10000;

function extension(container: TestContainer, number: number): number {
  return container.task.ioctl(container.file, VFIO_CHECK_EXTENSION, number);
}

function pagesOf(domain: TestDomain): number[][] {
  return [...domain.pages].map(([page, { physical }]) => [page, physical]).sort((a, b) => a[0]! - b[0]!);
}

/** A container with one real group and two mappings. */
function box(world = new TestWorld(), task: TestTask = world.task()) {
  const { group } = world.device('0000:00:04.0');
  const container = world.container(task, [group]);
  const address = task.memory.map(0x4000);
  container.map(IOVA, address, 0x4000);
  container.map(0x40000, address + 0x1000, 0x1000);
  return { world, task, group, container, domain: world.domains[0]! };
}

test('Y-17: no group comes in while an address is missing', () => {
  const { world, container } = box();
  container.unmap(IOVA, 0x4000, VFIO_DMA_UNMAP_FLAG_VADDR);
  const { group } = world.device('0000:05:00.0');
  assert.equal(
    refusal(() => container.add(group)),
    'EBUSY',
  );
  assert.deepEqual([group.ownerCount, group.domain], [0, undefined]);
});

test('Y-19: a like group shares the domain, an unlike one gets its own with the same mappings', () => {
  const { world, container, domain } = box();
  const like = world.device('0000:05:00.0').group;
  container.add(like);
  assert.equal(like.domain, domain);
  assert.deepEqual(world.liveDomains, [domain]);

  const unlike = world.device('0000:06:00.0', world.group(new TestUnit('dmar1'))).group;
  container.add(unlike);
  const other = unlike.domain!;
  assert.notEqual(other, domain);
  assert.deepEqual(pagesOf(other), pagesOf(domain));
  container.map(0x80000, container.task.memory.map(0x1000), 0x1000);
  assert.deepEqual(pagesOf(other), pagesOf(domain));
  container.unmap(IOVA, 0x4000);
  assert.deepEqual(pagesOf(other), pagesOf(domain));
  assert.equal(domain.pages.size, 2);
});

test('Y-19: domains that differ in coherency are not shared, though the hardware could', () => {
  const { world, container, domain } = box();
  const group = world.device(
    '0000:05:00.0',
    world.group(new TestUnit('dmar1', { family: 'dmar0', canEnforceCoherency: false })),
  ).group;
  assert.equal(extension(container, VFIO_DMA_CC_IOMMU), 1);
  container.add(group);
  assert.notEqual(group.domain, domain);
  assert.equal(extension(container, VFIO_DMA_CC_IOMMU), 0);
  container.remove(group);
  assert.equal(extension(container, VFIO_DMA_CC_IOMMU), 1);
});

test('Y-40: DMA_CC_IOMMU is 1 exactly when every domain enforces coherency', () => {
  for (const [a, b] of [
    [true, true],
    [true, false],
    [false, false],
  ] as const) {
    const world = new TestWorld();
    const groups = [a, b].map((canEnforceCoherency, i) => {
      const unit = new TestUnit(`dmar${i}`, { canEnforceCoherency });
      return world.device(`0000:0${i}:00.0`, world.group(unit)).group;
    });
    const container = world.container(world.task(), groups);
    assert.equal(extension(container, VFIO_DMA_CC_IOMMU), a && b ? 1 : 0);
  }
});

test('Y-20: what was mapped before is in the domain of a group that comes later', () => {
  const world = new TestWorld();
  const task = world.task();
  const container = world.container(task, [world.mediated('mdev').group]);
  const address = task.memory.map(0x4000);
  container.map(IOVA, address, 0x4000);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [0, 0], 'nothing is pinned for a mediated device alone');
  const { group } = world.device('0000:00:04.0');
  container.add(group);
  assert.equal(group.domain!.pages.size, 4);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [4, 4]);
  container.remove(group);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [0, 0]);
  assert.equal(container.unmap(IOVA, 0x4000), 0x4000n, 'the mapping itself stays');
});

test('Y-20: a group whose replay is refused leaves everything as it was', () => {
  const world = new TestWorld();
  const task = world.task({ memlockLimit: 3 * 4096 });
  const container = world.container(task, [world.mediated('mdev').group]);
  container.map(0, task.memory.map(0x2000), 0x2000);
  container.map(IOVA, task.memory.map(0x4000), 0x4000);
  const { group } = world.device('0000:00:04.0');
  assert.equal(
    refusal(() => container.add(group)),
    'ENOMEM',
  );
  assert.deepEqual([task.mm.lockedPages, task.mm.pins, group.ownerCount, group.domain], [0, 0, 0, undefined]);
  assert.deepEqual(world.liveDomains, []);
  assert.equal(container.info().info.iova_pgsizes, 0xffff_ffff_ffff_f000n);
});

test('every failing way out of an attach leaves nothing', () => {
  const { world, task, container, domain } = box();
  const { group } = world.device('0000:06:00.0', world.group(new TestUnit('dmar1')));
  let steps = 0;
  for (;;) {
    using order = failNth(++steps);
    const result = refusal(() => container.add(group));
    if (order.failed.length === 0) {
      assert.equal(result, 'ok');
      break;
    }
    assert.equal(result, 'ENOMEM');
    assert.deepEqual([group.ownerCount, group.domain, task.mm.pins, task.mm.lockedPages], [0, undefined, 5, 5]);
    assert.deepEqual(world.liveDomains, [domain]);
  }
  assert.ok(steps >= 4);
});

test('Y-30: when the last real group leaves, only what mediated drivers hold stays counted', () => {
  const { world, task, group, container } = box();
  const mediated = world.mediated('mdev');
  container.add(mediated.group);
  container.open(mediated.group, 'mdev');
  world.core.pinPages(mediated.device, [0x10, 0x12], 1);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [5, 7], 'a page is counted once, and held twice');
  container.remove(group);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [2, 2]);
  container.add(group);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [5, 7]);
  world.core.unpinPages(mediated.device, [0x10, 0x12]);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [5, 5]);
});

test('Y-32: a group without isolated interrupts is refused unless unsafe interrupts are allowed', () => {
  const world = new TestWorld();
  const task = world.task();
  const { group } = world.device('0000:00:04.0');
  group.isolatedMsi = false;
  assert.equal(
    refusal(() => world.container(task, [group])),
    'EPERM',
  );
  assert.deepEqual(world.liveDomains, []);
  task.exit();
  world.core.options.allowUnsafeInterrupts = true;
  world.container(world.task(), [group]);
  assert.ok(group.domain !== undefined);
});

test('the usable ranges are what all apertures cover, less what any group reserves, and grow back', () => {
  const world = new TestWorld();
  const task = world.task();
  const wide = world.device('0000:00:04.0').group;
  const narrow = world.device(
    '0000:05:00.0',
    world.group(new TestUnit('dmar1', { firstPage: 1, lastPage: 2 ** 27 - 1 })),
  ).group;
  narrow.reserved = [
    { firstPage: 0xdb, lastPage: 0xdb, type: 'direct' },
    { firstPage: 0x100, lastPage: 0x1ff, type: 'direct-relaxable' },
  ];
  const container = world.container(task, [wide]);
  const before = container.type1.ranges;
  container.add(narrow);
  assert.deepEqual(container.type1.ranges, [
    { first: 1, last: 0xda },
    { first: 0xdc, last: 0xfedff },
    { first: 0xfef00, last: 2 ** 27 - 1 },
  ]);
  container.remove(narrow);
  assert.deepEqual(container.type1.ranges, before);
});

test('a group is refused where a mapping lies outside its aperture or in its reserved regions', () => {
  const { world, container } = box();
  const high = world.device('0000:05:00.0', world.group(new TestUnit('dmar1', { firstPage: 0x11 }))).group;
  assert.equal(
    refusal(() => container.add(high)),
    'EINVAL',
  );
  const low = world.device('0000:06:00.0', world.group(new TestUnit('dmar2', { lastPage: 0x3f }))).group;
  assert.equal(
    refusal(() => container.add(low)),
    'EINVAL',
  );
  const direct = world.device('0000:07:00.0').group;
  direct.reserved = [{ firstPage: 0x13, lastPage: 0x14, type: 'direct' }];
  assert.equal(
    refusal(() => container.add(direct)),
    'EINVAL',
  );
  direct.reserved = [{ ...direct.reserved[0]!, type: 'direct-relaxable' as ReservedType }];
  container.add(direct);
});

test('page sizes are those of all domains, from 4 KiB on', () => {
  const world = new TestWorld();
  const task = world.task();
  const one = world.device('0000:00:04.0').group;
  const two = world.device('0000:05:00.0', world.group(new TestUnit('dmar1', { pgsizeBitmap: 0x20_1800n }))).group;
  const container = world.container(task, [one]);
  assert.equal(container.info().info.iova_pgsizes, 0x4020_1000n);
  container.add(two);
  assert.equal(container.info().info.iova_pgsizes, 0x20_1000n);
});

test('a group is refused by its IOMMU with the errno of the IOMMU, and nothing stays', () => {
  const { world, container, domain } = box();
  const { group } = world.device('0000:05:00.0');
  group.refuses = new Errno('EBUSY', 'a reset is going on');
  assert.equal(
    refusal(() => container.add(group)),
    'EBUSY',
  );
  assert.deepEqual([group.ownerCount, group.domain], [0, undefined]);
  assert.deepEqual(world.liveDomains, [domain]);
});

test('addresses cannot be updated with a mediated device in the container', () => {
  const { world, container } = box();
  assert.equal(extension(container, VFIO_UPDATE_VADDR), 1);
  container.add(world.mediated('mdev').group);
  assert.equal(extension(container, VFIO_UPDATE_VADDR), 0);
  assert.equal(
    refusal(() => container.unmap(IOVA, 0x4000, VFIO_DMA_UNMAP_FLAG_VADDR)),
    'EBUSY',
  );
});
