/** What --explain says: the reason of each refused call and of each refused DMA. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('cc');

test('--explain names who was refused, by which entry, and which mapping lies there', async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const folder = scratch(t);
  const program = join(folder, 'fault');
  const trace = join(folder, 'trace.jsonl');
  const cc = spawnSync(process.env['CC'] ?? 'cc', ['-w', '-o', program, join(tree, 'tests/e2e/fault.c')], {
    encoding: 'utf8',
  });
  assert.equal(cc.status, 0, cc.stderr);
  const outcome = await runInBox([program, '0000:00:04.0', '/dev/vfio/4'], {
    options: ['--explain', '--trace', trace],
  });
  assert.equal(outcome.status, 0, outcome.story);
  const lines = outcome.stderr.split('\n');
  assert.match(
    lines[0]!,
    /^vfiobox: DMA read of 0000:00:04\.0 at 0x123000 refused: .*not present at level \d.*; the nearest mapping is 0x200000-0x200fff$/,
  );
  assert.match(
    lines[1]!,
    /at 0x200010 refused: no read permission: .*leaf at level 0.*; it lies in the mapping 0x200000-0x200fff \(write only\)$/,
  );
  assert.match(lines[2]!, /at 0x200010 refused: bus master is off/);
  assert.match(lines[3]!, /VFIO_IOMMU_MAP_DMA.* = -1 EEXIST: 0x200000-0x200fff overlaps the mapping 0x200000-0x200fff/);
  const events = readFileSync(trace, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { e: string });
  for (const name of ['call', 'iommu:map', 'iommu:io_page_fault', 'pci:dma_refused']) {
    assert.ok(
      events.some(({ e }) => e === name),
      `no ${name} in the trace`,
    );
  }
});
