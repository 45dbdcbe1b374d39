/**
 * Who may go past the caches: every combination of what the device can, what its unit can, which tables it goes through, whether they
 * were asked to enforce, and the policy. Each row is measured: a machine is built, the domain attached, a request marked no-snoop sent,
 * the entry read from memory, and a guest's WBINVD executed. docs/coherency-matrix.md is what comes out of it; `npm run coherency`
 * writes it anew.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { BufferBacking } from '../hw/memory/backing.ts';
import type { DmaCoherence } from '../kernel/core/virtual-machine.ts';
import { Domain } from '../kernel/iommu/domain.ts';
import { identityDomain, nestedDomain } from '../kernel/iommu/special-domains.ts';
import type { WbinvdPolicy } from '../kernel/kvm/host.ts';
import { isNoncoherent } from '../kernel/kvm/kvm-vfio.ts';
import { TestKvm, TestVfioFile } from '../kernel/kvm/test-machine.ts';
import { Errno } from '../lib/errno.ts';
import * as reg from '../uapi/pci-regs.ts';
import { TestHost } from './test-host.ts';

const DOCUMENT = new URL('../../../docs/coherency-matrix.md', import.meta.url);
const TESTDEV = '0000:01:00.0';
const UNITS = [
  ['legacy', 'legacy-nosc'],
  ['legacy', 'vtd-legacy-sc'],
  ['scalable', 'sm-nosc'],
  ['scalable', 'nested-sm'],
] as const;
const TABLES = ['second stage', 'first stage', 'nested', 'identity'] as const;
type Tables = (typeof TABLES)[number];

const IOVA_PAGE = 0x10;
/** Guest-physical page of the top of the guest's tables; data lies in page 8. */
const GUEST_TOP = 1;
const DATA_PAGE = 8;
const RAM_PAGES = 16;

interface Path {
  readonly unit: string;
  readonly hasSnoopControl: boolean;
  readonly tables: Tables;
  readonly isAsked: boolean;
  /** What `enforceCacheCoherency` answered; undefined: not asked. */
  readonly answer: boolean | undefined;
  readonly entry: string;
  /** A no-snoop request of the device went snooped. */
  readonly isSnooped: boolean;
  readonly coherence: DmaCoherence;
}

/** Undefined: the unit has no such tables. */
function measure(preset: string, tables: Tables, isAsked: boolean, mayIssue: boolean): Path | undefined {
  const host = new TestHost(
    [
      { at: '00:00.0', model: 'host-bridge' },
      { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
      { at: '01:00.0', model: 'testdev', driver: 'vfio-pci' },
    ],
    {},
    [{ name: 'dmar0', preset }],
  );
  const { machine } = host;
  const fn = host.fn(TESTDEV);
  const group = machine.iommu.groupOf(fn)!;
  const unit = group.unit!;
  const ram = new BufferBacking(RAM_PAGES * 4096);
  const ramPage = machine.physical.addBlock(ram);
  group.claim({});
  const made = makeDomain(host, tables, isAsked, ramPage, ram);
  if (made === undefined) return undefined;
  group.attach(made.domain);
  const express = fn.config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_DEVCTL;
  const control = fn.config.read(express, 2);
  fn.config.write(
    express,
    2,
    mayIssue ? control | reg.PCI_EXP_DEVCTL_NOSNOOP_EN : control & ~reg.PCI_EXP_DEVCTL_NOSNOOP_EN,
  );
  fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) | reg.PCI_COMMAND_MASTER);
  const address = tables === 'identity' ? (ramPage + DATA_PAGE) * 4096 : IOVA_PAGE * 4096;
  const fault = fn.dma.write(address, Uint8Array.of(0x5a), { noSnoop: true });
  assert.equal(fault, undefined, `${preset}, ${tables}: ${fault?.reason}`);
  assert.equal(ram.bytes[DATA_PAGE * 4096], 0x5a, `${preset}, ${tables}`);
  const isSnooped = fn.dma.isCoherent;
  assert.equal(fn.dma.write(address, Uint8Array.of(1)), undefined);
  assert.equal(fn.dma.isCoherent, true, 'ordinary requests are always snooped');
  const place = unit.mode === 'scalable' ? unit.root.pasidPlace(fn.requesterId, 0) : undefined;
  const pgsnp =
    place === undefined
      ? 0n
      : (unit.memory.peek((BigInt(place.page) << 12n) + BigInt(place.index + 1) * 8n)! >> 24n) & 1n;
  const leaf = made.second?.leafAt(tables === 'nested' ? DATA_PAGE : IOVA_PAGE)?.entry;
  const parts = [
    ...(leaf === undefined ? [] : [`leaf SNP=${(leaf >> 11n) & 1n}`]),
    ...(place === undefined ? [] : [`PASID entry PGSNP=${pgsnp}`]),
  ];
  const device = machine.vfio.devices().find(({ name }) => name === TESTDEV)!;
  return {
    unit: unit.mode,
    hasSnoopControl: unit.canEnforceCoherency,
    tables,
    isAsked,
    answer: isAsked ? made.answer : undefined,
    entry: parts.join(', ') || 'none',
    isSnooped,
    coherence: device.dmaCoherence(),
  };
}

/** The domain, the second stage in it, and whether it said that it enforces. */
function makeDomain(
  host: TestHost,
  tables: Tables,
  isAsked: boolean,
  ramPage: number,
  ram: BufferBacking,
): { domain: Domain; second: Domain | undefined; answer: boolean } | undefined {
  const unit = host.machine.iommu.units[0]!;
  if (tables === 'identity') {
    const domain = identityDomain(unit);
    return { domain, second: undefined, answer: isAsked && domain.enforceCacheCoherency() };
  }
  try {
    const options =
      tables === 'first stage' ? { stage: 'first' as const } : tables === 'nested' ? { isNestParent: true } : {};
    const base = new Domain(unit, 'unmanaged', options);
    const answer = isAsked && base.enforceCacheCoherency();
    if (tables !== 'nested') {
      base.map(IOVA_PAGE, ramPage + DATA_PAGE, 1, 3);
      return { domain: base, second: tables === 'second stage' ? base : undefined, answer };
    }
    base.map(0, ramPage, RAM_PAGES, 3);
    const view = new DataView(ram.bytes.buffer);
    const store = (page: number, index: number, target: number): void =>
      view.setBigUint64(page * 4096 + index * 8, (BigInt(target) << 12n) | 0x67n, true);
    for (let level = 0; level < 3; level++) store(GUEST_TOP + level, 0, GUEST_TOP + level + 1);
    store(GUEST_TOP + 3, IOVA_PAGE, DATA_PAGE);
    const domain = nestedDomain(base, { pageTable: BigInt(GUEST_TOP) << 12n, addressWidth: 48 });
    return { domain, second: base, answer };
  } catch (error) {
    if (error instanceof Errno && error.code === 'EOPNOTSUPP') return undefined;
    throw error;
  }
}

/** Flushes that a WBINVD of a machine with this one device costs: `executed` or `nothing`. */
function wbinvd(device: DmaCoherence, policy: WbinvdPolicy, platformHonoursNoSnoop = true): string {
  const kvm = new TestKvm({ policy, platformHonoursNoSnoop });
  const { file, vm } = kvm.createVm();
  const vfio = kvm.createVfio(file);
  const { descriptor } = kvm.task.open(new TestVfioFile('3', device));
  kvm.add(vfio.file, descriptor);
  const vcpu = vm.addVcpu();
  vcpu.load(0);
  vcpu.execute([{ op: 'wbinvd' }]);
  const isExecuted = kvm.host.hostFlushes > 0;
  assert.equal(isExecuted, isNoncoherent(device, kvm.host));
  return isExecuted ? 'executed' : 'nothing';
}

const yes = (value: boolean): string => (value ? 'yes' : 'no');

function pathRow(path: Path, mayIssue: boolean): string[] {
  const { coherence } = path;
  return [
    path.unit,
    yes(path.hasSnoopControl),
    path.tables,
    path.answer === undefined ? 'not asked' : path.answer ? 'asked: true' : 'asked: false',
    path.entry,
    yes(mayIssue),
    !mayIssue ? 'sends none' : path.isSnooped ? 'snooped' : 'past the caches',
    'yes',
    yes(coherence.canEnforce),
    path.answer === true ? '1' : '0',
    wbinvd(coherence, 'kernel'),
    wbinvd(coherence, 'strict'),
    wbinvd(coherence, 'strict', false),
  ];
}

/** Devices without an IOMMU of their own: their driver's parent decides, and the container is coherent by vacuity. */
function emulatedRow(mayIssue: boolean, parentEnforces: boolean): string[] {
  const device = { device: 'mdev', canEnforce: false, mayIssueNoSnoop: mayIssue, pathEnforces: parentEnforces };
  return [
    'none (mediated)',
    '–',
    `the parent's${parentEnforces ? ', which enforce' : ''}`,
    'not asked',
    '–',
    yes(mayIssue),
    !mayIssue ? 'sends none' : parentEnforces ? 'snooped' : 'past the caches',
    'yes',
    'no',
    '1',
    wbinvd(device, 'kernel'),
    wbinvd(device, 'strict'),
    wbinvd(device, 'strict', false),
  ];
}

function rows(): string[][] {
  const all: string[][] = [];
  for (const [, preset] of UNITS) {
    for (const tables of TABLES) {
      for (const isAsked of [false, true]) {
        for (const mayIssue of [false, true]) {
          const path = measure(preset, tables, isAsked, mayIssue);
          if (path !== undefined) all.push(pathRow(path, mayIssue));
        }
      }
    }
  }
  for (const mayIssue of [false, true]) {
    for (const parentEnforces of [false, true]) all.push(emulatedRow(mayIssue, parentEnforces));
  }
  return all;
}

const HEAD = [
  'unit',
  'snoop control (SC)',
  'tables',
  'enforceCacheCoherency',
  'bit in the entry',
  'device may send no-snoop',
  'its no-snoop request',
  'CACHE_COHERENCY',
  'ENFORCE_CACHE_COHERENCY',
  'DMA_CC_IOMMU',
  'WBINVD, policy kernel',
  'strict',
  'strict, platform ignores no-snoop',
];

function documentOf(table: readonly string[][]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return `# Who may go past the caches

*Measured by src/host/coherency-matrix.test.ts, which fails when this page is not what it finds; \`npm run coherency\` writes it anew. The
rules behind it: [kvm.md](kvm.md).*

A device may mark a request **no-snoop**: the caches of the processors need not be looked at. The IOMMU unit can make it a snooped request
again, if it has snoop control (ECAP.SC): by the SNP bit of a second-stage leaf, or by the PGSNP bit of a PASID entry for first-stage and
nested tables. Whoever asks a domain to do so (\`enforceCacheCoherency\`, which VFIO and iommufd always do where they can) does it before
anything is mapped in a second stage. Nothing is enforced where addresses pass through as they are (identity). Where a no-snoop request goes
past the caches, a guest has to flush them, and its WBINVD is executed on the host's processors at the cost of all who share them.

${line(HEAD)}
${line(HEAD.map(() => '---'))}
${table.map(line).join('\n')}

* *its no-snoop request*: what became of one that the device sent. An ordinary request is always snooped.
* *CACHE_COHERENCY*: ordinary DMA is coherent; always so here. *ENFORCE_CACHE_COHERENCY*: the unit of the device has snoop control.
  *DMA_CC_IOMMU*: what a container with this one domain answers. A container of mediated devices only has no domain, so it says 1.
* *policy kernel*: as Linux decides, by ENFORCE_CACHE_COHERENCY of every device alone. It errs to the safe side: also a device that never
  sends no-snoop requests, or is not attached, makes WBINVD work.
* *strict*: the device may send them, and nothing on its way makes them snooped, and the platform honours them.
`;
}

test('I-20 I-21 F-50 F-51 F-52 F-53 F-54 F-57 F-58: the coherency matrix is as documented', () => {
  const table = rows();
  assert.ok(table.length >= 48, `${table.length} rows`);
  const text = documentOf(table);
  if (process.env['VFIOBOX_WRITE_DOCUMENTS'] === '1') writeFileSync(DOCUMENT, text);
  assert.equal(readFileSync(DOCUMENT, 'utf8'), text, 'docs/coherency-matrix.md is stale: npm run coherency');
});

test('what the matrix must say, whatever it says else', () => {
  for (const [unit, sc, tables, enforced, entry, may, outcome, , capability, cc, kernel, strict, deaf] of rows()) {
    const where = `${unit}, SC ${sc}, ${tables}, ${enforced}, may ${may}`;
    if (unit?.startsWith('none')) continue;
    assert.equal(capability, sc, where);
    if (sc === 'no') assert.notEqual(enforced, 'asked: true', where);
    assert.equal(/=1/.test(entry!), enforced === 'asked: true', `${where}: ${entry}`);
    assert.equal(
      outcome,
      may === 'no' ? 'sends none' : enforced === 'asked: true' ? 'snooped' : 'past the caches',
      where,
    );
    assert.equal(cc, enforced === 'asked: true' ? '1' : '0', where);
    // F-57: a container that answers CC has only devices for which WBINVD is nothing.
    if (cc === '1') assert.deepEqual([kernel, strict], ['nothing', 'nothing'], where);
    assert.equal(strict, outcome === 'past the caches' ? 'executed' : 'nothing', where);
    assert.equal(deaf, 'nothing', where);
  }
});
