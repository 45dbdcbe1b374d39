/**
 * A vfio-user server in TypeScript against one in C, both with the same C client: `npm run build && node dist/bench/vfio-user.bench.js`.
 *
 * vfio-user-twin.c is compiled with `cc -O2` into a temporary folder. Client and server are pinned, once to one CPU and once to two;
 * candidate and baseline alternate round by round; each figure is the median of the rounds, each ratio one of the same run.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const ROUNDS = 5;
const ACCESSES = '20000';
const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
const work = mkdtempSync(join(tmpdir(), 'vfiobox-bench-'));
const twin = join(work, 'twin');
const last = availableParallelism() - 1;
// testdev: registers in BAR 4, of which SCRATCH keeps what is written.
const REGISTERS = '4';
const SCRATCH = '8';
const COPIED = 8 << 20;

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

async function start(cpu: number, path: string, command: string, args: readonly string[]): Promise<ChildProcess> {
  const child = spawn('taskset', ['-c', String(cpu), command, ...args], { stdio: ['ignore', 'ignore', 'inherit'] });
  for (let i = 0; !existsSync(path) && i < 1000; i++) await sleep(10);
  await sleep(100);
  return child;
}

function client(cpu: number, ...args: string[]): Map<string, number> {
  const text = execFileSync('taskset', ['-c', String(cpu), twin, ...args], { encoding: 'utf8', timeout: 120_000 });
  return new Map(
    text
      .trim()
      .split('\n')
      .map((line) => line.split(' ') as [string, string])
      .map(([name, value]) => [name, Number(value)]),
  );
}

/** Ticks of processor time that a process has used. */
function ticks(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

function row(what: string, value: number, unit: string, baseline: number, goal = ''): void {
  const ratio = (value / baseline).toFixed(2);
  console.log(
    `${what.padEnd(44)} ${value.toFixed(2).padStart(10)} ${unit.padEnd(8)} C ${baseline.toFixed(2).padStart(8)}  ratio ${ratio}${goal}`,
  );
}

const servers: ChildProcess[] = [];
try {
  execFileSync(process.env['CC'] ?? 'cc', ['-O2', '-w', '-o', twin, join(root, 'bench/vfio-user-twin.c')]);
  const [ours, theirs] = [join(work, 'ours.sock'), join(work, 'theirs.sock')];
  servers.push(
    await start(last, ours, join(root, 'bin/vfiobox'), ['serve', '--model', 'testdev', '--socket-path', ours]),
    await start(last, theirs, twin, ['server', theirs]),
  );
  const placements: [string, number][] = [['one CPU', last]];
  if (last > 0) placements.push(['two CPUs', last - 1]);
  for (const [placement, cpu] of placements) {
    const figures = new Map<string, { ours: number[]; theirs: number[] }>();
    for (let round = 0; round < ROUNDS; round++) {
      for (const [side, path] of [
        ['ours', ours],
        ['theirs', theirs],
      ] as const) {
        for (const [name, value] of client(cpu, 'client', path, ACCESSES, REGISTERS, SCRATCH)) {
          const lists = figures.get(name) ?? { ours: [], theirs: [] };
          lists[side].push(value);
          figures.set(name, lists);
        }
      }
    }
    console.log(`${placement}, ${ROUNDS} rounds, C twin in the same rounds`);
    const goals: Record<string, string> = {
      read4: '  (goal 1.0)',
      'read4-p99': '  (goal 2.0)',
      'map+unmap': '  (goal 1.0)',
    };
    for (const [name, lists] of figures) {
      row(`  ${name}`, median(lists.ours) / 1000, 'µs', median(lists.theirs) / 1000, cpu === last ? goals[name] : '');
    }
  }
  const copy = client(last, 'copy', ours, String(COPIED), REGISTERS);
  row(
    `DMA of ${COPIED >> 20} MiB through mapped memory, memcpy`,
    copy.get('copy')!,
    'GB/s',
    copy.get('memcpy')!,
    '  (goal 0.8)',
  );
  const { pid } = servers[0]!;
  await sleep(500);
  const before = ticks(pid!);
  await sleep(2000);
  console.log(`an idle server: ${ticks(pid!) - before} ticks of processor time in 2 s`);
} finally {
  for (const child of servers) child.kill();
  rmSync(work, { recursive: true, force: true });
}
