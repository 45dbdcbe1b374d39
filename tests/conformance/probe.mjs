/**
 * The recorded kernel as judge: runs vfio-probe in the box and compares each answer with what Linux 7.2 said to the same call.
 *
 * Calls are paired by suite, name and occurrence, so that one call too many does not shift the rest. Every field counts except the
 * running number.
 */
import { execFile, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
export const root = resolve(here, '../..');
const golden = join(here, 'probe/golden');
export const cache = process.env.VFIOBOX_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'vfiobox');

/** The suites of the golden file of edu that are judged. */
export const SUITES = [
  'container', 'group', 'nonviable', 'multi', 'same', 'type1v1', 'type1v2', 'cdev', 'device', 'device-cdev', 'iommufd',
]; // prettier-ignore

/** Builds the probe; returns its path, or the reason why that is not possible here. */
export function buildProbe() {
  const result = spawnSync('sh', [join(here, 'probe/build.sh'), join(cache, 'uapi')], { encoding: 'utf8' });
  if (result.status === 0) return { program: result.stdout.trim().split('\n').pop() };
  return { missing: (result.stderr ?? '').trim().split('\n').pop() || 'sh is missing' };
}

function load(text) {
  const calls = new Map();
  const seen = new Map();
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue;
    const { s, c, n: _n, ...fields } = JSON.parse(line);
    const key = `${s}\u0000${c}`;
    const occurrence = (seen.get(key) ?? 0) + 1;
    seen.set(key, occurrence);
    calls.set(`${key}\u0000${occurrence}`, { suite: s, call: c, occurrence, fields });
  }
  return calls;
}

function flat(value, prefix = '', into = {}) {
  if (value !== null && typeof value === 'object') {
    for (const [key, inner] of Object.entries(value)) flat(inner, prefix === '' ? key : `${prefix}.${key}`, into);
  } else into[prefix] = value;
  return into;
}

/** What differs between two recordings: `{suite: {calls, differences: [{call, occurrence, fields: [text]}]}}`. */
export function compare(goldenText, measuredText, suites) {
  const wanted = load(goldenText);
  const measured = load(measuredText);
  const result = new Map(suites.map((suite) => [suite, { calls: 0, differences: [] }]));
  for (const [key, { suite, call, occurrence, fields }] of wanted) {
    const entry = result.get(suite);
    if (entry === undefined) continue;
    entry.calls++;
    const other = measured.get(key);
    const found = [];
    if (other === undefined) found.push('the call is missing');
    else {
      const left = flat(fields);
      const right = flat(other.fields);
      for (const name of new Set([...Object.keys(left), ...Object.keys(right)])) {
        if (left[name] !== right[name]) found.push(`${name}: kernel ${left[name]}, box ${right[name]}`);
      }
    }
    if (found.length > 0) entry.differences.push({ call, occurrence, fields: found });
  }
  for (const [key, { suite, call, occurrence }] of measured) {
    const entry = result.get(suite);
    if (entry !== undefined && !wanted.has(key)) {
      entry.calls++;
      entry.differences.push({ call, occurrence, fields: ['the kernel has no such call'] });
    }
  }
  return result;
}

function run(command, args, options = {}) {
  return new Promise((done) => {
    execFile(command, args, { timeout: 300_000, killSignal: 'SIGKILL', maxBuffer: 1 << 26, ...options }, (error, stdout, stderr) =>
      done({ status: error ? (error.code ?? error.signal ?? 1) : 0, stdout, stderr }),
    );
  });
}

/** Runs `suites` of the probe in the box and returns the comparison. `boxArgs`: more arguments of `vfiobox run`. */
export async function judge(program, suites, boxArgs = []) {
  const out = mkdtempSync(join(tmpdir(), 'vfiobox-probe-'));
  try {
    const result = new Map();
    for (const [file, args, own] of [
      ['probe-container', [], ['container']],
      ['probe-iommufd', [], ['iommufd']],
      [
        'probe-edu',
        ['--dev', '0000:00:04.0', '--dev2', '0000:05:00.0', '--same', '0000:04:01.0,0000:04:02.0', '--nonviable', '0000:02:01.0'],
        ['group', 'nonviable', 'multi', 'same', 'type1v1', 'type1v2', 'device', 'device-cdev', 'cdev'],
      ],
    ]) {
      const chosen = own.filter((suite) => suites.includes(suite));
      if (chosen.length === 0) continue;
      const recording = join(out, `${file}.jsonl`);
      const command = [join(root, 'bin/vfiobox'), 'run', '--host', 'kernel-golden', ...boxArgs, '--', program, '--out', recording, ...args, ...chosen];
      const { status, stderr } = await run(process.execPath, command);
      let measured = '';
      try {
        measured = readFileSync(recording, 'utf8');
      } catch {}
      if (measured === '') throw new Error(`the probe wrote nothing (status ${status}): ${stderr.trim().split('\n').slice(-5).join(' | ')}`);
      for (const entry of compare(readFileSync(join(golden, `${file}.jsonl`), 'utf8'), measured, chosen)) result.set(...entry);
    }
    return result;
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}
