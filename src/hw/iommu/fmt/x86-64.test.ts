import assert from 'node:assert/strict';
import { test } from 'node:test';
import { naiveFirst } from '../naive-walk.ts';
import { PageTable } from '../page-table.ts';
import { TablePool } from '../table-pool.ts';
import { formatSuite } from './format.suite.ts';
import { x86_64 } from './x86-64.ts';

formatSuite(x86_64, naiveFirst);

test('I-92: the entries of leaves and tables, bit by bit', () => {
  const pool = new TablePool();
  while (pool.used < 7) pool.allocate();
  const table = new PageTable(x86_64, pool);
  assert.equal(table.top, 8);
  table.map(5, 3, 1, 3, false);
  table.map(6, 3, 1, 1, false);
  assert.deepEqual(table.entryAt(5), { level: 0, entry: 0x3067n });
  assert.deepEqual(table.entryAt(6), { level: 0, entry: 0x3025n });
  assert.equal(pool.words[8 << 10], 0x9027);
  table.map(0x200, 0x40000, 512, 3, true);
  assert.deepEqual(table.entryAt(0x200), { level: 1, entry: 0x4000_00e7n }, 'no snoop bit in this format');
});
