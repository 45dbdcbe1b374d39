/** The command line: what is printed, and the exit status. Runs of programs are in tests/e2e/command-line.test.ts. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { main } from './main.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

interface Outcome {
  status: number | null;
  out: string;
  err: string;
}

/** The command in this process: what starts no program needs no more. */
async function here(...args: string[]): Promise<Outcome> {
  const outcome: Outcome = { status: null, out: '', err: '' };
  outcome.status = await main(args, {
    out: (text) => {
      outcome.out += text;
    },
    err: (text) => {
      outcome.err += text;
    },
  });
  return outcome;
}

test('host ls, groups and check show the machine', async () => {
  const { status, out } = await here('host', 'ls');
  assert.equal(status, 0);
  assert.match(out, /^00:04\.0 Unclassified device: 1234:11e8 \(rev 10\) +edu +vfio-pci +group \d+$/m);
  const groups = (await here('host', 'groups', '--host', 'kernel-golden')).out;
  assert.match(groups, /^group 3\n {2}00:04\.0 .*vfio-pci\n {4}own$/m);
  assert.match((await here('host', 'check')).out, /^'default' is good: 14 functions/);
});

test('a wrong host file: where, and what was expected; an unknown preset: which there are', async () => {
  const path = join(folder, 'bad.json');
  writeFileSync(path, JSON.stringify({ name: 'x', iommu: { units: [] }, functions: [{ at: '4.0', model: 'edu' }] }));
  const bad = await here('host', 'check', '--host', path);
  assert.equal(bad.status, 125);
  assert.match(
    bad.err,
    /^vfiobox: .*bad\.json: at functions\[0\]\.at: expected an address such as "00:04\.0"[^\n]*\n$/,
  );
  const unknown = await here('host', 'ls', '--host', 'nope');
  assert.equal(unknown.status, 125);
  assert.match(unknown.err, /^vfiobox: there is no host file or preset 'nope'; presets: default, /);
});

test('host boxes removes the socket of a box that was killed, and leaves one that answers', async () => {
  const runtime = join(folder, 'runtime');
  const sockets = join(runtime, 'vfiobox');
  mkdirSync(sockets, { recursive: true, mode: 0o700 });
  const killed = createServer().listen(join(sockets, 'x'));
  await once(killed, 'listening');
  renameSync(join(sockets, 'x'), join(sockets, 'killed.sock')); // closing removes the old name only
  await new Promise((done) => killed.close(done));
  const greeting = `${JSON.stringify({ vfiobox: 1, host: 'default', pid: 1, name: 'alive' })}\n`;
  const alive = createServer((socket) => socket.on('error', () => {}).end(greeting)).listen(
    join(sockets, 'alive.sock'),
  );
  await once(alive, 'listening');
  const before = process.env['XDG_RUNTIME_DIR'];
  process.env['XDG_RUNTIME_DIR'] = runtime;
  try {
    const { status, out } = await here('host', 'boxes');
    assert.deepEqual([status, out], [0, 'alive  pid 1  default\n']);
    assert.deepEqual(readdirSync(sockets), ['alive.sock']);
  } finally {
    if (before === undefined) delete process.env['XDG_RUNTIME_DIR'];
    else process.env['XDG_RUNTIME_DIR'] = before;
    alive.close();
  }
});

test('decode explains the faults of a log, refuses a text without any, and names a file that is not there', async () => {
  const path = join(folder, 'dmesg.txt');
  const line =
    'DMAR: [DMA Read] Request device [02:00.0] fault addr fffcd000 [fault reason 06] PTE Read access is not set';
  writeFileSync(path, `usb 1-1: new device\n${line}\n`);
  const { status, out } = await here('decode', path);
  assert.equal(status, 0);
  assert.match(out, /^DMA read by 0000:02:00\.0 at 0xfffcd000 \(line 2\)\n {2}reason {3}0x06: no read permission/);
  const asJson = JSON.parse((await here('decode', '--json', path)).out);
  assert.equal(asJson.faults[0].reason.code, 6);
  writeFileSync(path, 'nothing\n');
  const none = await here('decode', path);
  assert.deepEqual([none.status, none.out], [125, '']);
  assert.match(none.err, /no IOMMU fault in this text/);
  assert.match((await here('decode', join(folder, 'absent'))).err, /cannot be read: ENOENT/);
});

test('walk shows every entry on the way, and refuses what is no address', async () => {
  const { status, out } = await here('walk', '--device', '00:04.0', '0x1000');
  assert.equal(status, 0);
  assert.match(out, /^0x1000 of 0000:00:04\.0: requester 00:04\.0, dmar0 in legacy mode\n {2}root entry \[0\] /);
  assert.match(out, /verdict {2}Nothing is mapped at 0x1000/);
  const asJson = JSON.parse((await here('walk', '--json', '--device', '00:04.0', '0xfee00000')).out);
  assert.deepEqual([asJson.outcome, asJson.steps], ['refused', []]);
  for (const [args, why] of [
    [['--device', '00:04.0', '12q'], /'12q' is no IOVA/],
    [['--device', '4.0', '0'], /'4\.0' is no address of a function/],
    [['--device', '00:1e.0', '0'], /the machine has no function 0000:00:1e\.0/],
    [['--device', '00:04.0', '--pasid', '1048576', '0'], /PASID 1048576 has more than 20 bits/],
    [['0'], /required option '--device <bdf>' not specified/],
  ] as const) {
    const refused = await here('walk', ...args);
    assert.deepEqual([refused.status, refused.out], [125, '']);
    assert.match(refused.err, why);
  }
});

test('wrong usage is 125, help is 0', async () => {
  for (const args of [
    [],
    ['run'],
    ['run', '--bogus', '--', 'true'],
    ['run', '--seed', 'x', 'true'],
    ['fly'],
    ['run', '--sysfs', 'x', 'true'],
    ['serve', '--model', 'edu', '--socket-path', join(folder, 's'), '--spin', '1001'],
  ]) {
    const { status, err } = await here(...args);
    assert.equal(status, 125, args.join(' '));
    assert.ok(err.length > 0);
  }
  assert.equal((await here('run', '--help')).status, 0);
});
