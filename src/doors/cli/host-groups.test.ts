import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { amdRyzen, firstDocumentation, intelDesktop } from '../../host/import/test-machines.ts';
import { toLspci } from '../../host/import/test-maker.ts';
import { main } from './main.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-groups-'));
after(() => rmSync(folder, { recursive: true, force: true }));

/** The command, in this process. */
async function vfiobox(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const outcome = { status: -1, out: '', err: '' };
  outcome.status = await main(args, {
    out: (text) => {
      outcome.out += text;
    },
    err: (text) => {
      outcome.err += text;
    },
  });
  return outcome;
}

const dump = join(folder, 'desktop.txt');
writeFileSync(dump, toLspci(intelDesktop, { verbose: true }));
const hostFile = join(folder, 'desktop.json');

test('a dump becomes a host file, and its groups explain themselves', async () => {
  const imported = await vfiobox('host', 'import', dump, '-o', hostFile);
  assert.deepEqual([imported.status, imported.out], [0, '']);
  assert.match(imported.err, /groups: 10, the same as in the dump\n.*18 functions imported\n$/s);
  assert.equal((await vfiobox('host', 'check', '--host', hostFile)).status, 0);
  const { status, out } = await vfiobox('host', 'groups', '--why', '01:00.1', '--host', hostFile);
  assert.equal(status, 0);
  assert.match(out, /^group 1, 5 members$/m);
  assert.match(
    out,
    / {4}01:00\.0 and 02:00\.0\n {6}together through 00:01\.0, 00:01\.1\n {6}apart with: acsOverride on 00:01\.0\n/,
  );
  assert.match(
    out,
    /together: requests of 01:00\.1 may turn round .*: 00:01\.0 has no ACS capability \[no ACS on 00:01\.0\]/,
  );
  assert.match(out, /the card behind 00:01\.0 into the free slot behind 00:1c\.0/);
});

test('--json: every pair of every group, with what joins and what parts it', async () => {
  const { out } = await vfiobox('host', 'groups', '--why', '--json', '--host', hostFile);
  const { host, groups, ungrouped } = JSON.parse(out) as {
    host: string;
    groups: {
      id: number;
      members: { at: string; vendor: string }[];
      pairs: { joins: unknown[]; splits: unknown[] }[];
    }[];
    ungrouped: string[];
  };
  assert.deepEqual([host, ungrouped], ['desktop', []]);
  assert.deepEqual(
    groups.map(({ id }) => id),
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  for (const { members, pairs } of groups) {
    assert.equal(pairs.length, (members.length * (members.length - 1)) / 2);
    assert.ok(pairs.every(({ joins }) => joins.length > 0));
  }
  assert.deepEqual(groups[1]!.members[2], {
    ...groups[1]!.members[2],
    at: '0000:01:00.0',
    vendor: '10de',
  });
});

test('--dot and --svg draw the same machine', async () => {
  const dot = (await vfiobox('host', 'groups', '--dot', '--host', hostFile)).out;
  assert.equal(dot.match(/subgraph cluster_/g)!.length, 10);
  assert.match(dot, /"0000:01:00\.0" -> "0000:00:01\.0" \[style=dashed.*label="no ACS on 00:01\.0"/);
  const svg = (await vfiobox('host', 'groups', '--svg', '01:00.0', '--host', hostFile)).out;
  assert.match(svg, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
  assert.equal(svg.match(/<rect /g)!.length, 1 + 1 + 5);
  assert.equal(svg.match(/<g>/g)!.length, svg.match(/<\/g>/g)!.length);
  assert.equal((await vfiobox('host', 'groups', '--dot', '--svg', '--host', hostFile)).status, 125);
});

test('T-25: a dump or a tree can be given as --host itself', async () => {
  const tree = join(folder, 'tree');
  writeFileSync(tree, firstDocumentation);
  const { out } = await vfiobox('host', 'groups', '--host', tree);
  assert.match(
    out,
    /^group 0\n {2}00:1e\.0 .*\n {4}own\n {2}06:0d\.0 .*\n {4}alias 00:1e\.0\n {2}06:0d\.1 .*\n {4}alias 00:1e\.0\n$/,
  );
  assert.match(
    (await vfiobox('host', 'ls', '--host', dump)).out,
    /^01:00\.0 VGA compatible controller: 10de:13c2 .*group 1$/m,
  );
});

test('bad input: a message with the line, status 125, and nothing is written', async () => {
  const before = readdirSync(folder).length;
  const output = join(folder, 'out.json');
  const text = toLspci(amdRyzen, { bytes: 64 });
  const bad: [string, RegExp][] = [
    [text.slice(0, -30), /:\d+: row 30 of 0000:09:00\.3 .*cut off/],
    [`${text}\n${text.slice(0, text.indexOf('\n\n'))}`, /:\d+: 0000:00:00\.0 is there already, at .*:1$/m],
    [
      toLspci(amdRyzen.map((fact) => (fact.at === '0000:02:01.0' ? { ...fact, bus: [3, 4] } : fact))),
      /:\d+: buses .* overlap /,
    ],
    ['{"not": "PCI"}', /:1: this is no dump of PCI devices/],
    ['', /is empty/],
  ];
  for (const [content, message] of bad) {
    const source = join(folder, 'bad.txt');
    writeFileSync(source, content);
    const { status, out, err } = await vfiobox('host', 'import', source, '-o', output);
    assert.deepEqual([status, out], [125, '']);
    assert.match(err, message);
    assert.match(err, /^vfiobox: [^\n]*\n$/);
    assert.equal(existsSync(output), false);
    rmSync(source);
  }
  assert.equal(readdirSync(folder).length, before);
  const nowhere = await vfiobox('host', 'import', dump, '-o', join(folder, 'none/x.json'));
  assert.deepEqual([nowhere.status, nowhere.err.split('\n').length], [125, 2]);
  assert.match(nowhere.err, /cannot write '.*': ENOENT/);
  const long = await vfiobox('host', 'import', dump, '-o', join(folder, 'x'.repeat(300)));
  assert.deepEqual([long.status, long.out], [125, '']);
  assert.match(long.err, /cannot write '.*': ENAMETOOLONG/);
});

test('a file that is there already stays as it was when the import fails', async () => {
  const output = join(folder, 'kept.json');
  writeFileSync(output, 'precious');
  const source = join(folder, 'cut.txt');
  writeFileSync(source, toLspci(intelDesktop).slice(0, 5000));
  assert.equal((await vfiobox('host', 'import', source, '-o', output)).status, 125);
  assert.equal(readFileSync(output, 'utf8'), 'precious');
});

test('a function that does not exist, or is in no group', async () => {
  const none = await vfiobox('host', 'groups', '--why', '77:00.0', '--host', hostFile);
  assert.equal(none.status, 125);
  assert.match(none.err, /there is no function '77:00\.0' in 'desktop'/);
  const bare = join(folder, 'bare.json');
  writeFileSync(
    bare,
    JSON.stringify({ name: 'bare', iommu: { units: [] }, functions: [{ at: '00:04.0', model: 'edu' }] }),
  );
  const out = await vfiobox('host', 'groups', '00:04.0', '--host', bare);
  assert.deepEqual([out.status, out.err], [125, 'vfiobox: 00:04.0 is in no group: no IOMMU unit serves it\n']);
});
