import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { test } from 'node:test';
import { Errno, errnoName, errnoNumbers } from './errno.ts';

test('a refusal has its name, its number and its reason', () => {
  const refusal = new Errno('EBUSY', 'group 3 is open already');
  assert.deepEqual([refusal.code, refusal.errno, refusal.why], ['EBUSY', 16, 'group 3 is open already']);
  assert.equal(refusal.message, 'EBUSY: group 3 is open already');
  assert.ok(refusal instanceof Error);
});

test('numbers have names, and are those of this system', () => {
  assert.equal(errnoName(22), 'EINVAL');
  assert.equal(errnoName(9999), 'errno 9999');
  const system: Readonly<Record<string, number>> = constants.errno;
  for (const [name, number] of Object.entries(errnoNumbers)) {
    if (system[name] !== undefined) assert.equal(number, system[name], name);
  }
  assert.equal(new Set(Object.values(errnoNumbers)).size, Object.keys(errnoNumbers).length, 'no number is there twice');
});
