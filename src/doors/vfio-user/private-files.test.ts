/** A client in a process of its own that maps the memory it offers, shared or not. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { acceptStream, closeDescriptor, inodeOf, listenOnStream, streamPair, textFile } from '../../sys/index.ts';
import { PrivateFiles } from './private-files.ts';

const child = `
  const [libc, path, ...flags] = process.argv.slice(1);
  const { mmap } = await import(libc);
  const { connect } = await import('node:net');
  flags.forEach((flag, i) => mmap(0, 4096, 3, Number(flag), 3 + i, 0));
  connect(path, () => process.stdout.write('connected'));
`;

const SHARED = 1;
const PRIVATE = 2;

function file(t: TestContext): number {
  const fd = textFile('memory', 'x'.repeat(4096));
  t.after(() => closeDescriptor(fd));
  return fd;
}

test('memory that the client maps privately is found out, and said once; shared memory is not', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vfiobox-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const path = join(folder, 'socket');
  const listener = listenOnStream(path);
  t.after(() => closeDescriptor(listener));
  const [one, other, shared, absent] = [file(t), file(t), file(t), file(t)];
  const libc = new URL('../../sys/libc.js', import.meta.url).href;
  const flags = [PRIVATE, PRIVATE, SHARED].map(String);
  const client = spawn(process.execPath, ['--input-type=module', '-e', child, libc, path, ...flags], {
    stdio: ['ignore', 'pipe', 'inherit', one, other, shared],
  });
  t.after(() => client.kill('SIGKILL'));
  await once(client.stdout!, 'data');
  const socket = acceptStream(listener);
  assert.ok(socket >= 0);
  t.after(() => closeDescriptor(socket));
  const said: string[] = [];
  const files = new PrivateFiles(socket, (text) => said.push(text));
  assert.deepEqual(
    [shared, absent, one, other, one].map((fd) => files.has(inodeOf(fd))),
    [false, false, true, true, true],
  );
  assert.equal(said.length, 1);
  assert.match(said[0]!, new RegExp(`private to it \\(process ${client.pid}\\).*share=on`));
  // What is known of a file stays: the client is looked at once.
  client.kill('SIGKILL');
  await once(client, 'exit');
  assert.deepEqual(
    [one, shared].map((fd) => files.has(inodeOf(fd))),
    [true, false],
  );
});

test('nothing is assumed of a client in this very process, nor of one that cannot be named', (t) => {
  const [ours, theirs] = streamPair();
  t.after(() => {
    closeDescriptor(ours);
    closeDescriptor(theirs);
  });
  const memory = inodeOf(file(t));
  for (const socket of [ours, -1]) {
    assert.equal(new PrivateFiles(socket, (text) => assert.fail(text)).has(memory), false);
  }
});
