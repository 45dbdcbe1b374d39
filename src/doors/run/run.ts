/**
 * `vfiobox run`: a box for one program and its children, from the main thread.
 *
 * The box works in a thread of its own and never waits for this one; here are the program's process, signals, the folder of the run and the
 * exit status: the program's own, 128+N when signal N ended it, 125 when the box could not do its part.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, chmodSync, constants, mkdtempSync, rmSync, writeSync } from 'node:fs';
import { constants as os, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { isatty } from 'node:tty';
import { fileURLToPath } from 'node:url';
import type { Worker } from 'node:worker_threads';
import type { BoxAddress, BoxEnd } from './box.ts';
import type { BoxNews, BoxRequest } from './box-thread.ts';
import { badName, controlFolder, controlSocketFor, removeControlFolder, removeControlSocket } from './control-path.ts';
import { startThread } from './thread.ts';

export interface RunOptions {
  readonly host: string;
  readonly explain: boolean;
  readonly trace: string | undefined;
  readonly seed: number | undefined;
  /** How sysfs is shown: `auto` mounts where the system allows it. */
  readonly sysfs: 'auto' | 'mount' | 'rewrite';
  /** Prints what was left at the end as a JSON line on stderr, and fails when it is not nothing. */
  readonly checkLeft: boolean;
  /** What the box is called, beside its process number. */
  readonly name?: string | undefined;
  /** Path of the control socket. */
  readonly control?: string | undefined;
  /** Prints where the time of the start went. */
  readonly timings: boolean;
  /** The program and its arguments. */
  readonly command: readonly string[];
}

/** What ends a run before its program has started. The message is for a person. */
export class RunError extends Error {}

const BOX_FAILED = 125;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;
/** Longest folder whose socket still fits the system's limit of 107 bytes. */
const LONGEST_FOLDER = 90;

const built = (name: string): string => fileURLToPath(new URL(`../../../../build/${name}`, import.meta.url));

/** Runs a program in a box of its own. Resolves with the exit status. RunError. */
export async function run(options: RunOptions, thread: Worker = startThread()): Promise<number> {
  const times: [string, number][] = [['command line read', performance.now()]];
  for (const name of ['libvfiobox.so', 'vfiobox-launch']) requireBuilt(built(name));
  const control = controlOf(options);
  const folder = makeFolder();
  let address: BoxAddress | undefined;
  let hasControl = false;
  const stop = (): void => {
    if (address !== undefined) writeSync(address.stop, new Uint8Array([1, 0, 0, 0, 0, 0, 0, 0]));
    address = undefined;
  };
  // A thread that waits in the system would otherwise keep the process from ending.
  const onExit = (): void => {
    stop();
    if (hasControl) removeControlSocket(control!);
    rmSync(folder, { recursive: true, force: true });
  };
  process.once('exit', onExit);
  const box = new BoxThread(thread);
  const child = new Child();
  try {
    const { host, explain, trace, seed, sysfs } = options;
    thread.postMessage({
      host,
      folder,
      explain,
      trace,
      seed,
      plan: sysfs !== 'rewrite',
      ...(control !== undefined && {
        control: { path: control, name: options.name, isWanted: (options.control ?? options.name) !== undefined },
      }),
    } satisfies BoxRequest);
    const listening = await box.listening;
    address = listening;
    hasControl = listening.hasControl;
    times.push(['box listens', performance.now()]);
    const status = await child.run(listening, folder, options);
    times.push(['program ended', performance.now()]);
    stop();
    const end = await box.ended;
    times.push(['box ended', performance.now()]);
    return judge(end, status, options);
  } finally {
    child.forget();
    stop();
    process.removeListener('exit', onExit);
    rmSync(folder, { recursive: true, force: true });
    if (hasControl) removeControlSocket(control!);
    else removeControlFolder();
    times.push(['folder removed', performance.now()]);
    if (options.timings) for (const [what, at] of times) process.stderr.write(`vfiobox: ${at.toFixed(0)} ms ${what}\n`);
  }
}

/** Where the control socket is to be. Undefined: nowhere, and nobody asked for it. RunError. */
function controlOf({ name, control }: RunOptions): string | undefined {
  const bad = name === undefined ? undefined : badName(name);
  if (bad !== undefined) throw new RunError(bad);
  if (control !== undefined) return resolve(control);
  const path = controlSocketFor(name);
  if (path !== undefined || name === undefined) return path;
  throw new RunError(`the folder ${controlFolder()} cannot be used, so the box cannot have a name; use --control`);
}

function requireBuilt(path: string): void {
  try {
    accessSync(path, constants.R_OK);
  } catch {
    throw new RunError(
      `${path} is missing: the C library was not built; install a C compiler (gcc or clang) and run 'node scripts/build-native.mjs'`,
    );
  }
}

/** Where TMPDIR says; otherwise memory rather than disk, since hundreds of small files are written and removed. */
function makeFolder(): string {
  const wanted = process.env['TMPDIR'] ?? '';
  const bases =
    wanted !== '' && Buffer.byteLength(wanted) <= LONGEST_FOLDER ? [wanted] : ['/dev/shm', tmpdir(), '/tmp'];
  let code: string | undefined;
  for (const base of bases) {
    try {
      const folder = mkdtempSync(join(base, 'vfiobox-'));
      // Programs that root starts as other users must reach the box; what they may open there is a matter of owners and modes.
      if (process.getuid?.() === 0) chmodSync(folder, 0o711);
      return folder;
    } catch (error) {
      code ??= (error as NodeJS.ErrnoException).code;
    }
  }
  throw new RunError(`cannot make a folder in ${bases[0]} (${code}); set TMPDIR to a folder that can be written`);
}

function judge(end: BoxEnd | undefined, status: number, options: RunOptions): number {
  if (end === undefined) return BOX_FAILED;
  if (options.checkLeft) {
    process.stderr.write(`${JSON.stringify(end.left)}\n`);
    if (Object.values(end.left).some((count) => count !== 0)) return BOX_FAILED;
  }
  if (end.traceError !== undefined) {
    process.stderr.write(`vfiobox: ${end.traceError}\n`);
    return BOX_FAILED;
  }
  return status;
}

/** What the box's thread says, as promises. */
class BoxThread {
  readonly listening: Promise<BoxAddress>;
  /** Undefined: the thread died of a bug, which was printed. */
  readonly ended: Promise<BoxEnd | undefined>;

  constructor(thread: Worker) {
    let listens: (address: BoxAddress) => void;
    let fails: (error: unknown) => void;
    let ends: (end: BoxEnd | undefined) => void;
    this.listening = new Promise((resolve, reject) => {
      listens = resolve;
      fails = reject;
    });
    this.ended = new Promise((resolve) => {
      ends = resolve;
    });
    thread.on('message', (news: BoxNews) => {
      if (news.kind === 'listening') listens(news.address);
      else if (news.kind === 'refused') fails(new RunError(news.message));
      else ends(news.end);
    });
    thread.on('error', (error) => {
      process.stderr.write(`vfiobox: internal error, the box has ended\n${error.stack ?? error}\n`);
      fails(new RunError('the box could not start'));
      ends(undefined);
    });
  }
}

/** The program's process. */
class Child {
  #child: ChildProcess | undefined;
  #pending: NodeJS.Signals | undefined;
  readonly #handlers = SIGNALS.map((signal) => [signal, () => this.#forward(signal)] as const);

  constructor() {
    for (const [signal, handler] of this.#handlers) process.on(signal, handler);
  }

  /** Resolves with the exit status when the program has ended. RunError. */
  async run(address: BoxAddress, folder: string, options: RunOptions): Promise<number> {
    const child = spawn(built('vfiobox-launch'), [address.plan ?? '-', '--', ...options.command], {
      stdio: 'inherit',
      env: {
        ...process.env,
        VFIOBOX_SOCKET: address.socket,
        VFIOBOX_ROOT: folder,
        VFIOBOX_PATHS: [...address.prefixes, ...address.nodes].join(':'),
        VFIOBOX_PRELOAD: built('libvfiobox.so'),
        ...(options.sysfs === 'mount' ? { VFIOBOX_SYSFS_WANTED: 'mount' } : {}),
      },
    });
    this.#child = child;
    if (this.#pending !== undefined) child.kill(this.#pending);
    return new Promise((resolve, reject) => {
      child.once('exit', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : os.signals[signal])));
      child.once('error', (error) => reject(new RunError(`cannot start the launcher: ${error.message}`)));
    });
  }

  forget(): void {
    for (const [signal, handler] of this.#handlers) process.removeListener(signal, handler);
  }

  #forward(signal: NodeJS.Signals): void {
    // A terminal sends these to the program itself.
    if ((signal === 'SIGINT' || signal === 'SIGQUIT') && isatty(0) && this.#child !== undefined) return;
    if (this.#child === undefined) this.#pending = signal;
    else this.#child.kill(signal);
  }
}
