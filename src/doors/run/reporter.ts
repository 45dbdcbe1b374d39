/**
 * What people are told about calls: `--explain` on stderr, `--trace` into a file.
 *
 * The trace has one JSON object a line: `t` nanoseconds since the box started, `e` the event: a tracepoint's name, or `call`. 64-bit
 * values are strings in hexadecimal. It is written in large pieces, and whenever the box has nothing to do.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { errnoName } from '../../lib/errno.ts';
import { subscribe, type TraceFields, tracepoints } from '../../lib/tracepoint.ts';

export interface CallRecord {
  readonly program: string;
  readonly pid: number;
  readonly call: string;
  readonly file: string;
  /** Further arguments as text. */
  readonly details: string;
  readonly result: number;
  /** The reason of a refusal. */
  readonly why: string | undefined;
}

/** One or more whole lines on stderr, at once: the box's thread never returns to Node, whose streams would keep them. */
export function say(text: string): void {
  try {
    writeSync(2, text);
  } catch {
    // A reader that is gone or slow shall not end the box.
  }
}

const FLUSH_AT = 65536;

/** The trace cannot be written. The message is for a person. */
export class TraceError extends Error {}

export class TraceFile {
  readonly #path: string;
  readonly #now: () => number;
  #fd: number;
  #pending: string[] = [];
  #pendingLength = 0;
  readonly #stops: (() => void)[] = [];

  /** TraceError: cannot be created. */
  constructor(path: string, now: () => number) {
    this.#path = path;
    this.#now = now;
    try {
      this.#fd = openSync(path, 'w');
    } catch (error) {
      throw new TraceError(
        `cannot write the trace to '${path}': ${(error as NodeJS.ErrnoException).code}; choose another file with --trace`,
      );
    }
  }

  /** Starts to write all tracepoints. */
  start(): void {
    for (const name of new Set(tracepoints)) {
      this.#stops.push(subscribe(name, (fields) => this.#line(name, fields)));
    }
  }

  call(record: CallRecord): void {
    const { pid, program, call, file, details, result, why } = record;
    const fields: Record<string, string | number> = { pid, program, call, file, details, result };
    if (result < 0) fields['errno'] = errnoName(-result);
    if (why !== undefined) fields['why'] = why;
    this.#line('call', fields);
  }

  /** Writes what is pending. TraceError, once: the trace has ended then. */
  flush(): void {
    if (this.#pendingLength === 0 || this.#fd < 0) return;
    const bytes = Buffer.from(this.#pending.join(''));
    this.#pending = [];
    this.#pendingLength = 0;
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(this.#fd, bytes, at);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      this.#end();
      const what = code === 'ENOSPC' ? 'the disk is full; free some room or choose another file' : code;
      throw new TraceError(`the trace '${this.#path}' is cut short: ${what}`);
    }
  }

  /** The end of the run. TraceError. */
  close(): void {
    try {
      this.flush();
    } finally {
      this.#end();
    }
  }

  #line(event: string, fields: TraceFields): void {
    if (this.#fd < 0) return;
    const text = `${JSON.stringify({ t: this.#now(), e: event, ...fields }, plain)}\n`;
    this.#pending.push(text);
    this.#pendingLength += text.length;
    // The door flushes between calls, too; an error is not thrown into a device's or the kernel's work.
  }

  get isLarge(): boolean {
    return this.#pendingLength >= FLUSH_AT;
  }

  #end(): void {
    for (const stop of this.#stops) stop();
    this.#stops.length = 0;
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}

function plain(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : value;
}

/** One line about a refused call: who, what, which errno, and why. */
export function explain(record: CallRecord): string {
  const { program, pid, call, file, details, result, why } = record;
  const args = details === '' ? file : `${file}, ${details}`;
  return `vfiobox: ${program}[${pid}] ${call}(${args}) = -1 ${errnoName(-result)}: ${why ?? 'no reason was given'}\n`;
}

/** One line about a call whose caller has to wait. */
export function explainWait({ program, pid, call, file, why }: CallRecord): string {
  return `vfiobox: ${program}[${pid}] ${call}(${file}) waits: ${why ?? 'no reason was given'}\n`;
}
