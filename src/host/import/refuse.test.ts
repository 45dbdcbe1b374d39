import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { HostFileError } from '../host-file.ts';
import { importHost } from './index.ts';
import { intelDesktop } from './test-machines.ts';
import { type Fact, toLspci, toSysfs, toUmockdev } from './test-maker.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-import-'));
after(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;

function fileOf(text: string): string {
  const path = join(folder, `dump${files++}.txt`);
  writeFileSync(path, text);
  return path;
}

function folderOf(facts: readonly Fact[]): string {
  return toSysfs(facts, join(folder, `sys${files++}`));
}

/** That a text is refused; the pattern starts with the line. */
function refused(text: string, pattern: RegExp): void {
  const path = fileOf(text);
  assert.throws(
    () => importHost(path),
    (error) => {
      assert.ok(error instanceof HostFileError, String(error));
      assert.match(error.message.replace(path, ''), pattern);
      assert.equal(error.message.includes('\n'), false);
      return true;
    },
  );
}

test('a dump that is cut off is refused and says where, whatever its format', () => {
  const lspci = toLspci(intelDesktop);
  const lines = lspci.split('\n');
  const second = lines.indexOf('') + 1;
  refused(
    lines.slice(0, second + 5).join('\n'),
    /^:19: 0000:00:01\.0 is the last one and has 64 bytes, others have more/,
  );
  const third = lines.indexOf('', second) + 1;
  refused(
    lines.slice(0, third + 17).join('\n'),
    /^:277: 0000:00:01\.1 is the last one and has 256 bytes, others have more/,
  );
  refused(lines.slice(0, 8).join('\n'), /^:8: 0000:00:00\.0 ends after 0x70 bytes.*cut off/);
  refused(
    `${lines.slice(0, 8).join('\n')}\n70: 00 00 00 00`,
    /^:9: row 70 of 0000:00:00\.0 has 4 bytes of 16: the dump is cut off/,
  );
  refused(`${lines.slice(0, 8).join('\n')}\n70: 00 00 00 00 0`, /^:9: '70: .*' is no line of lspci/);
  refused(lines[0]!, /^:1: no bytes follow/);
  refused([...lines.slice(0, 4), ...lines.slice(5)].join('\n'), /^:5: row 40 of 0000:00:00\.0 follows 48 bytes/);
  const umockdev = toUmockdev(intelDesktop);
  refused(umockdev.slice(0, umockdev.indexOf('H: config=') + 300), /^:10: config of 0000:00:00\.0 has .*cut off/);
  refused(umockdev.slice(0, umockdev.indexOf('A: resource=') + 30), /^:1: 0000:00:00\.0 has no record H: config/);
  refused('P: /devices/pci0000:00/0000:00:00.0\nE: SUBSYSTEM=pci\n', /^:1: 0000:00:00\.0 has no record H: config/);
  const path = folderOf(intelDesktop);
  truncateSync(join(path, '0000:01:00.0/config'), 1000);
  assert.throws(
    () => importHost(path),
    /0000:01:00\.0\/config: configuration space has 64, 128, 256, 4096 bytes, not 1000/,
  );
});

test('what is not PCI is refused', () => {
  refused('', /^: is empty/);
  refused('\n\nhello world\n', /^:3: this is no dump of PCI devices/);
  refused('\x7fELF\x02\x01\x01', /^:1: this is no dump/);
  refused(
    toLspci([{ at: '0000:00:00.0', id: '8086:0c00', class: '060000' }]).replace('00: 86 80', '00: ff ff'),
    /^:1: .*reads as ff/,
  );
  refused('0000:00:00.0 Host bridge\nwhat is this\n', /^:2: 'what is this' is no line of lspci/);
  refused(
    'P: /devices/pci0000:00/0000:00:00.0\nE: SUBSYSTEM=pci\nH: config=8086zz\n',
    /^:3: config of .* is not hexadecimal/,
  );
  refused('P: /devices/x\nE: SUBSYSTEM=usb\n', /^: there is no PCI function in it/);
  const empty = join(folder, 'empty');
  mkdirSync(empty);
  assert.throws(() => importHost(empty), /no folder of a PCI function/);
  const dangling = join(folder, 'dangling');
  mkdirSync(dangling);
  symlinkSync('../../nowhere', join(dangling, '0000:00:00.0'));
  assert.throws(() => importHost(dangling), /is a link that leads nowhere: copy the folders/);
  assert.throws(() => importHost('/dev/zero'), /\/dev\/zero: is neither a file nor a folder/);
  assert.throws(() => importHost(join(folder, 'none')), /there is no such file or folder/);
});

test('what contradicts itself is refused and names both lines', () => {
  const changed = (at: string, more: Partial<Fact>): string =>
    toLspci(
      intelDesktop.map((fact) => (fact.at === `0000:${at}` ? { ...fact, ...more } : fact)),
      { bytes: 64 },
    );
  const twice = toLspci([...intelDesktop, intelDesktop[3]!], { bytes: 64 });
  refused(twice, /^:\d+: 0000:00:14\.0 is there already, at .*:\d+$/);
  refused(
    changed('00:01.1', { bus: [1, 2] }),
    /^:7: buses 01 to 01 of bridge 0000:00:01\.0 overlap 01 to 02 of bridge 0000:00:01\.1 \(.*:13\)/,
  );
  refused(changed('00:1c.0', { bus: [3, 5] }), /^:\d+: buses 04 to 04 .* overlap 03 to 05 of bridge 0000:00:1c\.0/);
  refused(changed('05:00.0', { bus: [6, 9] }), /^:\d+: buses 06 to 09 .* overlap 05 to 06 of bridge 0000:00:1c\.3/);
  refused(changed('05:00.0', { bus: [5, 5] }), /cannot lead to buses 05 to 05|overlap/);
  refused(
    toLspci(
      intelDesktop.filter(({ at }) => at !== '0000:05:00.0'),
      { bytes: 64 },
    ),
    /^:\d+: 0000:06:00\.0 is on bus 06, which lies behind 0000:00:1c\.3, but no bridge leads there/,
  );
  const path = folderOf(intelDesktop);
  writeFileSync(join(path, '0000:01:00.0/vendor'), '0x8086\n');
  assert.throws(() => importHost(path), /vendor: contradicts config: 0x8086 here, 0x10de there/);
});
