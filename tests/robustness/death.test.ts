/**
 * Programs that die at any point, the box that dies, and what must be left: nothing.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { boxed, needs, provided, runInBox, scratch, tree } from '../support/box.ts';
import { compile } from './compile.ts';

needs('cc');

const SEEDS = [1, 2, 3, 4];
const POINTS = 300;

for (const seed of SEEDS) {
  test(`C-54: ${POINTS} deaths by kill -9 at random points leave nothing (seed ${seed})`, {
    timeout: 200_000,
  }, async (t) => {
    if (provided(t, 'cc') === undefined) return;
    const program = compile('death', scratch(t));
    const outcome = await runInBox([program, String(seed), String(POINTS), '0000:00:04.0', '0000:01:00.0'], {
      timeout: 180_000,
    });
    assert.equal(outcome.status, 0, outcome.story);
    assert.match(outcome.stdout, new RegExp(`^points ${POINTS}$`, 'm'));
    t.diagnostic(`${POINTS} points in ${outcome.milliseconds} ms`);
  });
}

test('kill -9 of the box gives the program errors, not hangs', { timeout: 60_000 }, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const program = compile('orphan', scratch(t));
  const [command, ...args] = boxed([program, '0000:00:04.0']);
  const child = spawn(command!, args, { cwd: tree, stdio: ['ignore', 'pipe', 'inherit'], detached: true });
  let text = '';
  child.stdout.setEncoding('utf8');
  const ready = new Promise<void>((done) => {
    child.stdout.on('data', (data: string) => {
      text += data;
      if (text.includes('ready')) done();
    });
  });
  const ended = once(child.stdout, 'end');
  try {
    await ready;
    process.kill(child.pid!, 'SIGKILL');
    const slow = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), 20_000);
    await ended;
    clearTimeout(slow);
  } finally {
    try {
      process.kill(-child.pid!, 'SIGKILL');
    } catch {
      // Everything has ended by itself.
    }
  }
  assert.match(text, /ioctl EIO\b/);
  assert.match(text, /pread EIO\b/);
  assert.match(text, /open ENODEV\b/);
  assert.match(text, /done/);
});

test('many boxes side by side do not disturb each other', { timeout: 120_000 }, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const program = compile('death', scratch(t));
  const runs = [11, 12, 13].map((seed) =>
    runInBox([program, String(seed), '40', '0000:00:04.0', '0000:01:00.0'], { timeout: 100_000 }),
  );
  for (const outcome of await Promise.all(runs)) assert.equal(outcome.status, 0, outcome.story);
});

test('C-53: fork, exec, dup, SCM_RIGHTS and threads share and end handles as on Linux', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const program = compile('sharing', scratch(t));
  const outcome = await runInBox([program, '0000:00:04.0'], { timeout: 50_000 });
  assert.equal(outcome.status, 0, outcome.story);
  assert.match(outcome.stdout, /all shared/);
});

test('C-52: a read during a reset gives a value or EIO', { timeout: 60_000 }, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const program = compile('reset', scratch(t));
  const outcome = await runInBox([program, '0000:01:00.0', '/dev/vfio/5'], { timeout: 50_000 });
  assert.equal(outcome.status, 0, outcome.story);
  assert.match(outcome.stdout, /^good [1-9]\d* refused [1-9]\d* wrong 0$/m);
  t.diagnostic(outcome.stdout.trim());
});

test('the run folder is gone after each run', async (t) => {
  const folder = scratch(t);
  const outcome = await runInBox(['true'], { env: { TMPDIR: folder } });
  assert.equal(outcome.status, 0, outcome.story);
  assert.deepEqual(readdirSync(folder), []);
});
