/** Every machine in every format, and dumps cut off anywhere. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { HostFileError } from '../../src/host/host-file.ts';
import { importHost } from '../../src/host/import/index.ts';
import * as facts from '../../src/host/import/test-machines.ts';
import { type Fact, toLspci, toSysfs, toUmockdev } from '../../src/host/import/test-maker.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-import-'));
after(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;

function fileOf(text: string): string {
  const path = join(folder, `dump${files++}.txt`);
  writeFileSync(path, text);
  return path;
}

const { firstDocumentation, ...others } = facts;
for (const [name, machine] of Object.entries(others) as [string, Fact[]][]) {
  test(`${name}: a sysfs copy, umockdev's dump and lspci give the same machine, with the groups of the real one`, () => {
    const sources = [
      toSysfs(machine, join(folder, name)),
      fileOf(toUmockdev(machine)),
      fileOf(toLspci(machine, { verbose: true })),
    ];
    const hosts = sources.map((source) => {
      const { host, notes } = importHost(source, { name });
      assert.match(notes.join('\n'), /groups: \d+, the same as in the dump/);
      return host.functions.map(({ at, group, secondary, quirks, options }) => [
        at,
        group,
        secondary,
        quirks,
        options?.['config'],
      ]);
    });
    assert.deepEqual(hosts[1], hosts[0]);
    assert.deepEqual(hosts[2], hosts[0]);
  });
}

test('wherever a dump ends, it gives a machine or one line of refusal', () => {
  let refused = 0;
  let whole = 0;
  for (const [text, step] of [
    [toLspci(facts.vmd, { bytes: 64 }), 7],
    [toUmockdev(facts.vmd), 101],
    [firstDocumentation, 1],
  ] as const) {
    for (let end = 0; end < text.length; end += step) {
      try {
        importHost(fileOf(text.slice(0, end)));
        whole++;
      } catch (error) {
        assert.ok(error instanceof HostFileError, `${end}: ${String(error)}`);
        assert.equal(error.message.includes('\n'), false);
        refused++;
      }
    }
  }
  assert.ok(refused > whole, `${refused} refused, ${whole} taken`);
});
