/**
 * The memory of a program as the box sees it. Implemented outside the kernel: by another process's memory in `run`, by plain
 * buffers in tests.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';

/** One mapping of a program's address space. Addresses in bytes, `end` exclusive. */
export interface Vma {
  readonly start: number;
  readonly end: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly shared: boolean;
  /** Set when this is a mapping of a device's BAR: which memory, and the byte of it at `start`. */
  readonly device?: { readonly memory: SharedMemory; readonly offset: number };
}

export interface UserMemory {
  /** Copies from `address`; false when any byte of it cannot be read. Addresses are below 2^47. */
  read(address: number, into: Uint8Array): boolean;
  /** Copies to `address`; false when any byte of it cannot be written. */
  write(address: number, from: Uint8Array): boolean;
  /** The mapping that contains `address`, undefined when nothing is mapped there. */
  vma(address: number): Vma | undefined;
}
