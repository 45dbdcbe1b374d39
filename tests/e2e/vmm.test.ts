/**
 * A program in C that does what a virtual machine monitor does for a guest with a VT-d of its own: nested page tables, invalidation, page
 * requests, dirty bits, replacement, by the kernel's headers alone. One run; each test looks at its part.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, type TestContext, test } from 'node:test';
import { needs, type Outcome, provided, runInBox, tree } from '../support/box.ts';

needs('cc', 'uapi');

const TESTDEV = '0000:01:00.0';
const WALKER = '0000:02:00.0';
const machine = {
  name: 'vmm',
  iommu: { units: [{ name: 'dmar0', preset: 'nested-sm' }] },
  functions: [
    { at: '00:00.0', model: 'host-bridge' },
    { at: '00:01.0', model: 'root-port', secondary: 1 },
    { at: '01:00.0', model: 'testdev', driver: 'vfio-pci', options: { pasid: true } },
    { at: '00:02.0', model: 'root-port', secondary: 2 },
    { at: '02:00.0', model: 'pasid-walker', driver: 'vfio-pci' },
  ],
};

let folder: string | undefined;
let running: Promise<Outcome> | undefined;

after(() => {
  if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
});

/** The one run; undefined: no compiler or no headers. */
async function outcome(t: TestContext): Promise<Outcome | undefined> {
  if (provided(t, 'cc') === undefined) return undefined;
  const uapi = provided(t, 'uapi');
  if (uapi === undefined) return undefined;
  running ??= compileAndRun(uapi);
  return await running;
}

function compileAndRun(uapi: string): Promise<Outcome> {
  folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
  const program = join(folder, 'vmm');
  const source = join(tree, 'tests/e2e/vmm.c');
  const include = join(uapi, 'usr/include');
  const cc = spawnSync(
    process.env['CC'] ?? 'cc',
    ['-O1', '-Wall', '-pthread', '-isystem', include, '-o', program, source],
    { encoding: 'utf8' },
  );
  assert.equal(cc.status, 0, cc.stderr);
  const host = join(folder, 'host.json');
  writeFileSync(host, JSON.stringify(machine));
  return runInBox([program, TESTDEV, WALKER], { host, timeout: 90_000 });
}

const parts: [step: string, title: string][] = [
  [
    'hardware',
    'GET_HW_INFO tells the unit’s registers; a virtual VT-d is refused, as in Linux, and the monitor goes on without',
  ],
  [
    'both-stages',
    'DMA by requester ID and by PASID through a guest’s table lands in the guest’s memory and nowhere else',
  ],
  ['stale', 'F-25: what a guest changed counts after HWPT_INVALIDATE, for the unit and for a device’s TLB'],
  ['bad-entries', 'F-26: an invalidation ends at its first bad entry, and what came before it is done'],
  [
    'astray',
    'a guest’s table that leads out of the guest’s memory is the device’s fault; memory that is unmapped is gone from both stages',
  ],
  [
    'requests',
    'F-31 F-33: a device’s page request goes through the monitor to the guest and back; the device goes on, or gives up',
  ],
  ['unanswered', 'F-32: detach, replacement and close answer what nobody answered, and a late answer is refused'],
  [
    'migration',
    'F-41 F-42: pages that devices wrote through both stages show in the parent’s bitmap, NO_CLEAR keeps them',
  ],
  ['replaced', 'F-23: 600 replacements of tables by requester ID and PASID, and no DMA fails meanwhile'],
  ['killed', 'a monitor that is killed with requests and DMA under way leaves nothing'],
];

for (const [step, title] of parts) {
  test(title, { timeout: 120_000 }, async (t) => {
    const result = await outcome(t);
    if (result === undefined) return;
    const lines = result.stdout.split('\n').filter((line) => line.startsWith(`${step}: `));
    assert.deepEqual(lines, [`${step}: ok`], result.story);
    if (step !== 'replaced') return;
    t.diagnostic(/^.* during 600 replacements$/m.exec(result.stdout)?.[0] ?? 'no count');
  });
}

test('nothing of the monitor is left in the box after any part', { timeout: 120_000 }, async (t) => {
  const result = await outcome(t);
  if (result === undefined) return;
  assert.equal(result.status, 0, result.story);
  assert.match(result.stdout, /^0 wrong$/m);
});
