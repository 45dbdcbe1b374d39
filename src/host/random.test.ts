import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededBytes } from './random.ts';

test('the same seed gives the same bytes, another one others', () => {
  const [a, b, c] = [seededBytes(7), seededBytes(7), seededBytes(8)];
  const first = a(16);
  assert.deepEqual(first, b(16));
  assert.notDeepEqual(first, c(16));
  assert.notDeepEqual(first, a(16));
  assert.ok(new Set(seededBytes(1)(4096)).size > 200);
});
