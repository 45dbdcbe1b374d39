import assert from 'node:assert/strict';
import { test } from 'node:test';
import { subscribe, type TraceFields } from '../../lib/tracepoint.ts';
import { READ, WRITE } from '../pci/dma.ts';
import { FaultLog, FaultReason, faultReasonName } from './faults.ts';
import { vtdss } from './fmt/vtdss.ts';
import { PageTable } from './page-table.ts';
import { decodeCapabilities, type UnitCapabilities, unitPresets } from './registers.ts';
import { IommuUnit, type IommuUnitOptions } from './unit.ts';

const RID = 0x669; // 06:0d.1
const DID = 5;

function world(options: IommuUnitOptions = {}): { unit: IommuUnit; table: PageTable } {
  const unit = new IommuUnit('dmar0', options);
  const table = new PageTable(vtdss, unit.tables);
  unit.setContext(RID, DID, table);
  return { unit, table };
}

/** The refusal of one access. */
function refusal(unit: IommuUnit, page: number, access: typeof READ | typeof WRITE, rid = RID, pasid = -1): string {
  assert.equal(unit.translate(rid, pasid, page, access), -1);
  const { reason, detail } = unit.lastFault!;
  return `${unit.why} | ${reason.toString(16)} | ${detail}`;
}

test('the registers of the presets say what the units can do', () => {
  const { cap, ecap } = unitPresets['vtd-legacy-sc'];
  const abilities = (known: UnitCapabilities): string[] =>
    Object.entries(known).flatMap(([name, value]) => (value === true ? [name] : []));
  const legacy = decodeCapabilities(cap, ecap);
  assert.deepEqual(abilities(legacy), [
    'hasDeviceTlb',
    'hasInterruptRemapping',
    'hasPassThrough',
    'canEnforceCoherency',
    'hasPageInvalidation',
  ]);
  const { domains, levels, mgaw, largestLeaf, faultRecords, mamv, faultRecordOffset, iotlbOffset } = legacy;
  assert.deepEqual(
    { domains, levels, mgaw, largestLeaf, faultRecords, mamv, faultRecordOffset, iotlbOffset },
    {
      domains: 65536,
      levels: [3, 4],
      mgaw: 48,
      largestLeaf: 2,
      faultRecords: 1,
      mamv: 18,
      faultRecordOffset: 0x220,
      iotlbOffset: 0xf0,
    },
  );
  const everything = unitPresets['nested-sm'];
  const scalable = decodeCapabilities(everything.cap, everything.ecap);
  assert.deepEqual(
    Object.entries(scalable).filter(([, value]) => value === false),
    [['isCaching', false]],
  );
  assert.deepEqual([scalable.mgaw, scalable.levels, scalable.pasidBits, scalable.faultRecords], [57, [3, 4, 5], 20, 8]);
  const without = decodeCapabilities(unitPresets['sm-noprs'].cap, unitPresets['sm-noprs'].ecap);
  assert.deepEqual([without.hasPageRequests, without.isScalable], [false, true]);
  assert.deepEqual(unitPresets['legacy-sc'].ecap, ecap);
  const unit = new IommuUnit('dmar0');
  assert.deepEqual([unit.cap, unit.ecap], [0x80d2008c222f0606n, 0xf00fcen]);
  assert.deepEqual([unit.mgaw, unit.pgsizeBitmap, unit.canEnforceCoherency], [48, 0x40201000n, true]);
  assert.equal(new IommuUnit('dmar1', { preset: 'legacy-nosc' }).canEnforceCoherency, false);
});

test('a request is translated page by page, by leaves of every size, with and without the IOTLB', () => {
  const { unit, table } = world();
  table.map(0x10, 0x999, 1, 1, false);
  table.map(0x200, 0x4000, 512, 3, false);
  table.map(0x40000, 0x80000, 262144, 3, false);
  for (let round = 0; round < 2; round++) {
    assert.equal(unit.translate(RID, -1, 0x10, READ), 0x999);
    assert.equal(unit.translate(RID, -1, 0x2ff, WRITE), 0x40ff);
    assert.equal(unit.translate(RID, -1, 0x7ffff, WRITE), 0xbffff);
  }
  assert.equal([...unit.iotlb.entries()].length, 3);
  unit.setContext(RID, 1, undefined);
  assert.equal(unit.translate(RID, -1, 0x10, WRITE), 0x10, 'pass-through');
});

test('I-30: every reason of legacy mode that tables can give, with the entry that gave it', () => {
  const { unit, table } = world();
  table.map(0x10, 0x999, 1, 1, false);
  table.map(0x11, 0x999, 1, 2, false);
  assert.equal(refusal(unit, 0x10, READ, 0x20), 'blocked | 1 | the root entry of 00:04.0 is not present');
  assert.equal(refusal(unit, 0x10, READ, 0x668), 'blocked | 2 | the context entry of 06:0d.0 is not present');
  assert.equal(
    refusal(unit, 2 ** 36, READ),
    'beyond address width | 4 | the address has more than the 48 bits of this unit',
  );
  assert.equal(
    refusal(unit, 0x10, WRITE),
    'no write permission | 5 | no write permission in the leaf at level 0 (entry 0x999001)',
  );
  assert.equal(
    refusal(unit, 0x11, READ),
    'no read permission | 6 | no read permission in the leaf at level 0 (entry 0x999002)',
  );
  assert.equal(refusal(unit, 0x12, WRITE), 'not present | 5 | not present at level 0 (entry 0x0)');
  assert.equal(refusal(unit, 0x200, READ), 'not present | 6 | not present at level 1 (entry 0x0)');
  assert.equal(refusal(unit, 2 ** 27, READ), 'not present | 6 | not present at level 3 (entry 0x0)');
  assert.match(refusal(unit, 0x10, READ, RID, 3), /^no PASIDs \| 31 \|/);
  assert.equal(faultReasonName(5), 'no write permission');
  assert.equal(faultReasonName(0x99), 'reason 153');
});

test('I-30: reserved bits are a fault of their own', () => {
  const { unit, table } = world({ preset: 'legacy-nosc' });
  table.map(0x200, 0x4000, 512, 3, false);
  table.walk(0x200);
  const at = table.word;
  const words = table.pool.words;
  words[at]! |= 1 << 13;
  assert.match(refusal(unit, 0x200, READ), /^reserved bits \| c \| entry 0x4002083$/);
  words[at]! ^= 1 << 13;
  words[at]! |= 1 << 11;
  assert.match(refusal(unit, 0x200, READ), /^reserved bits \| c \| entry 0x4000883 has SNP/);
  words[at]! ^= 1 << 11;
  assert.equal(unit.translate(RID, -1, 0x200, READ), 0x4000);
  words[table.top << 10]! |= 0x80;
  unit.invalidateDomain(DID);
  assert.match(refusal(unit, 0x200, READ), /^reserved bits \| c \| a leaf at level 3/);
});

test('the interrupt window is never DMA, even when software has mapped it or the context is pass-through', () => {
  const { unit, table } = world();
  table.map(0xfee00 - 1, 0x100, 0x102, 3, false);
  for (let round = 0; round < 2; round++) {
    assert.equal(unit.translate(RID, -1, 0xfedff, WRITE), 0x100);
    assert.equal(unit.translate(RID, -1, 0xfee00, WRITE), -1);
    assert.equal(unit.why, 'interrupt address range');
    assert.equal(unit.translate(RID, -1, 0xfeeff, READ), -1);
    assert.equal(unit.translate(RID, -1, 0xfef00, READ), 0x201);
    assert.equal(unit.faults.isPending, false);
  }
  unit.setContext(RID, 1, undefined);
  assert.equal(unit.translate(RID, -1, 0xfee00, WRITE), -1);
});

test('the interrupt window inside a large leaf stays closed when the leaf is in the IOTLB', () => {
  const { unit, table } = world();
  table.map(0xc0000, 0x40000, 262144, 3, false);
  assert.equal(unit.translate(RID, -1, 0xfe000, WRITE), 0x7e000);
  assert.equal(unit.translate(RID, -1, 0xfee80, WRITE), -1);
});

test('I-6: after unmap a stale translation may be hit until it is invalidated, then it faults', () => {
  const { unit, table } = world();
  table.map(0x10, 0x999, 1, 3, false);
  assert.equal(unit.translate(RID, -1, 0x10, READ), 0x999);
  table.unmap(0x10, 1);
  assert.equal(unit.translate(RID, -1, 0x10, READ), 0x999, 'stale, as hardware is');
  unit.invalidatePages(DID, 0x10, 0);
  assert.equal(unit.translate(RID, -1, 0x10, READ), -1);
  assert.equal(unit.translate(RID, -1, 0x11, READ), -1);
  table.map(0x11, 0x888, 1, 3, false);
  assert.equal(unit.translate(RID, -1, 0x11, READ), 0x888, 'what was not present is not cached');
});

test('I-20 I-21: no-snoop requests are coherent by the SNP bit of the leaf, with and without the IOTLB', () => {
  const { unit, table } = world();
  table.map(0x10, 0x999, 1, 3, true);
  table.map(0x11, 0x888, 1, 3, false);
  for (let round = 0; round < 2; round++) {
    assert.deepEqual(unit.translateNoSnoop(RID, -1, 0x10, WRITE), { physicalPage: 0x999, isCoherent: true });
    assert.deepEqual(unit.translateNoSnoop(RID, -1, 0x11, WRITE), { physicalPage: 0x888, isCoherent: false });
  }
  assert.equal(unit.translateNoSnoop(RID, -1, 0x12, WRITE), undefined);
  unit.setContext(RID, 1, undefined);
  assert.deepEqual(unit.translateNoSnoop(RID, -1, 0x10, WRITE), { physicalPage: 0x10, isCoherent: false });
});

test('accessed and dirty bits are set by reads and writes, also for a write after a cached read', () => {
  const { unit, table } = world({ hasAccessedDirty: true });
  table.map(0x10, 0x999, 1, 3, false);
  const bits = (): number => {
    table.walk(0x10);
    return table.low & (vtdss.accessed | vtdss.dirty);
  };
  assert.equal(bits(), 0);
  unit.translate(RID, -1, 0x10, READ);
  assert.equal(bits(), vtdss.accessed);
  unit.translate(RID, -1, 0x10, WRITE);
  assert.equal(bits(), vtdss.accessed | vtdss.dirty);
  table.readDirty(0, 100, true, () => {});
  unit.translate(RID, -1, 0x10, WRITE);
  assert.equal(bits(), vtdss.accessed, 'cached as dirty: software invalidates after it has cleared the bit');
  unit.invalidatePages(DID, 0x10, 0);
  unit.translate(RID, -1, 0x10, WRITE);
  assert.equal(bits(), vtdss.accessed | vtdss.dirty);
});

test('a fault is traced with requester, address, reason and the entry that said no', () => {
  const { unit } = world();
  const heard: TraceFields[] = [];
  const stop = subscribe('iommu:io_page_fault', (fields) => heard.push(fields));
  unit.translate(RID, -1, 0x12345, WRITE);
  stop();
  unit.translate(RID, -1, 0x12345, WRITE);
  assert.deepEqual(heard, [
    {
      unit: 'dmar0',
      rid: RID,
      pasid: -1,
      iova: 0x1234_5000n,
      access: 'write',
      reason: 5,
      name: 'no write permission',
      why: 'not present at level 3 (entry 0x0)',
    },
  ]);
});

test('I-31: fault records hold requester, address and reason; without a free one the overflow flag is set once', () => {
  const log = new FaultLog(2);
  log.record(RID, -1, 0xf_ffff_1234, true, 6);
  log.record(0x20, 0x12345, 7, false, 5);
  const [low, high, source, rest] = log.read(0);
  assert.deepEqual([low! >>> 0, high! >>> 0, source! >>> 0, rest! >>> 0], [0xf1234000, 0xffff, 0x669, 0xc000_0006]);
  assert.deepEqual(
    [...log.read(1)].map((word) => word >>> 0),
    [0x7000, 0, 0x8000_0020, 0x8123_4505],
  );
  assert.equal(log.overflow, false);
  log.record(0x21, -1, 9, true, 6);
  assert.equal(log.overflow, true);
  assert.equal(log.isPending, true);
  log.clear();
  assert.deepEqual([log.overflow, log.isPending], [false, false]);
  log.record(0x21, -1, 9, true, 6);
  assert.equal(log.isPending, true);
});

test('I-32: a context with FPD set faults in silence', () => {
  const { unit, table } = world();
  let events = 0;
  unit.faultEvent = () => events++;
  unit.setContext(RID, DID, table, true);
  assert.equal(unit.translate(RID, -1, 5, READ), -1);
  assert.equal(unit.why, 'not present');
  assert.deepEqual([unit.faults.isPending, events], [false, 0]);
  unit.setContext(RID, DID, table);
  assert.equal(unit.translate(RID, -1, 5, READ), -1);
  assert.deepEqual([unit.faults.isPending, events], [true, 1]);
  assert.equal(unit.lastFault!.reason, FaultReason.NO_READ_PERMISSION);
});

test('the root table lists the requesters that have a context', () => {
  const { unit, table } = world();
  unit.setContext(0x10, 1, undefined);
  assert.deepEqual(
    [...unit.root.entries()].map(([rid, context]) => [rid, context.did, context.page]),
    [
      [0x10, 1, undefined],
      [RID, DID, table.top],
    ],
  );
  unit.clearContext(0x10);
  unit.clearContext(0x1000);
  assert.equal([...unit.root.entries()].length, 1);
});
