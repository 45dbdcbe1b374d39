/** A program of C in a box carries a device's state to another by VFIO's migration. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('cc');

test('R-15 R-16: pre-copy and stop-copy from one device into another, by descriptors of a program', async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const folder = scratch(t);
  const program = join(folder, 'migrate');
  const cc = spawnSync(process.env['CC'] ?? 'cc', ['-w', '-o', program, join(tree, 'tests/e2e/migrate.c')], {
    encoding: 'utf8',
  });
  assert.equal(cc.status, 0, cc.stderr);
  const host = join(folder, 'host.json');
  const card = { model: 'testdev', driver: 'vfio-pci', options: { migration: 'all' } };
  const port = { model: 'root-port' };
  writeFileSync(
    host,
    JSON.stringify({
      name: 'migration',
      iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
      functions: [
        { ...port, at: '00:01.0', secondary: 1 },
        { ...card, at: '01:00.0', group: 11 },
        { ...port, at: '00:02.0', secondary: 2 },
        { ...card, at: '02:00.0', group: 12 },
      ],
    }),
  );
  const outcome = await runInBox([program, '0000:01:00.0', '/dev/vfio/11', '0000:02:00.0', '/dev/vfio/12'], { host });
  assert.equal(outcome.status, 0, outcome.story);
  assert.match(outcome.stdout, /^carried \d+ and \d+ bytes\n$/);
  t.diagnostic(outcome.stdout.trim());
});
