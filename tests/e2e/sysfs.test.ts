/** Shell loops over sysfs and /dev/vfio, as in every text on VFIO, in more than one shell. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { runInBox, scratch, tree } from '../support/box.ts';
import { EDU, EDU_GROUP, functions, HOST } from './machine.ts';

const wanted = functions.map(({ address, ids, driver, group }) => {
  const [vendor, device] = ids.split(':');
  return `${group} ${address} 0x${vendor}:0x${device} ${driver}`;
});
const viable = [...new Set(functions.filter(({ driver }) => driver === 'vfio-pci').map(({ group }) => group))];

// Both ways by which programs see the box's sysfs.
for (const [shell, mode] of [
  ['sh', 'auto'],
  ['bash', 'auto'],
  ['sh', 'rewrite'],
  ['bash', 'rewrite'],
] as const) {
  test(`${shell}: the loop over groups finds every function, its group, driver and nodes (--sysfs ${mode})`, {
    timeout: 90_000,
  }, async (t) => {
    if (spawnSync(shell, ['-c', ':']).status !== 0) return t.skip(`no ${shell} here`);
    const outcome = await runInBox([shell, join(tree, 'tests/e2e/groups.sh')], {
      host: HOST,
      options: ['--sysfs', mode],
      timeout: 60_000,
    });
    assert.equal(outcome.status, 0, outcome.story);
    const lines = outcome.stdout.trim().split('\n');
    assert.deepEqual(
      lines.filter((line) => line.startsWith('WRONG')),
      [],
      outcome.story,
    );
    const found = lines.filter((line) => /^\d/.test(line));
    assert.deepEqual(found.toSorted(), wanted.toSorted(), outcome.story);
    const nodes = lines.filter((line) => line.startsWith('node ')).map((line) => Number(line.split('/').at(-1)));
    assert.deepEqual(
      nodes.filter((node) => viable.includes(node)).toSorted((a, b) => a - b),
      viable.toSorted((a, b) => a - b),
      outcome.story,
    );
    const cdevs = lines.filter((line) => line.startsWith('cdev ')).map((line) => line.split(' ')[1]);
    assert.deepEqual(
      cdevs,
      functions.filter(({ driver }) => driver === 'vfio-pci').map(({ address }) => address),
      outcome.story,
    );
    t.diagnostic(`${found.length} functions, ${nodes.length} group nodes, ${cdevs.length} device nodes`);
  });
}

test('the steps of the usage example by shell: group link, its members, the node', { timeout: 60_000 }, async () => {
  const script = `
    readlink /sys/bus/pci/devices/${EDU}/iommu_group
    ls /sys/bus/pci/devices/${EDU}/iommu_group/devices
    ls -l /dev/vfio/${EDU_GROUP} /dev/vfio/vfio | cut -c1
    stat -c '%F %t' /dev/vfio/${EDU_GROUP}
    cat /sys/bus/pci/devices/${EDU}/{vendor,device,class}
    ls /sys/bus/pci/drivers/vfio-pci | grep :
    dd if=/sys/bus/pci/devices/${EDU}/config bs=4 count=1 status=none | od -An -tx2
    basename $(readlink -f /sys/bus/pci/devices/${EDU}/driver)`;
  const outcome = await runInBox(['bash', '-c', script], { host: HOST, timeout: 30_000 });
  assert.equal(outcome.status, 0, outcome.story);
  const bound = functions.filter(({ driver }) => driver === 'vfio-pci').map(({ address }) => address);
  const lines = outcome.stdout.trim().split('\n');
  assert.match(lines[0]!, new RegExp(`^(\\.\\./)+kernel/iommu_groups/${EDU_GROUP}$`), outcome.story);
  assert.equal(lines[1], EDU, outcome.story);
  assert.deepEqual(lines.slice(2, 4), ['c', 'c'], outcome.story);
  assert.match(lines[4]!, /^character special file /, outcome.story);
  assert.deepEqual(lines.slice(5, 8), ['0x1234', '0x11e8', '0x00ff00'], outcome.story);
  assert.deepEqual(lines.slice(8, 8 + bound.length), bound, outcome.story);
  assert.deepEqual(
    lines.slice(8 + bound.length).map((line) => line.trim()),
    ['1234 11e8', 'vfio-pci'],
    outcome.story,
  );
});

const config = `/sys/bus/pci/devices/${EDU}/config`;
const tools = [
  { what: 'od, which reads through stdio', script: `od -An -tx2 -N4 ${config}`, wanted: '1234 11e8' },
  {
    what: 'od of a writable attribute',
    script: `od -An -c /sys/bus/pci/devices/${EDU}/driver_override`,
    wanted: 'v f i o - p c i \\n',
  },
  { what: 'cp, which compares stat and fstat', script: `cp ${config} "$TMP/c" && wc -c <"$TMP/c"`, wanted: '256' },
  { what: 'ls -la, which looks at the parent', script: `ls -la /dev/vfio | grep -c ' \\.\\.$'`, wanted: '1' },
];
for (const { what, script, wanted: answer } of tools) {
  test(what, { timeout: 30_000 }, async (t) => {
    const outcome = await runInBox(['sh', '-c', script], { host: HOST, timeout: 10_000, env: { TMP: scratch(t) } });
    assert.equal(outcome.timedOut, false, outcome.story);
    assert.equal(outcome.stdout.trim().replace(/\s+/g, ' '), answer, outcome.story);
    assert.equal(outcome.stderr, '', outcome.story);
  });
}
