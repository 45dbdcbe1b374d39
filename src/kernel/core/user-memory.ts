/**
 * The memory of a program as the box sees it. Implemented outside the kernel: by another process's memory in `run`, by plain
 * buffers in tests.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import type { MemoryFile } from './task.ts';

/** One mapping of a program's address space. Addresses in bytes, `end` exclusive. */
export interface Vma {
  readonly start: number;
  readonly end: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly shared: boolean;
  /** Set when this is a mapping of a device's BAR: which memory, and the byte of it at `start`. */
  readonly device?: { readonly memory: SharedMemory; readonly offset: number };
  /** Set when this is a shared mapping of a file whose pages can be reached without this program, as a memfd. */
  readonly file?: VmaFile;
}

/** The file behind a shared mapping. Its pages are the same ones in every program that maps it. */
export interface VmaFile {
  /** As `MemoryFile.identity`. */
  readonly identity: string;
  /** Byte of the file at the mapping's start. */
  readonly offset: number;
  /** A new reference to the file. Undefined: it cannot be reached (any more). */
  open(): MemoryFile | undefined;
}

export interface UserMemory {
  /** Copies from `address`; false when any byte of it cannot be read. Addresses are below 2^47. */
  read(address: number, into: Uint8Array): boolean;
  /** Copies to `address`; false when any byte of it cannot be written. */
  write(address: number, from: Uint8Array): boolean;
  /** The bytes at `address` themselves, to be read at once; undefined or absent: they can only be copied. */
  direct?(address: number, length: number): Uint8Array | undefined;
  /** The mapping that contains `address`, undefined when nothing is mapped there. */
  vma(address: number): Vma | undefined;
}
