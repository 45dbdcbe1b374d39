/**
 * One base address register and what lies behind it: memory that can be shared with programs, or registers that are called for
 * each access, or both (a table inside a memory BAR).
 *
 * Accesses arrive as byte arrays of 1, 2, 4 or 8 bytes (16, 32, 64 for portals), with the offset inside the BAR. The way from
 * here to the device's registers allocates nothing.
 */
import type { Backing, SharedMemory } from '../memory/backing.ts';

export interface Bar {
  readonly index: number;
  readonly kind: 'memory' | 'io';
  /** Bytes, a power of two. */
  readonly size: number;
  readonly is64: boolean;
  readonly prefetchable: boolean;
  /** Memory that programs may map; undefined: registers only. */
  readonly shared: SharedMemory | undefined;
  /** Offered for mmap, but each access is forwarded to `read` and `write`. */
  readonly trapped: boolean;
  /** Bus address that firmware gave it, 0 for none. What the hardware decodes is in configuration space. */
  address: number;
  /** One access of 1, 2, 4, 8 (16, 32, 64) bytes. Beyond the end: all ones. */
  read(offset: number, into: Uint8Array): void;
  write(offset: number, from: Uint8Array): void;
}

/** Registers that answer accesses to a range; `offset` counts from the start of the BAR (of an overlay: of the overlay). */
export interface Registers {
  read(offset: number, into: Uint8Array): void;
  write(offset: number, from: Uint8Array): void;
}

/** A register that software rings by an eventfd as well: a kick of it is a write of `value`. */
export interface Doorbell {
  readonly at: number;
  readonly size: 1 | 2 | 4;
  /** Only this value rings it; any does, and 0 is written, when it is not given. */
  readonly value?: number;
  /** Doorbells of a BAR with the same name here share one eventfd: a kick rings all of them. */
  readonly shares?: string;
}

export interface BarSpec {
  /** 0 to 5; a 64-bit BAR takes the next one as well. */
  readonly index: number;
  readonly kind: 'memory' | 'io';
  readonly size: number;
  readonly is64?: boolean;
  readonly prefetchable?: boolean;
  readonly shared?: SharedMemory;
  readonly trapped?: boolean;
  readonly doorbells?: readonly Doorbell[];
  /** Who answers. Without it a shared BAR is plain memory, any other reads as zero. */
  readonly registers?: Registers;
}

interface Overlay {
  readonly first: number;
  readonly end: number;
  readonly registers: Registers;
}

const nothing: Registers = {
  read: (_offset, into) => {
    into.fill(0);
  },
  write: () => {},
};

function plainMemory(shared: SharedMemory): Registers {
  return {
    read: (offset, into) => {
      const bytes = shared.bytes();
      for (let i = 0; i < into.length; i++) into[i] = bytes[offset + i]!;
    },
    write: (offset, from) => {
      const bytes = shared.bytes();
      for (let i = 0; i < from.length; i++) bytes[offset + i] = from[i]!;
    },
  };
}

export class FunctionBar implements Bar {
  readonly index: number;
  readonly kind: 'memory' | 'io';
  readonly size: number;
  readonly is64: boolean;
  readonly prefetchable: boolean;
  readonly shared: SharedMemory | undefined;
  readonly trapped: boolean;
  address = 0;
  /** The function was pulled: nothing answers. */
  gone = false;
  readonly #registers: Registers;
  readonly #overlays: Overlay[] = [];

  constructor(spec: BarSpec) {
    const least = spec.kind === 'io' ? 4 : 16;
    if (spec.size < least || !Number.isInteger(Math.log2(spec.size))) {
      throw new Error(`BAR ${spec.index} of 0x${spec.size.toString(16)} bytes is not a power of two from ${least}`);
    }
    if (!spec.is64 && spec.size > 2 ** 31) {
      throw new Error(`BAR ${spec.index} of 0x${spec.size.toString(16)} bytes needs 64 bits`);
    }
    this.index = spec.index;
    this.kind = spec.kind;
    this.size = spec.size;
    this.is64 = spec.is64 ?? false;
    this.prefetchable = spec.prefetchable ?? false;
    this.shared = spec.shared;
    this.trapped = spec.trapped ?? false;
    this.#registers = spec.registers ?? (spec.shared === undefined ? nothing : plainMemory(spec.shared));
  }

  /** Lets other registers answer in `[first, first + length)`: the MSI-X table and its pending bits. */
  overlay(first: number, length: number, registers: Registers): void {
    if (first + length > this.size) throw new Error(`BAR ${this.index} is too small for 0x${first.toString(16)}`);
    this.#overlays.push({ first, end: first + length, registers });
  }

  read(offset: number, into: Uint8Array): void {
    if (offset < 0 || offset + into.length > this.size || this.gone) {
      into.fill(0xff);
      return;
    }
    const overlays = this.#overlays;
    for (let i = 0; i < overlays.length; i++) {
      const overlay = overlays[i]!;
      if (offset >= overlay.first && offset + into.length <= overlay.end) {
        overlay.registers.read(offset - overlay.first, into);
        return;
      }
    }
    this.#registers.read(offset, into);
  }

  write(offset: number, from: Uint8Array): void {
    if (offset < 0 || offset + from.length > this.size || this.gone) return;
    const overlays = this.#overlays;
    for (let i = 0; i < overlays.length; i++) {
      const overlay = overlays[i]!;
      if (offset >= overlay.first && offset + from.length <= overlay.end) {
        overlay.registers.write(offset - overlay.first, from);
        return;
      }
    }
    this.#registers.write(offset, from);
  }
}

/** The BAR as other devices' DMA reaches it: transfers cut into naturally aligned accesses of at most 8 bytes. */
export function barBacking(bar: Bar): Backing {
  return {
    read(offset, into) {
      if (offset + into.length > bar.size) return false;
      for (let at = 0; at < into.length; ) {
        const size = accessSize(offset + at, into.length - at);
        bar.read(offset + at, into.subarray(at, at + size));
        at += size;
      }
      return true;
    },
    write(offset, from) {
      if (offset + from.length > bar.size) return false;
      for (let at = 0; at < from.length; ) {
        const size = accessSize(offset + at, from.length - at);
        bar.write(offset + at, from.subarray(at, at + size));
        at += size;
      }
      return true;
    },
  };
}

function accessSize(offset: number, left: number): number {
  let size = 8;
  while (offset % size !== 0 || size > left) size /= 2;
  return size;
}
