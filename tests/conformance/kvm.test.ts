/**
 * A real KVM as judge of the box's: the same program asks both, answer by answer. Where there is no KVM, the answers that Linux 6.18
 * gave are in kvm-probe.txt.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('cc', 'uapi');

/** What a program has when KVM cannot be used. */
const NO_KVM = 3;

test('the box’s /dev/kvm answers like a real one', { timeout: 60_000 }, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const headers = provided(t, 'uapi');
  if (headers === undefined) return;
  const folder = scratch(t);
  const program = join(folder, 'kvm-probe');
  const include = ['usr/include', 'usr/include/x86_64-linux-gnu'].flatMap((path) => ['-isystem', join(headers, path)]);
  const source = join(tree, 'tests/conformance/kvm-probe.c');
  const cc = spawnSync(process.env['CC'] ?? 'cc', ['-D_GNU_SOURCE', ...include, '-o', program, source], {
    encoding: 'utf8',
  });
  assert.equal(cc.status, 0, cc.stderr);
  const recorded = readFileSync(join(tree, 'tests/conformance/kvm-probe.txt'), 'utf8');
  const real = spawnSync(program, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], timeout: 20_000 });
  if (real.status !== 0) assert.equal(real.status, NO_KVM);
  // Another kernel may know more; the recorded one is the judge.
  const lines = recorded.split('\n');
  const others = real.status === 0 ? real.stdout.split('\n').filter((line, i) => line !== lines[i]) : [];
  for (const line of others) t.diagnostic(`this machine's KVM says otherwise: ${line}`);
  const host = join(folder, 'kvm.json');
  writeFileSync(
    host,
    JSON.stringify({
      name: 'kvm',
      iommu: { units: [{ name: 'dmar0', preset: 'nested-sm' }] },
      functions: [{ at: '00:00.0', model: 'host-bridge' }],
      options: { kvm: true },
    }),
  );
  const box = await runInBox([program], { host });
  assert.equal(box.status, 0, box.story);
  assert.deepEqual(box.stdout.split('\n'), lines);
  const kernel = real.status === 0 ? 'this machine’s KVM and the recorded one' : 'the recorded KVM';
  t.diagnostic(`${lines.length - 1} answers compared with ${kernel}`);
});
