/** A Python program with no modules but its own goes through VFIO's two ways: registers, DMA, MSI and INTx by eventfd, refusals. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, tree } from '../support/box.ts';
import { EDU, HOST } from './machine.ts';

needs('python');

const program = join(tree, 'tests/e2e/edu_vfio.py');

const ways = [
  { way: 'group', host: HOST, device: EDU, what: 'group and container' },
  { way: 'cdev', host: HOST, device: EDU, what: 'device node and iommufd' },
  { way: 'group', host: 'default', device: undefined, what: 'group and container, on the preset default' },
  { way: 'cdev', host: 'default', device: undefined, what: 'device node and iommufd, on the preset default' },
  {
    way: 'group',
    host: HOST,
    device: EDU,
    what: 'group and container, paths rewritten',
    options: ['--sysfs', 'rewrite'],
  },
  {
    way: 'cdev',
    host: HOST,
    device: EDU,
    what: 'device node and iommufd, paths rewritten',
    options: ['--sysfs', 'rewrite'],
  },
];

for (const { way, host, device, what, options = [] } of ways) {
  test(`Python by ${what}`, { timeout: 90_000 }, async (t) => {
    if (provided(t, 'python') === undefined) return;
    const command = ['python3', program, way, ...(device === undefined ? [] : [device])];
    const outcome = await runInBox(command, { host, options, timeout: 60_000 });
    assert.equal(outcome.timedOut, false, outcome.story);
    assert.equal(outcome.status, 0, outcome.story);
    const lines = outcome.stdout.trim().split('\n');
    assert.equal(lines.at(-1), '0 wrong', outcome.story);
    assert.ok(lines.length > 45, outcome.story);
    t.diagnostic(`${lines.length - 1} checks hold`);
  });
}
