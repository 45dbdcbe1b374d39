/**
 * The three ways to a client's memory: its file mapped here, its file read and written, or messages to the client.
 */
import { readSync, writeSync } from 'node:fs';
import { Errno } from '../../lib/errno.ts';
import { closeDescriptor, duplicate, inodeOf, isWritable, SharedFileMap, SystemError } from '../../sys/index.ts';
import type { MapBacking } from './dma-maps.ts';

const PAGE = 4096;

/** Asks the client itself. False: it refuses, or is gone. */
export interface DmaMessages {
  readDma(address: number, into: Uint8Array): boolean;
  writeDma(address: number, from: Uint8Array): boolean;
}

/** Each access is a message. `base`: the IOVA at which the map starts. */
export function messageBacking(messages: DmaMessages, base: number): MapBacking {
  return {
    read: (offset, into) => messages.readDma(base + offset, into),
    write: (offset, from) => messages.writeDma(base + offset, from),
    close() {},
  };
}

/** Each access is a pread or pwrite of the client's file from byte `base` on. The descriptor stays the caller's. */
export function fileBacking(fd: number, base: number): MapBacking {
  const own = duplicate(fd);
  if (own < 0) throw new Errno('ENFILE', 'the server has no descriptor left');
  const all = (move: (done: number) => number, length: number): boolean => {
    try {
      let done = 0;
      while (done < length) {
        const n = move(done);
        if (n <= 0) return false;
        done += n;
      }
      return true;
    } catch {
      return false;
    }
  };
  return {
    read: (offset, into) =>
      all((done) => readSync(own, into, done, into.length - done, base + offset + done), into.length),
    write: (offset, from) =>
      all((done) => writeSync(own, from, done, from.length - done, base + offset + done), from.length),
    close: () => closeDescriptor(own),
  };
}

interface Shared {
  readonly major: number;
  readonly minor: number;
  readonly inode: number;
  readonly map: SharedFileMap;
  users: number;
}

/** Files without a map that stay mapped: a client that maps and unmaps one file over and over costs no system calls for it. */
const MOST_IDLE = 4;

/** Files that are mapped now: a file that comes with many maps is mapped once, whole. */
export class MappedFiles {
  /** The one that was used last is the last of the list. */
  readonly #files: Shared[] = [];
  #idle = 0;

  get count(): number {
    return this.#files.length;
  }

  /** The backing of `length` bytes from byte `base` of the file. EINVAL: they are beyond its end, or it cannot be mapped. */
  open(
    fd: number,
    identity: ReturnType<typeof inodeOf>,
    base: number,
    length: number,
    wantsWrite: boolean,
  ): MapBacking {
    const file = this.#find(fd, identity, base + length, wantsWrite);
    if (file.users === 0) this.#idle--;
    file.users++;
    return new MappedBacking(file.map, base, () => this.#leave(file));
  }

  /** Unmaps what no map uses. */
  dropIdle(): void {
    for (const file of this.#files.filter(({ users }) => users === 0)) this.#drop(file);
  }

  #leave(file: Shared): void {
    if (--file.users > 0) return;
    this.#idle++;
    if (this.#idle > MOST_IDLE) this.#drop(this.#files.find(({ users }) => users === 0)!);
  }

  #drop(file: Shared): void {
    const at = this.#files.indexOf(file);
    if (at >= 0) this.#files.splice(at, 1);
    this.#idle--;
    file.map.close();
  }

  #find(fd: number, identity: ReturnType<typeof inodeOf>, end: number, wantsWrite: boolean): Shared {
    const { major, minor, inode, length } = identity;
    for (let i = this.#files.length - 1; i >= 0; i--) {
      const known = this.#files[i]!;
      if (known.inode !== inode || known.minor !== minor || known.major !== major) continue;
      // A file that was cut is not the one that was mapped.
      if (known.map.length >= end && length >= end && (known.map.isWritable || !wantsWrite)) return known;
    }
    if (length < end) throw new Errno('EINVAL', `the file has ${length} bytes, the map ends at ${end}`);
    const canWrite = isWritable(fd);
    if (wantsWrite && !canWrite) throw new Errno('EACCES', 'the file cannot be written');
    const whole = Math.floor(length / PAGE) * PAGE;
    let map: SharedFileMap;
    try {
      map = new SharedFileMap(fd, whole >= end ? whole : length, canWrite);
    } catch (error) {
      if (error instanceof SystemError) throw new Errno('EINVAL', `the file cannot be mapped (${error.code})`);
      throw error;
    }
    const file = { major, minor, inode, map, users: 0 };
    this.#files.push(file);
    this.#idle++;
    return file;
  }
}

/** A part of a mapped file. */
class MappedBacking implements MapBacking {
  readonly #map: SharedFileMap;
  readonly #base: number;
  readonly #leave: () => void;

  constructor(map: SharedFileMap, base: number, leave: () => void) {
    this.#map = map;
    this.#base = base;
    this.#leave = leave;
  }

  read(offset: number, into: Uint8Array): boolean {
    return this.#map.read(this.#base + offset, into);
  }

  write(offset: number, from: Uint8Array): boolean {
    return this.#map.write(this.#base + offset, from);
  }

  direct(offset: number, length: number): Uint8Array | undefined {
    return this.#map.direct(this.#base + offset, length);
  }

  close(): void {
    this.#leave();
  }
}

/** Which file a descriptor of the client's is, and its length. EBADF. */
export function identityOf(fd: number): ReturnType<typeof inodeOf> {
  try {
    return inodeOf(fd);
  } catch {
    throw new Errno('EBADF', 'the descriptor that came along cannot be used');
  }
}
