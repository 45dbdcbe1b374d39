import assert from 'node:assert/strict';
import { test } from 'node:test';
import { naiveSecond } from '../naive-walk.ts';
import { indexAt, PageTable } from '../page-table.ts';
import { TablePool } from '../table-pool.ts';
import { formatSuite } from './format.suite.ts';
import { vtdss } from './vtdss.ts';

formatSuite(vtdss, naiveSecond);

/** A pool whose next table is number `next`. */
function poolUpTo(next: number): TablePool {
  const pool = new TablePool();
  while (pool.used < next - 1) pool.allocate();
  return pool;
}

test('I-90: the entries of leaves and tables, bit by bit', () => {
  const table = new PageTable(vtdss, new TablePool());
  table.map(0x200, 0x40000, 512, 3, true);
  assert.deepEqual(table.entryAt(0x200), { level: 1, entry: 0x4000_0883n });
  table.unmap(0x200, 512);
  table.map(0x200, 0x40000, 512, 3, false);
  assert.deepEqual(table.entryAt(0x3ff), { level: 1, entry: 0x4000_0083n });
  table.map(5, 3, 1, 1, false);
  assert.deepEqual(table.entryAt(5), { level: 0, entry: 0x3001n });
  table.map(6, 2 ** 40 - 1, 1, 2, true);
  assert.deepEqual(table.entryAt(6), { level: 0, entry: 0x000f_ffff_ffff_f802n });
});

test('I-90: an entry that points to the table at 0x9000', () => {
  const pool = poolUpTo(8);
  const table = new PageTable(vtdss, pool);
  assert.equal(table.top, 8);
  table.map(0, 1, 1, 3, false);
  assert.equal(pool.words[8 << 10], 0x9003);
  assert.equal(pool.words[(8 << 10) + 1], 0);
});

test('I-91: the indexes of an address', () => {
  const indexes = (iova: bigint): number[] => {
    const page = Number(iova >> 12n);
    return [0, 1, 2, 3].map((level) => indexAt(level, page & 0x3ffff, Math.floor(page / 0x40000)));
  };
  assert.deepEqual(indexes(0x20_0000n), [0, 1, 0, 0]);
  assert.deepEqual(indexes(0xffff_ffff_f000n), [511, 511, 511, 511]);
  assert.equal(indexAt(4, 0, 2 ** 27 - 1), 511);
});

test('an entry refused on the way is named with its level, also at level 4', () => {
  const table = new PageTable(vtdss, new TablePool(), { levels: 5 });
  assert.equal(table.walk(0), -1);
  assert.equal(table.level, 4);
  table.map(512, 512, 1, 3, false);
  for (const [page, level] of [
    [2 ** 36, 4],
    [2 ** 27, 3],
    [2 ** 18, 2],
    [0, 1],
    [513, 0],
  ] as const) {
    assert.equal(table.walk(page), -1);
    assert.equal(table.level, level);
    assert.equal(table.low, 0);
  }
});

test('the permission of a walk is the AND of all entries on the way', () => {
  const pool = new TablePool();
  const table = new PageTable(vtdss, pool);
  table.map(0, 7, 1, 3, false);
  pool.words[table.top << 10]! &= ~2;
  assert.equal(table.walk(0), 7);
  assert.equal(table.permission, 1);
  // Bit 7 above level 2 is reserved: no leaf.
  pool.words[table.top << 10]! |= 0x80;
  assert.equal(table.walk(0), -1);
  assert.equal(table.level, 3);
});
