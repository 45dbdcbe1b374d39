/** A machine goes round: programs in a box write it down as people do, and what they wrote is imported and is the same machine. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { server } from '../../src/host/import/test-machines.ts';
import { toUmockdev } from '../../src/host/import/test-maker.ts';
import { needs, provided, tree as root, runInBox } from '../support/box.ts';

needs('pciutils');

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-import-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const machine = join(folder, 'server.umockdev');
writeFileSync(machine, toUmockdev(server));
const original = join(folder, 'server.json');
const vfiobox = (...args: string[]): string =>
  execFileSync(process.execPath, [join(root, 'bin/vfiobox'), ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });
vfiobox('host', 'import', machine, '-o', original);

interface Group {
  members: { at: string; class: string; kind: string }[];
}

/** Members of each group with their kinds, and the configuration space of each function as the host file has it. */
function picture(host: string): unknown {
  const { groups } = JSON.parse(vfiobox('host', 'groups', '--why', '--json', '--host', host)) as { groups: Group[] };
  return groups
    .map(({ members }) => members.map((member) => `${member.at} ${member.class} ${member.kind}`).join(', '))
    .sort();
}

const options = { host: original, timeout: 60_000 };

test('the loop of docs/groups.md copies sysfs, and the copy is the machine', { timeout: 90_000 }, async () => {
  const loop = /```sh\n(for d in .*?\ndone\n)```/s.exec(readFileSync(join(root, 'docs/groups.md'), 'utf8'))![1]!;
  const outcome = await runInBox(['sh', '-c', `cd '${folder}'\n${loop}`], options);
  const copied = join(folder, 'copied.json');
  vfiobox('host', 'import', join(folder, 'machine'), '-o', copied);
  assert.deepEqual(picture(copied), picture(original), outcome.story);
  const groups = (path: string): unknown =>
    (JSON.parse(readFileSync(path, 'utf8')) as { functions: { at: string; group?: number }[] }).functions.map(
      ({ at, group }) => [at, group],
    );
  assert.deepEqual(groups(copied), groups(original));
});

test('lspci -xxxx -D -v writes the machine down, and what it wrote is the machine', { timeout: 90_000 }, async (t) => {
  const pciutils = provided(t, 'pciutils');
  if (pciutils === undefined) return;
  const lspci = join(pciutils, 'bin/lspci');
  const outcome = await runInBox([lspci, '-D', '-xxxx', '-v'], options);
  assert.equal(outcome.status, 0, outcome.story);
  const dump = join(folder, 'lspci.txt');
  writeFileSync(dump, outcome.stdout);
  const copied = join(folder, 'lspci.json');
  vfiobox('host', 'import', dump, '-o', copied);
  assert.deepEqual(picture(copied), picture(original));
});

test('T-25: lspci -tvnn draws the machine, and every function of the drawing is in its place', {
  timeout: 90_000,
}, async (t) => {
  const pciutils = provided(t, 'pciutils');
  if (pciutils === undefined) return;
  const outcome = await runInBox([join(pciutils, 'bin/lspci'), '-tvnn'], options);
  assert.equal(outcome.status, 0, outcome.story);
  const drawing = join(folder, 'tree.txt');
  writeFileSync(drawing, outcome.stdout);
  const names = (host: string): string[] =>
    vfiobox('host', 'ls', '--host', host)
      .split('\n')
      .map((line) => line.split(' ')[0]!);
  assert.deepEqual(names(drawing), names(original), outcome.stdout);
});
