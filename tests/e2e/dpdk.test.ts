/**
 * A DPDK program with a driver of its own probes the box's edu: EAL scans sysfs, opens group and container (type1 v1), maps its memory
 * and the card's BAR, which the box traps, and hands over interrupts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';
import { EDU, HOST } from './machine.ts';

needs('dpdk', 'cc');

function compile(t: TestContext, dpdk: string): string {
  const target = join(scratch(t), 'dpdk-probe');
  const flags = (name: string) => readFileSync(join(dpdk, name), 'utf8').trim().split(' ');
  const source = join(tree, 'tests/e2e/dpdk-probe.c');
  const command = ['-O1', '-Wall', '-Werror', ...flags('cflags'), source, '-o', target, ...flags('ldflags')];
  const cc = spawnSync('cc', command, { encoding: 'utf8' });
  assert.equal(cc.status, 0, `cc ${source}: ${cc.error?.message ?? cc.stderr}`);
  return target;
}

test('DPDK probes edu: registers through the mapped BAR, DMA both ways, MSI', { timeout: 120_000 }, async (t) => {
  const dpdk = provided(t, 'dpdk');
  if (dpdk === undefined || provided(t, 'cc') === undefined) return;
  const program = compile(t, dpdk);
  const eal = [
    '--no-huge',
    '-m',
    '64',
    '--iova-mode=va',
    '--no-shconf',
    '--no-telemetry',
    '--vfio-intr=msi',
    '-l',
    '0',
    '-a',
    EDU,
  ];
  const outcome = await runInBox([program, ...eal], {
    host: HOST,
    timeout: 60_000,
    env: { XDG_RUNTIME_DIR: scratch(t) },
  });
  assert.equal(outcome.timedOut, false, outcome.story);
  assert.equal(outcome.status, 0, outcome.story);
  const sum = outcome.stdout.trim().split('\n').at(-1);
  assert.equal(sum, '25 checks, 0 wrong', outcome.story);
  assert.match(outcome.stdout + outcome.stderr, /EAL: Using IOMMU type 1 \(Type 1\)/, outcome.story);
  t.diagnostic(`${sum}, ${outcome.milliseconds} ms`);
});
