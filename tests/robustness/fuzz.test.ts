/**
 * Hostile calls: 100,000 of them, seeded, on every kind of file; an ordinary program beside must not notice.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { boxed, needs, provided, scratch, tree } from '../support/box.ts';
import { compile } from './compile.ts';

needs('cc');

const CALLS = 100_000;

/** Pages of physical memory that the process has, in bytes. */
function resident(pid: number): number {
  return Number(readFileSync(`/proc/${pid}/statm`, 'utf8').split(' ')[1]) * 4096;
}

for (const [host, devices] of [
  ['default', ['0000:07:01.0', '0000:00:04.0', '0000:01:00.0', '0000:04:00.0']],
  ['kernel-golden', ['0000:04:01.0', '0000:00:04.0', '0000:05:00.0', '0000:02:01.0']],
] as const) {
  test(`${CALLS} hostile calls are all answered, and the box stays as it was (${host})`, {
    timeout: 300_000,
  }, async (t) => {
    if (provided(t, 'cc') === undefined) return;
    const folder = scratch(t);
    const fuzz = compile('fuzz', folder);
    // Four rounds in one box: memory after the first must be memory after the last, and nothing may be held in between.
    const script = `for seed in 1 2 3 4; do
      "${fuzz}" $seed ${CALLS / 4} ${devices.join(' ')} || exit 1
      for c in /sys/module/vfiobox/counters/*; do n=$(cat $c); [ "$n" = 0 ] || { echo "$c: $n left"; exit 1; }; done
      echo round; read go
    done`;
    const [command, ...args] = boxed(['sh', '-c', script], { host });
    const child = spawn(command!, args, { cwd: tree, stdio: ['pipe', 'pipe', 'pipe'] });
    let text = '';
    let errors = '';
    const sizes: number[] = [];
    child.stderr.setEncoding('utf8').on('data', (data: string) => {
      errors += data;
    });
    child.stdout.setEncoding('utf8').on('data', (data: string) => {
      text += data;
      if (!/^round$/m.test(data)) return;
      sizes.push(resident(child.pid!));
      child.stdin.write('go\n');
    });
    const status = await new Promise((done) => child.on('close', done));
    const story = `${text}\n${errors.slice(-3000)}`;
    assert.equal(status, 0, story);
    const calls = [...text.matchAll(/^calls (\d+) ok (\d+) refused (\d+) witness 0$/gm)];
    assert.equal(calls.length, 4, story);
    const sum = (column: number): number => calls.reduce((n, match) => n + Number(match[column]), 0);
    t.diagnostic(
      `${sum(1)} calls: ${sum(2)} succeeded, ${sum(3)} refused; resident ${sizes.map((s) => `${s >> 20} MiB`).join(', ')}`,
    );
    assert.ok(sum(1) >= CALLS);
    assert.ok(sum(2) > CALLS / 50, 'hardly any call succeeded: the fuzzer does not reach far');
    assert.doesNotMatch(errors, /internal error|at .*\.js:\d+/, story);
    assert.ok(sizes[3]! - sizes[1]! < 24 << 20, `the box grows: ${sizes.join(', ')}`);
  });
}
