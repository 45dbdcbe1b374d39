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
  readonly key: string;
  readonly map: SharedFileMap;
  users: number;
}

/** Files without a map that stay mapped: a client that maps and unmaps one file over and over costs no system calls for it. */
const MOST_IDLE = 4;

/** Files that are mapped now: a file that comes with many maps is mapped once, whole. */
export class MappedFiles {
  readonly #files = new Map<string, Shared>();
  #idle: Shared[] = [];

  get count(): number {
    return this.#files.size;
  }

  /** The backing of `length` bytes from byte `base` of the file. EINVAL: they are beyond its end, or it cannot be mapped. */
  open(fd: number, base: number, length: number, wantsWrite: boolean): MapBacking {
    const file = this.#find(fd, base + length, wantsWrite);
    if (file.users === 0) this.#idle = this.#idle.filter((idle) => idle !== file);
    file.users++;
    const { map } = file;
    return {
      read: (offset, into) => map.read(base + offset, into),
      write: (offset, from) => map.write(base + offset, from),
      close: () => {
        if (--file.users > 0) return;
        this.#idle.push(file);
        if (this.#idle.length > MOST_IDLE) this.#drop(this.#idle.shift()!);
      },
    };
  }

  /** Unmaps what no map uses. */
  dropIdle(): void {
    for (const file of this.#idle) this.#drop(file);
    this.#idle = [];
  }

  #drop(file: Shared): void {
    if (this.#files.get(file.key) === file) this.#files.delete(file.key);
    file.map.close();
  }

  #find(fd: number, end: number, wantsWrite: boolean): Shared {
    const { major, minor, inode, length } = statOf(fd);
    const key = `${major}:${minor}:${inode}`;
    const known = this.#files.get(key);
    // A file that was cut is not the one that was mapped.
    if (known !== undefined && known.map.length >= end && length >= end && (known.map.isWritable || !wantsWrite))
      return known;
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
    const file = { key, map, users: 0 };
    this.#files.set(key, file);
    return file;
  }
}

function statOf(fd: number): ReturnType<typeof inodeOf> {
  try {
    return inodeOf(fd);
  } catch {
    throw new Errno('EBADF', 'the descriptor that came along cannot be used');
  }
}
