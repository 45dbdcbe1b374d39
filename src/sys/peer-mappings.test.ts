/** A real process that maps a file, and what its /proc/PID/maps tells us of it. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { howMapped, inodeOf, textFile } from './index.ts';

const child = `
  const { mmap } = await import(process.argv[1]);
  for (const flags of process.argv.slice(2)) mmap(0, 4096, 3, Number(flags), 3, 0);
  process.stdout.write('mapped');
  process.stdin.resume();
`;

const SHARED = 1;
const PRIVATE = 2;

/** A process that has mapped the file behind `fd` once for each of `flags`. */
async function mapping(t: TestContext, fd: number, flags: readonly number[]): Promise<ChildProcess> {
  const libc = new URL('./libc.js', import.meta.url).href;
  const args = ['--input-type=module', '-e', child, libc, ...flags.map(String)];
  const it = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit', fd] });
  t.after(() => it.kill('SIGKILL'));
  await once(it.stdout!, 'data');
  return it;
}

test('a file is private to a process when all its mappings are; nothing is assumed of what cannot be seen', async (t) => {
  const fd = textFile('peer mappings', 'x'.repeat(4096));
  t.after(() => closeSync(fd));
  const file = inodeOf(fd);
  const [ofPrivate, ofShared, ofBoth, ofNone] = await Promise.all(
    [[PRIVATE, PRIVATE], [SHARED], [PRIVATE, SHARED], []].map((flags) => mapping(t, fd, flags)),
  );
  assert.equal(howMapped(ofPrivate!.pid!, file), 'private');
  assert.equal(howMapped(ofShared!.pid!, file), 'shared');
  assert.equal(howMapped(ofBoth!.pid!, file), 'shared');
  assert.equal(howMapped(ofNone!.pid!, file), undefined);
  assert.equal(howMapped(ofPrivate!.pid!, { ...file, inode: file.inode + 1_000_000 }), undefined, 'another file');
  assert.equal(howMapped(0, file), undefined, 'a process without a number here');
  ofPrivate!.kill('SIGKILL');
  await once(ofPrivate!, 'exit');
  assert.equal(howMapped(ofPrivate!.pid!, file), undefined, 'a process that is gone');
});
