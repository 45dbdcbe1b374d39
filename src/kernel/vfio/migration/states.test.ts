/** The way from state to state, for devices with every set of abilities. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Errno } from '../../../lib/errno.ts';
import { nextState, stateName } from './states.ts';

const [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] = [1, 2, 3, 4, 5, 6, 7];
const ALL = 7;

/** The states on the way, or the errno's name. */
function way(from: number, to: number, flags: number): string {
  const names: string[] = [];
  try {
    for (let state = from; state !== to; names.push(stateName(state))) state = nextState(state, to, flags);
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    names.push(error.code);
  }
  return names.join(' ');
}

test('R-1: the ways of a device with all states are those of the table', () => {
  const ways = [
    [STOP, RUNNING, 'RUNNING_P2P RUNNING'],
    [STOP, STOP_COPY, 'STOP_COPY'],
    [STOP, RESUMING, 'RESUMING'],
    [STOP, PRE_COPY_P2P, 'RUNNING_P2P PRE_COPY_P2P'],
    [RUNNING, STOP, 'RUNNING_P2P STOP'],
    [RUNNING, RESUMING, 'RUNNING_P2P STOP RESUMING'],
    [RUNNING, PRE_COPY, 'PRE_COPY'],
    [RUNNING, PRE_COPY_P2P, 'RUNNING_P2P PRE_COPY_P2P'],
    [PRE_COPY, STOP, 'RUNNING RUNNING_P2P STOP'],
    [PRE_COPY, RESUMING, 'RUNNING RUNNING_P2P STOP RESUMING'],
    [PRE_COPY, RUNNING_P2P, 'RUNNING RUNNING_P2P'],
    [PRE_COPY_P2P, RUNNING, 'RUNNING_P2P RUNNING'],
    [PRE_COPY_P2P, STOP_COPY, 'STOP_COPY'],
    [PRE_COPY_P2P, PRE_COPY, 'PRE_COPY'],
    [STOP_COPY, RUNNING, 'STOP RUNNING_P2P RUNNING'],
    [STOP_COPY, RESUMING, 'STOP RESUMING'],
    [STOP_COPY, PRE_COPY_P2P, 'EINVAL'],
    [RESUMING, RUNNING, 'STOP RUNNING_P2P RUNNING'],
    [RESUMING, PRE_COPY, 'STOP RUNNING_P2P RUNNING PRE_COPY'],
    [RUNNING_P2P, PRE_COPY, 'RUNNING PRE_COPY'],
    [RUNNING_P2P, STOP_COPY, 'STOP STOP_COPY'],
  ] as const;
  for (const [from, to, expected] of ways) assert.equal(way(from, to, ALL), expected, `${from} to ${to}`);
  // Every pair ends, and no state that is saved or restored lies in between.
  for (let from = 1; from < 8; from++) {
    for (let to = 1; to < 8; to++) {
      const steps = way(from, to, ALL).split(' ');
      assert.ok(steps.length <= 4, `${from} to ${to}: ${steps}`);
      if (from >= PRE_COPY && to === STOP_COPY) continue;
      assert.ok(!steps.slice(0, -1).some((name) => /COPY|RESUMING/.test(name)), `${from} to ${to}: ${steps}`);
    }
  }
});

test('R-2: without the optional states these are EINVAL, and running to stop is one arc', () => {
  for (const target of [RUNNING_P2P, PRE_COPY, PRE_COPY_P2P]) assert.equal(way(RUNNING, target, 1), 'EINVAL');
  assert.equal(way(RUNNING, STOP, 1), 'STOP');
  assert.equal(way(RUNNING, STOP_COPY, 1), 'STOP STOP_COPY');
});

test('R-3: with P2P running to stop leads through it', () => {
  assert.equal(way(RUNNING, STOP, 3), 'RUNNING_P2P STOP');
  assert.equal(way(RUNNING, PRE_COPY, 3), 'EINVAL');
});

test('R-4: with pre-copy and no P2P, pre-copy to stop-copy is one arc', () => {
  assert.equal(way(PRE_COPY, STOP_COPY, 5), 'STOP_COPY');
  assert.equal(way(RUNNING, STOP, 5), 'STOP');
  assert.equal(way(PRE_COPY, PRE_COPY_P2P, 5), 'EINVAL');
});

test('R-7 R-8 R-13 R-14: stop to pre-copy leads through running, resuming to stop-copy through stop, stop-copy never back', () => {
  assert.equal(way(STOP, PRE_COPY, ALL), 'RUNNING_P2P RUNNING PRE_COPY');
  assert.equal(way(RESUMING, STOP_COPY, ALL), 'STOP STOP_COPY');
  assert.equal(way(STOP_COPY, PRE_COPY, ALL), 'EINVAL');
  assert.equal(way(RUNNING, STOP_COPY, ALL), 'RUNNING_P2P STOP STOP_COPY');
});

test('R-5: ERROR and numbers beyond the states are no targets', () => {
  for (const target of [0, 8, 9, 0xffff_ffff]) assert.equal(way(RUNNING, target, ALL), 'EINVAL');
  for (let target = 1; target < 8; target++) assert.equal(way(0, target, ALL), 'EINVAL');
});
