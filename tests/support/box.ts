/**
 * For tests that run outside programs: where the tree is, what the cache of `scripts/provision` has, and programs under a time limit,
 * in the box or not.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

/** The repository's folder, also from the compiled file. */
export const tree = ((): string => {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json'))) return folder;
    if (folder === dirname(folder)) throw new Error('no package.json above this file');
  }
})();

const { CI } = process.env;

/** True where tests must not skip for want of a tool. */
export const inCi = CI === 'true' || CI === '1';

export type Component = 'guest' | 'uapi' | 'pciutils' | 'driverctl' | 'dpdk' | 'selftests' | 'tshark' | 'cc' | 'python';

const script = join(tree, 'scripts/provision/provision.mjs');
const folders = new Map<Component, string>();
const failures = new Map<Component, string>();

/** The component's folder when it is there; otherwise the command that provides it. */
function check(name: Component): { folder: string } | { command: string } {
  const answer = spawnSync(process.execPath, [script, '--check', name], { encoding: 'utf8' });
  return answer.status === 0
    ? { folder: answer.stdout.trim() }
    : { command: answer.stdout.trim() || answer.stderr.trim() };
}

/**
 * To be called where a test file begins, outside of tests and their time limits: in CI it provides what is not there, which may take
 * minutes. Elsewhere it does nothing.
 */
export function needs(...names: readonly Component[]): void {
  for (const name of inCi ? names : []) {
    if ('folder' in check(name)) continue;
    const run = spawnSync(process.execPath, [script, name], { encoding: 'utf8', timeout: 900_000 });
    if (run.status !== 0) failures.set(name, run.stderr.trim() || String(run.error));
  }
}

/**
 * The component's folder ('' for programs of the machine). When it is not there: in CI the test fails, elsewhere it is skipped with the
 * command that provides it, and the answer is undefined.
 */
export function provided(t: TestContext, name: Component): string | undefined {
  const known = folders.get(name);
  if (known !== undefined) return known;
  const answer = check(name);
  if ('folder' in answer) {
    folders.set(name, answer.folder);
    return answer.folder;
  }
  if (inCi) throw new Error(`${name} is not provided: ${failures.get(name) ?? answer.command}`);
  const reason = `needs ${name}: ${answer.command}`;
  t.diagnostic(`SKIPPED, ${reason}`);
  t.skip(reason);
  return undefined;
}

/** A folder of its own for this test, removed after it. */
export function scratch(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export interface RunOptions {
  /** The process group is killed after this many milliseconds. Default 30,000. */
  timeout?: number;
  /** Added to this process's environment; undefined takes a variable away. */
  env?: Record<string, string | undefined>;
  cwd?: string;
  /** Written to standard input, which is then closed. */
  input?: string;
  /** Bytes kept of each output. Default 4 MiB. */
  limit?: number;
}

export interface Outcome {
  /** Exit status, or null when a signal ended the program. */
  status: number | null;
  signal: NodeJS.Signals | null;
  timedOut: boolean;
  stdout: string;
  stderr: string;
  milliseconds: number;
  /** For assertion messages: the command, how it ended, and the end of both outputs. */
  story: string;
}

/** Runs a program in a process group of its own, which is gone when the promise resolves. */
export function run(command: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  const { timeout = 30_000, limit = 4 << 20 } = options;
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const child = spawn(command[0]!, command.slice(1), {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const outputs = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8');
      child[name].on('data', (text: string) => {
        if (outputs[name].length < limit) outputs[name] += text;
      });
    }
    const killGroup = (): void => {
      try {
        process.kill(-child.pid!, 'SIGKILL');
      } catch {
        // The group is gone already.
      }
    };
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      killGroup();
    }, timeout);
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
    child.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    // What the program left behind holds the pipes open, so it is killed at `exit`; the outputs are complete at `close`.
    child.on('exit', () => setTimeout(killGroup, 50));
    child.on('close', (status, signal) => {
      clearTimeout(timer);
      killGroup();
      const milliseconds = Math.round(performance.now() - started);
      const end = timedOut ? `killed after ${timeout} ms` : (signal ?? `status ${status}`);
      const tail = (name: 'stdout' | 'stderr') => `--- ${name}\n${outputs[name].slice(-4000)}`;
      const story = `${command.join(' ')}\n${end}, ${milliseconds} ms\n${tail('stdout')}\n${tail('stderr')}`;
      resolve({ status, signal, timedOut, ...outputs, milliseconds, story });
    });
  });
}

export interface BoxOptions extends RunOptions {
  /** Host file or preset; `default` when not given. */
  host?: string;
  /** Further options of `vfiobox run`, before the `--`. */
  options?: readonly string[];
}

/** The command line of `vfiobox run` for this program. */
export function boxed(program: readonly string[], options: Pick<BoxOptions, 'host' | 'options'> = {}): string[] {
  const host = options.host === undefined ? [] : ['--host', options.host];
  return [join(tree, 'bin/vfiobox'), 'run', ...host, ...(options.options ?? []), '--', ...program];
}

/** Runs a program in the box. */
export function runInBox(program: readonly string[], options: BoxOptions = {}): Promise<Outcome> {
  return run(boxed(program, options), options);
}
