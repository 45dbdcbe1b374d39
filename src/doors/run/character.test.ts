import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { acceptStream, closeDescriptor, listenOnStream } from '../../sys/index.ts';
import { openCharacter } from './character.ts';
import { EventLoop } from './event-loop.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-line-'));
after(() => rmSync(folder, { recursive: true }));

test('a file gets the output behind what it has', () => {
  const loop = new EventLoop();
  const path = join(folder, 'log');
  for (const text of ['one\n', 'two\n']) {
    const line = openCharacter(loop, `file:${path}`);
    line.onInput(() => assert.fail('a file says nothing'));
    line.write(Buffer.from(text));
    line.close();
  }
  assert.equal(readFileSync(path, 'utf8'), 'one\ntwo\n');
  loop.close();
});

test('a socket: both ways, its end, and writes after it', () => {
  const loop = new EventLoop();
  const path = join(folder, 'socket');
  const listener = listenOnStream(path);
  const line = openCharacter(loop, `socket:${path}`);
  const peer = acceptStream(listener);
  let seen = '';
  line.onInput((bytes) => {
    seen += Buffer.from(bytes).toString();
  });
  writeSync(peer, 'hello');
  for (let i = 0; i < 100 && seen.length < 5; i++) loop.turn(10);
  assert.equal(seen, 'hello');
  line.write(Buffer.from('x'.repeat(5000)));
  const into = Buffer.alloc(8000);
  assert.equal(readSync(peer, into), 5000);
  closeDescriptor(peer);
  for (let i = 0; i < 3; i++) loop.turn(10);
  line.write(Buffer.from('nobody'));
  line.close();
  closeDescriptor(listener);
  loop.close();
});

test('what cannot be opened is said in one line', () => {
  const loop = new EventLoop();
  const refused = (target: string, why: RegExp): void => {
    assert.throws(() => openCharacter(loop, target), why);
  };
  refused('tty', /^CharacterError|cannot end in 'tty', but in none, stdio, file:PATH or socket:PATH$/);
  refused('file:', /cannot end in 'file:'/);
  refused(`file:${folder}/none/x`, /cannot open 'file:.*': ENOENT$/);
  refused(`socket:${folder}/none`, /cannot open 'socket:.*': (ENOENT|2)$/);
  loop.close();
});

test('output never waits: a pipe that nobody reads from takes what it holds, the rest is lost', () => {
  const loop = new EventLoop();
  const path = join(folder, 'pipe');
  execFileSync('mkfifo', [path]);
  assert.throws(() => openCharacter(loop, `file:${path}`), /ENXIO$/, 'nobody has it open');
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const line = openCharacter(loop, `file:${path}`);
  const start = performance.now();
  for (let i = 0; i < 16; i++) line.write(Buffer.alloc(65_536, 0x61));
  assert.ok(performance.now() - start < 1000);
  const into = Buffer.alloc(4096);
  assert.equal(readSync(reader, into), 4096);
  line.write(Buffer.from('more'));
  line.close();
  closeSync(reader);
  loop.close();
});
