/** The first documentation of VFIO, followed: its shell loop by two shells, its program in C, on its machine. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { needs, type Outcome, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('cc');

const HOST = 'seed-2011';
const LOOP = join(tree, 'tests/e2e/vfio-2011-loop.sh');
const DRIVERS =
  'basename $(readlink /sys/bus/pci/devices/0000:06:0d.0/driver) $(readlink /sys/bus/pci/devices/0000:06:0d.1/driver)';

/** The program, compiled against our header alone. */
function compiled(t: TestContext, ...flags: string[]): string {
  return compiledFrom(t, 'vfio-2011', ...flags);
}

function compiledFrom(t: TestContext, name: string, ...flags: string[]): string {
  const folder = scratch(t);
  chmodSync(folder, 0o755);
  const program = join(folder, name);
  const cc = spawnSync(
    process.env['CC'] ?? 'cc',
    [
      '-Wall',
      '-Wextra',
      '-Werror',
      ...flags,
      '-I',
      join(tree, 'include'),
      '-o',
      program,
      join(tree, `tests/e2e/${name}.c`),
    ],
    { encoding: 'utf8' },
  );
  assert.equal(cc.status, 0, cc.stderr);
  return program;
}

const inShell = (shell: string, script: string, host = HOST): Promise<Outcome> =>
  runInBox([shell, '-c', script], { host, timeout: 30_000 });

test('G-31: the machine of the documentation: the group in a file, its node, its members by relative links', async () => {
  const outcome = await inShell(
    'sh',
    `cat /sys/bus/pci/devices/0000:06:0d.0/iommu_group
     test -L /sys/bus/pci/devices/0000:06:0d.0/iommu_group || echo a file
     ls -l /dev/vfio/pci:240
     stat -c '%F %t:%T %a' /dev/vfio/pci:240
     cat /sys/devices/virtual/vfio/pci:240/dev
     cd /sys/devices/virtual/vfio/pci:240/devices; for i in *; do echo $i $(readlink $i); readlink -f $i; done
     ls /sys/bus/pci/drivers/vfio
     ls /dev/vfio; ls /sys/kernel/iommu_groups | grep 240
     test -e /dev/vfio/vfio || echo no container
     basename $(readlink /sys/bus/pci/devices/0000:06:0d.1/driver)`,
  );
  assert.equal(outcome.status, 0, outcome.story);
  const lines = outcome.stdout.trim().split('\n');
  assert.match(lines[2]!, /^crw-rw---- 1 \S+ \S+ 252, +27 .* \/dev\/vfio\/pci:240$/);
  assert.deepEqual(lines.toSpliced(2, 1), [
    '240',
    'a file',
    'character special file fc:1b 660',
    '252:27',
    '0000:06:0d.0 ../../../../pci0000:00/0000:00:1e.0/0000:06:0d.0',
    '/sys/devices/pci0000:00/0000:00:1e.0/0000:06:0d.0',
    '0000:06:0d.1 ../../../../pci0000:00/0000:00:1e.0/0000:06:0d.1',
    '/sys/devices/pci0000:00/0000:00:1e.0/0000:06:0d.1',
    'bind',
    'new_id',
    'remove_id',
    'unbind',
    'pci:0',
    'pci:240',
    '240',
    'no container',
    'uio_pci_generic',
  ]);
});

for (const shell of ['sh', 'bash']) {
  for (const mode of ['auto', 'rewrite']) {
    test(`G-30: the loop of the documentation, by ${shell}, leaves both bound and the group viable (--sysfs ${mode})`, {
      timeout: 60_000,
    }, async (t) => {
      if (provided(t, 'cc') === undefined) return;
      if (spawnSync(shell, ['-c', ':']).status !== 0) return t.skip(`no ${shell} here`);
      const program = compiled(t);
      const loop = readFileSync(LOOP, 'utf8');
      const outcome = await runInBox([shell, '-c', `${program}; ${loop}\n${DRIVERS}; ${program}`], {
        host: HOST,
        options: ['--sysfs', mode],
        timeout: 30_000,
      });
      assert.equal(outcome.status, 0, outcome.story);
      const lines = outcome.stdout.trim().split('\n');
      assert.deepEqual(lines.slice(0, 2), ['group not viable', 'iommu Device or resource busy'], outcome.story);
      assert.ok(lines.includes('group viable'), outcome.story);
    });
  }
}

for (const [revision, flags] of [
  ['seed', []],
  ['late', ['-DVFIO_2011_LATE']],
] as const) {
  test(`C-20: the program of the documentation, its slip of the pen included, runs (revision ${revision})`, {
    timeout: 60_000,
  }, async (t) => {
    if (provided(t, 'cc') === undefined) return;
    const program = compiled(t, ...flags);
    const host = join(scratch(t), 'host.json');
    const config = JSON.parse(readFileSync(join(tree, 'hosts/seed-2011.json'), 'utf8')) as Record<string, unknown>;
    delete config['$schema'];
    writeFileSync(host, JSON.stringify({ ...config, vfio2011: { revision } }));
    const script = `. ${LOOP}; ${program} && ${program} 0000:06:0d.1 && cat /sys/module/vfiobox/counters/*`;
    const outcome = await inShell('sh', script, host);
    assert.equal(outcome.status, 0, outcome.story);
    const once = [
      'group viable',
      'iommu 0x0-0xffffffffffff, page sizes 0x40201000',
      'device flags 3, 8 regions, 3 interrupts',
      'region 0: 0x100000 bytes, flags 1',
      'region 7: 0x100 bytes, flags 0',
      ...(revision === 'seed'
        ? ['interrupts 0: 1, flags 1', 'interrupts 1: 1, flags 0', 'interrupts 2: 0, flags 0']
        : ['interrupts 0: 1, flags 7', 'interrupts 1: 1, flags 9', 'interrupts 2: 0, flags 9']),
      'reset',
      'registers 0x010000ed',
      'interrupts came',
      'memory "by DMA, in 2011"',
      'unmapped page ""',
    ];
    const lines = outcome.stdout.trim().split('\n');
    assert.deepEqual(lines.slice(0, 2 * once.length), [...once, ...once], outcome.story);
    const counters = lines.slice(2 * once.length);
    assert.ok(counters.length >= 5 && counters.every((count) => count === '0'), outcome.story);
  });
}

test('G-33: another user gets EACCES until chown gives him the node, then all of the group', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  if (process.getuid?.() !== 0) return t.skip('only root can become another user');
  const others = statSync(join(tree, 'build/libvfiobox.so'), { throwIfNoEntry: false })?.mode ?? 0;
  if ((others & 4) === 0 || spawnSync('setpriv', ['--reuid', '65534', 'test', '-r', LOOP]).status !== 0) {
    return t.skip('the tree cannot be read by another user; run the tests from a folder that all may read');
  }
  const program = compiled(t);
  const nobody = `setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all --inh-caps=-all ${program}`;
  const outcome = await inShell(
    'sh',
    `. ${LOOP} 2>/dev/null; ${nobody}; chown 65534:65534 /dev/vfio/pci:240; ${nobody}`,
  );
  assert.equal(outcome.status, 0, outcome.story);
  const lines = outcome.stdout.trim().split('\n');
  assert.equal(lines[0], 'open of the group: Permission denied', outcome.story);
  assert.equal(lines[1], 'group viable', outcome.story);
  assert.ok(lines.includes('memory "by DMA, in 2011"'), outcome.story);
});

for (const shell of ['sh', 'bash']) {
  test(`G-44 G-46: echo to unbind by ${shell} waits for a program and ends when it lets go`, {
    timeout: 60_000,
  }, async (t) => {
    if (provided(t, 'cc') === undefined) return;
    if (spawnSync(shell, ['-c', ':']).status !== 0) return t.skip(`no ${shell} here`);
    const hold = compiledFrom(t, 'vfio-2011-hold');
    const fifo = join(scratch(t), 'fifo');
    const script = `. ${LOOP} 2>/dev/null
      mkfifo ${fifo}; ${hold} 0000:06:0d.0 < ${fifo} > ${fifo}.out & exec 9> ${fifo}
      until grep -q held ${fifo}.out; do sleep 0.05; done
      (echo 0000:06:0d.1 > /sys/bus/pci/drivers/vfio/unbind; echo unbound) > ${fifo}.log 9>&- & waiter=$!
      sleep 0.3; cat ${fifo}.log; echo still waiting
      exec 9>&-; wait $waiter; cat ${fifo}.log
      ls /sys/bus/pci/drivers/vfio | grep -c :`;
    const outcome = await inShell(shell, script);
    assert.equal(outcome.status, 0, outcome.story);
    assert.deepEqual(outcome.stdout.trim().split('\n'), ['still waiting', 'unbound', '1'], outcome.story);
  });
}

test('C-54: a program of 2011 that is killed leaves nothing, and the next one has the group', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const hold = compiledFrom(t, 'vfio-2011-hold');
  const program = compiled(t);
  const out = join(scratch(t), 'out');
  const script = `. ${LOOP} 2>/dev/null
    sleep 20 | ${hold} > ${out} & until grep -q held ${out}; do sleep 0.05; done
    kill -9 $!; wait $! 2>/dev/null; sleep 0.1; cat /sys/module/vfiobox/counters/* | sort -u; ${program} | head -1`;
  const outcome = await inShell('sh', script);
  assert.equal(outcome.status, 0, outcome.story);
  assert.deepEqual(outcome.stdout.trim().split('\n'), ['0', 'group viable'], outcome.story);
});
