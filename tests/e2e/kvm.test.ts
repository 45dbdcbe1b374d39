/** A program with the virtual machine's side of VFIO, on the /dev/kvm that the box provides when its host file says so. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('cc', 'uapi');

const host = {
  name: 'kvm',
  iommu: { units: [{ name: 'dmar0', preset: 'nested-sm' }] },
  functions: [
    { at: '00:00.0', model: 'host-bridge' },
    { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
    { at: '01:00.0', model: 'testdev', driver: 'vfio-pci', group: 3 },
  ],
  options: { kvm: true },
};

test('K-1 K-2 K-3 K-4 K-5: an unmodified program on the box’s own /dev/kvm', { timeout: 60_000 }, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const headers = provided(t, 'uapi');
  if (headers === undefined) return;
  const folder = scratch(t);
  const program = join(folder, 'kvm');
  const include = join(headers, 'usr/include');
  const cc = spawnSync(
    process.env['CC'] ?? 'cc',
    ['-isystem', include, '-isystem', join(include, 'x86_64-linux-gnu'), '-o', program, join(tree, 'tests/e2e/kvm.c')],
    { encoding: 'utf8' },
  );
  assert.equal(cc.status, 0, cc.stderr);
  const file = join(folder, 'kvm.json');
  writeFileSync(file, JSON.stringify(host));
  const check =
    'for i in pins maps objects files irqs bypasses vms; do test $(cat /sys/module/vfiobox/counters/$i) = 0 || echo "$i is left"; done';
  const outcome = await runInBox(
    ['sh', '-c', `${program} 0000:01:00.0 /dev/vfio/3 /dev/vfio/devices/vfio0 && sleep 0.3 && ${check}`],
    { host: file, options: ['--explain'] },
  );
  assert.equal(outcome.status, 0, outcome.story);
  assert.match(outcome.stdout, /^48 checks, 0 wrong\n$/, outcome.story);
  assert.match(outcome.stderr, /KVM_CREATE_DEVICE, 0x[0-9a-f]+\) = -1 EBUSY: .* has its VFIO device already/);
  assert.match(outcome.stderr, /KVM_SET_DEVICE_ATTR.* = -1 EEXIST: \/dev\/vfio\/3 was added already/);
  t.diagnostic(outcome.stdout.trim());
});

test('without the option /dev/kvm is the system’s, whatever that is', { timeout: 60_000 }, async () => {
  const plain = spawnSync('sh', ['-c', 'test -e /dev/kvm; echo $?'], { encoding: 'utf8' }).stdout;
  const outcome = await runInBox(['sh', '-c', 'test -e /dev/kvm; echo $?']);
  assert.equal(outcome.stdout, plain, outcome.story);
});
