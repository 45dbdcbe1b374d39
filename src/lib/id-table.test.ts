import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { IdTable } from './id-table.ts';

test('numbers are the lowest free ones, and a reserved number is taken but not seen', () => {
  const table = new IdTable<string>();
  const id = table.reserve();
  assert.equal(id, 1);
  assert.deepEqual([table.get(1), table.size, [...table.entries()]], [undefined, 0, []]);
  assert.equal(table.add('b'), 2);
  table.abandon(id);
  assert.equal(table.add('a'), 1);
  assert.deepEqual(
    [...table.entries()],
    [
      [1, 'a'],
      [2, 'b'],
    ],
  );
  table.remove(1);
  assert.equal(table.reserve(), 1);
});

test('misuse is a bug and says so', () => {
  const table = new IdTable<string>(0);
  assert.throws(() => table.publish(0, 'x'), /not reserved/);
  assert.throws(() => table.abandon(0), /not reserved/);
  assert.throws(() => table.remove(0), /not in use/);
  table.reserve();
  assert.throws(() => table.remove(0), /not in use/);
  table.publish(0, 'x');
  assert.throws(() => table.publish(0, 'y'), /not reserved/);
});

test('a retired number is never given again', () => {
  const table = new IdTable<string>();
  table.add('a');
  table.retire(1);
  assert.deepEqual([table.size, table.get(1), table.add('b')], [0, undefined, 2]);
});

test('any order of operations does what a plain map does', () => {
  fc.assert(
    fc.property(fc.array(fc.record({ isAdd: fc.boolean(), pick: fc.nat(20) })), (steps) => {
      const table = new IdTable<number>();
      const model = new Map<number, number>();
      for (const [n, { isAdd, pick }] of steps.entries()) {
        if (isAdd) {
          let lowest = 1;
          while (model.has(lowest)) lowest++;
          assert.equal(table.add(n), lowest);
          model.set(lowest, n);
        } else if (model.has(pick)) {
          table.remove(pick);
          model.delete(pick);
        }
      }
      assert.equal(table.size, model.size);
      assert.deepEqual(
        [...table.entries()],
        [...model].sort((a, b) => a[0] - b[0]),
      );
    }),
  );
});
