import assert from 'node:assert/strict';
import { test } from 'node:test';
import { privateShared } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { failAt, failNth } from '../../lib/failpoint.ts';
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_VADDR,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_DMA_UNMAP_FLAG_VADDR,
} from '../../uapi/vfio.ts';
import { refusal, type TestTask } from '../core/test-task.ts';
import { TestUnit, TestWorld } from './test-world.ts';

const MIB = 1 << 20;

function why(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    assert.ok(error instanceof Errno);
    return error.why;
  }
  return 'it was not refused';
}

function box(version: 1 | 3 = 3, task?: TestTask, world = new TestWorld()) {
  const user = task ?? world.task();
  const { group } = world.device('0000:00:04.0');
  const container = world.container(user, [group], version);
  return { world, task: user, group, container, domain: world.domains[0]! };
}

function isEmpty(world: TestWorld, ...tasks: TestTask[]): void {
  for (const task of tasks) {
    task.exit();
    assert.equal(task.mm.pins, 0);
    assert.equal(task.mm.lockedPages, 0);
  }
  assert.equal(world.physical.blocks, 0);
  assert.deepEqual(world.liveDomains, []);
}

test('Y-1: the device reads at the IOVA what the program has at the address', () => {
  const { world, task, container, domain } = box();
  const address = task.memory.map(MIB);
  task.memory.write(address + 5, Uint8Array.of(1, 2, 3));
  container.map(0, address, MIB);
  const bytes = new Uint8Array(3);
  assert.ok(world.physical.read(domain.physicalOf(0), 5, bytes));
  assert.deepEqual(bytes, Uint8Array.of(1, 2, 3));
  assert.deepEqual(domain.runs, [256], 'one run for one piece of memory');
  assert.equal(task.mm.lockedPages, 256);
  isEmpty(world, task);
});

test('Y-2 Y-3 Y-5 Y-6: misaligned, overlapping, empty and useless mappings are refused, and the reason names them', () => {
  const { task, container } = box();
  const address = task.memory.map(MIB);
  container.map(0x10000, address, 0x4000);
  for (const [iova, vaddr, size] of [
    [1, address, 4096],
    [0, address + 1, 4096],
    [0, address, 4097],
  ] as const) {
    assert.match(
      why(() => container.map(iova, vaddr, size)),
      /multiples of the smallest page, 0x1000/,
    );
  }
  assert.equal(
    refusal(() => container.map(0x13000, address, 0x4000)),
    'EEXIST',
  );
  assert.match(
    why(() => container.map(0x13000, address, 0x4000)),
    /0x13000-0x16fff overlaps .*0x10000-0x13fff \(mapped by process 1000, "test"\)/,
  );
  assert.match(
    why(() => container.map(0, address, 0)),
    /cannot be 0/,
  );
  assert.match(
    why(() => container.map(0, address, 4096, 0)),
    /neither READ nor WRITE/,
  );
});

test('Y-4: the last page of the address space can be mapped where no hardware limits it, and nothing beyond', () => {
  const world = new TestWorld();
  const task = world.task();
  const container = world.container(task, [world.mediated('mdev').group]);
  const address = task.memory.map(8192);
  container.map((1n << 64n) - 4096n, address, 4096);
  assert.equal(
    refusal(() => container.map((1n << 64n) - 4096n, address, 8192)),
    'EOVERFLOW',
  );
  assert.equal(container.unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 4096n);
});

test('Y-7: a mapping has the protection that was asked for, and coherence', () => {
  const { task, container, domain } = box();
  const address = task.memory.map(8192);
  container.map(0, address, 4096, VFIO_DMA_MAP_FLAG_READ);
  container.map(4096, address, 4096, VFIO_DMA_MAP_FLAG_WRITE);
  assert.deepEqual([domain.pages.get(0)!.prot, domain.pages.get(1)!.prot], [1 | 4, 2 | 4]);
});

test('Y-8 Y-33: mappings are counted down to none, and each that goes gives one back', () => {
  const world = new TestWorld({ dmaEntryLimit: 4 });
  const { task, container } = box(3, undefined, world);
  const address = task.memory.map(4096);
  for (let i = 0; i < 4; i++) container.map(i * 8192, address, 4096);
  assert.equal(container.available, 0);
  assert.equal(
    refusal(() => container.map(0x100000, address, 4096)),
    'ENOSPC',
  );
  container.unmap(8192, 4096);
  assert.equal(container.available, 1);
  container.map(0x100000, address, 4096);
});

test('Y-9: a mapping beyond the limit is refused, and leaves nothing locked', () => {
  const world = new TestWorld();
  const { task, container } = box(3, world.task({ memlockLimit: 65536 }), world);
  const address = task.memory.map(MIB);
  assert.equal(
    refusal(() => container.map(0, address, 17 * 4096)),
    'ENOMEM',
  );
  assert.match(
    why(() => container.map(0, address, 17 * 4096)),
    /may lock 16 pages .* has locked 0, .* needs 17 more/,
  );
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [0, 0]);
  container.map(0, address, 16 * 4096);
  assert.equal(
    refusal(() => container.map(0x100000, address, 4096)),
    'ENOMEM',
    'a page mapped twice counts twice',
  );
});

test('Y-9: what comes first decides between the limit and missing memory', () => {
  const world = new TestWorld();
  const { task, container } = box(3, world.task({ memlockLimit: 65536 }), world);
  const long = task.memory.map(20 * 4096);
  const short = task.memory.map(3 * 4096);
  assert.equal(
    refusal(() => container.map(0, long, 21 * 4096)),
    'ENOMEM',
  );
  assert.equal(
    refusal(() => container.map(0, short, 20 * 4096)),
    'EFAULT',
  );
});

test('Y-10: CAP_IPC_LOCK at the time of the map lifts the limit', () => {
  const world = new TestWorld();
  const { task, container } = box(3, world.task({ memlockLimit: 4096, capabilities: ['CAP_IPC_LOCK'] }), world);
  container.map(0, task.memory.map(MIB), MIB);
  assert.equal(task.mm.lockedPages, 256);
  isEmpty(world, task);
});

test('Y-11: the MSI window is a hole in the ranges, and nothing is mapped over it', () => {
  const { task, container } = box();
  const address = task.memory.map(MIB);
  assert.equal(
    refusal(() => container.map(0xfee00000, address, 4096)),
    'EINVAL',
  );
  assert.match(
    why(() => container.map(0xfedff000, address, 8192)),
    /0x0-0xfedfffff, 0xfef00000-0xffffffffffff/,
  );
  container.map(0xfedff000, address, 4096);
  const ranges = container.info().caps.find(({ id }) => id === 1)!;
  assert.equal(new DataView(ranges.data.buffer).getUint32(0, true), 2);
});

test('C-4: a buffer that is too small for the capabilities gets the size, a large one the chain in rising order', () => {
  const { container } = box();
  const small = container.info(24);
  assert.deepEqual([small.info.argsz, small.info.cap_offset, small.caps.length], [120, 0, 0]);
  const { caps } = container.info(small.info.argsz);
  assert.deepEqual(
    caps.map(({ id, offset }) => [id, offset]),
    [
      [2, 24],
      [3, 56],
      [1, 72],
    ],
  );
});

test('C-3: unknown flags are refused, and the reason names the bits', () => {
  const { task, container } = box();
  const address = task.memory.map(4096);
  assert.match(
    why(() => container.map(0, address, 4096, 0x13)),
    /flags 0x13 has bits that are not known \(known: 0x7\)/,
  );
  assert.match(
    why(() => container.unmap(0, 4096, 8)),
    /flags 0x8/,
  );
});

test('Y-12: version 2 refuses to cut a mapping, version 1 removes it whole or not at all', () => {
  const two = box(3);
  const address = two.task.memory.map(MIB);
  two.container.map(0x10000, address, 0x8000);
  for (const [iova, size] of [
    [0x10000, 0x1000],
    [0x12000, 0x1000],
    [0x17000, 0x4000],
    [0xf000, 0x2000],
  ] as const) {
    assert.equal(
      refusal(() => two.container.unmap(iova, size)),
      'EINVAL',
    );
  }
  assert.match(
    why(() => two.container.unmap(0x10000, 0x1000)),
    /0x10000-0x10fff would cut the mapping 0x10000-0x17fff/,
  );
  assert.equal(two.domain.pages.size, 8);

  const one = box(1);
  one.container.map(0x10000, one.task.memory.map(MIB), 0x8000);
  assert.equal(one.container.unmap(0x12000, 0x1000), 0n);
  assert.equal(one.container.unmap(0xf000, 0x2000), 0x8000n);
  assert.equal(one.domain.pages.size, 0);
});

test('Y-13 Y-14 Y-15: one call removes several mappings over holes, or all of them', () => {
  const { task, container } = box();
  const address = task.memory.map(MIB);
  for (const iova of [0x10000, 0x20000, 0x30000]) container.map(iova, address, 0x2000);
  assert.equal(container.unmap(0x8000, 0x20000), 0x4000n);
  assert.equal(
    refusal(() => container.unmap(0, 4096, VFIO_DMA_UNMAP_FLAG_ALL)),
    'EINVAL',
  );
  assert.equal(container.unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 0x2000n);
  assert.equal(task.mm.pins, 0);
});

test('Y-16: an address is taken away and replaced while DMA goes on', () => {
  const { world, task, container, domain } = box();
  const old = task.memory.map(4096);
  task.memory.write(old, Uint8Array.of(1));
  container.map(0x10000, old, 4096);
  const seen = (): number => {
    const byte = new Uint8Array(1);
    assert.ok(world.physical.read(domain.physicalOf(0x10), 0, byte));
    return byte[0]!;
  };
  assert.equal(
    refusal(() => container.map(0x10000, old, 4096, VFIO_DMA_MAP_FLAG_VADDR)),
    'EINVAL',
  );
  assert.equal(container.unmap(0x10000, 4096, VFIO_DMA_UNMAP_FLAG_VADDR), 4096n);
  assert.equal(
    refusal(() => container.unmap(0x10000, 4096, VFIO_DMA_UNMAP_FLAG_VADDR)),
    'EINVAL',
  );
  assert.equal(seen(), 1);
  assert.equal(
    refusal(() => container.map(0x20000, old, 4096, VFIO_DMA_MAP_FLAG_VADDR)),
    'ENOENT',
  );
  const fresh = task.memory.map(8192);
  task.memory.write(fresh, Uint8Array.of(2));
  assert.equal(
    refusal(() => container.map(0x10000, fresh, 8192, VFIO_DMA_MAP_FLAG_VADDR)),
    'EINVAL',
  );
  container.map(0x10000, fresh, 4096, VFIO_DMA_MAP_FLAG_VADDR);
  assert.equal(seen(), 2);
  assert.deepEqual([task.mm.pinsOf(old / 4096), task.mm.pinsOf(fresh / 4096), task.mm.lockedPages], [0, 1, 1]);
  isEmpty(world, task);
});

test('Y-16: taking addresses away takes them of all mappings in the range or of none', () => {
  const { task, container } = box();
  const address = task.memory.map(4096);
  for (const iova of [0x10000, 0x20000, 0x30000]) container.map(iova, address, 4096);
  container.unmap(0x20000, 4096, VFIO_DMA_UNMAP_FLAG_VADDR);
  assert.equal(
    refusal(() => container.unmap(0, 0, VFIO_DMA_UNMAP_FLAG_VADDR | VFIO_DMA_UNMAP_FLAG_ALL)),
    'EINVAL',
  );
  assert.equal(container.type1.vaddrInvalidCount, 1);
});

test('Y-16: another program that gives the new address takes the accounting over', () => {
  const { world, task, container, domain } = box();
  container.map(0x10000, task.memory.map(8192), 8192);
  container.unmap(0x10000, 8192, VFIO_DMA_UNMAP_FLAG_VADDR);
  const poor = world.task({ pid: 2, memlockLimit: 4096 });
  const missing = world.task({ pid: 3 });
  assert.equal(
    refusal(() => container.map(0x10000, poor.memory.map(8192), 8192, VFIO_DMA_MAP_FLAG_VADDR, poor)),
    'ENOMEM',
  );
  assert.deepEqual([task.mm.lockedPages, poor.mm.lockedPages], [2, 0]);
  const before = domain.physicalOf(0x10);
  container.map(0x10000, 0x5000, 8192, VFIO_DMA_MAP_FLAG_VADDR, missing);
  assert.equal(domain.physicalOf(0x10), before, 'memory that is not there leaves the old pages in use');
  assert.deepEqual([task.mm.lockedPages, missing.mm.lockedPages, task.mm.pins], [0, 2, 2]);
  container.unmap(0x10000, 8192);
  assert.deepEqual([task.mm.pins, missing.mm.lockedPages], [0, 0]);
  isEmpty(world, task, poor, missing);
});

test('Y-16: a new address whose pages cannot be mapped leaves the old ones mapped', () => {
  const { world, task, container, domain } = box();
  container.map(0x10000, task.memory.map(8192), 8192);
  const before = [domain.physicalOf(0x10), domain.physicalOf(0x11)];
  container.unmap(0x10000, 8192, VFIO_DMA_UNMAP_FLAG_VADDR);
  {
    using _order = failAt('vfio:iommu_map');
    container.map(0x10000, task.memory.map(8192), 8192, VFIO_DMA_MAP_FLAG_VADDR);
  }
  assert.deepEqual([domain.physicalOf(0x10), domain.physicalOf(0x11)], before);
  assert.deepEqual([task.mm.pins, task.mm.lockedPages], [2, 2]);
  isEmpty(world, task);
});

test('Y-18: with disableHugePages every page is mapped by itself', () => {
  const world = new TestWorld({ disableHugePages: true });
  const { task, container, domain } = box(3, undefined, world);
  container.map(0, task.memory.map(2 * MIB, 0x7f0000000000), 2 * MIB);
  assert.equal(domain.runs.length, 512);
});

test('Y-34: the end of the program gives everything back', () => {
  const { world, task, container } = box();
  container.open(container.groups.keys().next().value!, '0000:00:04.0');
  for (let i = 0; i < 50; i++) container.map(i * 0x10000, task.memory.map(0x3000), 0x3000);
  assert.equal(task.mm.lockedPages, 150);
  isEmpty(world, task);
});

test('Y-35: device memory is mapped at its physical address and not counted', () => {
  const bar = privateShared('bar', 0x10000);
  const world = new TestWorld({
    physicalOfDevice: (memory, offset) => (memory === bar ? 0xfea00 + offset / 4096 : -1),
  });
  const { task, container, domain } = box(3, undefined, world);
  const address = task.memory.map(0x4000, 0x7f0000000000);
  task.memory.map(0x4000, address + 0x4000, { device: { memory: bar, offset: 0x2000 } });
  task.memory.map(0x4000, address + 0x8000);
  container.map(0, address, 0xc000);
  assert.deepEqual(domain.runs, [4, 4, 4]);
  assert.equal(domain.physicalOf(4), 0xfea02);
  assert.deepEqual([task.mm.lockedPages, task.mm.pins], [8, 8]);
  container.unmap(0, 0xc000);
  const other = privateShared('disabled', 4096);
  const disabled = task.memory.map(4096, undefined, { device: { memory: other, offset: 0 } });
  assert.equal(
    refusal(() => container.map(0, disabled, 4096)),
    'EFAULT',
  );
  isEmpty(world, task);
});

test('Y-36: a mapping outlives the program that made it, and its accounting goes back to that one', () => {
  const { world, task, container } = box();
  const child = world.task({ pid: 1001 });
  container.map(0x10000, child.memory.map(4096), 4096, 3, child);
  assert.deepEqual([task.mm.lockedPages, child.mm.lockedPages], [0, 1]);
  child.exit();
  assert.equal(container.unmap(0x10000, 4096), 4096n);
  isEmpty(world, task, child);
});

test('memory is looked up once for each area of the program', () => {
  const { task, container } = box();
  const address = task.memory.map(64 * MIB);
  container.map(0, address, 16 * MIB);
  task.memory.vmaCalls = 0;
  container.map(64 * MIB, address, MIB);
  assert.equal(task.memory.vmaCalls, 1);
});

test('every failing way out of a MAP leaves nothing', () => {
  const bar = privateShared('bar', 0x10000);
  const world = new TestWorld({ physicalOfDevice: () => 0xfea00 });
  const { task, container } = box(3, undefined, world);
  container.add(world.device('0000:05:00.0', world.group(new TestUnit('dmar1'))).group);
  container.dirty(1);
  // Three kinds of memory, over a border between two physical blocks.
  const address = task.memory.map(0x4000, 0x7effffffe000);
  task.memory.map(0x2000, address + 0x4000, { device: { memory: bar, offset: 0 } });
  task.memory.map(0x2000, address + 0x6000);
  let steps = 0;
  for (;;) {
    using order = failNth(++steps);
    const result = refusal(() => container.map(0x10000, address, 0x8000));
    if (order.failed.length === 0) {
      assert.equal(result, 'ok');
      break;
    }
    assert.equal(result, 'ENOMEM', order.failed[0]);
    assert.deepEqual([task.mm.pins, task.mm.lockedPages, world.physical.blocks], [0, 0, 0], order.failed[0]);
    assert.deepEqual(
      world.domains.map((domain) => domain.pages.size),
      [0, 0],
      order.failed[0],
    );
    assert.equal(container.available, 65535);
    assert.equal(container.type1.dirtyBytes, 0);
  }
  assert.ok(steps > 9, `${steps - 1} failing points were reached`);
  isEmpty(world, task);
});
