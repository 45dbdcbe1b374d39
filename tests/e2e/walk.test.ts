/** `vfiobox walk` in a box that is running: the maps of its program, entry by entry. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, scratch, tree } from '../support/box.ts';

needs('python');

test('walk --box shows what a running program has mapped', { timeout: 60_000 }, async (t) => {
  if (provided(t, 'python') === undefined) return;
  const control = join(scratch(t), 'control');
  const vfiobox = join(tree, 'bin/vfiobox');
  const program = ['python3', join(tree, 'tests/e2e/mapped.py')];
  const box = spawn(process.execPath, [vfiobox, 'run', '--control', control, '--', ...program], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.after(() => box.kill());
  const ended = once(box, 'close');
  assert.match(String((await once(box.stdout, 'data'))[0]), /^mapped/);

  const walk = (...args: string[]) =>
    spawnSync(process.execPath, [vfiobox, 'walk', '--box', control, '--device', '00:04.0', ...args], {
      encoding: 'utf8',
    });
  const mapped = walk('--json', '0x101010');
  assert.equal(mapped.status, 0, mapped.stderr);
  const report = JSON.parse(mapped.stdout);
  assert.deepEqual([report.outcome, report.read, report.write, report.pageSize], ['translated', true, false, 4096]);
  assert.equal(report.steps.at(-1).index, 257);
  assert.equal(report.iotlb.opinion, 'miss');
  const beside = walk('0x102000');
  assert.match(beside.stdout, /verdict {2}Nothing is mapped at 0x102000/);
  const nobody = walk('--device', '00:1e.0', '0');
  assert.deepEqual([nobody.status, nobody.stdout], [125, '']);
  assert.match(nobody.stderr, /no function 0000:00:1e\.0/);

  box.stdin.end();
  assert.deepEqual(await ended, [0, null]);
  const gone = walk('0x101010');
  assert.equal(gone.status, 125);
});
