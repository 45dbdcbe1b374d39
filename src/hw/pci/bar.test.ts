import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { privateShared } from '../memory/backing.ts';
import { barBacking, FunctionBar } from './bar.ts';
import { TestMachine } from './test-machine.ts';

const spec = { vendor: 0x1234, device: 1, class24: 0xff0000 };

/** What software does to find a BAR's size: write ones, read, restore. */
function sizeByConfig(machine: TestMachine, at: number, bar: object): { flags: number; size: number } {
  const fn = machine.add(
    { ...spec, bars: [{ index: at, ...bar } as never] },
    `${(machine.root.functions.length + 1).toString(16)}.0`,
  );
  const offset = 0x10 + 4 * at;
  fn.config.write(offset, 4, 0xffffffff);
  const low = fn.config.read(offset, 4);
  const flagBits = (low & 1) === 1 ? 3 : 15;
  let mask = BigInt(low) & ~BigInt(flagBits);
  if ((low & 7) === 4) {
    fn.config.write(offset + 4, 4, 0xffffffff);
    mask |= BigInt(fn.config.read(offset + 4, 4)) << 32n;
  } else mask |= 0xffffffffn << 32n;
  return { flags: low & flagBits, size: Number(BigInt.asUintN(64, ~mask) + 1n) };
}

test('BAR sizing finds the size and the kind of every BAR', () => {
  const io = fc.record({ kind: fc.constant('io'), log: fc.integer({ min: 2, max: 8 }) });
  const memory = fc.record({
    kind: fc.constant('memory'),
    log: fc.integer({ min: 4, max: 31 }),
    prefetchable: fc.boolean(),
    is64: fc.boolean(),
  });
  const wide = fc.record({
    kind: fc.constant('memory'),
    log: fc.integer({ min: 32, max: 38 }),
    prefetchable: fc.boolean(),
    is64: fc.constant(true),
  });
  fc.assert(
    fc.property(fc.oneof(io, memory, wide), fc.nat(4), ({ log, ...bar }, index) => {
      const found = sizeByConfig(new TestMachine(), index, { ...bar, size: 2 ** log });
      const m = bar as { is64?: boolean; prefetchable?: boolean };
      const flags = bar.kind === 'io' ? 1 : (m.is64 ? 4 : 0) | (m.prefetchable ? 8 : 0);
      assert.deepEqual(found, { flags, size: 2 ** log });
    }),
    { numRuns: 60 },
  );
});

test('a BAR must be a power of two, at a place that exists and is free', () => {
  const machine = new TestMachine();
  const bars =
    (...list: object[]): (() => unknown) =>
    () =>
      machine.add({ ...spec, bars: list as never }, '1.0');
  assert.throws(bars({ index: 0, kind: 'memory', size: 0x3000 }), /power of two/);
  assert.throws(bars({ index: 0, kind: 'memory', size: 8 }), /power of two/);
  assert.throws(bars({ index: 6, kind: 'memory', size: 4096 }), /does not fit/);
  assert.throws(bars({ index: 5, kind: 'memory', size: 4096, is64: true }), /does not fit/);
  assert.throws(
    bars({ index: 0, kind: 'memory', size: 4096, is64: true }, { index: 1, kind: 'io', size: 4 }),
    /does not fit/,
  );
});

test('a shared BAR is plain memory, also for accesses that are forwarded', () => {
  const shared = privateShared('x', 4096);
  const bar = new FunctionBar({ index: 0, kind: 'memory', size: 4096, shared });
  bar.write(8, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  assert.deepEqual([...shared.bytes().subarray(8, 16)], [1, 2, 3, 4, 5, 6, 7, 8]);
  shared.bytes()[100] = 0x5a;
  const byte = new Uint8Array(1);
  bar.read(100, byte);
  assert.equal(byte[0], 0x5a);
});

test('beyond the end of a BAR reads give ones and writes are lost; without registers it reads as zero', () => {
  const bar = new FunctionBar({ index: 0, kind: 'memory', size: 4096 });
  const four = new Uint8Array(4).fill(7);
  bar.read(4092, four);
  assert.deepEqual([...four], [0, 0, 0, 0]);
  bar.write(4094, four);
  bar.read(4094, four);
  assert.deepEqual([...four], [0xff, 0xff, 0xff, 0xff]);
});

test('DMA of others reaches registers as naturally aligned accesses', () => {
  const seen: string[] = [];
  const bar = new FunctionBar({
    index: 0,
    kind: 'memory',
    size: 4096,
    registers: {
      read: (offset, into) => {
        seen.push(`r${offset}+${into.length}`);
        into.fill(offset);
      },
      write: (offset, from) => {
        seen.push(`w${offset}+${from.length}`);
      },
    },
  });
  const backing = barBacking(bar);
  const into = new Uint8Array(13);
  assert.equal(backing.read(3, into), true);
  assert.deepEqual(seen.splice(0), ['r3+1', 'r4+4', 'r8+8']);
  assert.equal(backing.write(8, new Uint8Array(14)), true);
  assert.deepEqual(seen.splice(0), ['w8+8', 'w16+4', 'w20+2']);
  assert.equal(backing.read(4090, into), false);
});
