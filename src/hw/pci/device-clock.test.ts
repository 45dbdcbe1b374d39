import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from './clock.ts';
import { DeviceClock } from './device-clock.ts';

function setup() {
  const machine = new ManualClock();
  const clock = new DeviceClock(machine);
  const seen: string[] = [];
  const timer = clock.timer('tick', () => seen.push(`tick ${clock.now()}`));
  return { machine, clock, seen, timer };
}

test('a device whose time stands still goes on where it was', () => {
  const { machine, clock, seen, timer } = setup();
  timer.start(100);
  clock.after(150, () => seen.push(`after ${clock.now()}`));
  machine.advance(40);
  clock.stop();
  machine.advance(1000);
  assert.deepEqual([clock.now(), timer.left, seen], [40, 60, []]);
  // What is started meanwhile waits as well.
  clock.after(10, () => seen.push(`late ${clock.now()}`));
  machine.advance(1000);
  clock.run();
  machine.advance(200);
  assert.deepEqual(seen, ['late 50', 'tick 100', 'after 150']);
  assert.equal(machine.next, undefined);
});

test('timers go on in another device; what has no name is counted', () => {
  const { machine, clock, timer } = setup();
  timer.start(100);
  machine.advance(30);
  const stop = clock.after(5, () => {});
  assert.equal(clock.nameless, 1);
  stop();
  stop();
  assert.equal(clock.nameless, 0);
  const state = JSON.parse(JSON.stringify(clock.save()));
  assert.deepEqual(state, { tick: 70 });
  const other = setup();
  other.timer.start(1);
  other.clock.stop();
  other.clock.restore(state);
  other.machine.advance(500);
  assert.deepEqual(other.seen, []);
  other.clock.run();
  other.machine.advance(69);
  assert.equal(other.seen.length, 0);
  other.machine.advance(1);
  assert.equal(other.seen.length, 1);
  assert.equal(other.timer.isRunning, false);
  for (const bad of [null, 5, { tock: 1 }, { tick: -1 }, { tick: 'soon' }]) {
    assert.throws(() => other.clock.restore(bad), { code: 'EINVAL' });
  }
});

test('a timer that is started again moves its end; a reset forgets all', () => {
  const { machine, clock, seen, timer } = setup();
  timer.start(100);
  machine.advance(50);
  timer.start(100);
  machine.advance(99);
  assert.equal(seen.length, 0);
  machine.advance(1);
  assert.deepEqual(seen, ['tick 150']);
  timer.start(10);
  clock.after(10, () => seen.push('no'));
  clock.cancelAll();
  machine.advance(100);
  assert.deepEqual([seen.length, clock.nameless, timer.isRunning], [1, 0, false]);
  assert.throws(() => clock.timer('tick', () => {}), { code: 'EINVAL' });
});
