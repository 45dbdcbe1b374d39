/** Kernel logs decoded. The lines have the form that Linux prints; devices and addresses are made up. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { MAX_FAULTS, parseFaultLog } from './parse.ts';
import { decodeFaultLog, faultReportLines } from './report.ts';

const dump = (entries: readonly string[]): string =>
  [
    '[  12.1] DMAR: DRHD: handling fault status reg 2',
    '[  12.2] DMAR: [DMA Write NO_PASID] Request device [0000:05:00.0] fault addr 0x1200345000 [fault reason 0x05] PTE Write access is not set',
    '[  12.3] DMAR: Dump dmar1 table entries for IOVA 0x1200345000',
    ...entries.map((entry) => `[  12.4] DMAR: ${entry}`),
    '[  12.9] usb 1-1: new high-speed USB device',
  ].join('\n');

const legacy = ['root entry: 0x0000000107a2d001', 'context entry: hi 0x0000000000000502, low 0x0000000109c01001'];

test('three generations of the DMAR line say the same', () => {
  const lines = [
    'DMAR:[DMA Read] Request device [02:00.0] fault addr fffcd000 \nDMAR:[fault reason 06] PTE Read access is not set',
    'DMAR: [DMA Read] Request device [02:00.0] PASID ffffffff fault addr fffcd000 [fault reason 06] PTE Read access is not set',
    'DMAR: [DMA Read NO_PASID] Request device [0000:02:00.0] fault addr 0xfffcd000 [fault reason 0x06] PTE Read access is not set',
  ];
  for (const line of lines) {
    const { faults } = decodeFaultLog(line);
    assert.equal(faults.length, 1);
    assert.equal(faults[0]!.headline, 'DMA read by 0000:02:00.0 at 0xfffcd000');
    assert.equal(faults[0]!.reason!.name, 'no read permission');
  }
});

test('a decimal reason of an old kernel is decimal', () => {
  const line =
    'DMAR: [INTR-REMAP] Request device [f0:1f.0] fault index 1b [fault reason 38] Blocked an interrupt request';
  const { faults } = decodeFaultLog(line);
  assert.equal(faults[0]!.headline, 'interrupt of 0000:f0:1f.0, entry 27 of the remapping table');
  assert.equal(faults[0]!.reason!.code, 0x26);
});

test('a dump names the level that is not present', () => {
  const text = dump([
    ...legacy,
    'pte level: 4, pte value: 0x0000000109c02003',
    'pte level: 3, pte value: 0x0000000109c03003',
    'pte level: 2, pte value: 0x0000000000000000',
    'page table not present at level 1',
  ]);
  const [fault] = decodeFaultLog(text).faults;
  assert.equal(fault!.unit, 'dmar1');
  assert.equal(fault!.line, 2);
  assert.deepEqual(
    fault!.entries.map(({ what, isPresent }) => [what, isPresent]),
    [
      ['root entry', true],
      ['context entry', true],
      ['level 4 (P4D) [0]', true],
      ['level 3 (PUD) [72]', true],
      ['level 2 (PMD) [1]', false],
    ],
  );
  assert.match(fault!.verdict, /Nothing is mapped at 0x1200345000: the entry at level 2 \(PMD\)/);
});

test('a dump names the leaf without permission, reserved bits and a stale translation', () => {
  const upper = [
    ...legacy,
    'pte level: 4, pte value: 0x0000000109c02003',
    'pte level: 3, pte value: 0x0000000109c03003',
  ];
  const verdictOf = (entry: string): string => decodeFaultLog(dump([...upper, entry])).faults[0]!.verdict;
  const leaf = (value: string): string => `pte level: 2, pte value: 0x${value}`;
  assert.match(verdictOf(leaf('0000000200200081')), /mapped for reads only: the entry at level 2 \(PMD\)/);
  assert.match(verdictOf(leaf('0000000200201083')), /bits 0x1000 of the address .* are reserved/);
  assert.match(verdictOf(leaf('0000000200200083')), /allow this write \(a 2 MiB page, physical address 0x200345000\)/);
});

test('scalable mode: the half of the root entry, the PASID entry and its first stage', () => {
  const text = [
    'DMAR: [DMA Read PASID 0x41] Request device [0000:6a:10.0] fault addr 0x7f0000001000 [fault reason 0x71] SM: Present bit',
    'DMAR: Dump dmar4 table entries for IOVA 0x7f0000001000',
    'DMAR: scalable mode root entry: hi 0x0000000105001001, low 0x0000000000000000',
    'DMAR: context entry: hi 0x0000000000000000, low 0x0000000106000e0d',
    'DMAR: pasid dir entry: 0x0000000106001001',
    'DMAR: pasid table entry[0]: 0x0000000000000049',
    'DMAR: pasid table entry[1]: 0x0000000000800007',
    'DMAR: pasid table entry[2]: 0x0000000106005000',
    'DMAR: pte level: 4, pte value: 0x0000000106006027',
    'DMAR: pte level: 3, pte value: 0x0000000000000026',
  ].join('\n');
  const [fault] = decodeFaultLog(text).faults;
  assert.equal(fault!.headline, 'DMA read by 0000:6a:10.0 with PASID 0x41 at 0x7f0000001000');
  assert.equal(fault!.entries[0]!.what, 'root entry (upper half)');
  assert.match(fault!.entries[3]!.fields, /PGTT 1 \(first stage only\), DID 7, .*first-stage table 0x106005000/);
  assert.match(fault!.entries[4]!.fields, /^P R\/W U\/S A, table 0x106006000$/);
  assert.match(fault!.verdict, /level 3 \(PUD\) is not present/);
});

test('AMD: the flags of an event', () => {
  const line =
    'nvme 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f address=0xfeed0000 flags=0x0070]\n' +
    'AMD-Vi: Event logged [IO_PAGE_FAULT device=02:00.1 domain=0x0010 address=0x1000 flags=0x0000]';
  const { faults } = decodeFaultLog(line);
  assert.equal(faults[0]!.headline, 'DMA write by 0000:01:00.0 at 0xfeed0000 (domain 15)');
  assert.match(faults[0]!.verdict, /mapped, but not for a write/);
  assert.equal(faults[1]!.headline, 'DMA read by 0000:02:00.1 at 0x1000 (domain 16)');
  assert.match(faults[1]!.verdict, /Nothing is mapped/);
});

test('what cannot be read is said with its line; other lines are passed over', () => {
  const report = decodeFaultLog('hello\nDMAR: [DMA Sideways] Request device [02:00.0] fault addr 12\n');
  assert.deepEqual(report.faults, []);
  assert.equal(report.problems[0]!.line, 2);
  assert.match(faultReportLines(report).join('\n'), /line 2 looks like a fault/);
  const cut = decodeFaultLog(dump(legacy)).faults[0]!;
  assert.match(cut.verdict, /cut off before the page table/);
});

test('any text is read without an exception, and the number of faults is bounded', () => {
  const words = fc.constantFrom(
    'DMAR:',
    '[DMA Read]',
    'Request device [02:00.0]',
    'fault addr',
    '0x',
    'ffff',
    '[fault reason 06]',
    '\n',
  );
  const piece = fc.oneof(words, fc.string());
  fc.assert(fc.property(fc.array(piece), (pieces) => faultReportLines(decodeFaultLog(pieces.join(' '))).length >= 0));
  const line = 'DMAR: [DMA Read] Request device [02:00.0] fault addr 1000 [fault reason 06] x\n';
  assert.equal(parseFaultLog(line.repeat(MAX_FAULTS + 5)).faults.length, MAX_FAULTS);
});
