/**
 * The IOMMU's hot paths against C of the same shape: `npm run build && taskset -c 1 node dist/bench/iommu.bench.js`.
 *
 * The C twin (iommu-walk.c) is compiled with `cc -O2` into a temporary folder; rounds of C and TypeScript alternate, the table
 * prints medians over the rounds and ratios of medians.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { vtdss } from '../src/hw/iommu/fmt/vtdss.ts';
import { Iotlb } from '../src/hw/iommu/iotlb.ts';
import { PageTable } from '../src/hw/iommu/page-table.ts';
import { TablePool } from '../src/hw/iommu/table-pool.ts';
import { IommuUnit } from '../src/hw/iommu/unit.ts';
import { Domain } from '../src/kernel/iommu/domain.ts';
import { IntervalMap } from '../src/lib/interval-map.ts';

const ROUNDS = 7;
const WALKS = 1 << 20;
const BASE = 0x10_0000;

interface Row {
  readonly what: string;
  readonly unit: string;
  readonly measured: number[];
  readonly baseline?: number[];
  readonly target?: string;
}

const rows: Row[] = [];
let sink = 0;

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1]!;
}

function nanoseconds(count: number, work: () => void): number {
  const start = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - start) / count;
}

function randomPages(pages: number, count: number): Float64Array {
  let seed = 1;
  return Float64Array.from({ length: count }, () => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return BASE + ((seed >>> 8) % pages);
  });
}

function compileTwin(folder: string): string | undefined {
  const program = join(folder, 'iommu-walk');
  const source = join(import.meta.dirname, '..', '..', 'bench', 'iommu-walk.c');
  try {
    execFileSync('cc', ['-O2', '-o', program, source], { stdio: ['ignore', 'ignore', 'pipe'] });
    return program;
  } catch (error) {
    console.log(`no C compiler, no ratios: ${String(error).split('\n')[0]}`);
    return undefined;
  }
}

function scattered(pages: number): PageTable {
  const table = new PageTable(vtdss, new TablePool());
  for (let i = 0; i < pages; i++) table.map(BASE + i, Math.imul(i, 40503) & 0xffffff, 1, 3, false);
  return table;
}

function walkEach(table: PageTable, order: Float64Array): number {
  let sum = 0;
  let allowed = 0;
  for (let i = 0; i < order.length; i++) {
    sum += table.walk(order[i]!);
    allowed = (allowed + table.permission) | 0;
  }
  return sum + allowed;
}

function lookUpEach(target: Iotlb, tag: number, pages: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < pages.length; i++) sum += target.lookup(tag, pages[i]!, 1);
  return sum;
}

/** The loop of the two others without what they measure. */
function readEach(pages: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < pages.length; i++) sum += pages[i]!;
  return sum;
}

function translateEach(unit: IommuUnit, pages: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < pages.length; i++) sum += unit.translate(0x20, -1, pages[i]!, 1);
  return sum;
}

function walks(program: string | undefined): void {
  for (const pages of [1024, 262144]) {
    const order = randomPages(pages, WALKS);
    const table = scattered(pages);
    const ours: number[] = [];
    const theirs: number[] = [];
    const map: number[] = [];
    const theirMap: number[] = [];
    for (let i = 0; i < 4; i++) sink += walkEach(table, order);
    for (let round = 0; round < ROUNDS; round++) {
      if (program !== undefined) {
        const [walk, mapped] = execFileSync(program, [String(pages), String(WALKS)])
          .toString()
          .split(' ')
          .map(Number);
        theirs.push(walk!);
        theirMap.push(mapped!);
      }
      ours.push(nanoseconds(order.length, () => (sink += walkEach(table, order))));
      map.push(nanoseconds(pages, () => scattered(pages).destroy()));
    }
    const label = `${pages} pages`;
    rows.push({ what: `four-level walk, ${label}`, unit: 'ns', measured: ours, baseline: theirs, target: '<= 1.6x' });
    if (pages > 1024) {
      rows.push({
        what: 'map of scattered 4 KiB pages, one call each',
        unit: 'ns',
        measured: map,
        baseline: theirMap,
        target: '<= 200',
      });
    }
    table.destroy();
  }
}

function maps(): void {
  const pages = 262144;
  const contiguous: number[] = [];
  const misaligned: number[] = [];
  const unmapped: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    const table = new PageTable(vtdss, new TablePool());
    contiguous.push(nanoseconds(pages * 16, () => table.map(0x40000, 0x1000000, pages * 16, 3, false)));
    table.unmap(0x40000, pages * 16);
    table.releaseTables();
    misaligned.push(nanoseconds(pages, () => table.map(0x40000, 0x1000001, pages, 3, false)));
    unmapped.push(
      nanoseconds(pages, () => {
        table.unmap(0x40000, pages);
        table.releaseTables();
      }),
    );
    table.destroy();
  }
  rows.push({
    what: 'map of 1 GiB by 4 KiB leaves, one call',
    unit: 'ns a page',
    measured: misaligned.slice(1),
    target: '<= 200',
  });
  rows.push({ what: 'map of 16 GiB by 1 GiB leaves', unit: 'ns a page', measured: contiguous.slice(1) });
  rows.push({ what: 'unmap of 1 GiB of 4 KiB leaves', unit: 'ns a page', measured: unmapped.slice(1) });
}

/** Through the kernel's domain, attached to a unit, so that unmap has something to invalidate. */
function domains(): void {
  const unit = new IommuUnit('dmar0');
  const domain = new Domain(unit, 'unmanaged');
  domain.attachDevice(unit);
  const times: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    times.push(
      nanoseconds(65535, () => {
        for (let i = 0; i < 65535; i++) domain.map(BASE + i * 2, Math.imul(i, 40503) & 0xffffff, 1, 3);
        for (let i = 0; i < 65535; i++) domain.unmap(BASE + i * 2, 1);
      }),
    );
  }
  rows.push({ what: 'Domain.map and unmap of one page', unit: 'ns', measured: times.slice(1) });
}

function iotlb(): void {
  const tlb = new Iotlb();
  const space = tlb.space(5, -1);
  const order = randomPages(1024, WALKS);
  for (let i = 0; i < 1024; i++) tlb.fill(space.tag, BASE + i, 0x5000 + i, 0, 3);
  const large = new Iotlb();
  const other = large.space(5, -1);
  for (let i = 0; i < 128; i++) large.fill(other.tag, BASE + i * 512, 0x8000_0000 + i * 512, 1, 3);
  const wide = randomPages(128 * 512, WALKS);
  const unit = new IommuUnit('dmar0');
  const table = new PageTable(vtdss, unit.tables);
  table.map(BASE, 0x5001, 1024, 3, false);
  unit.setContext(0x20, 5, table);
  const small: number[] = [];
  const big: number[] = [];
  const whole: number[] = [];
  const empty: number[] = [];
  for (let i = 0; i <= ROUNDS; i++) {
    small.push(nanoseconds(WALKS, () => (sink += lookUpEach(tlb, space.tag, order))));
    big.push(nanoseconds(WALKS, () => (sink += lookUpEach(large, other.tag, wide))));
    empty.push(nanoseconds(WALKS, () => (sink += readEach(order))));
    whole.push(nanoseconds(WALKS, () => (sink += translateEach(unit, order))));
  }
  rows.push({ what: 'IOTLB hit, 4 KiB entries', unit: 'ns', measured: small.slice(1), target: '<= 5' });
  rows.push({ what: 'IOTLB hit, 2 MiB entries', unit: 'ns', measured: big.slice(1) });
  rows.push({ what: 'the same loop, empty', unit: 'ns', measured: empty.slice(1) });
  rows.push({ what: 'unit.translate, hit', unit: 'ns', measured: whole.slice(1) });
}

interface Mapping {
  readonly vaddr: number;
  readonly prot: number;
}

function bookkeeping(): void {
  const count = 65535;
  const bytes: number[] = [];
  const inserted: number[] = [];
  const found: number[] = [];
  const removed: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    globalThis.gc?.();
    const before = process.memoryUsage();
    const map = new IntervalMap<Mapping>();
    const table = new PageTable(vtdss, new TablePool());
    inserted.push(
      nanoseconds(count, () => {
        for (let i = 0; i < count; i++) {
          const page = (Math.imul(i, 40503) & 0xffff) * 2;
          map.insert(page, page, { vaddr: 0x7f00_0000_0000 + page * 4096, prot: 3 });
        }
      }),
    );
    const order = randomPages(count * 2, WALKS >> 2);
    found.push(
      nanoseconds(order.length, () => {
        for (let i = 0; i < order.length; i++) if (map.get(order[i]! - BASE) !== undefined) sink++;
      }),
    );
    globalThis.gc?.();
    const after = process.memoryUsage();
    bytes.push((after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers) / count);
    removed.push(
      nanoseconds(count, () => {
        for (let i = 0; i < count; i++) map.remove((Math.imul(i, 40503) & 0xffff) * 2);
      }),
    );
    table.destroy();
  }
  rows.push({ what: 'interval map, insert at random, 65,535 areas', unit: 'ns', measured: inserted });
  rows.push({ what: 'interval map, lookup', unit: 'ns', measured: found });
  rows.push({ what: 'interval map, remove', unit: 'ns', measured: removed });
  const exact = globalThis.gc === undefined ? ' (run with --expose-gc to be exact)' : '';
  rows.push({ what: `area with {vaddr, prot}${exact}`, unit: 'bytes', measured: bytes, target: '<= 200' });
}

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-bench-'));
try {
  const program = compileTwin(folder);
  walks(program);
  maps();
  domains();
  iotlb();
  bookkeeping();
} finally {
  rmSync(folder, { recursive: true });
}
console.log(`node ${process.version}, medians of ${ROUNDS} interleaved rounds`);
for (const { what, unit, measured, baseline, target } of rows) {
  const value = median(measured);
  const base = baseline === undefined || baseline.length === 0 ? undefined : median(baseline);
  const ratio = base === undefined ? '' : `C ${base.toFixed(2)}  ratio ${(value / base).toFixed(2)}`;
  const wanted = target === undefined ? '' : `  (target ${target})`;
  console.log(`${what.padEnd(56)} ${value.toFixed(2).padStart(8)} ${unit.padEnd(10)} ${ratio}${wanted}`);
}
if (sink === 0.5) console.log(sink);
