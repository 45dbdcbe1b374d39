/**
 * Another process: its memory, its mappings, its rights.
 *
 * process_vm_* goes by number, and numbers are reused; so `mem` and `maps` of the process are opened while it certainly lives. They stay
 * with its address space: after exec or exit they answer nothing, whoever has the number then. `detach` switches to them.
 */
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { DETOUR, detourAddress, detourBytes, isSlowCopy } from './copy.ts';
import * as libc from './libc.ts';
import { addressOfBytes } from './libc.ts';
import { Region } from './memory.ts';

const TASK_END = 2 ** 47;
const BOUNCE = 16384;
const PROCMAP_QUERY = 0xc068_6611;
const QUERY_LENGTH = 104;
const ENOTTY = 25;
const EPERM = 1;

// Two vectors (ours, theirs), the query of mappings, room for short copies.
const LOCAL = 0;
const REMOTE = 16;
const QUERY = 64;
const WORDS = 256;
const BOUNCE_AT = 4096;
const region = new Region(BOUNCE_AT + BOUNCE);
const bounceAddress = region.address + BOUNCE_AT;
const bounce = region.bytes.subarray(BOUNCE_AT, BOUNCE_AT + BOUNCE);

/** One mapping of a process, as /proc/PID/maps shows it. */
export interface Mapping {
  readonly start: number;
  readonly end: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly shared: boolean;
  /** Byte of the file at `start`. */
  readonly offset: number;
  /** `major:minor:inode` of the file, undefined for memory without one. */
  readonly key: string | undefined;
}

let hasQuery = true;

export class ProcessMemory {
  readonly pid: number;
  #maps = -1;
  #mem = -1;
  #isAttached = true;
  /** The first refusal of the system to let us at the memory, for a message. */
  refusal: string | undefined;

  constructor(pid: number) {
    this.pid = pid;
  }

  /** Copies from `address`. False: some byte cannot be read; `into` is undefined then. */
  read(address: number, into: Uint8Array): boolean {
    const length = into.length;
    if (length === 0) return true;
    if (address + length > TASK_END) return false;
    if (!this.#isAttached) return this.#readFile(address, into);
    if (length > BOUNCE) {
      const ours = addressOfBytes(into);
      if (!isSlowCopy(ours, address)) return this.#move(libc.process_vm_readv, ours, address, length);
      for (let at = 0; at < length; at += DETOUR) {
        const part = Math.min(DETOUR, length - at);
        if (!this.#move(libc.process_vm_readv, detourAddress, address + at, part)) return false;
        into.set(detourBytes.subarray(0, part), at);
      }
      return true;
    }
    if (!this.#move(libc.process_vm_readv, bounceAddress, address, length)) return false;
    if (length <= 32) for (let i = 0; i < length; i++) into[i] = bounce[i]!;
    else into.set(bounce.subarray(0, length));
    return true;
  }

  /** Copies to `address`. False: some byte cannot be written; those before it may have been. */
  write(address: number, from: Uint8Array): boolean {
    const length = from.length;
    if (length === 0) return true;
    if (address + length > TASK_END) return false;
    if (!this.#isAttached) return this.#writeFile(address, from);
    if (length > BOUNCE) {
      const ours = addressOfBytes(from);
      if (!isSlowCopy(address, ours)) return this.#move(libc.process_vm_writev, ours, address, length);
      for (let at = 0; at < length; at += DETOUR) {
        const part = Math.min(DETOUR, length - at);
        detourBytes.set(from.subarray(at, at + part));
        if (!this.#move(libc.process_vm_writev, detourAddress, address + at, part)) return false;
      }
      return true;
    }
    if (length <= 32) for (let i = 0; i < length; i++) bounce[i] = from[i]!;
    else bounce.set(from);
    return this.#move(libc.process_vm_writev, bounceAddress, address, length);
  }

  /** The mapping that contains `address`. */
  mapping(address: number): Mapping | undefined {
    this.#hold();
    if (this.#maps < 0) return undefined;
    if (hasQuery) {
      region.setWord(QUERY, QUERY_LENGTH);
      region.bytes.fill(0, QUERY + 8, QUERY + QUERY_LENGTH);
      region.setWord(QUERY + 16, address);
      if (libc.ioctl(this.#maps, PROCMAP_QUERY, region.address + QUERY) === 0) {
        const flags = region.u32[(QUERY + 40) >>> 2]!;
        const inode = region.word(QUERY + 64);
        return {
          start: region.word(QUERY + 24),
          end: region.word(QUERY + 32),
          readable: (flags & 1) !== 0,
          writable: (flags & 2) !== 0,
          shared: (flags & 8) !== 0,
          offset: region.word(QUERY + 56),
          key: inode === 0 ? undefined : `${region.u32[(QUERY + 72) >>> 2]}:${region.u32[(QUERY + 76) >>> 2]}:${inode}`,
        };
      }
      if (libc.lastErrno() !== ENOTTY) return undefined;
      hasQuery = false; // before Linux 6.11
    }
    return findMapping(this.#mapsText(), address);
  }

  /** Whether the address space is kept in sight: it was looked at once. */
  get isHeld(): boolean {
    return this.#maps >= 0;
  }

  /** The process has no connection any more: reach only what is left of this very address space. */
  detach(): void {
    this.#isAttached = false;
  }

  attach(): void {
    this.#isAttached = true;
  }

  close(): void {
    if (this.#maps >= 0) closeSync(this.#maps);
    if (this.#mem >= 0) closeSync(this.#mem);
    this.#maps = -1;
    this.#mem = -1;
    this.#isAttached = false;
  }

  #hold(): void {
    if (this.#maps >= 0 || !this.#isAttached) return;
    try {
      this.#maps = openSync(`/proc/${this.pid}/maps`, 'r');
      this.#mem = openSync(`/proc/${this.pid}/mem`, 'r+');
    } catch (error) {
      this.refusal ??= (error as Error).message;
    }
  }

  #mapsText(): string {
    // The descriptor of the right address space is read from its start; readFileSync on a number starts at its position.
    const pieces: string[] = [];
    const piece = Buffer.alloc(65536);
    let at = 0;
    for (;;) {
      const n = readSync(this.#maps, piece, 0, piece.length, at);
      if (n <= 0) return pieces.join('');
      pieces.push(piece.toString('latin1', 0, n));
      at += n;
    }
  }

  #move(call: typeof libc.process_vm_readv, ours: number, theirs: number, length: number): boolean {
    region.setWord(LOCAL, ours);
    region.setWord(LOCAL + 8, length);
    region.setWord(REMOTE, theirs);
    region.setWord(REMOTE + 8, length);
    const n = call(this.pid, region.address + LOCAL, 1, region.address + REMOTE, 1, 0);
    if (n === length) return true;
    if (n < 0 && this.refusal === undefined && libc.lastErrno() === EPERM) {
      this.refusal = `the system does not let the box reach the memory of process ${this.pid}`;
    }
    return false;
  }

  #readFile(address: number, into: Uint8Array): boolean {
    if (this.#mem < 0) return false;
    try {
      return readSync(this.#mem, into, 0, into.length, address) === into.length;
    } catch {
      return false;
    }
  }

  #writeFile(address: number, from: Uint8Array): boolean {
    if (this.#mem < 0 || this.mapping(address)?.writable !== true) return false; // the file writes through protection
    try {
      return writeSync(this.#mem, from, 0, from.length, address) === from.length;
    } catch {
      return false;
    }
  }
}

/** The mapping that contains `address` in the text of /proc/PID/maps. */
export function findMapping(maps: string, address: number): Mapping | undefined {
  for (const line of maps.split('\n')) {
    const match = /^([0-9a-f]+)-([0-9a-f]+) (.)(.).(.) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)/.exec(line);
    if (match === null) continue;
    const start = Number.parseInt(match[1]!, 16);
    const end = Number.parseInt(match[2]!, 16);
    if (address < start || address >= end) continue;
    const inode = match[9]!;
    return {
      start,
      end,
      readable: match[3] === 'r',
      writable: match[4] === 'w',
      shared: match[5] === 's',
      offset: Number.parseInt(match[6]!, 16),
      key: inode === '0' ? undefined : `${Number.parseInt(match[7]!, 16)}:${Number.parseInt(match[8]!, 16)}:${inode}`,
    };
  }
  return undefined;
}

const RLIMIT_NOFILE = 7;
const RLIMIT_MEMLOCK = 8;

/** RLIMIT_MEMLOCK of a process in bytes, Infinity for none. */
export function memlockLimit(pid: number): number {
  if (libc.prlimit(pid, RLIMIT_MEMLOCK, 0, region.address + WORDS) < 0) return Number.POSITIVE_INFINITY;
  const soft = region.word(WORDS);
  return soft > 2 ** 62 ? Number.POSITIVE_INFINITY : soft;
}

/** Effective capabilities of a process's main thread, bit by bit. */
export function capabilities(pid: number): bigint {
  region.u32[WORDS >>> 2] = 0x2008_0522;
  region.s32[(WORDS >>> 2) + 1] = pid;
  if (libc.capget(region.address + WORDS, region.address + WORDS + 16) < 0) return 0n;
  const at = (WORDS + 16) >>> 2;
  return BigInt(region.u32[at]!) | (BigInt(region.u32[at + 3]!) << 32n);
}

const CAP_DAC_OVERRIDE = 1n;

/**
 * What a process opens files with at this moment: user, groups, and whether it is root that may pass over permissions. `uid` is for a
 * process that is gone already.
 */
export function credentials(pid: number, uid: number): { uid: number; groups: number[]; overrides: boolean } {
  let status: string;
  try {
    status = readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return { uid, groups: [], overrides: false };
  }
  const numbers = (name: string): number[] =>
    (new RegExp(`^${name}:(.*)$`, 'm').exec(status)?.[1] ?? '').trim().split(/\s+/).filter(Boolean).map(Number);
  const [, , , user = uid] = numbers('Uid');
  const [, , , group = -1] = numbers('Gid');
  const overrides = user === 0 && ((capabilities(pid) >> CAP_DAC_OVERRIDE) & 1n) === 1n;
  return { uid: user, groups: [group, ...numbers('Groups')], overrides };
}

/** Short name of a process's program. */
export function programName(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd();
  } catch {
    return '?';
  }
}

/** Raises our own limit of open descriptors as far as allowed. */
export function raiseDescriptorLimit(): void {
  if (libc.prlimit(0, RLIMIT_NOFILE, 0, region.address + WORDS) < 0) return;
  region.u32[WORDS >>> 2] = region.u32[(WORDS + 8) >>> 2]!;
  region.u32[(WORDS >>> 2) + 1] = region.u32[(WORDS + 12) >>> 2]!;
  libc.prlimit(0, RLIMIT_NOFILE, region.address + WORDS, 0);
}
