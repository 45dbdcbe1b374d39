/**
 * A million ids: the whole PASID space filled and freed in random order, while readers hold sections over changes of the data.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { INVALID_IOASID, IoasidSet, Ioasids } from '../../src/kernel/iommu/ioasid.ts';

const COUNT = 2 ** 20;

function shuffled(count: number, seed: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  let state = seed;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    const kept = order[i]!;
    order[i] = order[j]!;
    order[j] = kept;
  }
  return order;
}

test('A-1 A-13 A-17: 2^20 ids filled and freed in random order with readers at work, and nothing is left', () => {
  const ids = new Ioasids();
  const sets = [new IoasidSet<{ id: number }>('a'), new IoasidSet<{ id: number }>('b')] as const;
  for (let i = 0; i < COUNT; i++) {
    if (ids.alloc(sets[i & 1]!, 0, COUNT - 1, { id: i }) !== i) assert.fail(`id ${i} was not the lowest`);
  }
  assert.equal(ids.alloc(sets[0], 0, COUNT - 1, null), INVALID_IOASID);
  assert.equal(ids.used, COUNT);

  let disposed = 0;
  let replaced = 0;
  const order = shuffled(COUNT, 7);
  let reader = ids.readers.begin();
  for (let i = 0; i < COUNT; i++) {
    const id = order[i]!;
    const set = sets[id & 1]!;
    if (i % 64 === 0) {
      const next = ids.readers.begin();
      const seen = ids.find(set, id) as { id: number };
      assert.equal(seen.id, id);
      const before = disposed;
      replaced++;
      ids.setData(id, { id: -id }, () => disposed++);
      assert.equal(disposed, before, 'a reader is at work');
      reader.end();
      reader = next;
    }
    if (!ids.put(id)) assert.fail(`id ${id} was not out`);
  }
  reader.end();
  assert.equal(disposed, replaced);
  assert.equal(ids.used, 0);
  assert.equal(ids.reclaiming, 0);
  assert.equal(ids.readers.waiting + ids.readers.live, 0);

  for (const id of shuffled(1000, 3)) assert.equal(ids.alloc(sets[0], id * 1000, id * 1000, null), id * 1000);
  assert.equal(ids.alloc(null, 0, COUNT - 1, null), 1);
  assert.equal(ids.warnings, 0);
});
