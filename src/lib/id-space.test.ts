import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { IdSpace } from './id-space.ts';

test('the lowest free number of a range, over all borders of words, levels and parts', () => {
  const ids = new IdSpace();
  assert.equal(ids.allocate(5, 7), 5);
  assert.equal(ids.allocate(5, 7), 6);
  assert.equal(ids.allocate(5, 7), 7);
  assert.equal(ids.allocate(5, 7), -1);
  assert.equal(ids.allocate(0, 7), 0);
  for (const border of [32, 1024, 32768, 2 ** 20, 2 ** 21, 2 ** 32 - 2]) {
    assert.equal(ids.allocate(border - 1, border), border - 1);
    assert.equal(ids.allocate(border - 1, border), border);
    assert.equal(ids.allocate(border - 1, border), -1);
    assert.equal(ids.release(border - 1), true);
    assert.equal(ids.release(border - 1), false);
    assert.equal(ids.has(border), true);
    assert.equal(ids.next(border - 1), border);
  }
  assert.equal(ids.next(2 ** 32 - 1), -1);
});

test('a full part is passed over', () => {
  const ids = new IdSpace();
  for (let i = 0; i < 2 ** 20; i++) assert.equal(ids.allocate(0, 0xffff_ffff), i);
  assert.equal(ids.allocate(0, 2 ** 20 - 1), -1);
  assert.equal(ids.allocate(3, 2 ** 20), 2 ** 20);
  ids.release(777_777);
  assert.equal(ids.allocate(0, 0xffff_ffff), 777_777);
  assert.equal(ids.used, 2 ** 20 + 1);
});

test('the same as a plain set under any sequence', () => {
  const number = fc.oneof(
    fc.nat(70),
    fc.integer({ min: 1000, max: 1100 }),
    fc.integer({ min: 2 ** 20 - 4, max: 2 ** 20 + 4 }),
  );
  const step = fc.record({
    what: fc.constantFrom('allocate', 'take', 'release', 'next'),
    at: number,
    width: fc.nat(40),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const ids = new IdSpace();
      const model = new Set<number>();
      for (const { what, at, width } of steps) {
        if (what === 'allocate') {
          let free = at;
          while (model.has(free)) free++;
          const expected = free <= at + width ? free : -1;
          assert.equal(ids.allocate(at, at + width), expected);
          if (expected >= 0) model.add(expected);
        } else if (what === 'take') {
          assert.equal(ids.take(at), !model.has(at));
          model.add(at);
        } else if (what === 'release') {
          assert.equal(ids.release(at), model.delete(at));
        } else {
          const above = [...model].filter((id) => id >= at);
          assert.equal(ids.next(at), above.length === 0 ? -1 : Math.min(...above));
        }
        assert.equal(ids.used, model.size);
      }
    }),
    { numRuns: 200 },
  );
});
