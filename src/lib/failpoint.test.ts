import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from './errno.ts';
import { Failpoint, failAt, failNth, failpoints } from './failpoint.ts';

const a = new Failpoint('test:a', 'ENOMEM');
const b = new Failpoint('test:b', 'EIO');

/** Which of three places fails. */
function walk(): string {
  let at = 0;
  try {
    for (const point of [a, b, a]) {
      at++;
      point.hit();
    }
  } catch (error) {
    assert.ok(error instanceof Errno);
    return `${at} ${error.code}`;
  }
  return 'ok';
}

test('nothing fails unless it is ordered', () => {
  assert.equal(walk(), 'ok');
  assert.ok(failpoints.includes(a));
});

test('the n-th place that is reached fails, then no other', () => {
  const results: string[] = [];
  for (let n = 1; n <= 4; n++) {
    using order = failNth(n);
    results.push(walk());
    assert.equal(order.failed.length, n <= 3 ? 1 : 0);
  }
  assert.deepEqual(results, ['1 ENOMEM', '2 EIO', '3 ENOMEM', 'ok']);
  assert.equal(walk(), 'ok');
});

test('a place fails by name, after some passes, some times', () => {
  using order = failAt('test:a', 1, 2);
  assert.deepEqual([walk(), walk(), walk()], ['3 ENOMEM', '1 ENOMEM', 'ok']);
  assert.deepEqual(order.failed, ['test:a', 'test:a']);
  order.stop();
  assert.equal(walk(), 'ok');
});
