/**
 * The recorded kernel as judge: runs vfio-probe in the box and compares each answer with what Linux 7.2 said to the same call.
 *
 * Calls are paired by suite, name and occurrence, so that one call too many does not shift the rest. Every field counts except the
 * running number.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { runInBox, tree } from '../support/box.ts';

const folder = join(tree, 'tests/conformance/probe');
const { VFIOBOX_CACHE, XDG_CACHE_HOME } = process.env;
const cache = VFIOBOX_CACHE ?? join(XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'vfiobox');

/** The suites of the golden file of edu that are judged. */
export const SUITES = [
  'container',
  'group',
  'nonviable',
  'multi',
  'same',
  'type1v1',
  'type1v2',
  'cdev',
  'device',
  'device-cdev',
  'iommufd',
]; // prettier-ignore

export interface Difference {
  call: string;
  occurrence: number;
  fields: string[];
}

export interface Comparison {
  calls: number;
  differences: Difference[];
}

/** Builds the probe and returns its path. Throws with the reason why that is not possible here. */
export function probe(): string {
  const result = spawnSync('sh', [join(folder, 'build.sh'), join(cache, 'probe')], { encoding: 'utf8' });
  if (result.status === 0) return result.stdout.trim().split('\n').pop()!;
  throw new Error(`vfio-probe cannot be built: ${(result.stderr ?? '').trim().split('\n').pop()}`);
}

interface Call {
  suite: string;
  call: string;
  occurrence: number;
  fields: Record<string, unknown>;
}

function load(text: string): Map<string, Call> {
  const calls = new Map<string, Call>();
  const seen = new Map<string, number>();
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue;
    const { s, c, n: _n, ...fields } = JSON.parse(line) as { s: string; c: string; n: number };
    const key = `${s}\u0000${c}`;
    const occurrence = (seen.get(key) ?? 0) + 1;
    seen.set(key, occurrence);
    calls.set(`${key}\u0000${occurrence}`, { suite: s, call: c, occurrence, fields });
  }
  return calls;
}

function flat(value: unknown, prefix = '', into: Record<string, unknown> = {}): Record<string, unknown> {
  if (value !== null && typeof value === 'object') {
    for (const [key, inner] of Object.entries(value)) flat(inner, prefix === '' ? key : `${prefix}.${key}`, into);
  } else into[prefix] = value;
  return into;
}

/** What differs between two recordings, suite by suite. */
export function compare(goldenText: string, measuredText: string, suites: readonly string[]): Map<string, Comparison> {
  const wanted = load(goldenText);
  const measured = load(measuredText);
  const result = new Map<string, Comparison>(suites.map((suite) => [suite, { calls: 0, differences: [] }]));
  for (const [key, { suite, call, occurrence, fields }] of wanted) {
    const entry = result.get(suite);
    if (entry === undefined) continue;
    entry.calls++;
    const other = measured.get(key);
    const found: string[] = [];
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

interface Recording {
  file: string;
  args: string[];
  suites: string[];
}

const RECORDINGS: Recording[] = [
  { file: 'probe-container.jsonl', args: [], suites: ['container'] },
  { file: 'probe-iommufd.jsonl', args: [], suites: ['iommufd'] },
  {
    file: 'probe-edu.jsonl',
    args: [
      ...['--dev', '0000:00:04.0', '--dev2', '0000:05:00.0'],
      ...['--same', '0000:04:01.0,0000:04:02.0', '--nonviable', '0000:02:01.0'],
    ],
    suites: ['group', 'nonviable', 'multi', 'same', 'type1v1', 'type1v2', 'device', 'device-cdev', 'cdev'],
  },
];

/** Runs `suites` of the probe in the box and compares. */
export async function judge(program: string, suites: readonly string[]): Promise<Map<string, Comparison>> {
  const out = mkdtempSync(join(tmpdir(), 'vfiobox-probe-'));
  try {
    const result = new Map<string, Comparison>();
    for (const { file, args, suites: own } of RECORDINGS) {
      const chosen = own.filter((suite) => suites.includes(suite));
      if (chosen.length === 0) continue;
      const recording = join(out, file);
      const { story } = await runInBox([program, '--out', recording, ...args, ...chosen], {
        host: 'kernel-golden',
        timeout: 250_000,
      });
      let measured = '';
      try {
        measured = readFileSync(recording, 'utf8');
      } catch {}
      if (measured === '') throw new Error(`the probe wrote nothing: ${story}`);
      const golden = readFileSync(join(folder, 'golden', file), 'utf8');
      for (const [suite, comparison] of compare(golden, measured, chosen)) result.set(suite, comparison);
    }
    return result;
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}
