/**
 * Shared virtual addressing with a real process: a device walks a C program's heap by PASID, faulting pages in; lists that lead
 * nowhere; processes that end in the middle.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('cc');

const NODE = '/dev/pasid-walker0';

function compile(t: TestContext): string {
  const program = join(scratch(t), 'sva');
  const include = join(tree, 'include');
  const source = join(tree, 'tests/e2e/sva.c');
  const result = spawnSync(process.env['CC'] ?? 'cc', ['-O1', '-Wall', '-I', include, '-o', program, source], {
    encoding: 'utf8',
  });
  assert.equal(result.status, 0, result.stderr);
  return program;
}

test('I-54 A-82: a device follows a list over 300 pages of a heap and changes it; the pages come by page requests', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const outcome = await runInBox([compile(t), NODE, 'walk', '300'], { host: 'sva' });
  assert.equal(outcome.status, 0, outcome.story);
  assert.deepEqual(outcome.stdout.trim().split('\n'), [
    'walk state 2 code 0 visited 300 sum 44850 requests many wrong 0 pasid 1',
    'again state 2 visited 300 sum 45150 requests 0',
    'unbound pins 0 bonds 0 faults 0',
  ]);
});

test('lists that leave the program’s memory end there, and memory that goes away is out of reach', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const outcome = await runInBox([compile(t), NODE, 'astray'], { host: 'sva' });
  assert.equal(outcome.status, 0, outcome.story);
  assert.deepEqual(
    outcome.stdout
      .replace(/visited \d{3,}/, 'visited many')
      .trim()
      .split('\n'),
    [
      'hole state 3 code 2 visited 2 at the place',
      'kernel state 3 code 2 visited 0 at the place',
      'nonsense state 3 code 1 visited 0 at the place',
      'read-only state 3 code 4 visited 1 at the place',
      'readable state 2 code 0 visited 2 at the place',
      'pulled state 3 code 4 visited many at the place',
    ],
  );
});

test('I-53: processes that exit or are killed while the device is at it leave nothing, and the device serves the next', {
  timeout: 60_000,
}, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const outcome = await runInBox([compile(t), NODE, 'die', '20'], { host: 'sva' });
  assert.equal(outcome.status, 0, outcome.story);
  assert.match(outcome.stdout, /^died 20$/m);
  assert.match(outcome.stdout, /^walk state 2 code 0 visited 8 sum 28 /m);
  assert.match(outcome.stdout, /^unbound pins 0 bonds 0 faults 0$/m);
});
