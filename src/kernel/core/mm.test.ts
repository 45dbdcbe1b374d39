import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { privateShared } from '../../hw/memory/backing.ts';
import { BLOCK_PAGES, PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { Mm } from './mm.ts';
import { refusal, TestMemory } from './test-task.ts';

function made(): { memory: TestMemory; physical: PhysicalMemory; mm: Mm } {
  const memory = new TestMemory();
  const physical = new PhysicalMemory();
  return { memory, physical, mm: new Mm(memory, physical) };
}

test('a range is surveyed area by area, up to where it ends', () => {
  const { memory, mm } = made();
  memory.map(0x3000, 0x10000);
  memory.map(0x1000, 0x13000, { writable: false });
  memory.vmaCalls = 0;
  const areas = mm.check(0x11000, 0x3000, false);
  assert.deepEqual(
    areas.map(({ start, end }) => [start, end]),
    [
      [0x10000, 0x13000],
      [0x13000, 0x14000],
    ],
  );
  assert.equal(memory.vmaCalls, 2);
  const written = mm.survey(0x11000, 0x3000, true);
  assert.deepEqual([written.end, written.why], [0x13000, 'the memory at 0x13000 is not writable']);
  const beyond = mm.survey(0x11000, 0x8000, false);
  assert.deepEqual([beyond.end, beyond.why], [0x14000, 'nothing is mapped at 0x14000']);
  assert.equal(
    refusal(() => mm.check(0x11000, 0x3000, true)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => mm.check(2 ** 47, 4096, false)),
    'EFAULT',
  );
});

test('device memory is readable and writable as the device is', () => {
  const { memory, mm } = made();
  const bar = privateShared('bar', 4096);
  memory.map(4096, 0x10000, { device: { memory: bar, offset: 0 }, writable: false });
  assert.equal(mm.check(0x10000, 4096, true)[0]!.device!.memory, bar);
});

test('pinned pages are neighbours where the program has neighbours, and lead to its memory', () => {
  const { memory, physical, mm } = made();
  const base = 3 * BLOCK_PAGES - 2;
  memory.map(4 * 4096, base * 4096);
  memory.write(base * 4096 + 5, Uint8Array.of(42));
  const runs = mm.pin(base, 4);
  assert.equal(
    runs.reduce((sum, run) => sum + run.count, 0),
    4,
  );
  assert.deepEqual(mm.runs(base, 4), runs);
  const byte = new Uint8Array(1);
  assert.ok(physical.read(mm.physicalOf(base), 5, byte));
  assert.equal(byte[0], 42);
  memory.unmap(base * 4096, 4096);
  assert.equal(physical.read(mm.physicalOf(base), 5, byte), false, 'memory that the program unmapped is gone');
  assert.equal(physical.blocks, 2);
  mm.unpin(base, 4);
  assert.deepEqual([mm.pins, physical.blocks, mm.physicalOf(base)], [0, 0, -1]);
});

test('unpinning what is not pinned is a bug', () => {
  const { mm } = made();
  assert.throws(() => mm.unpin(0, 1), /not pinned/);
  mm.pin(0, 1);
  assert.throws(() => mm.unpin(1, 1), /too often/);
  assert.throws(() => mm.runs(BLOCK_PAGES, 1), /not pinned/);
});

test('any order of pins and unpins counts each page as a plain map does', () => {
  const span = fc.record({ page: fc.nat(1200), count: fc.integer({ min: 1, max: 700 }) });
  fc.assert(
    fc.property(fc.array(span, { maxLength: 12 }), fc.infiniteStream(fc.nat(100)), (spans, picks) => {
      const { physical, mm } = made();
      const held: { page: number; count: number }[] = [];
      const base = BLOCK_PAGES - 600;
      for (const { page, count } of spans) {
        mm.pin(base + page, count);
        held.push({ page, count });
        const pick = picks.next().value!;
        if (pick % 3 === 0) {
          const [gone] = held.splice(pick % held.length, 1);
          mm.unpin(base + gone!.page, gone!.count);
        }
      }
      for (let page = 0; page < 1900; page += 37) {
        const expected = held.filter((other) => other.page <= page && page < other.page + other.count).length;
        assert.equal(mm.pinsOf(base + page), expected);
      }
      for (const { page, count } of held) mm.unpin(base + page, count);
      assert.deepEqual([mm.pins, physical.blocks], [0, 0]);
    }),
    { numRuns: 40 },
  );
});

test('a machine takes 256 GiB of pins and no more, and has them back afterwards', () => {
  const { physical, mm } = made();
  const gigabyte = BLOCK_PAGES;
  assert.equal(
    refusal(() => mm.pin(0, 256 * gigabyte)),
    'ENOMEM',
  );
  assert.deepEqual([mm.pins, physical.pinLeaves, physical.blocks], [0, 0, 0]);
  mm.pin(0, 2 * gigabyte);
  mm.pin(0, 3);
  assert.equal(physical.pinLeaves, 1024);
  assert.equal(
    refusal(() => mm.pin(4 * gigabyte, 255 * gigabyte)),
    'ENOMEM',
  );
  mm.unpin(0, 2 * gigabyte);
  mm.unpin(0, 3);
  assert.deepEqual([mm.pins, physical.pinLeaves, physical.blocks], [0, 0, 0]);
});
