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
