/** Random lives beside a model, a few of them; 20,000 steps are in tests/robustness. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { live } from './test-life.ts';

test('C-18 G-44: programs and devices come and go as the model says, and nothing is left', () => {
  const done = new Map<string, number>();
  for (let seed = 1; seed <= 4; seed++) {
    for (const [what, count] of live(seed, 400)) done.set(what, (done.get(what) ?? 0) + count);
  }
  for (const what of [
    'merge ok',
    'unmerge ok',
    'map ok',
    'device ok',
    'kill',
    'claim',
    'unbind waiting',
    'unplug waiting',
  ]) {
    assert.ok((done.get(what) ?? 0) > 0, `${what} happened`);
  }
});
