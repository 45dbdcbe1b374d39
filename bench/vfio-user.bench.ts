/**
 * A vfio-user server in TypeScript against one in C and one of libvfio-user, all with the same C client:
 * `npm run build && node dist/bench/vfio-user.bench.js`.
 *
 * vfio-user-twin.c is compiled with `cc -O2` into a temporary folder. Client and server are pinned, once to one CPU and once to two;
 * candidate and baselines alternate round by round; each figure is the median of the rounds, each ratio one of the same run.
 *
 * libvfio-user is where VFIOBOX_LIBVFIO_USER says (the library, or a folder with it or with its `lib`), or where pkg-config or the compiler
 * finds it; without it the bench says so and has one baseline less.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const ROUNDS = 5;
const ACCESSES = '20000';
const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
const work = mkdtempSync(join(tmpdir(), 'vfiobox-bench-'));
const twin = join(work, 'twin');
const library = join(work, 'library');
const compiler = process.env['CC'] ?? 'cc';
const last = availableParallelism() - 1;
// testdev: registers in BAR 4, of which SCRATCH keeps what is written.
const REGISTERS = '4';
const SCRATCH = '8';
const COPIED = 16 << 20;

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

function row(what: string, value: number, unit: string, baselines: Record<string, number>, goal = ''): void {
  const ratios = Object.entries(baselines).map(
    ([name, baseline]) => `  ${name} ${baseline.toFixed(2).padStart(8)} ratio ${(value / baseline).toFixed(2)}`,
  );
  console.log(`${what.padEnd(44)} ${value.toFixed(2).padStart(10)} ${unit.padEnd(5)}${ratios.join('')}${goal}`);
}

/** What the compiler needs to link with libvfio-user, in the order of trial. */
function libraryFlags(): string[][] {
  const said = process.env['VFIOBOX_LIBVFIO_USER'];
  if (said !== undefined) {
    const place = resolve(said);
    const folders = statSync(place).isDirectory() ? [place, join(place, 'lib')] : [dirname(place)];
    return folders.map((folder) => [
      ...[`-L${folder}`, `-Wl,-rpath,${folder}`],
      ...['include', '../include', '../../include'].map((name) => `-I${join(folder, name)}`),
    ]);
  }
  const found = spawnSync('pkg-config', ['--cflags', '--libs', 'libvfio-user'], { encoding: 'utf8' });
  return [...(found.status === 0 ? [found.stdout.trim().split(/\s+/)] : []), []];
}

/** Builds the server of libvfio-user; false: the library is not present. */
function buildLibraryServer(): boolean {
  const source = join(root, 'bench/vfio-user-library.c');
  return libraryFlags().some((flags) => {
    const args = ['-O2', '-w', '-o', library, source, ...flags, '-lvfio-user'];
    return spawnSync(compiler, args, { stdio: 'ignore' }).status === 0;
  });
}

const servers: ChildProcess[] = [];
try {
  execFileSync(compiler, ['-O2', '-w', '-o', twin, join(root, 'bench/vfio-user-twin.c')]);
  const socket = (name: string): string => join(work, `${name}.sock`);
  const ours = socket('ours');
  const sides = new Map<string, string>();
  const add = async (name: string, command: string, ...args: string[]): Promise<void> => {
    servers.push(await start(last, socket(name), command, [...args, socket(name)]));
    sides.set(name, socket(name));
  };
  await add('ours', join(root, 'bin/vfiobox'), 'serve', '--model', 'testdev', '--socket-path');
  await add('C', twin, 'server');
  if (buildLibraryServer()) await add('libvfio-user', library);
  else console.log('libvfio-user: not present (VFIOBOX_LIBVFIO_USER=PATH)');
  const placements: [string, number][] = [['one CPU', last]];
  if (last > 0) placements.push(['two CPUs', last - 1]);
  for (const [placement, cpu] of placements) {
    /** Name of the figure → side → its rounds. */
    const figures = new Map<string, Map<string, number[]>>();
    for (let round = 0; round < ROUNDS; round++) {
      for (const [side, path] of sides) {
        for (const [name, value] of client(cpu, 'client', path, ACCESSES, REGISTERS, SCRATCH)) {
          const rounds = figures.get(name) ?? new Map<string, number[]>();
          figures.set(name, rounds.set(side, [...(rounds.get(side) ?? []), value]));
        }
      }
    }
    console.log(`${placement}, ${ROUNDS} rounds, baselines in the same rounds`);
    const goals: Record<string, string> = {
      read4: '  (goal 1.0)',
      'read4-p99': '  (goal 2.0)',
      'map+unmap': '  (goal 1.0)',
    };
    for (const [name, rounds] of figures) {
      const { ours: own, ...baselines } = Object.fromEntries(
        [...rounds].map(([side, values]) => [side, median(values) / 1000]),
      );
      row(`  ${name}`, own!, 'µs', baselines, cpu === last ? goals[name] : '');
    }
  }
  const copy = client(last, 'copy', ours, String(COPIED), REGISTERS);
  row(
    `DMA of ${COPIED >> 20} MiB through mapped memory, memcpy`,
    copy.get('copy')!,
    'GB/s',
    { C: copy.get('memcpy')! },
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
