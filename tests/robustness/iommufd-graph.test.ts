/** iommufd's objects in any order, for longer than the unit test. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runGraph } from '../../src/kernel/iommufd/selftest/test-object-graph.ts';

const SEEDS = 10;
const STEPS = 5_000;

test('F-5 F-6: 50,000 steps on iommufd objects by several processes, with failures: nothing leaks, dangles or is refused without a reason', (t) => {
  let injected = 0;
  const refusals = new Map<string, number>();
  for (let seed = 100; seed < 100 + SEEDS; seed++) {
    const run = runGraph(seed, STEPS);
    assert.equal(run.steps, STEPS);
    injected += run.injected;
    for (const [name, count] of run.refusals) refusals.set(name, (refusals.get(name) ?? 0) + count);
  }
  t.diagnostic(
    `${injected} failures ordered; refusals: ${[...refusals].map(([name, count]) => `${name} ${count}`).join(', ')}`,
  );
});
