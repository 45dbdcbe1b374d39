#!/usr/bin/env node
// npm run bench [-- ROUNDS]: figures as ratios to a C twin measured in the same run.
//
// Client and box are pinned to one CPU (the last one); candidate and baseline are interleaved, round by round; each figure is the median of
// the rounds. Then bench/*.bench.ts, which measure parts without a program.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const rounds = Number(process.argv[2] ?? 5);
const cpu = String(availableParallelism() - 1);
const work = mkdtempSync(join(tmpdir(), 'vfiobox-bench-'));
const program = join(work, 'program');
const box = join(root, 'bin/vfiobox');
const hostFile = join(root, 'bench/host.json');
const BDF = '0000:00:04.0';

const median = (values) => values.slice().sort((a, b) => a - b)[Math.floor(values.length / 2)];

function figures(command, args, options = {}) {
  const text = execFileSync('taskset', ['-c', cpu, command, ...args], {
    encoding: 'utf8',
    timeout: 300_000,
    ...options,
  });
  return Object.fromEntries(
    text
      .trim()
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const at = line.lastIndexOf(' ');
        return [line.slice(0, at), Number(line.slice(at + 1))];
      }),
  );
}
const inBox = (args) => figures(process.execPath, [box, 'run', '--host', hostFile, '--', program, ...args]);

/** Runs `measures` (name → function giving named figures) in turn, `rounds` times; medians by name. */
function interleave(measures) {
  const all = {};
  for (let round = 0; round < rounds; round++) {
    for (const [prefix, measure] of Object.entries(measures)) {
      for (const [name, value] of Object.entries(measure())) {
        const key = `${prefix}/${name}`;
        all[key] ??= [];
        all[key].push(value);
      }
    }
  }
  return Object.fromEntries(Object.entries(all).map(([name, values]) => [name, median(values)]));
}

const failures = [];
function row(what, value, unit, ratio, limit, isWorse = (r, l) => r > l) {
  const ratioText = ratio === undefined ? '' : `${ratio.toFixed(2)}x`;
  const isMissed = limit !== undefined && ratio !== undefined && isWorse(ratio, limit);
  if (isMissed) failures.push(what);
  console.log(
    `${what.padEnd(44)} ${value.toFixed(value < 100 ? 2 : 0).padStart(10)} ${unit.padEnd(9)} ${ratioText.padStart(8)}  ${limit === undefined ? '' : `(goal ${limit}x${isMissed ? ', MISSED' : ''})`}`,
  );
}

try {
  execFileSync(process.env.CC ?? 'cc', ['-O2', '-o', program, join(root, 'bench/program.c')]);
  console.log(
    `node ${process.version}, ${cpus()[0].model}, CPU ${cpu}, ${rounds} rounds, medians; ratios to C twins of this run\n`,
  );

  const N = '40000';
  const r = interleave({
    small: () => figures(program, ['twin', '112', '48', N]),
    read: () => figures(program, ['twin', '48', '36', N]),
    box: () => inBox(['calls', BDF, N]),
    bare: () => figures(program, ['plain', '200000']),
    loaded: () => inBox(['plain', '200000']),
  });
  const us = (name) => r[name] / 1000;
  row('C exchange of an ioctl (112/48 B)', us('small/exchange'), 'µs');
  row('C exchange of a register read (48/36 B)', us('read/exchange'), 'µs');
  row('DEVICE_GET_INFO', us('box/ioctl'), 'µs', r['box/ioctl'] / r['small/exchange'], 2);
  row('4-byte register read', us('box/read4'), 'µs', r['box/read4'] / r['read/exchange'], 2);
  row('4-byte register write', us('box/write4'), 'µs', r['box/write4'] / r['read/exchange'], 2);
  row(
    'MAP+UNMAP of 4 KiB (to two exchanges)',
    us('box/map+unmap'),
    'µs',
    r['box/map+unmap'] / (2 * r['small/exchange']),
    3,
  );
  row('trapped read (to the ioctl)', us('box/trap read4'), 'µs', r['box/trap read4'] / r['box/ioctl'], 1.3);
  row('trapped write (to the ioctl)', us('box/trap write4'), 'µs', r['box/trap write4'] / r['box/ioctl'], 1.3);
  row('open+close of /dev/vfio/vfio', us('box/open+close'), 'µs');

  console.log('\nsystem calls that have nothing to do with VFIO, with the library against without');
  for (const name of Object.keys(r)
    .filter((key) => key.startsWith('bare/'))
    .map((key) => key.slice(5))) {
    row(`  ${name}`, us(`loaded/${name}`), 'µs', r[`loaded/${name}`] / r[`bare/${name}`]);
  }

  console.log('');
  const g = interleave({ box: () => inBox(['gigabyte', BDF]) });
  const small = (262143 / g['box/gigabyte-small']) * 1000;
  const large = (262144 / g['box/gigabyte']) * 1000;
  row('map 1 GiB, aligned (large pages)', large, 'M pages/s', large / 5, 1, (a, b) => a < b);
  row('map 1 GiB, misaligned (4 KiB pages)', small, 'M pages/s', small / 5, 1, (a, b) => a < b);

  const held = await holdMaps();
  console.log(
    `65,535 maps held: ${held.each.toFixed(2)} µs each, ${held.bytes.toFixed(0)} bytes of box memory each (page tables included), the next one: errno ${held.beyond}`,
  );

  const starts = [];
  for (let i = 0; i < Math.max(rounds, 5); i++) {
    const begin = process.hrtime.bigint();
    spawnSync(process.execPath, [box, 'run', '--', 'true']);
    starts.push(Number(process.hrtime.bigint() - begin) / 1e6);
  }
  console.log(`vfiobox run -- true: ${median(starts).toFixed(0)} ms (goal 300)`);
  if (median(starts) > 300) failures.push('start');

  const folder = join(root, 'dist/bench');
  for (const name of readdirSync(folder)
    .filter((file) => file.endsWith('.bench.js'))
    .sort()) {
    console.log(`\n-- ${name.replace('.bench.js', '')}`);
    const { status } = spawnSync('taskset', ['-c', cpu, process.execPath, '--expose-gc', join(folder, name)], {
      stdio: 'inherit',
    });
    if (status !== 0) failures.push(name);
  }
  const verdict = failures.length === 0 ? 'all met' : `missed: ${failures.join(', ')}`;
  console.log(
    `\ngoals of the first tables, and parts that ended badly: ${verdict}; the parts print their goals beside their figures`,
  );
} finally {
  rmSync(work, { recursive: true, force: true });
}

/** Lets a program hold 65,535 maps and reads how much the box has grown. */
function holdMaps() {
  return new Promise((done, fail) => {
    const child = spawn(process.execPath, [box, 'run', '--host', hostFile, '--', program, 'maps', BDF, '65535'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const resident = () => Number(readFileSync(`/proc/${child.pid}/statm`, 'utf8').split(' ')[1]) * 4096;
    let before = 0;
    const timer = setTimeout(() => {
      before = resident();
    }, 250);
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
      if (!text.includes('beyond')) return;
      clearTimeout(timer);
      const after = resident();
      child.stdin.end('\n');
      const value = (name) => Number(text.match(new RegExp(`^${name} (.*)$`, 'm'))?.[1]);
      done({ each: value('each') / 1000, bytes: (after - before) / 65535, beyond: value('beyond') });
    });
    child.on('error', fail);
  });
}
