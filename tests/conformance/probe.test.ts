/**
 * The recorded kernel as judge: each suite of vfio-probe, call by call, against what Linux 7.2 answered.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { needs, provided } from '../support/box.ts';
import { type Comparison, judge, probe, SUITES } from './probe.ts';

needs('cc', 'uapi');

let verdicts: Promise<Map<string, Comparison>> | undefined;

for (const suite of SUITES) {
  test(`${suite}: the box answers each call as the kernel did`, { timeout: 300_000 }, async (t) => {
    if (provided(t, 'cc') === undefined || provided(t, 'uapi') === undefined) return;
    verdicts ??= judge(probe(), SUITES);
    const verdict = (await verdicts).get(suite)!;
    t.diagnostic(`${suite}: ${verdict.calls} calls, ${verdict.differences.length} differ`);
    assert.ok(verdict.calls > 0);
    assert.deepEqual(verdict.differences, []);
  });
}
