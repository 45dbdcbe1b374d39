import assert from 'node:assert/strict';
import { test } from 'node:test';
import { privateShared } from '../../hw/memory/backing.ts';
import { subscribe } from '../../lib/tracepoint.ts';
import { VFIO_DMA_UNMAP_FLAG_ALL } from '../../uapi/vfio.ts';
import { refusal } from '../core/test-task.ts';
import { TestWorld } from './test-world.ts';

const START = 1;
const STOP = 2;

/** A mediated device that lets go of its pages when it hears of an unmap, unless `keeps` is set. */
function box(options: { version?: 1 | 3; memlockLimit?: number; keeps?: boolean; open?: boolean } = {}) {
  const world = new TestWorld();
  const task = world.task(options.memlockLimit === undefined ? {} : { memlockLimit: options.memlockLimit });
  const heard: string[] = [];
  const { device, group } = world.mediated('mdev', (iova, length) => {
    heard.push(`${iova.toString(16)}+${length.toString(16)}`);
    if (!options.keeps) world.core.unpinPages(device, [0x10, 0x11, 0x12, 0x13]);
  });
  const container = world.container(task, [group], options.version ?? 3);
  const address = task.memory.map(0x8000);
  container.map(0x10000, address, 0x4000);
  if (options.open !== false) container.open(group, 'mdev');
  const pin = (pages: number[], prot = 3): string => refusal(() => world.core.pinPages(device, pages, prot));
  return { world, task, device, group, container, address, heard, pin };
}

test('Y-22: alone, a mediated device makes only its pages dirty; a real group makes all dirty', () => {
  const { world, container, pin } = box();
  pin([0x12]);
  container.dirty(START);
  assert.deepEqual([...container.getDirty(0x10000, 0x4000).subarray(0, 9)], [4, 0, 0, 0, 0, 0, 0, 0, 0xcc]);
  container.add(world.device('0000:00:04.0').group);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 15);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 15);
});

test('Y-22: a real group that pins pages itself is not taken to write anywhere', () => {
  const { world, container } = box();
  const { device, group } = world.device('0000:00:04.0');
  container.add(group);
  container.open(group, '0000:00:04.0');
  container.dirty(START);
  world.core.pinPages(device, [0x11], 3);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 2);
  assert.equal(container.type1.unscopedGroups, 0);
});

test('Y-23: a page that is still held is dirty again after it was reported', () => {
  const { world, device, container, pin } = box();
  container.dirty(START);
  pin([0x10, 0x13]);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 9);
  world.core.unpinPages(device, [0x13]);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 9, 'it may have been written before it was let go');
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 1);
});

test('Y-27: at most 512 pages in one call, and at least one', () => {
  const { pin } = box();
  assert.equal(pin(Array.from({ length: 513 }, (_, i) => i)), 'E2BIG');
  assert.equal(pin([]), 'EINVAL');
});

test('Y-28: a page held twice has to be let go twice, and is the same page', () => {
  const { world, device, task, pin } = box();
  const [first] = world.core.pinPages(device, [0x10], 3);
  assert.deepEqual(world.core.pinPages(device, [0x10], 1), [first]);
  assert.deepEqual([task.mm.pins, task.mm.lockedPages], [1, 1]);
  world.core.unpinPages(device, [0x10]);
  assert.equal(task.mm.pins, 1);
  world.core.unpinPages(device, [0x10]);
  assert.deepEqual([task.mm.pins, task.mm.lockedPages], [0, 0]);
  assert.equal(pin([0x10]), 'ok');
});

test('pages are refused where the mapping or the container does not allow them, and then none is held', () => {
  const { task, container, pin, address } = box();
  container.map(0x20000, address, 4096, 1);
  assert.equal(pin([0x10, 0x99]), 'EINVAL');
  assert.equal(pin([0x10, 0x20], 3), 'EPERM');
  assert.equal(task.mm.pins, 0);
  assert.equal(box({ version: 1 }).pin([0x10]), 'EACCES');
  assert.equal(box({ open: false }).pin([0x10]), 'EINVAL');
  const poor = box({ memlockLimit: 4096 });
  assert.equal(poor.pin([0x10, 0x11]), 'ENOMEM');
  assert.deepEqual([poor.task.mm.pins, poor.task.mm.lockedPages], [0, 0]);
  task.memory.unmap(address + 0x1000, 4096);
  assert.equal(pin([0x10, 0x11]), 'EFAULT');
  const bar = privateShared('bar', 4096);
  task.memory.map(4096, address + 0x1000, { device: { memory: bar, offset: 0 } });
  assert.equal(pin([0x11]), 'EINVAL', 'device memory has no page');
  assert.equal(task.mm.pins, 0);
});

test('letting go stops at the first IOVA without a mapping', () => {
  const { world, device, pin } = box();
  pin([0x10, 0x11]);
  assert.equal(world.core.unpinPages(device, [0x10, 0x99, 0x11]), 2);
  assert.equal(world.core.unpinPages(device, [0x12, 0x11]), 0, 'a page that is not held is passed over');
});

test('Y-29: a driver that behaves hears of an unmap once', () => {
  const { task, container, heard, pin } = box();
  pin([0x10, 0x12]);
  assert.equal(container.unmap(0x10000, 0x4000), 0x4000n);
  assert.deepEqual(heard, ['10000+4000']);
  assert.equal(task.mm.pins, 0);
});

test('Y-29: from a driver that does not behave the pages are taken, after it was asked ten times more', () => {
  const { task, container, heard, pin } = box({ keeps: true });
  const complaints: unknown[] = [];
  const stop = subscribe('vfio:misbehaved_driver', (fields) => complaints.push(fields));
  pin([0x10, 0x12]);
  container.map(0x30000, task.memory.map(4096), 4096);
  assert.equal(container.unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 0x5000n);
  stop();
  assert.equal(heard.length, 11);
  assert.deepEqual(complaints, [{ iova: 0x10000n, length: 0x4000n, pages: 2 }]);
  assert.deepEqual([task.mm.pins, task.mm.lockedPages], [0, 0]);
});

test('Y-29: a driver that maps and unmaps while it hears of an unmap does no harm', () => {
  const world = new TestWorld();
  const task = world.task();
  const address = task.memory.map(0x8000);
  const { device, group } = world.mediated('mdev', () => {
    world.core.unpinPages(device, [0x10]);
    container.unmap(0x20000, 0x1000);
  });
  const container = world.container(task, [group]);
  container.map(0x10000, address, 0x1000);
  container.map(0x20000, address, 0x1000);
  container.open(group, 'mdev');
  world.core.pinPages(device, [0x10], 3);
  assert.equal(container.unmap(0, 0x100000), 0x1000n);
  assert.equal(container.available, 65535);
});

test('Y-31: a driver reads and writes over mappings that touch; a hole is refused', () => {
  const { world, device, task, container, address } = box();
  container.map(0x14000, address + 0x4000, 0x1000);
  const bytes = Uint8Array.from({ length: 0x2000 }, (_, i) => i & 0xff);
  world.core.dmaRw(device, 0x13800n, bytes.slice(0, 0x1000), true);
  const back = new Uint8Array(0x1000);
  world.core.dmaRw(device, 0x13800n, back, false);
  assert.deepEqual(back, bytes.slice(0, 0x1000));
  const memory = new Uint8Array(0x1000);
  task.memory.read(address + 0x3800, memory);
  assert.deepEqual(memory, back);
  assert.equal(
    refusal(() => world.core.dmaRw(device, 0x14800n, bytes, false)),
    'EINVAL',
  );
});

test("reading and writing need the mapping's protection and the memory itself", () => {
  const { world, device, task, container, address } = box();
  container.map(0x20000, address, 4096, 1);
  container.map(0x21000, address, 4096, 2);
  const access = (iova: bigint, isWrite: boolean): string =>
    refusal(() => world.core.dmaRw(device, iova, new Uint8Array(4), isWrite));
  assert.deepEqual([access(0x20000n, false), access(0x20000n, true)], ['ok', 'EPERM']);
  assert.deepEqual([access(0x21000n, false), access(0x21000n, true)], ['EPERM', 'EPERM']);
  task.memory.unmap(address, 0x8000);
  assert.equal(access(0x20000n, false), 'EFAULT');
});

test('what a driver writes is dirty, page by page', () => {
  const { world, device, container } = box();
  container.dirty(START);
  world.core.dmaRw(device, 0x11fffn, new Uint8Array(2), true);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 6);
  world.core.dmaRw(device, 0x11fffn, new Uint8Array(2), false);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 0);
  container.dirty(STOP);
});

test('a device that is closed, or in no container, holds no pages', () => {
  const { world, device } = box({ open: false });
  assert.equal(
    refusal(() => world.core.pinPages(device, [0x10], 3)),
    'EINVAL',
  );
});
