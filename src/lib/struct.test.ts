import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { array, bytes, s32, struct, u8, u16, u32, u64 } from './struct.ts';

const inner = struct('inner', { a: u8, b: u16 });
const outer = struct('outer', { head: u8, wide: u64, fd: s32, pair: array(inner, 2), uuid: bytes(3), last: u16 });

test('members lie where a C compiler puts them', () => {
  assert.deepEqual([inner.size, inner.align, inner.offsets], [4, 2, { a: 0, b: 2 }]);
  assert.deepEqual(outer.offsets, { head: 0, wide: 8, fd: 16, pair: 20, uuid: 28, last: 32 });
  assert.deepEqual([outer.size, outer.align], [40, 8]);
  assert.equal(outer.endOf('fd'), 20);
  assert.equal(struct('empty', {}).size, 0);
});

test('what is written is read, little-endian, with zero in the gaps', () => {
  const value = {
    head: 1,
    wide: 2n ** 64n - 2n,
    fd: -1,
    pair: [
      { a: 3, b: 0x1234 },
      { a: 4, b: 5 },
    ],
    uuid: Uint8Array.of(6, 7, 8),
    last: 9,
  };
  const written = outer.write(value);
  assert.deepEqual([...written.subarray(0, 9)], [1, 0, 0, 0, 0, 0, 0, 0, 0xfe]);
  assert.deepEqual([...written.subarray(20, 24)], [3, 0, 0x34, 0x12]);
  assert.deepEqual(outer.read(written), value);
});

test('short input reads as zero beyond its end; short output is cut', () => {
  assert.deepEqual(inner.read(Uint8Array.of(7)), { a: 7, b: 0 });
  assert.deepEqual(inner.write({ a: 1, b: 2 }, 2), Uint8Array.of(1, 0));
});

test('a structure within a larger buffer', () => {
  const buffer = new Uint8Array(16);
  inner.set(new DataView(buffer.buffer), 6, { a: 1, b: 2 });
  assert.deepEqual(inner.read(buffer.subarray(6)), { a: 1, b: 2 });
});

test('bytes are a copy', () => {
  const table = struct('table', { data: bytes(2) });
  const from = Uint8Array.of(1, 2);
  const { data } = table.read(from);
  from[0] = 9;
  assert.deepEqual(data, Uint8Array.of(1, 2));
});

test('any values come back', () => {
  const table = struct('table', { a: u32, b: u64, c: s32, d: u16, e: u8 });
  fc.assert(
    fc.property(
      fc.record({
        a: fc.nat(0xffff_ffff),
        b: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        c: fc.integer(),
        d: fc.nat(0xffff),
        e: fc.nat(0xff),
      }),
      (value) => assert.deepEqual(table.read(table.write(value)), { ...value }),
    ),
  );
});
