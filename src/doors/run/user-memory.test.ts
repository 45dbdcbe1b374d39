import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Mapping } from '../../sys/index.ts';
import { ProgramMemory, type RawMemory } from './user-memory.ts';

const BASE = 0x10000;

/** A program of 64 KiB at BASE, the last page read-only, that counts how often it is touched. */
class FakeProcess implements RawMemory {
  readonly bytes = new Uint8Array(65536);
  touched = 0;
  asked = 0;

  read(address: number, into: Uint8Array): boolean {
    this.touched++;
    const at = address - BASE;
    if (at < 0 || at + into.length > this.bytes.length) return false;
    into.set(this.bytes.subarray(at, at + into.length));
    return true;
  }

  write(address: number, from: Uint8Array): boolean {
    this.touched++;
    const at = address - BASE;
    if (at < 0 || at + from.length > this.bytes.length - 4096) return false;
    this.bytes.set(from, at);
    return true;
  }

  mapping(address: number): Mapping | undefined {
    this.asked++;
    const at = address - BASE;
    if (at < 0 || at >= this.bytes.length) return undefined;
    const isLast = at >= this.bytes.length - 4096;
    const common = { readable: true, shared: false, offset: 0x3000, key: isLast ? '0:1:77' : undefined };
    return isLast
      ? { start: BASE + 61440, end: BASE + 65536, writable: false, ...common }
      : { start: BASE, end: BASE + 61440, writable: true, ...common };
  }
}

function world() {
  const raw = new FakeProcess();
  const arrived = new Uint8Array(4096);
  const gathered = new Uint8Array(61440);
  const bar = { length: 4096, bytes: () => new Uint8Array(4096), revoke() {}, restore() {}, close() {}, fd: 9 };
  const memory = new ProgramMemory(raw, new Map([['0:1:77', bar]]), arrived, gathered);
  /** As the library does it: the first bytes of the argument come along. */
  const open = (at: number, known: number): void => {
    arrived.set(raw.bytes.subarray(at, at + known));
    memory.openWindow(BASE + at, known);
  };
  /** As the library does it: what the answer carries is stored at the argument. */
  const close = (at: number): number => {
    const length = memory.closeWindow();
    raw.bytes.set(gathered.subarray(0, length), at);
    return length;
  };
  return { raw, memory, open, close, bar };
}

test('an argument that came along is read and answered without touching the program', () => {
  const { raw, memory, open, close } = world();
  raw.bytes.set([16, 0, 0, 0, 9, 9, 9, 9], 100);
  open(100, 64);
  const argsz = new Uint8Array(4);
  assert.ok(memory.read(BASE + 100, argsz));
  assert.deepEqual([...argsz], [16, 0, 0, 0]);
  assert.ok(memory.write(BASE + 104, new Uint8Array([1, 2])));
  const all = new Uint8Array(8);
  assert.ok(memory.read(BASE + 100, all));
  assert.deepEqual([...all], [16, 0, 0, 0, 1, 2, 9, 9], 'a call sees what it stored');
  assert.equal(close(100), 6, 'nothing behind the last store is sent');
  assert.equal(raw.touched, 0);
  assert.deepEqual([...raw.bytes.subarray(100, 108)], [16, 0, 0, 0, 1, 2, 9, 9]);
});

test('a store that extends the argument without a hole is gathered, one behind a hole goes to the program at once', () => {
  const { raw, memory, open, close } = world();
  open(0, 64);
  assert.ok(memory.write(BASE + 64, new Uint8Array(100).fill(7)));
  assert.ok(memory.write(BASE + 1000, new Uint8Array([5])));
  assert.equal(raw.bytes[1000], 5);
  assert.equal(raw.bytes[64], 0, 'not yet');
  const across = new Uint8Array(200);
  assert.ok(memory.read(BASE + 60, across), 'beyond what is at hand');
  assert.deepEqual([...across.subarray(0, 6)], [0, 0, 0, 0, 7, 7]);
  assert.equal(close(0), 164);
  assert.equal(raw.bytes[163], 7);
});

test('a store to memory that cannot be written is refused before the answer', () => {
  const { memory, open, close } = world();
  open(61440 - 8, 64);
  assert.equal(memory.write(BASE + 61440, new Uint8Array(8)), false);
  assert.equal(memory.write(BASE + 61440 - 8, new Uint8Array(16)), false, 'across the border');
  assert.equal(close(61440 - 8), 0);
  memory.openWindow(0x10, 0);
  assert.equal(memory.write(0x10, new Uint8Array(4)), false);
  assert.equal(memory.read(0x10, new Uint8Array(4)), false);
  memory.closeWindow();
});

test('the list of mappings is asked once for arguments in the same mapping', () => {
  const { raw, memory, open, close } = world();
  for (let i = 0; i < 5; i++) {
    open(200 * i, 64);
    assert.ok(memory.write(BASE + 200 * i, new Uint8Array([i])));
    close(200 * i);
  }
  assert.equal(raw.asked, 1);
});

test('without a call everything goes to the program', () => {
  const { raw, memory } = world();
  assert.ok(memory.write(BASE, new Uint8Array([4])));
  assert.equal(raw.bytes[0], 4);
  assert.ok(memory.read(BASE, new Uint8Array(1)));
  assert.equal(raw.touched, 2);
});

test('a mapping of device memory is recognised by its file', () => {
  const { memory, bar } = world();
  assert.deepEqual(memory.vma(BASE + 61440), {
    start: BASE + 61440,
    end: BASE + 65536,
    readable: true,
    writable: false,
    shared: false,
    device: { memory: bar, offset: 0x3000 },
  });
  assert.equal(memory.vma(BASE)?.device, undefined);
  assert.equal(memory.vma(0x10), undefined);
});

test('any order of reads and stores gives what plain memory gives', () => {
  const step = fc.record({
    isStore: fc.boolean(),
    at: fc.nat(400),
    length: fc.integer({ min: 1, max: 120 }),
    value: fc.nat(255),
  });
  fc.assert(
    fc.property(
      fc.nat(200),
      fc.constantFrom(0, 1, 16, 64),
      fc.array(step, { maxLength: 20 }),
      (argument, known, steps) => {
        const { raw, memory, open, close } = world();
        raw.bytes.forEach((_, i) => {
          raw.bytes[i] = i * 7;
        });
        const model = raw.bytes.slice();
        open(argument, known);
        for (const { isStore, at, length, value } of steps) {
          if (isStore) {
            model.fill(value, at, at + length);
            assert.ok(memory.write(BASE + at, new Uint8Array(length).fill(value)));
          } else {
            const into = new Uint8Array(length);
            assert.ok(memory.read(BASE + at, into));
            assert.deepEqual(into, model.slice(at, at + length));
          }
        }
        close(argument);
        assert.deepEqual(raw.bytes.subarray(0, 1024), model.subarray(0, 1024));
      },
    ),
    { numRuns: 150 },
  );
});
