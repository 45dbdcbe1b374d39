import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from './clock.ts';

test('actions run in the order of their times, those of one time in the order of asking', () => {
  const clock = new ManualClock();
  const log: string[] = [];
  clock.after(20, () => log.push('b'));
  clock.after(10, () => log.push('a'));
  clock.after(20, () => log.push(`c at ${clock.now()}`));
  assert.equal(clock.next, 10);
  clock.advance(15);
  assert.deepEqual(log, ['a']);
  clock.advance(5);
  assert.deepEqual(log, ['a', 'b', 'c at 20']);
  assert.equal(clock.next, undefined);
});

test('an action may ask for another one within the same stretch, and a cancelled one never runs', () => {
  const clock = new ManualClock();
  const log: string[] = [];
  const cancel = clock.after(5, () => log.push('never'));
  clock.after(1, () => {
    cancel();
    clock.after(2, () => log.push(`again at ${clock.now()}`));
  });
  clock.advance(100);
  assert.deepEqual(log, ['again at 3']);
  assert.equal(clock.now(), 100);
});
