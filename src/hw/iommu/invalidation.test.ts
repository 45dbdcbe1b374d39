import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { coveringBlock } from './invalidation.ts';

test('I-97: 0x5000 to 0x7fff is covered by four pages from 0x4000', () => {
  assert.deepEqual(coveringBlock(5, 7), { firstPage: 4, order: 2 });
});

test('coveringBlock gives the smallest aligned block that covers a range', () => {
  fc.assert(
    fc.property(fc.nat(2 ** 30), fc.nat(5000), fc.constantFrom(0, 2 ** 40), (first, more, base) => {
      const last = base + first + more;
      const { firstPage, order } = coveringBlock(base + first, last);
      const size = 2 ** order;
      assert.ok(firstPage % size === 0 && firstPage <= base + first && last < firstPage + size);
      const half = size / 2;
      if (order > 0) assert.notEqual(Math.floor((base + first) / half), Math.floor(last / half));
    }),
  );
});
