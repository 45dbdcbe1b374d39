/**
 * DMA of a device into another process's memory, through the IOMMU, against process_vm_readv in C; interleaved, medians.
 */
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { IommuUnit } from '../src/hw/iommu/unit.ts';
import { PhysicalMemory } from '../src/hw/memory/physical-memory.ts';
import { DmaPort } from '../src/hw/pci/dma.ts';
import { Mm } from '../src/kernel/core/mm.ts';
import { Domain } from '../src/kernel/iommu/domain.ts';
import { ProcessMemory } from '../src/sys/index.ts';

const SIZES = [4096, 65536, 1 << 20, 4 << 20];
const ROUNDS = 7;
const RID = 0x20;
const root = new URL('../../', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'vfiobox-bench-'));
const program = join(folder, 'program');
const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1]!;

execFileSync(process.env['CC'] ?? 'cc', ['-O2', '-w', '-o', program, join(root, 'bench/program.c')]);
const bytes = SIZES[SIZES.length - 1]!;
const child = spawn(program, ['hold', String(bytes)], { stdio: ['pipe', 'pipe', 'inherit'] });
const address = await new Promise<number>((done) => child.stdout.once('data', (data) => done(Number(data))));
try {
  const physical = new PhysicalMemory();
  const memory = new ProcessMemory(child.pid!);
  const mm = new Mm(
    { read: (a, b) => memory.read(a, b), write: (a, b) => memory.write(a, b), vma: () => undefined },
    physical,
  );
  const unit = new IommuUnit('dmar0');
  const domain = new Domain(unit, 'unmanaged');
  let page = 0x100;
  for (const run of mm.pin(address / 4096, bytes / 4096)) {
    domain.map(page, run.firstPage, run.count, 3);
    page += run.count;
  }
  domain.attachDevice(unit);
  domain.program(unit, [RID]);
  const port = new DmaPort(
    physical,
    unit,
    () => RID,
    () => true,
  );
  const buffer = new Uint8Array(bytes + 64);
  const transfer = (into: Uint8Array, count: number): void => {
    for (let i = 0; i < count; i++) {
      const fault = port.read(0x100000, into);
      if (fault !== undefined) throw new Error(`fault at 0x${fault.address.toString(16)}: ${fault.reason}`);
    }
  };
  console.log(`node ${process.version}, medians of ${ROUNDS} interleaved rounds`);
  // V8's large buffers lie 16 bytes into a page, which is the worst place for a copy from the start of one; 64 further is a good one.
  for (const start of [0, 64])
    for (const size of SIZES) {
      const into = buffer.subarray(start, start + size);
      const count = Math.max(40, Math.floor((64 << 20) / size / 2));
      const ours: number[] = [];
      const twin: number[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        // The twin has just had the processor: its measure warms up too.
        transfer(into, Math.ceil(count / 8));
        const begin = process.hrtime.bigint();
        transfer(into, count);
        ours.push(Number(process.hrtime.bigint() - begin) / count);
        twin.push(
          Number(execFileSync(program, ['readv', String(size), String(count)], { encoding: 'utf8' }).split(' ')[1]),
        );
      }
      const [mine, c] = [median(ours), median(twin)];
      const speed = c / mine;
      const goal = size >= 65536 ? (speed >= 0.8 ? '(goal 0.8x)' : '(goal 0.8x, MISSED)') : '';
      console.log(
        `DMA read of ${String(size >> 10).padStart(5)} KiB to ${start === 0 ? 'a buffer as V8 lays it' : 'an aligned buffer     '}: ${(mine / 1000).toFixed(2).padStart(9)} µs, C process_vm_readv ${(c / 1000).toFixed(2).padStart(9)} µs, speed ${speed.toFixed(2)}x ${goal}`,
      );
    }
} finally {
  child.stdin.end();
  rmSync(folder, { recursive: true, force: true });
}
