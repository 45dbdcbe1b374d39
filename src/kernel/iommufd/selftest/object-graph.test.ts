import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runGraph } from './test-object-graph.ts';

test('F-5 F-6: objects in any order, from several processes, with failures: counts hold, numbers do not dangle, nothing is left', () => {
  const { steps, injected, done, refusals } = runGraph(6, 3000);
  assert.equal(steps, 3000);
  assert.ok(injected > 20, `${injected} failures were ordered`);
  assert.ok(done.size > 30, [...done].join(' '));
  assert.ok(refusals.size > 8, [...refusals].join(' '));
});
