/**
 * IOVA allocation and ids against C: `npm run build && taskset -c 1 node dist/bench/iova.bench.js`.
 *
 * The C twin (iova-twin.c) is the kernel's algorithm, written anew: a red-black tree with magazines before it, and its locks; for ids a bitmap under
 * bitmaps, and Linux's own ida when a source tree is at hand (kernel-ida.ts). Rounds alternate, the table prints medians and their ratio, and both sides must have given the same addresses. Each round
 * of TypeScript is in one process, so its first is not counted.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { IoasidSet, Ioasids } from '../src/kernel/iommu/ioasid.ts';
import { IovaAllocator } from '../src/kernel/iommu/iova.ts';
import { IdSpace } from '../src/lib/id-space.ts';
import { compileKernelIda } from './kernel-ida.ts';

const ROUNDS = 5;
const HIGH = 2 ** 36 - 1;
const LOW = 2 ** 20 - 1;
const LIVE = 16384;
const IDS = 2 ** 20;

let state = 1;
function draw(below: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state * below) / 2 ** 32);
}

interface Case {
  readonly name: string;
  readonly what: string;
  readonly count: number;
  /** Operations that one of `count` stands for. */
  readonly each: number;
  readonly goal?: number;
  /** Compared with Linux's own ida too; of that time at most so much. */
  readonly idaGoal?: number;
  /** Nanoseconds and the sum of what was given. */
  readonly run: (count: number) => [number, number];
}

function timed(work: () => number): [number, number] {
  const start = process.hrtime.bigint();
  const sum = work();
  return [Number(process.hrtime.bigint() - start), sum];
}

function churn(count: number, isSpace: boolean): [number, number] {
  const iova = new IovaAllocator();
  state = 1;
  const pages = new Float64Array(LIVE);
  const sizes = new Int32Array(LIVE);
  const allocate = (size: number): number =>
    isSpace ? iova.allocateRange(size, HIGH, true) : iova.allocate(size, HIGH);
  for (let i = 0; i < LIVE; i++) {
    sizes[i] = 1 + draw(64);
    pages[i] = allocate(sizes[i]!);
  }
  return timed(() => {
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const at = draw(LIVE);
      if (isSpace) iova.freeRange(pages[at]!);
      else iova.free(pages[at]!, sizes[at]!);
      const size = 1 + draw(64);
      sizes[at] = size;
      const page = allocate(size);
      pages[at] = page;
      sum += page % 0x100_0000;
    }
    return sum;
  });
}

const cases: Case[] = [
  {
    name: 'magazine',
    what: 'IOVA, one page, from a magazine and back',
    count: 2_000_000,
    each: 1,
    goal: 1.5,
    run: (count) => {
      const iova = new IovaAllocator();
      for (let i = 0; i < 64; i++) iova.free(iova.allocateRange(1, LOW, true), 1);
      return timed(() => {
        let sum = 0;
        for (let i = 0; i < count; i++) {
          const page = iova.allocate(1, LOW);
          sum += page;
          iova.free(page, 1);
        }
        return sum;
      });
    },
  },
  {
    name: 'churn',
    what: 'IOVA, 16,384 live, 1 to 64 pages, free and allocate',
    count: 200_000,
    each: 1,
    goal: 1.5,
    run: (count) => churn(count, false),
  },
  {
    name: 'space',
    what: '  the same without magazines',
    count: 200_000,
    each: 1,
    goal: 1.5,
    run: (count) => churn(count, true),
  },
  {
    name: 'fill',
    what: 'IOVA, 65,536 ranges put below each other',
    count: 65_536,
    each: 1,
    goal: 1.5,
    run: (count) => {
      const iova = new IovaAllocator();
      return timed(() => {
        let sum = 0;
        for (let i = 0; i < count; i++) sum += iova.allocateRange(1 + (i & 7), HIGH, true) % 0x100_0000;
        return sum;
      });
    },
  },
  {
    name: 'ids',
    what: '2^20 ids: filled, freed scattered, filled',
    count: IDS,
    each: 3,
    idaGoal: 0.33,
    run: (count) => {
      const ids = new IdSpace();
      return timed(() => {
        let sum = 0;
        for (let i = 0; i < count; i++) sum += ids.allocate(0, IDS - 1);
        for (let i = 0; i < count; i++) ids.release(Math.imul(i, 7919) & (count - 1));
        for (let i = 0; i < count; i++) sum += ids.allocate(0, IDS - 1);
        return sum;
      });
    },
  },
  {
    name: 'ids',
    what: '  as IOASIDs, with set, data and references',
    count: IDS,
    each: 3,
    idaGoal: 0.33,
    run: (count) => {
      const ids = new Ioasids();
      const set = new IoasidSet<object>();
      const data = {};
      return timed(() => {
        let sum = 0;
        for (let i = 0; i < count; i++) sum += ids.alloc(set, 0, IDS - 1, data);
        for (let i = 0; i < count; i++) ids.put(Math.imul(i, 7919) & (count - 1));
        for (let i = 0; i < count; i++) sum += ids.alloc(set, 0, IDS - 1, data);
        return sum;
      });
    },
  },
];

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-bench-'));
let isWrong = false;
try {
  const program = join(folder, 'iova-twin');
  const source = join(import.meta.dirname, '..', '..', 'bench', 'iova-twin.c');
  execFileSync('cc', ['-O2', '-o', program, source], { stdio: ['ignore', 'ignore', 'inherit'] });
  console.log(
    `node ${process.version}, medians of ${ROUNDS} interleaved rounds; C: the kernel's algorithm written anew`,
  );
  const ida = compileKernelIda(folder, join(dirname(source), 'ida-twin.c'));
  if ('missing' in ida) console.log(`Linux's own ida: ${ida.missing}`);
  const idaProgram = 'program' in ida ? ida.program : undefined;
  for (const { name, what, count, each, goal, idaGoal, run } of cases) {
    const ours: number[] = [];
    const theirs: number[] = [];
    const idas: number[] = [];
    for (let round = 0; round <= ROUNDS; round++) {
      const [time, sum] = run(count);
      const twins: [number[], string, string[]][] = [[theirs, program, [name, `${count}`]]];
      if (idaGoal !== undefined && idaProgram !== undefined) twins.push([idas, idaProgram, [`${count}`]]);
      for (const [times, twin, args] of twins) {
        const [twinTime, twinSum] = execFileSync(twin, args, { encoding: 'utf8' }).split(' ').map(Number);
        if (sum !== twinSum) {
          console.log(`${what}: C gave other numbers (${twinSum}) than TypeScript (${sum})`);
          isWrong = true;
        }
        if (round > 0) times.push(twinTime! / count / each);
      }
      if (round > 0) ours.push(time / count / each);
    }
    const value = median(ours);
    const ratio = value / median(theirs);
    const wanted = goal === undefined ? '' : `  (goal ${goal}x${ratio > goal ? ', MISSED' : ''})`;
    console.log(
      `${what.padEnd(56)} ${value.toFixed(2).padStart(8)} ns   C ${median(theirs).toFixed(2)}  ratio ${ratio.toFixed(2)}${wanted}`,
    );
    if (idas.length > 0) {
      const toIda = value / median(idas);
      const verdict = toIda > idaGoal! ? ', MISSED' : '';
      console.log(
        `${"  to Linux's own ida".padEnd(67)}    C ${median(idas).toFixed(2)}  ratio ${toIda.toFixed(2)}  (goal ${idaGoal}x${verdict})`,
      );
    }
  }
} finally {
  rmSync(folder, { recursive: true });
}
process.exitCode = isWrong ? 1 : 0;
