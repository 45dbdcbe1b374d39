import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { acsEnabled } from '../../hw/pci/acs.ts';
import { ManualClock } from '../../hw/pci/clock.ts';
import { type HostConfig, parseHost } from '../host-file.ts';
import { Machine } from '../machine.ts';
import { importHost, loadHostOrDump } from './index.ts';
import { amdRyzen, firstDocumentation, intelDesktop, server, thunderbolt, vmd } from './test-machines.ts';
import { configOf, type Fact, toLspci, toSysfs, toUmockdev } from './test-maker.ts';

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

/** The machine of a host file as a person would use it: written, read again, built. */
function build(host: HostConfig): Machine {
  return new Machine(parseHost(JSON.stringify(host), 'imported.json'), {
    clock: new ManualClock(),
    allocateShared: () => assert.fail('no memory is mapped'),
    log() {},
  });
}

/** That the groups are those of the facts. Virtual functions come last and have numbers of their own. */
function assertGroups(machine: Machine, facts: readonly Fact[]): void {
  const expected = Object.fromEntries(facts.map(({ at, physfn, group }) => [at, physfn === undefined ? group : 'own']));
  const found: Record<string, unknown> = groupsOf(machine);
  for (const fn of machine.functions()) {
    if (fn.isVirtfn && machine.iommu.groupOf(fn)!.members.size === 1) found[fn.name] = 'own';
  }
  assert.deepEqual(found, expected);
}

/** Group of each function, by full address. */
function groupsOf(machine: Machine): Record<string, number | undefined> {
  return Object.fromEntries(machine.functions().map((fn) => [fn.name, machine.iommu.groupOf(fn)?.id]));
}

const machines: Record<string, Fact[]> = { intelDesktop, amdRyzen, server, thunderbolt, vmd };

// Every machine in every format: tests/robustness/import.test.ts.
const formats: Record<string, (facts: readonly Fact[]) => string> = {
  'lspci -xxxx -v': (facts) => fileOf(toLspci(facts, { verbose: true })),
  'a sysfs copy': folderOf,
  umockdev: (facts) => fileOf(toUmockdev(facts)),
};
for (const [i, [name, facts]] of Object.entries(machines).entries()) {
  const [format, sourceOf] = Object.entries(formats)[i % 3]!;
  test(`${name}, from ${format}: the groups of the real machine, with their numbers`, () => {
    const { host, notes } = importHost(sourceOf(facts));
    assertGroups(build(host), facts);
    assert.match(notes.join('\n'), /groups: \d+, the same as in the dump/);
  });
}

test('an imported function is its configuration space: ids, class, BARs, capabilities in their places', () => {
  const machine = build(importHost(folderOf(server)).host);
  const network = machine.pci.find('0000:81:00.0')!;
  const bytes = configOf(server.find(({ at }) => at === network.name)!);
  assert.deepEqual(
    network.config.capabilities().map(({ id, offset }) => [id, offset]),
    [
      [0x01, 0x40],
      [0x10, 0x60],
      [0x11, 0xa0],
    ],
  );
  assert.deepEqual(
    network.config.extended().map(({ id, offset }) => [id, offset]),
    [
      [0x01, 0x100],
      [0x10, 0x160],
    ],
  );
  assert.equal(network.bars[0]!.size, 2 ** 19);
  assert.equal(network.bars[0]!.address, 0xc7800000);
  assert.equal(network.msix!.vectors, 64);
  for (const [first, end] of [
    [0x08, 0x0c],
    [0x2c, 0x30],
    [0x60, 0x68],
    [0x100, 0x104],
  ] as const) {
    assert.deepEqual([...network.config.bytes.subarray(first, end)], [...bytes.subarray(first, end)]);
  }
  assert.equal(network.sriov!.totalVfs, 64);
  assert.deepEqual(
    network.sriov!.functions.map((fn) => fn.name),
    ['0000:81:10.0', '0000:81:10.2', '0000:81:10.4', '0000:81:10.6'],
  );
  assert.equal(network.sriov!.vfBars[0]!.size, 16384);
});

test('T-11: ACS as it was dumped; off everywhere means that nobody used the IOMMU, and Linux would switch it on', () => {
  const port = (machine: Machine, at: string): boolean => acsEnabled(machine.pci.find(at)!);
  const dumped = build(importHost(fileOf(toLspci(server))).host);
  assert.deepEqual([port(dumped, '0000:04:08.0'), port(dumped, '0000:00:02.0')], [false, true]);
  const off = thunderbolt.map((fact) => (fact.acs === undefined ? fact : { ...fact, acs: { ...fact.acs, ctrl: 0 } }));
  const source = fileOf(toLspci(off));
  const { host, notes } = importHost(source);
  assert.match(notes.join('\n'), /ACS is off everywhere/);
  assert.deepEqual(
    ['0000:02:01.0', '0000:00:1c.0'].map((at) => port(build(host), at)),
    [true, true],
  );
  const kept = build(importHost(source, { acs: 'dumped' }).host);
  assert.deepEqual(
    ['0000:02:01.0', '0000:00:1c.0'].map((at) => port(kept, at)),
    [false, false],
  );
  assert.equal(port(build(importHost(fileOf(toLspci(server)), { acs: 'boot' }).host), '0000:04:08.0'), true);
});

test('T-13: an old Intel chipset whose switches are out of reach does not isolate', () => {
  const closed = intelDesktop.map((fact) => (fact.at === '0000:00:1f.0' ? { ...fact, words: [] } : fact));
  const machine = build(importHost(fileOf(toLspci(closed))).host);
  assert.equal(acsEnabled(machine.pci.find('0000:00:1c.2')!), false);
  const open = build(importHost(fileOf(toLspci(intelDesktop))).host);
  assert.equal(acsEnabled(open.pci.find('0000:00:1c.2')!), true);
});

test('T-25 T-3: the tree of the first documentation gives its group of three; switches and slots follow from the shape', () => {
  assert.deepEqual(groupsOf(build(loadHostOrDump(fileOf(firstDocumentation)))), {
    '0000:00:1e.0': 0,
    '0000:06:0d.0': 0,
    '0000:06:0d.1': 0,
  });
  const tree = `-+-[0000:40]---01.0
 \\-[0000:00]-+-00.0  Intel Corporation Device [8086:1234]
             +-01.0-[01-04]----00.0-[02-04]--+-00.0-[03]----00.0  NVIDIA [10de:1b80]
             |                               \\-01.0-[04]--
             +-1c.0-[05-06]----00.0-[06]--+-01.0
             |                            \\-02.0
             \\-1f.0
`;
  const machine = build(importHost(fileOf(tree)).host);
  assert.deepEqual(
    machine.functions().map((fn) => [fn.name.slice(5), machine.hotplug.described.get(fn)!.model]),
    [
      ['00:00.0', 'stub'],
      ['00:01.0', 'root-port'],
      ['00:1c.0', 'root-port'],
      ['00:1f.0', 'stub'],
      ['01:00.0', 'switch-upstream'],
      ['02:00.0', 'switch-downstream'],
      ['02:01.0', 'switch-downstream'],
      ['03:00.0', 'stub'],
      ['05:00.0', 'pcie-pci-bridge'],
      ['06:01.0', 'stub'],
      ['06:02.0', 'stub'],
      ['40:01.0', 'stub'],
    ],
  );
  assert.equal(machine.pci.find('0000:03:00.0')!.vendor, 0x10de);
});

test('an endpoint to whose bus no bridge leads is told: virtual machines have such buses, other dumps are not whole', () => {
  const told = (facts: readonly Fact[]): string => importHost(fileOf(toLspci(facts))).notes.join('\n');
  assert.doesNotMatch(told(intelDesktop), /no bridge leads to/);
  const without = intelDesktop.filter(({ at }) => at !== '0000:00:01.0');
  assert.match(told(without), /^no bridge leads to 0000:01:00\.0: its bus is taken as a root bus/m);
});

test('-xxx and -x show less, and the import says what is unknown', () => {
  const short = importHost(fileOf(toLspci(amdRyzen, { bytes: 256 })));
  assert.match(short.notes.join('\n'), /only 256 bytes of \d+ PCI Express functions/);
  assert.equal(build(short.host).pci.find('0000:00:03.1')!.portType, 4);
  const header = importHost(fileOf(toLspci(amdRyzen, { bytes: 64 })));
  assert.match(header.notes.join('\n'), /only the first 64 bytes of \d+ functions/);
  const guessed = build(header.host);
  assert.deepEqual(
    ['00:03.1', '06:00.0', '07:00.0', '08:00.0'].map((at) => guessed.pci.find(`0000:${at}`)!.portType),
    [4, 5, 6, 0],
  );
});

test('groups that differ from those of the dump are told', () => {
  const wrong = amdRyzen.map((fact) => (fact.at === '0000:08:00.1' ? { ...fact, group: 11 } : fact));
  const { host, notes } = importHost(folderOf(wrong));
  assert.match(notes.join('\n'), /groups differ from those of the dump: there are no groups \{08:00\.0 08:00\.1\}/);
  assert.ok(host.functions.every((fn) => fn.group === undefined));
});
