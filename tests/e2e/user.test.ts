/** An ordinary user: no root, no capability, only the nodes of his own box. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { boxed, needs, provided, run, scratch, tree } from '../support/box.ts';

needs('cc');

const NOBODY = [
  'setpriv',
  '--reuid',
  '65534',
  '--regid',
  '65534',
  '--clear-groups',
  '--bounding-set=-all',
  '--inh-caps=-all',
];

for (const sysfs of ['auto', 'rewrite']) {
  test(`C-56: nothing needs root (--sysfs ${sysfs})`, { timeout: 60_000 }, async (t) => {
    if (provided(t, 'cc') === undefined) return;
    const isRoot = process.getuid?.() === 0;
    const folder = scratch(t);
    chmodSync(folder, 0o777);
    const program = join(folder, 'first-program');
    const cc = spawnSync(process.env['CC'] ?? 'cc', ['-o', program, join(tree, 'examples/first-program.c')]);
    assert.equal(cc.status, 0, String(cc.stderr));
    const command = [
      process.execPath,
      ...boxed(['sh', '-c', `id -u; grep CapEff /proc/self/status; ${program}`], { options: ['--sysfs', sysfs] }),
    ];
    const user = isRoot ? NOBODY : [];
    if (
      isRoot &&
      spawnSync(user[0]!, [
        ...user.slice(1),
        process.execPath,
        '-e',
        `require('fs').accessSync(${JSON.stringify(join(tree, 'bin/vfiobox'))})`,
      ]).status !== 0
    ) {
      t.skip('the tree or node cannot be read by another user; run the tests from a folder that all may read');
      return;
    }
    const outcome = await run([...user, ...command], { env: { TMPDIR: folder, HOME: folder } });
    assert.equal(outcome.status, 0, outcome.story);
    const [uid, capabilities] = outcome.stdout.split('\n');
    assert.notEqual(uid, '0');
    assert.match(capabilities!, /CapEff:\s+0000000000000000/);
    assert.match(outcome.stdout, /carried by a device, through an IOMMU/);
  });
}

test('a machine without a compiler is told what is missing and what to do', async (t) => {
  const folder = scratch(t);
  for (const name of ['scripts', 'native']) mkdirSync(join(folder, name));
  copyFileSync(join(tree, 'scripts/build-native.mjs'), join(folder, 'scripts/build-native.mjs'));
  copyFileSync(join(tree, 'native/box.h'), join(folder, 'native/box.h'));
  const outcome = await run([process.execPath, join(folder, 'scripts/build-native.mjs')], {
    env: { PATH: folder, CC: undefined },
  });
  assert.equal(outcome.status, 0, outcome.story);
  assert.match(outcome.stdout + outcome.stderr, /compiler/);
  assert.match(outcome.stdout + outcome.stderr, /apt-get install gcc/);
});

test('G-33: another user gets EACCES, at the node and at files of sysfs, until the node is given to him; then he needs nothing else', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  if (process.getuid?.() !== 0) {
    t.diagnostic('SKIPPED: only root can start programs as another user');
    return t.skip('only root can start programs as another user');
  }
  const folder = scratch(t);
  chmodSync(folder, 0o777);
  const program = join(folder, 'first-program');
  const cc = spawnSync(process.env['CC'] ?? 'cc', ['-o', program, join(tree, 'examples/first-program.c')]);
  assert.equal(cc.status, 0, String(cc.stderr));
  if (spawnSync(NOBODY[0]!, [...NOBODY.slice(1), 'test', '-r', join(tree, 'build/libvfiobox.so')]).status !== 0) {
    return t.skip('the tree cannot be read by another user; run the tests from a folder that all may read');
  }
  const device = '/sys/bus/pci/devices/0000:00:04.0';
  const script = `
    node=/dev/vfio/$(basename "$(readlink ${device}/iommu_group)")
    other="${NOBODY.join(' ')}"
    $other ${program} 2>&1 | grep -c 'Permission denied'
    $other test -r $node; echo $?
    $other sh -c 'echo vfio-pci >${device}/driver_override'; echo $?
    $other cat ${device}/driver_override
    $other head -c 0 /dev/vfio/vfio; echo $?
    chown 65534 $node; stat -c '%u %a' $node
    $other test -w $node; echo $?
    $other ${program} | grep -c 'carried by a device'
    chown 0 $node; chmod 660 $node; chgrp 65534 $node
    $other ${program} | grep -c 'carried by a device'
    chmod 640 $node; $other ${program} 2>&1 | grep -c 'Permission denied'
    exec ${program} | grep -c 'carried by a device'`;
  for (const sysfs of ['auto', 'rewrite']) {
    const outcome = await run(boxed(['sh', '-c', script], { options: ['--sysfs', sysfs, '--check-left'] }), {
      env: { TMPDIR: folder },
    });
    assert.equal(outcome.status, 0, outcome.story);
    assert.deepEqual(
      outcome.stdout.trim().split('\n'),
      ['1', '1', '2', 'vfio-pci', '0', '65534 600', '0', '1', '1', '1', '1'],
      outcome.story,
    );
  }
});
