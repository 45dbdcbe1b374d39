/** `vfiobox serve` as a program: what it says when it cannot serve, and how it ends. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';

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
