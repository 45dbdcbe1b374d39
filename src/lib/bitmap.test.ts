import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { bitmapBytes, clearBits, countBits, forEachRun, orBits, setBits, testBit } from './bitmap.ts';

const LENGTH = 200;
const range = fc
  .tuple(fc.nat(LENGTH - 1), fc.nat(LENGTH))
  .map(([first, count]): [number, number] => [first, Math.min(count, LENGTH - first)]);

function model(bits: Uint8Array): boolean[] {
  return Array.from({ length: LENGTH }, (_, i) => testBit(bits, i));
}

test('bitmapBytes rounds up to words of 64 bits', () => {
  assert.deepEqual([0, 1, 64, 65].map(bitmapBytes), [0, 8, 8, 16]);
});

test('setBits, clearBits and countBits agree with an array of booleans', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.boolean(), range), { maxLength: 20 }), range, (changes, [from, count]) => {
      const bits = new Uint8Array(bitmapBytes(LENGTH));
      const expected = new Array<boolean>(LENGTH).fill(false);
      for (const [isSet, [first, length]] of changes) {
        (isSet ? setBits : clearBits)(bits, first, length);
        expected.fill(isSet, first, first + length);
      }
      assert.deepEqual(model(bits), expected);
      assert.equal(countBits(bits, from, count), expected.slice(from, from + count).filter(Boolean).length);
      const seen = new Array<boolean>(LENGTH).fill(false);
      let last = -2;
      forEachRun(bits, from, count, (first, length) => {
        assert.ok(first > last + 1 && length > 0);
        seen.fill(true, first, first + length);
        last = first + length - 1;
      });
      assert.deepEqual(
        seen,
        expected.map((bit, i) => bit && i >= from && i < from + count),
      );
    }),
  );
});

test('orBits moves bits between any two positions and keeps the others', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 25, maxLength: 25 }),
      fc.uint8Array({ minLength: 25, maxLength: 25 }),
      range,
      fc.nat(LENGTH - 1),
      (into, from, [source, wanted], target) => {
        const count = Math.min(wanted, LENGTH - target);
        const expected = model(into);
        const given = model(from);
        for (let i = 0; i < count; i++) expected[target + i] ||= given[source + i]!;
        orBits(into, target, from, source, count);
        assert.deepEqual(model(into), expected);
      },
    ),
  );
});
