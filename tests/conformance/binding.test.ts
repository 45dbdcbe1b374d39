/**
 * The files by which drivers are bound, functions removed and virtual functions made: one script on a real Linux 7.2 (in a virtual
 * machine with QEMU's edu and igb) and in the box (edu, testdev). Every line must be the same.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';
import { bootGuest, compileGuestProgram } from '../support/guest/boot.ts';

needs('guest', 'cc');

const script = join(tree, 'tests/support/guest/binding.sh');
const EDU = '0000:00:04.0';
const PF = '0000:01:00.0';

const machine = {
  name: 'binding',
  iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
  functions: [
    { at: '00:00.0', model: 'host-bridge' },
    { at: '00:04.0', model: 'edu' },
    { at: '00:05.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
    { at: '01:00.0', model: 'testdev', options: { totalVfs: 7 } },
  ],
};

test('drivers, removal and virtual functions by sysfs: what a real kernel says, line by line', {
  timeout: 240_000,
}, async (t) => {
  const guest = provided(t, 'guest');
  if (guest === undefined || provided(t, 'cc') === undefined) return;
  const folder = scratch(t);
  const hold = compileGuestProgram('hold', folder);
  const start = join(folder, 'start');
  writeFileSync(start, `#!/bin/busybox sh\nmkdir -p /tmp\nexec sh /t/binding.sh ${EDU} ${PF} /t/hold 2>&1\n`, {
    mode: 0o755,
  });
  const real = await bootGuest({
    guest,
    scratch: folder,
    test: start,
    files: { 't/binding.sh': script, 't/hold': hold },
    modules: ['vfio_iommu_type1', 'vfio-pci'],
    iommu: true,
    devices: ['-device', 'edu,addr=4', '-device', 'pcie-root-port,id=rp,addr=5', '-device', 'igb,bus=rp'],
    timeout: 180_000,
  });
  const lines = (output: readonly string[]): string[] =>
    output.filter((line) => /^[a-z0-9_-]+: |^writer/i.test(line) && !/^guest|^tsc|^clocksource/.test(line));
  t.diagnostic(`${real.milliseconds} ms on a real kernel`);
  const host = join(folder, 'host.json');
  writeFileSync(host, JSON.stringify(machine));
  const dynamic = join(folder, 'hold-dynamic');
  const cc = spawnSync('cc', ['-o', dynamic, join(tree, 'tests/support/guest/hold.c')]);
  assert.equal(cc.status, 0, String(cc.stderr));
  const boxed = await runInBox(['bash', script, EDU, PF, dynamic], {
    host,
    timeout: 60_000,
    options: ['--check-left'],
  });
  assert.deepEqual(lines(boxed.stdout.split('\n')), lines(real.console), `${real.story}\n${boxed.story}`);
  assert.equal(real.testStatus, 0, real.story);
});
