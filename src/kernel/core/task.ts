/**
 * Who makes a call: the process behind it, its memory, its descriptors, its rights.
 */

import type { Backing } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import type { File } from './file.ts';
import type { Mm } from './mm.ts';

/** A program's eventfd, held by the kernel. Each one that was resolved is closed exactly once. */
export interface EventContext {
  /** Adds `count` to the counter. Never fails towards the caller. */
  signal(count?: number): void;
  /** Calls back whenever the counter becomes non-zero, after resetting it; the result stops that. */
  watch(onSignal: () => void): () => void;
  /** Equal for the same eventfd, however often and from whomever it came. Absent: it cannot be compared. */
  readonly identity?: unknown;
  close(): void;
}

/** A file whose pages can be mapped for DMA: a memfd. Held until `close`. */
export interface MemoryFile {
  /** Bytes of the file when it was resolved. */
  readonly length: number;
  readonly writable: boolean;
  /** Equal for the same file, however often and from whomever it came. */
  readonly identity: string;
  /** The file's bytes from 0. */
  readonly backing: Backing;
  close(): void;
}

export type Capability = 'CAP_IPC_LOCK' | 'CAP_SYS_RESOURCE' | 'CAP_SYS_ADMIN' | 'CAP_SYS_RAWIO';

export interface Task {
  readonly pid: number;
  readonly mm: Mm;
  /** For the trace: the program's short name. */
  readonly name: string;
  capable(capability: Capability): boolean;
  /** RLIMIT_MEMLOCK in bytes, Infinity for none. */
  memlockLimit(): number;
  /** The file behind a descriptor. EBADF. A descriptor that is not the box's gives a `ForeignFile`. */
  file(descriptor: number): File;
  /** A new reference to an eventfd. EBADF, EINVAL for another kind of file. */
  eventfd(descriptor: number): EventContext;
  /** A new reference to a memfd or another mappable file. EBADF, EINVAL. */
  memoryFile(descriptor: number): MemoryFile;
}

/** Bytes of the caller's memory at `address`. EFAULT. */
export function copyFromUser(task: Task, address: bigint, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  if (length === 0) return bytes;
  if (address >= 1n << 47n || !task.mm.memory.read(Number(address), bytes)) {
    throw new Errno('EFAULT', `${length} bytes at 0x${address.toString(16)} cannot be read`);
  }
  return bytes;
}

/** Stores bytes in the caller's memory. EFAULT. */
export function copyToUser(task: Task, address: bigint, bytes: Uint8Array): void {
  if (bytes.length === 0) return;
  if (address >= 1n << 47n || !task.mm.memory.write(Number(address), bytes)) {
    throw new Errno('EFAULT', `${bytes.length} bytes at 0x${address.toString(16)} cannot be written`);
  }
}

/** The u32 at `address`, as `argsz` and `size`. EFAULT. */
export function readU32(task: Task, address: bigint): number {
  const bytes = copyFromUser(task, address, 4);
  return (bytes[0]! | (bytes[1]! << 8) | (bytes[2]! << 16) | (bytes[3]! << 24)) >>> 0;
}
