import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { TablePool } from '../../hw/iommu/table-pool.ts';
import { IommuUnit, type IommuUnitOptions } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { failAt } from '../../lib/failpoint.ts';
import { subscribe, type TraceFields } from '../../lib/tracepoint.ts';
import { Domain, IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from './domain.ts';
import type { IommuGroup } from './group.ts';
import { endpoint, IommuMachine, refuses } from './test-machine.ts';

const READ_WRITE = IOMMU_READ | IOMMU_WRITE;

function attached(unit: IommuUnitOptions = {}): {
  machine: IommuMachine;
  fn: PciFunction;
  group: IommuGroup;
  domain: Domain;
} {
  const machine = new IommuMachine({ units: [unit] });
  const fn = machine.add(endpoint(), '3.0');
  machine.boot();
  const group = machine.core.groupOf(fn)!;
  const domain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  group.attach(domain);
  return { machine, fn, group, domain };
}

test('I-1: 2 MiB of aligned pages become one leaf at level 1', () => {
  const domain = new Domain(new IommuUnit('dmar0'), 'unmanaged');
  domain.map(0x200, 0x1000, 512, READ_WRITE);
  assert.deepEqual(domain.leafAt(0x2ff), {
    level: 1,
    firstPage: 0x200,
    count: 512,
    physicalPage: 0x1000,
    entry: 0x100_0083n,
  });
});

test('I-2: 1 GiB becomes one leaf at level 2 where the unit has such leaves', () => {
  for (const [cap, level] of [
    [undefined, 2],
    [0x80d2_0084_222f_0606n, 1],
    [0x80d2_0080_222f_0606n, 0],
  ] as const) {
    const domain = new Domain(new IommuUnit('dmar0', cap === undefined ? {} : { cap }), 'unmanaged');
    assert.equal(domain.pgsizeBitmap, [0x1000n, 0x20_1000n, 0x4020_1000n][level]);
    domain.map(0x40000, 0x80000, 0x40000, READ_WRITE);
    assert.equal(domain.leafAt(0x7ffff)!.level, level);
  }
});

test('I-3: a physical page that is not aligned forces leaves of 4 KiB', () => {
  const domain = new Domain(new IommuUnit('dmar0'), 'unmanaged');
  domain.map(0x200, 0x1001, 1024, READ_WRITE);
  assert.equal(domain.leafAt(0x200)!.level, 0);
  assert.equal(domain.leafAt(0x400)!.level, 0);
  assert.equal(domain.physicalOf(0x5ff), 0x1400);
});

test('I-4: mapping over a mapping is refused, names what lies there, and changes nothing', () => {
  const domain = new Domain(new IommuUnit('dmar0'), 'unmanaged');
  domain.map(0x210, 0x50, 1, IOMMU_READ);
  const tables = domain.table!.tables;
  refuses('EADDRINUSE', () => domain.map(0x200, 0x1000, 1024, READ_WRITE), /^0x210000\.\.0x210fff is mapped already$/);
  assert.equal(domain.table!.tables, tables);
  assert.equal(domain.physicalOf(0x20f), -1);
  assert.equal(domain.physicalOf(0x210), 0x50);
});

test('I-5: unmapping half of a 2 MiB leaf removes all of it; from its middle nothing', () => {
  const domain = new Domain(new IommuUnit('dmar0'), 'unmanaged');
  domain.map(0x200, 0x1000, 1024, READ_WRITE);
  assert.equal(domain.unmap(0x300, 0x100), 0);
  assert.equal(domain.unmap(0x200, 256), 512);
  assert.equal(domain.physicalOf(0x3ff), -1);
  assert.equal(domain.physicalOf(0x400), 0x1200);
  assert.equal(domain.unmap(0x400, 513), 512, 'stops at the hole');
  assert.equal(domain.unmap(0x400, 1), 0);
  assert.equal(domain.table!.tables, 1);
});

test('map: what is refused, and with what', () => {
  const domain = new Domain(new IommuUnit('dmar0'), 'unmanaged');
  assert.equal(domain.lastPage, 2 ** 36 - 1);
  refuses('EINVAL', () => domain.map(1, 1, 1, IOMMU_CACHE), /readable or writable/);
  refuses('EINVAL', () => domain.map(1, 1, 0, READ_WRITE));
  refuses('ERANGE', () => domain.map(2 ** 36, 1, 1, READ_WRITE), /aperture 0x0\.\.0xffffffffffff/);
  refuses('ERANGE', () => domain.map(2 ** 36 - 1, 1, 2, READ_WRITE));
  refuses('ERANGE', () => domain.map(1, 2 ** 40 - 1, 2, READ_WRITE), /52 bits/);
  domain.map(2 ** 36 - 1, 2 ** 40 - 1, 1, READ_WRITE);
  assert.equal(domain.physicalOf(2 ** 36 - 1), 2 ** 40 - 1);
  {
    using _order = failAt('iommu:map');
    refuses('ENOMEM', () => domain.map(1, 1, 1, READ_WRITE));
  }
  for (const kind of ['blocked', 'identity'] as const) {
    const fixed = new Domain(new IommuUnit('dmar0'), kind);
    refuses('EINVAL', () => fixed.map(1, 1, 1, READ_WRITE), new RegExp(kind));
    refuses('EINVAL', () => fixed.unmap(1, 1));
    assert.equal(fixed.physicalOf(5), kind === 'identity' ? 5 : -1);
    assert.equal(fixed.leafAt(5), undefined);
  }
});

test('when memory for tables ends in the middle of a map, nothing of it stays', () => {
  const unit = new IommuUnit('dmar0', { tables: new TablePool(6) });
  const domain = new Domain(unit, 'unmanaged');
  refuses('ENOMEM', () => domain.map(0, 1, 512 * 5, READ_WRITE), /all 6 page tables/);
  assert.equal(unit.tables.used, 1);
  domain.map(0, 1, 512 * 3, READ_WRITE);
});

test('a domain has as many levels as the address width of its unit needs', () => {
  const make = (cap: bigint): Domain => new Domain(new IommuUnit('dmar0', { cap }), 'unmanaged');
  assert.deepEqual(
    [make(0x80d2_008c_2226_0206n).table!.levels, make(0x80d2_008c_2226_0206n).lastPage],
    [3, 2 ** 27 - 1],
  );
  assert.deepEqual(
    [make(0x80d2_008c_2238_0806n).table!.levels, make(0x80d2_008c_2238_0806n).lastPage],
    [5, 2 ** 45 - 1],
  );
  assert.equal(make(0x80d2_008c_2226_0406n).table!.levels, 4, '39 bits by four levels, when there are no three');
});

test('I-20 I-22: enforcement sets SNP in the leaves made from then on; the CACHE permission alone never does', () => {
  const { machine, fn, domain } = attached();
  const plain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  plain.map(1, machine.ramPage, 1, READ_WRITE | IOMMU_CACHE);
  assert.equal(plain.leafAt(1)!.entry & 0x800n, 0n);
  assert.equal(domain.enforceCacheCoherency(), true);
  assert.equal(domain.enforcesCoherency, true);
  domain.map(1, machine.ramPage, 1, READ_WRITE);
  assert.equal(domain.leafAt(1)!.entry & 0x800n, 0x800n);
  assert.equal(machine.unit.translateNoSnoop(fn.rid, -1, 1, 2)!.isCoherent, true);
  assert.equal(domain.enforceCacheCoherency(), true, 'once true it stays so');
});

test('I-23: enforcement after something was mapped, or without snoop control, is not possible', () => {
  const { machine, domain } = attached();
  domain.map(1, machine.ramPage, 1, READ_WRITE);
  domain.unmap(1, 1);
  assert.equal(domain.enforceCacheCoherency(), false);
  const without = new Domain(new IommuUnit('dmar1', { preset: 'legacy-nosc' }), 'unmanaged');
  assert.equal(without.enforceCacheCoherency(), false);
  assert.equal(new Domain(machine.unit, 'identity').enforceCacheCoherency(), false);
});

test('I-23: a domain attached to units of which one lacks snoop control cannot enforce', () => {
  const machine = new IommuMachine({
    units: [{}, { preset: 'legacy-nosc' }],
    unitOf: (fn) => machine?.units[fn.devfn >> 3],
  });
  for (const at of ['0.0', '1.0']) machine.add(endpoint(), at);
  machine.boot();
  const domain = machine.core.allocateDomain(machine.unit, 'unmanaged');
  for (const group of machine.core.groups()) group.attach(domain);
  assert.equal(domain.attachments, 2);
  assert.equal(domain.enforceCacheCoherency(), false);
  domain.map(5, machine.ramPage, 1, READ_WRITE);
  for (const fn of machine.tree.functions()) assert.equal(machine.dma(fn, 5), 'ok');
  domain.unmap(5, 1);
  for (const fn of machine.tree.functions()) assert.equal(machine.dma(fn, 5), 'not present');
});

test('I-80: an attached domain cannot be freed; after detach all its tables and its domain id are given back', () => {
  const { machine, group, domain } = attached();
  const used = machine.unit.tables.used;
  domain.map(0, machine.ramPage, 1000, READ_WRITE);
  refuses('EBUSY', () => domain.free());
  group.detach();
  domain.free();
  domain.free();
  assert.equal(machine.unit.tables.used, used - 1);
  refuses('EINVAL', () => domain.map(0, 0, 1, READ_WRITE), /freed/);
  refuses('EINVAL', () => group.attach(domain), /freed/);
});

test('a unit has as many domain ids as CAP.ND says', () => {
  const machine = new IommuMachine({ units: [{ cap: 0x80d2_008c_222f_0600n }] });
  const functions = Array.from({ length: 15 }, (_, i) => machine.add(endpoint(), `${(i + 1).toString(16)}.0`));
  machine.tree.enumerate();
  // 16 ids, of which 0 and 1 are taken.
  for (const fn of functions.slice(0, 14)) machine.core.probe(fn);
  refuses('ENOSPC', () => machine.core.probe(functions[14]!), /no more than 16/);
  assert.equal(machine.core.groups().length, 14);
  machine.core.remove(functions[3]!);
  machine.core.probe(functions[14]!);
});

test('I-82: after unmap no DMA hits the old page, whatever was cached: any sequence of maps, unmaps and DMA', () => {
  const action = fc.record({
    op: fc.constantFrom('map', 'map', 'dma', 'dma', 'dma', 'unmap', 'move'),
    page: fc.oneof(fc.nat(12), fc.integer({ min: 500, max: 520 })),
    count: fc.oneof(fc.integer({ min: 1, max: 8 }), fc.constant(512)),
    target: fc.oneof(fc.nat(300), fc.constantFrom(0, 512)),
    prot: fc.constantFrom(1, 2, 3),
  });
  const kindsOfUnits: IommuUnitOptions[] = [
    {},
    { staleness: 'never' },
    { staleness: { seed: 7 } },
    { preset: 'nested-sm' },
    { preset: 'nested-sm', staleness: { seed: 9 } },
  ];
  fc.assert(
    fc.property(fc.array(action, { maxLength: 40 }), fc.constantFrom(...kindsOfUnits), (actions, unit) => {
      const { machine, fn, group, domain } = attached(unit);
      const other = machine.core.allocateDomain(machine.unit, 'unmanaged');
      const worlds = [
        { domain, pages: new Map<number, { physical: number; prot: number }>() },
        { domain: other, pages: new Map<number, { physical: number; prot: number }>() },
      ];
      let current = 0;
      for (const { op, page, count, target, prot } of actions) {
        const { domain: now, pages } = worlds[current]!;
        if (op === 'move') {
          current ^= 1;
          group.replace(worlds[current]!.domain);
        } else if (op === 'map') {
          try {
            now.map(page, machine.ramPage + target, count, prot);
            for (let i = 0; i < count; i++) pages.set(page + i, { physical: target + i, prot });
          } catch {
            assert.ok(Array.from({ length: count }, (_, i) => pages.has(page + i)).includes(true));
          }
        } else if (op === 'unmap') {
          const removed = now.unmap(page, count);
          for (let i = 0; i < removed; i++) assert.equal(pages.delete(page + i), true);
        } else {
          const expected = pages.get(page);
          const isWritable = expected !== undefined && (expected.prot & IOMMU_WRITE) !== 0;
          const answer = machine.dma(fn, page, count & 0xff);
          assert.equal(answer, isWritable ? 'ok' : expected === undefined ? 'not present' : 'no write permission');
          if (isWritable) assert.equal(machine.ram[expected.physical * 4096], count & 0xff);
        }
      }
    }),
    { numRuns: 100 },
  );
});

test('maps and unmaps are traced under the names of the kernel', () => {
  const domain = new Domain(new IommuUnit('dmar0'), 'unmanaged');
  const heard: TraceFields[] = [];
  const stops = ['iommu:map', 'iommu:unmap'].map((name) => subscribe(name, (fields) => heard.push(fields)));
  domain.map(0x200, 0x1000, 512, READ_WRITE);
  domain.unmap(0x200, 1);
  for (const stop of stops) stop();
  assert.deepEqual(heard, [
    { iova: 0x20_0000n, paddr: 0x100_0000n, size: 0x20_0000n },
    { iova: 0x20_0000n, size: 0x1000n, unmapped_size: 0x20_0000n },
  ]);
});
