/**
 * A program in C that does what a virtual machine monitor does for a guest with a VT-d of its own: nested page tables, invalidation, page
 * requests, dirty bits, replacement, by the kernel's headers alone. One run with virtual IOMMUs and one without; each test looks at its
 * part of both.
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
/** Behind another unit. */
const OTHER = '0000:03:00.0';
const port = { model: 'root-port' };
const testdev = { model: 'testdev', driver: 'vfio-pci', options: { pasid: true } };
const machine = {
  name: 'vmm',
  iommu: {
    units: [
      { name: 'dmar1', preset: 'nested-sm', functions: ['00:03.0', '03:00.0'] },
      { name: 'dmar0', preset: 'nested-sm' },
    ],
  },
  functions: [
    { at: '00:00.0', model: 'host-bridge' },
    { ...port, at: '00:01.0', secondary: 1 },
    { ...testdev, at: '01:00.0' },
    { ...port, at: '00:02.0', secondary: 2 },
    { at: '02:00.0', model: 'pasid-walker', driver: 'vfio-pci' },
    { ...port, at: '00:03.0', secondary: 3 },
    { ...testdev, at: '03:00.0' },
  ],
};

/** As Linux is, or with virtual IOMMUs of the box's own type. */
type Mode = 'without' | 'with';

let folder: string | undefined;
const running = new Map<Mode, Promise<Outcome>>();

after(() => {
  if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
});

/** The one run of a mode; undefined: no compiler or no headers. */
async function outcome(t: TestContext, mode: Mode): Promise<Outcome | undefined> {
  if (provided(t, 'cc') === undefined) return undefined;
  const uapi = provided(t, 'uapi');
  if (uapi === undefined) return undefined;
  folder ??= compile(uapi);
  const known = running.get(mode) ?? runIn(folder, mode);
  running.set(mode, known);
  return await known;
}

function compile(uapi: string): string {
  const made = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
  const source = join(tree, 'tests/e2e/vmm.c');
  const options = ['-O1', '-Wall', '-pthread', '-isystem', join(uapi, 'usr/include'), '-o', join(made, 'vmm')];
  const cc = spawnSync(process.env['CC'] ?? 'cc', [...options, source], { encoding: 'utf8' });
  assert.equal(cc.status, 0, cc.stderr);
  return made;
}

function runIn(where: string, mode: Mode): Promise<Outcome> {
  const host = join(where, `${mode}.json`);
  writeFileSync(host, JSON.stringify(mode === 'with' ? { ...machine, iommufd: { vtdViommu: true } } : machine));
  return runInBox([join(where, 'vmm'), TESTDEV, WALKER, OTHER, mode], { host, timeout: 90_000 });
}

const patience = { timeout: 120_000 };

/** Looks at one step of both runs. */
async function passes(t: TestContext, step: string): Promise<void> {
  for (const mode of ['without', 'with'] as const) {
    const result = await outcome(t, mode);
    if (result === undefined) return;
    const lines = result.stdout.split('\n').filter((line) => line.startsWith(`${step}: `));
    assert.deepEqual(lines, [`${step}: ok`], `${mode} virtual IOMMUs: ${result.story}`);
    if (step === 'replaced') t.diagnostic(/^.* during 600 replacements$/m.exec(result.stdout)?.[0] ?? 'no count');
  }
}

test('GET_HW_INFO tells the unit’s registers; virtual IOMMUs of another vendor are refused', patience, (t) =>
  passes(t, 'hardware'),
);

test(
  'DMA by requester ID and by PASID through a guest’s table lands in the guest’s memory and nowhere else',
  patience,
  (t) => passes(t, 'both-stages'),
);

test('F-25: what a guest changed counts after HWPT_INVALIDATE, for the unit and for a device’s TLB', patience, (t) =>
  passes(t, 'stale'),
);

test('F-26: an invalidation ends at its first bad entry, and what came before it is done', patience, (t) =>
  passes(t, 'bad-entries'),
);

test(
  'a guest’s table that leads out of the guest’s memory is the device’s fault; memory that is unmapped is gone from both stages',
  patience,
  (t) => passes(t, 'astray'),
);

test(
  'F-31 F-33: a device’s page request goes through the monitor to the guest and back; the device goes on, or gives up',
  patience,
  (t) => passes(t, 'requests'),
);

test('F-32: detach, replacement and close answer what nobody answered, and a late answer is refused', patience, (t) =>
  passes(t, 'unanswered'),
);

test(
  'F-41 F-42: pages that devices wrote through both stages show in the parent’s bitmap, NO_CLEAR keeps them',
  patience,
  (t) => passes(t, 'migration'),
);

test('F-23: 600 replacements of tables by requester ID and PASID, and no DMA fails meanwhile', patience, (t) =>
  passes(t, 'replaced'),
);

test(
  'a virtual VT-d is refused, as in Linux; where the host has them, it knows devices by the guest’s numbers and those of its unit alone',
  patience,
  (t) => passes(t, 'virtual-iommu'),
);

test('a monitor that is killed with requests and DMA under way leaves nothing', patience, (t) => passes(t, 'killed'));

test('nothing of the monitor is left in the box after any part', patience, async (t) => {
  for (const mode of ['without', 'with'] as const) {
    const result = await outcome(t, mode);
    if (result === undefined) return;
    assert.equal(result.status, 0, result.story);
    assert.match(result.stdout, /^0 wrong$/m);
  }
});
