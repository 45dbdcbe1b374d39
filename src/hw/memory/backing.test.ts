import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BufferBacking, privateShared } from './backing.ts';

test('bytes: reads and writes inside, false beyond the end and nothing changed', () => {
  const backing = new BufferBacking(16);
  assert.equal(backing.write(12, Uint8Array.of(1, 2, 3, 4)), true);
  const into = new Uint8Array(4);
  assert.equal(backing.read(12, into), true);
  assert.deepEqual([...into], [1, 2, 3, 4]);
  assert.equal(backing.write(13, Uint8Array.of(9, 9, 9, 9)), false);
  assert.equal(backing.read(13, into), false);
  assert.deepEqual([...backing.bytes.subarray(12)], [1, 2, 3, 4]);
});

test('bytes given by the caller are used, not copied', () => {
  const bytes = new Uint8Array(4);
  new BufferBacking(bytes).write(0, Uint8Array.of(7));
  assert.equal(bytes[0], 7);
});

test('private shared memory is zeroed and stays valid over revoke and restore', () => {
  const shared = privateShared('x', 4096);
  assert.equal(shared.length, 4096);
  assert.equal(
    shared.bytes().every((byte) => byte === 0),
    true,
  );
  shared.bytes()[1] = 5;
  shared.revoke();
  shared.restore();
  assert.equal(shared.bytes()[1], 5);
});
