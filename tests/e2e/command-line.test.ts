/** The command line with programs to run: exit statuses, what is said, and that nothing is left. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const top = fileURLToPath(new URL('../../../', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
const controlParent = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
after(() => {
  for (const made of [folder, controlParent]) rmSync(made, { recursive: true, force: true });
});
const canRun = existsSync(join(top, 'build/libvfiobox.so'));
const skip = canRun ? false : 'the C library is not built';

interface Outcome {
  status: number | null;
  out: string;
  err: string;
}

function vfiobox(...args: string[]): Promise<Outcome> {
  const child = spawn(process.execPath, [join(top, 'bin/vfiobox'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 20_000,
    env: { ...process.env, TMPDIR: folder, XDG_RUNTIME_DIR: controlParent },
  });
  const outcome: Outcome = { status: null, out: '', err: '' };
  child.stdout.on('data', (data) => {
    outcome.out += data;
  });
  child.stderr.on('data', (data) => {
    outcome.err += data;
  });
  return new Promise((resolve) => child.once('close', (status) => resolve({ ...outcome, status })));
}

// The runs go side by side, as runs should be able to.
const runs = canRun
  ? {
      status: vfiobox('run', '--check-left', '--', 'sh', '-c', 'cat /sys/bus/pci/devices/0000:00:04.0/vendor; exit 7'),
      killed: vfiobox('run', '--', 'sh', '-c', 'kill -9 $$'),
      missing: vfiobox('run', 'no-such-program'),
      notExecutable: vfiobox('run', '--', '/etc/passwd'),
      unknownHost: vfiobox('run', '--host', 'nope', '--', 'echo', 'ran'),
      noControl: vfiobox('run', '--control', join(folder, 'none/x'), '--', 'echo', 'ran'),
      noTrace: vfiobox('run', '--trace', join(folder, 'none/x'), '--', 'echo', 'ran'),
      fullTrace: vfiobox('run', '--trace', '/dev/full', '--', 'ls', '-l', '/dev/vfio/vfio'),
      explained: vfiobox('run', '--explain', '--', 'cat', '/dev/vfio/99'),
    }
  : undefined;

test('a run ends as its program does, and leaves nothing behind', { skip }, async () => {
  assert.deepEqual(await runs!.status, {
    status: 7,
    out: '0x1234\n',
    err: '{"pins":0,"maps":0,"objects":0,"files":0,"blocks":0}\n',
  });
  assert.equal((await runs!.killed).status, 137);
  await Promise.all(Object.values(runs!));
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.startsWith('vfiobox-')),
    [],
  );
});

test('a program that cannot be run: 127 not found, 126 not executable', { skip }, async () => {
  const missing = await runs!.missing;
  assert.equal(missing.status, 127);
  assert.match(missing.err, /^vfiobox: cannot run 'no-such-program': /);
  assert.equal((await runs!.notExecutable).status, 126);
});

test('a machine or a trace that cannot be had is 125, and the program is not run', { skip }, async () => {
  for (const run of [runs!.unknownHost, runs!.noTrace, runs!.noControl]) {
    const { status, out, err } = await run;
    assert.deepEqual([status, out], [125, '']);
    assert.match(err, /^vfiobox: [^\n]*\n$/);
  }
  await Promise.all(Object.values(runs!));
  assert.deepEqual(readdirSync(controlParent), [], 'the folder of control sockets goes with the last of them');
  const full = await runs!.fullTrace;
  assert.equal(full.status, 125);
  assert.match(full.err, /^vfiobox: the trace '\/dev\/full' is cut short: the disk is full[^\n]*\n$/);
});

test('--explain says why', { skip }, async () => {
  const { err } = await runs!.explained;
  assert.match(
    err,
    /^vfiobox: cat\[\d+\] open\(\/dev\/vfio\/99, flags 0x[0-9a-f]+\) = -1 ENOENT: the machine has no node/m,
  );
});
