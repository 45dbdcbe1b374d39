import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { refusal } from '../core/test-task.ts';
import { type TestContainer, TestUnit, TestWorld } from './test-world.ts';

const START = 1;
const STOP = 2;

function box(options: { emulated?: boolean } = {}) {
  const world = new TestWorld();
  const task = world.task();
  const made = options.emulated ? world.mediated('mdev') : world.device('0000:00:04.0');
  const container = world.container(task, [made.group]);
  container.open(made.group, made.device.name);
  return { world, task, container, ...made };
}

test('Y-21: GET works between START and STOP only', () => {
  const { task, container } = box();
  container.map(0x10000, task.memory.map(0x4000), 0x4000);
  assert.equal(
    refusal(() => container.getDirty(0x10000, 0x4000)),
    'EINVAL',
  );
  container.dirty(START);
  container.dirty(START);
  assert.deepEqual([...container.getDirty(0x10000, 0x4000)], [15, 0, 0, 0, 0, 0, 0, 0, ...Array(8).fill(0xcc)]);
  container.dirty(STOP);
  container.dirty(STOP);
  assert.equal(
    refusal(() => container.getDirty(0x10000, 0x4000)),
    'EINVAL',
  );
  assert.equal(container.type1.dirtyBytes, 0);
});

test('Y-21: version 1 tracks nothing', () => {
  const world = new TestWorld();
  const container = world.container(world.task(), [world.device('0000:00:04.0').group], 1);
  for (const flags of [0, START, STOP, 8])
    assert.equal(
      refusal(() => container.dirty(flags)),
      'EACCES',
    );
});

test('Y-24: UNMAP gives the bits of what it removes', () => {
  const { task, container } = box();
  const address = task.memory.map(0x8000);
  container.dirty(START);
  container.map(0x10000, address, 0x3000);
  container.map(0x14000, address, 0x2000);
  assert.deepEqual([...container.unmapDirty(0x10000, 0x8000, 8)], [0b110111, 0, 0, 0, 0, 0, 0, 0]);
  assert.equal(container.available, 65535);
});

test('Y-24: a bitmap that cannot be written leaves what was not reported yet', () => {
  const { task, container } = box();
  container.dirty(START);
  container.map(0x10000, task.memory.map(0x3000), 0x3000);
  const readOnly = task.memory.map(4096, undefined, { writable: false });
  const bytes = new Uint8Array(48);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 48, true);
  view.setUint32(4, 1, true);
  for (const [at, value] of [
    [8, 0x10000n],
    [16, 0x3000n],
    [24, 4096n],
    [32, 8n],
    [40, BigInt(readOnly)],
  ] as const) {
    view.setBigUint64(at, value, true);
  }
  assert.equal(
    refusal(() => task.ioctl(container.file, 0x3b72, bytes)),
    'EFAULT',
  );
  assert.equal(container.available, 65534);
});

test('Y-25 Y-26: a bitmap that is too small, or in another page size, is refused', () => {
  const { task, container } = box();
  container.map(0x10000, task.memory.map(65 * 4096), 65 * 4096);
  container.dirty(START);
  assert.equal(
    refusal(() => container.getDirty(0x10000, 65 * 4096, 8)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => container.getDirty(0x10000, 65 * 4096, 16)),
    'ok',
  );
  assert.equal(
    refusal(() => container.getDirty(0x10000, 65 * 4096, 16, 2 << 20)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => container.getDirty(0x10000, 65 * 4096, 2 ** 28 + 8)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => container.unmapDirty(0x10000, 65 * 4096, 8)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => container.unmapDirty(0x10000, 65 * 4096, 16, 8192)),
    'EINVAL',
  );
});

test('Y-37: when a group that may have written anywhere leaves, all is dirty once', () => {
  const { world, task, container } = box({ emulated: true });
  const real = world.device('0000:00:04.0').group;
  container.add(real);
  container.map(0x10000, task.memory.map(0x4000), 0x4000);
  container.dirty(START);
  container.remove(real);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 15);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 0);
});

test("Y-38: the bits of holes are the program's, up to the word in which a mapping ends", () => {
  const { task, container } = box();
  const address = task.memory.map(0x4000);
  container.map(0x10000, address, 0x2000);
  container.map(0x10000 + 70 * 4096, address, 0x1000);
  container.dirty(START);
  const bits = container.getDirty(0x10000, 80 * 4096);
  assert.deepEqual([...bits.subarray(0, 8)], [3, 0, 0, 0, 0, 0, 0, 0]);
  assert.deepEqual(
    [...bits.subarray(8)],
    [(0xcc & 0x3f) | 0x40, 0, 0, 0, 0, 0, 0, 0],
    'six bits before the mapping stay',
  );
});

test('mappings that are made while pages are tracked have their bits too', () => {
  const { world, device, task, container } = box({ emulated: true });
  container.dirty(START);
  container.map(0x10000, task.memory.map(0x4000), 0x4000);
  world.core.pinPages(device, [0x11], 1);
  assert.equal(container.getDirty(0x10000, 0x4000)[0], 2);
});

test('bitmaps are bounded for each container, and a mapping too large for one is refused', () => {
  const world = new TestWorld({ dirtyBitmapLimit: 64 });
  const task = world.task();
  const container = world.container(task, [world.mediated('mdev').group]);
  container.map(0, 0, 512 * 4096);
  container.map(1 << 30, 0, 4096);
  assert.equal(
    refusal(() => container.dirty(START)),
    'ENOMEM',
  );
  assert.equal(container.type1.dirtyBytes, 0);
  container.unmap(1 << 30, 4096);
  container.dirty(START);
  assert.equal(
    refusal(() => container.map(1 << 30, 0, 4096)),
    'ENOMEM',
  );
  assert.equal(
    refusal(() => container.map(1n << 50n, 0, 1n << 43n)),
    'EINVAL',
  );
});

test('larger smallest pages: one bit for each of them', () => {
  const world = new TestWorld();
  const task = world.task();
  const { group } = world.device('0000:00:04.0', world.group(new TestUnit('smmu', { pgsizeBitmap: 0x1_0000n })));
  const container: TestContainer = world.container(task, [group]);
  const address = task.memory.map(0x40000, 0x7f0000000000);
  assert.equal(
    refusal(() => container.map(0x10000, address, 0x1000)),
    'EINVAL',
  );
  container.map(0x10000, address, 0x30000);
  container.dirty(START);
  assert.equal(container.getDirty(0x10000, 0x30000, 8, 0x10000)[0], 7);
});

test('the bitmap is what a plain list of pages says, at any offset', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 120 }), fc.integer({ min: 1, max: 40 })), { maxLength: 6 }),
      fc.array(fc.integer({ min: 0, max: 127 }), { maxLength: 12 }),
      (areas, writes) => {
        const { world, device, task, container } = box({ emulated: true });
        const address = task.memory.map(64 * 4096);
        container.dirty(START);
        const mapped = new Array<boolean>(128).fill(false);
        for (const [first, length] of areas) {
          const count = Math.min(length, 128 - first);
          if (mapped.slice(first, first + count).some(Boolean)) continue;
          mapped.fill(true, first, first + count);
          container.map(first * 4096, address, count * 4096);
        }
        const dirty = new Set(writes.filter((page) => mapped[page]));
        for (const page of dirty) world.core.dmaRw(device, BigInt(page * 4096 + 7), Uint8Array.of(1), true);
        const bits = container.getDirty(0, 128 * 4096, 16, 4096, 0);
        for (let page = 0; page < 128; page++) {
          assert.equal((bits[page >> 3]! >> (page & 7)) & 1, dirty.has(page) ? 1 : 0, `page ${page}`);
        }
      },
    ),
    { numRuns: 60 },
  );
});
