/** `vfiobox serve` as a program: what it says when it cannot serve, and how it ends. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { encodeMessage } from '../../src/doors/vfio-user/codec.ts';
import { VfioUserClient } from '../../src/vfio-user.ts';

const bin = resolve(fileURLToPath(new URL('../../../bin/vfiobox', import.meta.url)));
const TIMEOUT = { timeout: 30_000 };

function scratch(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'vfiobox-serve-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

interface Started {
  child: ChildProcess;
  stderr(): string;
  ended: Promise<number | null>;
}

function start(t: TestContext, args: readonly string[], stdio: (number | 'pipe' | 'ignore')[] = []): Started {
  const child = spawn(process.execPath, [bin, 'serve', ...args], { stdio: ['ignore', 'pipe', 'pipe', ...stdio] });
  let text = '';
  child.stderr!.on('data', (data) => {
    text += data;
  });
  t.after(() => {
    child.kill('SIGKILL');
  });
  const ended = new Promise<number | null>((done) => {
    child.once('close', (code) => done(code));
  });
  return { child, stderr: () => text, ended };
}

async function refused(t: TestContext, args: readonly string[], expected: RegExp): Promise<void> {
  const { ended, stderr } = start(t, args);
  assert.equal(await ended, 125, stderr());
  assert.match(stderr(), expected);
  assert.equal(stderr().trimEnd().split('\n').length, 1, stderr());
}

/** Resolves when somebody listens on the path. */
async function listens(path: string): Promise<void> {
  for (let i = 0; i < 300; i++) {
    const isThere = await new Promise<boolean>((done) => {
      const socket = connect(path, () => {
        socket.destroy();
        done(true);
      });
      socket.once('error', () => done(false));
    });
    if (isThere) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`Nobody listens on ${path}`);
}

test('what cannot be served is said in one line', TIMEOUT, async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'socket');
  const throws = join(folder, 'throws.mjs');
  writeFileSync(throws, "throw new Error('not today');\n");
  const empty = join(folder, 'empty.mjs');
  writeFileSync(empty, 'export default 3;\n');
  const plain = join(folder, 'plain');
  writeFileSync(plain, '');
  await Promise.all([
    refused(t, ['--model', 'edu', '--socket-path', join(folder, 'x'.repeat(120))], /bytes, the system allows 107/),
    refused(t, ['--model', 'edu', '--socket-path', join(folder, 'no', 'socket')], /there is no folder/),
    refused(t, ['--model', 'edu', '--socket-path', plain], /exists and is not a socket/),
    refused(t, ['--model', 'nothing', '--socket-path', path], /there is no device model 'nothing'; there are edu/),
  ]);
  await Promise.all([
    refused(t, ['--model', './nothing.mjs', '--socket-path', path], /nothing\.mjs/),
    refused(t, ['--model', throws, '--socket-path', path], /not today/),
    refused(t, ['--model', empty, '--socket-path', path], /empty\.mjs/),
    refused(t, ['--host', 'default', '--device', '00:1f.7', '--socket-path', path], /there is no device 0000:00:1f\.7/),
  ]);
  await Promise.all([
    refused(t, ['--socket-path', path], /nothing to serve/),
    refused(t, ['--model', 'edu'], /nowhere to serve/),
    refused(t, ['--model', 'edu', '--fd', '77'], /descriptor 77 is not an open socket/),
  ]);
  assert.equal(existsSync(path), false);
});

test('U-60: both ways to a socket are one too many', TIMEOUT, async (t) => {
  await refused(t, ['--model', 'edu', '--socket-path', '/tmp/x', '--fd', '3'], /cannot be used with/);
});

test('U-61: a stale socket is replaced, a live one respected, and SIGTERM removes the file', TIMEOUT, async (t) => {
  const path = join(scratch(t), 'socket');
  const killed = start(t, ['--model', 'edu', '--socket-path', path]);
  await listens(path);
  killed.child.kill('SIGKILL');
  await killed.ended;
  assert.equal(existsSync(path), true);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    const server = start(t, ['--model', 'edu', '--socket-path', path]);
    await listens(path);
    await refused(t, ['--model', 'edu', '--socket-path', path], /another server listens on/);
    const client = connect(path);
    await new Promise((done) => client.once('connect', done));
    server.child.kill(signal);
    assert.equal(await server.ended, 0, server.stderr());
    assert.equal(existsSync(path), false);
    client.destroy();
  }
});

test('an inherited connection is served, and its end is the end', TIMEOUT, async (t) => {
  const path = join(scratch(t), 'listener');
  const accepted = new Promise<Started>((done) => {
    const listener = createServer({ pauseOnConnect: true }, (socket) => {
      const fd = (socket as unknown as { _handle: { fd: number } })._handle.fd;
      done(start(t, ['--model', 'edu', '--fd', '3'], [fd]));
      // The server has its own copy now.
      setTimeout(() => socket.destroy(), 100);
    });
    listener.listen(path);
    t.after(() => listener.close());
  });
  const client = connect(path);
  const { ended, stderr } = await accepted;
  const version = Buffer.alloc(20);
  version.writeUInt16LE(1, 2);
  version.writeUInt32LE(20, 4);
  const answer = new Promise<Buffer>((done) => client.once('data', done));
  client.write(version);
  assert.equal((await answer).readUInt32LE(8), 1);
  client.destroy();
  assert.equal(await ended, 0, stderr());
});

test('--print-capabilities prints one JSON object', TIMEOUT, async (t) => {
  const { child, ended } = start(t, ['--print-capabilities']);
  let text = '';
  child.stdout!.on('data', (data) => {
    text += data;
  });
  assert.equal(await ended, 0);
  assert.equal(typeof JSON.parse(text).type, 'string');
});

test("options of a model are read as its host file's would be, and refused in one line", TIMEOUT, async (t) => {
  const folder = scratch(t);
  const path = join(folder, 'socket');
  const options = (...texts: string[]): string[] => ['--model', 'testdev', '--socket-path', path, '--option', ...texts];
  await Promise.all([
    refused(t, options('vectors'), /'vectors' is not an option as name=value/),
    refused(t, options('vectors=many'), /option 'vectors' of 'testdev' must be a whole number/),
    refused(t, options('colour=red'), /model 'testdev' has no option 'colour'; it has vectors/),
    refused(t, options('pasid=perhaps'), /option 'pasid' of 'testdev' must be true or false/),
  ]);
  start(t, options('vectors=0x10', 'pasid=true', 'migration=all'));
  await listens(path);
  using client = VfioUserClient.connect(path);
  assert.equal(client.irqInfo(2).count, 16);
  assert.deepEqual([...client.feature('get', 1, new Uint8Array(0), 8)], [5, 0, 0, 0, 0, 0, 0, 0]);
});

test('a server that spins answers as ever, and uses no processor time when nothing comes', TIMEOUT, async (t) => {
  const path = join(scratch(t), 'socket');
  const { child } = start(t, ['--model', 'testdev', '--socket-path', path, '--spin', '50']);
  await listens(path);
  using client = VfioUserClient.connect(path);
  for (let i = 0; i < 2000; i++) {
    client.writeRegister(4, 8, 4, i);
    assert.equal(client.readRegister(4, 8, 4), i);
  }
  const ticks = (): number => {
    const fields = readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
    return Number(fields[11]) + Number(fields[12]);
  };
  await new Promise((done) => setTimeout(done, 300));
  const before = ticks();
  await new Promise((done) => setTimeout(done, 1000));
  assert.ok(ticks() - before <= 1, `${ticks() - before} ticks in a second`);
});

test(
  'the codec takes whatever comes from standard input: 40 streams of noise, valid ones with flipped bits',
  TIMEOUT,
  (t) => {
    let seed = 11;
    const random = (most: number): number => {
      seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
      return Math.floor((seed / 2 ** 32) * most);
    };
    const script = resolve(bin, '../../scripts/decode-vfio-user.mjs');
    const good = Buffer.concat(
      Array.from({ length: 50 }, (_, i) => encodeMessage({ id: i, command: 1 + (i % 18) }, new Uint8Array(40))),
    );
    const decode = (input: Uint8Array, piece: number): { status: number | null; lines: string[] } => {
      const { status, stdout, stderr } = spawnSync(process.execPath, [script, '--piece', String(piece)], { input });
      assert.equal(stderr.toString(), '');
      return { status, lines: stdout.toString().trimEnd().split('\n') };
    };
    assert.deepEqual([decode(good, 7).status, decode(good, 7).lines.length], [0, 50]);
    let followed = 0;
    for (let i = 0; i < 40; i++) {
      const input = i % 2 === 0 ? Buffer.from(good) : Buffer.from(Array.from({ length: 300 }, () => random(256)));
      for (let k = 0; k < 4; k++) input[random(input.length)]! ^= 1 << random(8);
      const { status } = decode(input, 1 + random(100));
      assert.ok(status === 0 || status === 1, `status ${status}`);
      if (status === 0) followed++;
    }
    t.diagnostic(`${followed} of 40 streams could be followed to their end`);
  },
);
