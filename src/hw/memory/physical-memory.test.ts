import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type Backing, BufferBacking } from './backing.ts';
import { BLOCK_PAGES, PhysicalMemory } from './physical-memory.ts';

/** A backing that says where it was asked. */
function recording(log: string[], name: string): Backing {
  return {
    read: (offset, into) => log.push(`${name} r${offset}+${into.length}`) > 0,
    write: (offset, from) => log.push(`${name} w${offset}+${from.length}`) > 0,
  };
}

test('blocks are whole gigabytes above all windows, and are used again when they are given back', () => {
  const memory = new PhysicalMemory();
  const first = memory.addBlock(new BufferBacking(4096));
  const second = memory.addBlock(new BufferBacking(4096));
  assert.equal(first, 64 * BLOCK_PAGES);
  assert.equal(second, 65 * BLOCK_PAGES);
  memory.removeBlock(first);
  assert.equal(memory.blocks, 1);
  assert.equal(memory.addBlock(new BufferBacking(4096)), first);
  assert.throws(() => memory.removeBlock(70 * BLOCK_PAGES), /not in use/);
});

test('a transfer over the border of two blocks is cut there', () => {
  const memory = new PhysicalMemory();
  const log: string[] = [];
  const first = memory.addBlock(recording(log, 'a'));
  memory.addBlock(recording(log, 'b'));
  assert.equal(memory.write(first + BLOCK_PAGES - 1, 4090, new Uint8Array(16)), true);
  assert.equal(memory.read(first + BLOCK_PAGES - 1, 4095, new Uint8Array(2)), true);
  const end = BLOCK_PAGES * 4096;
  assert.deepEqual(log, [`a w${end - 6}+6`, 'b w0+10', `a r${end - 1}+1`, 'b r0+1']);
});

test('windows answer inside their range only, and a transfer over two neighbours reaches both', () => {
  const memory = new PhysicalMemory();
  const log: string[] = [];
  memory.addWindow(100, 2, recording(log, 'a'));
  memory.addWindow(102, 1, recording(log, 'b'));
  assert.equal(memory.read(99, 0, new Uint8Array(1)), false);
  assert.equal(memory.write(101, 4092, new Uint8Array(8)), true);
  assert.equal(memory.write(102, 4092, new Uint8Array(8)), false, 'nothing behind the last one');
  assert.deepEqual(log, ['a w8188+4', 'b w0+4', 'b w4092+4']);
  assert.equal(memory.read(103, 0, new Uint8Array(1)), false);
});

test('windows do not overlap, and their place is free again after removal', () => {
  const memory = new PhysicalMemory();
  memory.addWindow(10, 4, new BufferBacking(16384));
  for (const [page, pages] of [
    [8, 3],
    [13, 1],
    [9, 6],
    [11, 1],
  ] as const) {
    assert.equal(memory.isFree(page, pages), false);
    assert.throws(() => memory.addWindow(page, pages, new BufferBacking(4096)), /overlaps/);
  }
  assert.equal(memory.isFree(14, 1), true);
  assert.throws(() => memory.removeWindow(11), /No window/);
  memory.removeWindow(10);
  assert.equal(memory.isFree(8, 10), true);
});

test('a window may span gigabytes', () => {
  const memory = new PhysicalMemory();
  const log: string[] = [];
  memory.addWindow(BLOCK_PAGES - 1, BLOCK_PAGES + 2, recording(log, 'w'));
  assert.equal(memory.read(2 * BLOCK_PAGES, 0, new Uint8Array(4)), true);
  assert.deepEqual(log, [`w r${(BLOCK_PAGES + 1) * 4096}+4`]);
  assert.equal(memory.isFree(BLOCK_PAGES, 1), false);
  memory.removeWindow(BLOCK_PAGES - 1);
  assert.equal(memory.isFree(0, 3 * BLOCK_PAGES), true);
});

test('memory that has gone makes transfers false', () => {
  const memory = new PhysicalMemory();
  const page = memory.addBlock({ read: () => false, write: () => false });
  assert.equal(memory.read(page, 0, new Uint8Array(4)), false);
  assert.equal(memory.write(page, 0, new Uint8Array(4)), false);
});

test('windows equal a model of pages under any sequence of adding, removing, reading', () => {
  const step = fc.record({ page: fc.nat(30), pages: fc.integer({ min: 1, max: 6 }), remove: fc.boolean() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const memory = new PhysicalMemory();
      const model = new Map<number, number>();
      steps.forEach(({ page, pages, remove }, id) => {
        const starts = model.has(page) && model.get(page) !== model.get(page - 1);
        if (remove) {
          if (!starts) return;
          const window = model.get(page);
          memory.removeWindow(page);
          for (const [key, value] of model) if (value === window) model.delete(key);
          return;
        }
        const range = Array.from({ length: pages }, (_, i) => page + i);
        const free = range.every((p) => !model.has(p));
        assert.equal(memory.isFree(page, pages), free);
        if (!free) return;
        memory.addWindow(page, pages, { read: (_at, into) => into.fill(id + 1).length > 0, write: () => true });
        for (const p of range) model.set(p, id + 1);
      });
      const byte = new Uint8Array(1);
      for (let page = 0; page < 40; page++) {
        assert.equal(memory.read(page, 0, byte), model.has(page));
        if (model.has(page)) assert.equal(byte[0], model.get(page));
      }
    }),
    { numRuns: 50 },
  );
});
