/**
 * The IOMMU's other paths: translations by mode and format without the IOTLB's help, nested walks, invalidation by granularity, the
 * queue, memory, and the cost of a map against how many there are: `npm run build && taskset -c 1 node --expose-gc dist/bench/iommu-modes.bench.js`.
 */
import { encodeDescriptor } from '../src/hw/iommu/descriptors.ts';
import { amdV1 } from '../src/hw/iommu/fmt/amd-v1.ts';
import type { PageTableFormat } from '../src/hw/iommu/fmt/format.ts';
import { vtdss } from '../src/hw/iommu/fmt/vtdss.ts';
import { x86_64 } from '../src/hw/iommu/fmt/x86-64.ts';
import { PageTable } from '../src/hw/iommu/page-table.ts';
import { TablePool } from '../src/hw/iommu/table-pool.ts';
import { IommuUnit } from '../src/hw/iommu/unit.ts';
import { BufferBacking } from '../src/hw/memory/backing.ts';
import { PhysicalMemory } from '../src/hw/memory/physical-memory.ts';
import { Domain } from '../src/kernel/iommu/domain.ts';

const ROUNDS = 7;
const PAGES = 65536;
const BASE = 0x1_0000;
const RID = 0x20;
let sink = 0;

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1]!;
}

/** Median nanoseconds of one of `count` things that `work` does, after a round to warm up. */
function measure(count: number, work: () => void): number {
  const times: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    const start = process.hrtime.bigint();
    work();
    times.push(Number(process.hrtime.bigint() - start) / count);
  }
  return median(times.slice(1));
}

function show(what: string, nanoseconds: number, note = ''): void {
  console.log(`${what.padEnd(58)} ${nanoseconds.toFixed(1).padStart(9)} ns ${note}`);
}

const order = Float64Array.from({ length: 1 << 18 }, (_, i) => BASE + (Math.imul(i, 40503) & (PAGES - 1)));

function formats(): void {
  for (const [format, levels] of [
    [vtdss, 4],
    [vtdss, 5],
    [x86_64, 4],
    [amdV1, 4],
  ] as [PageTableFormat, number][]) {
    const table = new PageTable(format, new TablePool(), { levels });
    for (let i = 0; i < PAGES; i++) table.map(BASE + i, Math.imul(i, 40503) & 0xffffff, 1, 3, false);
    const time = measure(order.length, () => {
      for (let i = 0; i < order.length; i++) sink += table.walk(order[i]!);
    });
    show(`walk, ${format.name}, ${levels} levels`, time, `${(1000 / time).toFixed(1)} M/s`);
    for (const [size, name] of [
      [1, '4 KiB'],
      [512, '2 MiB'],
    ] as const) {
      const other = new PageTable(format, new TablePool(), { levels });
      const count = 4096;
      const both = measure(count, () => {
        for (let i = 0; i < count; i++) other.map(0x40000 + i * size, 0x80000 + i * size, size, 3, false);
        for (let i = 0; i < count; i++) other.unmap(0x40000 + i * size, size);
        other.releaseTables();
      });
      show(`map and unmap of ${name}, ${format.name}, ${levels} levels`, both);
    }
  }
}

/** Requests that miss the IOTLB each time. */
function units(): void {
  const memory = new PhysicalMemory();
  const ram = memory.addBlock(new BufferBacking(1 << 22));
  const unit = new IommuUnit('dmar0', { preset: 'nested-sm', memory });
  unit.setRights(RID, { hasDeviceTlb: false, hasPasids: true, hasPageRequests: false });
  const second = new PageTable(vtdss, unit.tables);
  const first = new PageTable(x86_64, unit.tables);
  for (const table of [second, first])
    for (let i = 0; i < PAGES; i++) table.map(BASE + i, ram + (i & 1023), 1, 3, false);
  const stages = {
    second: { secondStage: { page: second.top, levels: 4 } },
    first: { firstStage: { page: first.top, levels: 4 } },
  };
  unit.setPasidEntry(RID, 1, { type: 'second', did: 5, ...stages.second, isWalkSnooped: true });
  unit.setPasidEntry(RID, 2, { type: 'first', did: 6, ...stages.first, isWalkSnooped: true });
  // The guest's tables are in its RAM, which the second stage maps page by page from guest page 0 on.
  const guest = new PageTable(vtdss, unit.tables);
  guest.map(0, ram, 1024, 3, false);
  const put = (page: number, index: number, value: bigint): void => {
    unit.memory.store(ram + page, index, Number(value & 0xffff_ffffn), Number(value >> 32n));
  };
  for (const level of [0, 1, 2]) put(level, 0, BigInt((level + 1) << 12) | 0x27n);
  for (let i = 0; i < 512; i++) put(3, i, BigInt(i << 12) | 0x67n);
  const nested = { type: 'nested', did: 7, firstStage: { page: 0, levels: 4 }, isWalkSnooped: true } as const;
  unit.setPasidEntry(RID, 3, { ...nested, secondStage: { page: guest.top, levels: 4 } });
  const miss = (pasid: number, did: number, count: number, pageAt: (i: number) => number): number =>
    measure(count, () => {
      for (let i = 0; i < count; i++) {
        if ((i & 1023) === 0) unit.invalidateDomain(did);
        sink += unit.translate(RID, pasid, pageAt(i), 1);
      }
    });
  const walk = (i: number): number => order[i]!;
  show('request with PASID, IOTLB miss, second stage', miss(1, 5, order.length, walk));
  show('request with PASID, IOTLB miss, first stage', miss(2, 6, order.length, walk));
  show(
    'request with PASID, IOTLB miss, nested (24 entries)',
    miss(3, 7, 1 << 15, (i) => i & 511),
  );
  show(
    'request with PASID, IOTLB hit, nested',
    measure(1 << 18, () => {
      for (let i = 0; i < 1 << 18; i++) sink += unit.translate(RID, 3, i & 255, 1);
    }),
  );
  const count = 20_000;
  for (const [name, order2] of [
    ['one page', 0],
    ['2 MiB', 9],
    ['1 GiB', 18],
  ] as const) {
    show(
      `invalidation, ${name}`,
      measure(count, () => {
        for (let i = 0; i < count; i++) unit.invalidatePages(5, 0, order2);
      }),
    );
  }
  show(
    'invalidation, domain',
    measure(count, () => {
      for (let i = 0; i < count; i++) unit.invalidateDomain(5);
    }),
  );
  const ring = unit.tables.structures.allocate();
  unit.queue.setBase(ring, 0, true);
  unit.queue.isEnabled = true;
  const words = encodeDescriptor({ kind: 'iotlb', did: 5, pages: { firstPage: 0, order: 0 } });
  for (let i = 0; i < 128; i++) {
    unit.memory.store(ring, i * 4, words[0]!, words[1]!);
    unit.memory.store(ring, i * 4 + 1, words[2]!, words[3]!);
  }
  let tail = 0;
  show(
    'invalidation, one page, by a descriptor of the queue',
    measure(count, () => {
      for (let i = 0; i < count; i++) {
        tail = (tail + 32) % 4096;
        unit.queue.moveTail(tail);
      }
    }),
  );
}

/** A page that is no multiple of 3 pages above BASE is mapped and unmapped, all over the `count` others. */
function mapAmong(domain: Domain, count: number, turns: number): void {
  for (let i = 0; i < turns; i++) {
    const page = BASE + (Math.imul(i, 7919) % count) * 3 + 1;
    domain.map(page, 5, 1, 3);
    domain.unmap(page, 1);
  }
}

function filledDomain(count: number): Domain {
  const unit = new IommuUnit('dmar0');
  const domain = new Domain(unit, 'unmanaged');
  domain.attachDevice(unit);
  for (let i = 0; i < count; i++) domain.map(BASE + i * 3, 0x100_0000 + i * 2, 1, 3);
  return domain;
}

function curve(): void {
  console.log('cost of one map and one unmap of a page, through a domain, with so many others there:');
  // The first size must not pay for the compiler.
  mapAmong(filledDomain(1000), 1000, 200_000);
  const domains = [1_000, 10_000, 100_000, 1_000_000].map((count) => ({
    count,
    domain: filledDomain(count),
    times: [] as number[],
  }));
  const turns = 20_000;
  for (let round = 0; round <= ROUNDS; round++) {
    for (const { count, domain, times } of domains) {
      const start = process.hrtime.bigint();
      mapAmong(domain, count, turns);
      if (round > 0) times.push(Number(process.hrtime.bigint() - start) / turns);
    }
  }
  const base = median(domains[0]!.times);
  for (const { count, domain, times } of domains) {
    const time = median(times);
    const bar = '#'.repeat(Math.round((time / base) * 10));
    show(`${String(count).padStart(9)} maps`, time, `${(time / base).toFixed(2)}x of the first  ${bar}`);
    domain.table!.destroy();
  }
}

/** Buffers go one collection after their arrays. */
function collect(): void {
  for (let i = 0; i < 3; i++) globalThis.gc?.();
}

/** What 1 GiB of maps takes of the box: its tables, and all that the process has grown by. */
function memory(): void {
  const size = 2 ** 18;
  for (const [name, pages, shift] of [
    ['4 KiB, one map', size, 1],
    ['4 KiB, one map each', 1, 1],
    ['2 MiB, one map', size, 512],
    ['2 MiB, one map each', 512, 512],
  ] as const) {
    collect();
    const before = process.memoryUsage();
    const unit = new IommuUnit('dmar0');
    const domain = new Domain(unit, 'unmanaged');
    for (let page = 0; page < size; page += pages) domain.map(size * 4 + page, size * 8 + shift + page, pages, 3);
    collect();
    const after = process.memoryUsage();
    const grown = after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers;
    const tables = domain.table!.tables * 4;
    console.log(
      `${`memory of a mapped GiB, ${name}`.padEnd(58)} ${String(tables).padStart(9)} KiB of tables, ${(grown / 1024).toFixed(0)} KiB in all`,
    );
    domain.table!.destroy();
  }
}

console.log(`node ${process.version}, medians of ${ROUNDS} rounds`);
formats();
units();
memory();
curve();
if (sink === 0.5) console.log(sink);
