import assert from 'node:assert/strict';
import { test } from 'node:test';
import { naiveAmd } from '../naive-walk.ts';
import { PageTable } from '../page-table.ts';
import { TablePool } from '../table-pool.ts';
import { amdV1 } from './amd-v1.ts';
import { formatSuite } from './format.suite.ts';

formatSuite(amdV1, naiveAmd);

test('AMD v1: the entries of leaves and tables, bit by bit', () => {
  const pool = new TablePool();
  const table = new PageTable(amdV1, pool);
  table.map(5, 3, 1, 3, false);
  table.map(6, 3, 1, 1, false);
  assert.deepEqual(table.entryAt(5), { level: 0, entry: 0x7000_0000_0000_3001n });
  assert.deepEqual(table.entryAt(6), { level: 0, entry: 0x3000_0000_0000_3001n });
  table.map(0x200, 0x40000, 512, 2, false);
  assert.deepEqual(table.entryAt(0x3ff), { level: 1, entry: 0x5000_0000_4000_0001n }, 'next level 0: of this size');
  const entry = (page: number): bigint =>
    (BigInt(pool.words[page * 1024 + 1]! >>> 0) << 32n) | BigInt(pool.words[page * 1024]! >>> 0);
  assert.deepEqual(
    [1, 2, 3].map(entry),
    [0x6000_0000_0000_2601n, 0x6000_0000_0000_3401n, 0x6000_0000_0000_4201n],
    'next level 3, 2, 1',
  );
});
