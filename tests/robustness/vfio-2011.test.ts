/** The core of 2011 beside a model: 20,000 random steps of several programs and an administrator, everything compared after each. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { live } from '../../src/kernel/vfio-2011/test-life.ts';

const SEEDS = 20;
const STEPS = 1000;

test('C-11 C-13 C-14 C-15 C-16 C-18 C-19 G-41 G-44: 20,000 steps as the model says', { timeout: 120_000 }, (t) => {
  const done = new Map<string, number>();
  for (let seed = 1; seed <= SEEDS; seed++) {
    for (const [what, count] of live(0x2011 * seed, STEPS)) done.set(what, (done.get(what) ?? 0) + count);
  }
  const happened = [...done].sort(([a], [b]) => (a < b ? -1 : 1)).map(([what, count]) => `${what} ${count}`);
  t.diagnostic(`${SEEDS * STEPS} steps: ${happened.join(', ')}`);
  const refused = [
    'device EPERM',
    'device EBUSY',
    'device ENODEV',
    'iommu EPERM',
    'iommu EBUSY',
    'merge EINVAL',
    'merge EBUSY',
  ];
  const more = ['merge EPERM', 'unmerge EBUSY', 'unmerge EINVAL', 'unmerge EPERM', 'map EBUSY', 'open ENODEV'];
  for (const what of [
    ...refused,
    ...more,
    'merge ok',
    'unmerge ok',
    'claim',
    'unbind waiting',
    'unplug waiting',
    'kill',
  ]) {
    assert.ok((done.get(what) ?? 0) > 5, `${what}: ${done.get(what) ?? 0} times`);
  }
});
