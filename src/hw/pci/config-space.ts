/**
 * Configuration space of one function as its hardware has it: 256 or 4096 bytes, for each bit whether software may write it or
 * clear it by writing one, and two lists of capabilities.
 *
 * Reading has no side effect, so reads look at the bytes. A write changes what the masks allow and then calls the watchers of
 * the registers it touched, with the value as written: a bit that starts something and always reads 0 is a watcher on a bit that
 * nobody may write. What VFIO shows to a program instead of this is the kernel's affair.
 */
import * as reg from '../../uapi/pci-regs.ts';

export interface Capability {
  readonly id: number;
  readonly offset: number;
  readonly length: number;
}

/** Called after a write of `size` bytes at `offset` that touched the watched bytes; `value` as written. */
export type ConfigWatcher = (offset: number, size: number, value: number) => void;

interface Watch {
  readonly first: number;
  readonly end: number;
  readonly watcher: ConfigWatcher;
}

export class ConfigSpace {
  readonly length: 256 | 4096;
  /** What reads see. Hardware may write here without asking the masks. */
  readonly bytes: Uint8Array;
  /** A removed function: reads give all ones, writes go nowhere. */
  gone = false;
  readonly #writable: Uint8Array;
  readonly #clearable: Uint8Array;
  readonly #watches: Watch[] = [];
  readonly #standard: Capability[] = [];
  readonly #extended: Capability[] = [];
  #initial: Uint8Array | undefined;

  constructor(length: 256 | 4096) {
    this.length = length;
    this.bytes = new Uint8Array(length);
    this.#writable = new Uint8Array(length);
    this.#clearable = new Uint8Array(length);
  }

  read(offset: number, size: 1 | 2 | 4): number {
    if (this.gone || offset < 0 || offset + size > this.length) return size === 4 ? 0xffffffff : 2 ** (8 * size) - 1;
    return this.get(offset, size);
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    if (this.gone || offset < 0 || offset + size > this.length) return;
    for (let i = 0; i < size; i++) {
      const written = (value >>> (8 * i)) & 0xff;
      const at = offset + i;
      const writable = this.#writable[at]!;
      this.bytes[at] = ((this.bytes[at]! & ~writable) | (written & writable)) & ~(written & this.#clearable[at]!);
    }
    for (const watch of this.#watches) {
      if (offset < watch.end && watch.first < offset + size) watch.watcher(offset, size, value);
    }
  }

  /** The hardware's own look at a register. */
  get(offset: number, size: 1 | 2 | 4): number {
    const bytes = this.bytes;
    if (size === 1) return bytes[offset]!;
    if (size === 2) return bytes[offset]! | (bytes[offset + 1]! << 8);
    return (bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24)) >>> 0;
  }

  /** The hardware changes a register: masks and watchers are not asked. */
  set(offset: number, size: 1 | 2 | 4, value: number): void {
    for (let i = 0; i < size; i++) this.bytes[offset + i] = value >>> (8 * i);
  }

  /** Sets a register's value and which of its bits software may write, and which it clears by writing one. */
  define(offset: number, size: 1 | 2 | 4, value: number, writable = 0, clearable = 0): void {
    this.set(offset, size, value);
    for (let i = 0; i < size; i++) {
      this.#writable[offset + i] = writable >>> (8 * i);
      this.#clearable[offset + i] = clearable >>> (8 * i);
    }
  }

  /** Bits of a register that software may write. */
  writableBits(offset: number, size: 1 | 2 | 4): number {
    let bits = 0;
    for (let i = 0; i < size; i++) bits |= this.#writable[offset + i]! << (8 * i);
    return bits >>> 0;
  }

  /** Bits of a byte that software clears by writing one. */
  clearableBits(offset: number): number {
    return this.#clearable[offset]!;
  }

  watch(offset: number, length: number, watcher: ConfigWatcher): void {
    this.#watches.push({ first: offset, end: offset + length, watcher });
  }

  /** Takes the present contents as those after a reset. Called once, when the function is complete. */
  seal(): void {
    this.#initial = this.bytes.slice();
  }

  /** Puts every bit that software may have changed back to its value after power-on. */
  reset(): void {
    const initial = this.#initial;
    if (initial === undefined) throw new Error('Configuration space was never sealed');
    for (let at = 0; at < this.length; at++) {
      const changed = this.#writable[at]! | this.#clearable[at]!;
      if (changed !== 0) this.bytes[at] = (this.bytes[at]! & ~changed) | (initial[at]! & changed);
    }
  }

  /** Offset of the first capability with this id, 0 for none. */
  findCapability(id: number): number {
    return this.#standard.find((capability) => capability.id === id)?.offset ?? 0;
  }

  /** Offset of the first extended capability with this id, 0 for none. */
  findExtended(id: number): number {
    return this.#extended.find((capability) => capability.id === id)?.offset ?? 0;
  }

  /** In the order of the list. */
  capabilities(): readonly Capability[] {
    return this.#standard;
  }

  extended(): readonly Capability[] {
    return this.#extended;
  }

  /** Appends a capability to the list, at the first free place or at `at`, and returns its offset. Its body is zero. */
  addCapability(id: number, length: number, at?: number): number {
    const offset = at ?? this.#freePlace(this.#standard, length, reg.PCI_STD_HEADER_SIZEOF, 256);
    this.#checkPlace(this.#standard, offset, length, reg.PCI_STD_HEADER_SIZEOF, 256);
    const last = this.#standard[this.#standard.length - 1];
    this.set(last === undefined ? reg.PCI_CAPABILITY_LIST : last.offset + reg.PCI_CAP_LIST_NEXT, 1, offset);
    this.set(offset + reg.PCI_CAP_LIST_ID, 1, id);
    this.set(reg.PCI_STATUS, 2, this.get(reg.PCI_STATUS, 2) | reg.PCI_STATUS_CAP_LIST);
    this.#standard.push({ id, offset, length });
    return offset;
  }

  /** Appends an extended capability, as `addCapability`. The first one is always at 0x100. */
  addExtended(id: number, version: number, length: number, at?: number): number {
    if (this.length !== 4096) throw new Error(`Extended capability 0x${id.toString(16)} needs PCI Express`);
    const offset = at ?? this.#freePlace(this.#extended, length, 256, 4096);
    this.#checkPlace(this.#extended, offset, length, 256, 4096);
    const last = this.#extended[this.#extended.length - 1];
    if (last === undefined && offset !== 256) throw new Error('The first extended capability must be at 0x100');
    if (last !== undefined) this.set(last.offset + 2, 2, (this.get(last.offset + 2, 2) & 0xf) | (offset << 4));
    this.set(offset, 4, id | (version << 16));
    this.#extended.push({ id, offset, length });
    return offset;
  }

  #freePlace(list: readonly Capability[], length: number, first: number, end: number): number {
    for (let at = first; at + length <= end; at += 4) {
      if (list.every((other) => at + length <= other.offset || other.offset + other.length <= at)) return at;
    }
    throw new Error(`No room for a capability of ${length} bytes`);
  }

  #checkPlace(list: readonly Capability[], offset: number, length: number, first: number, end: number): void {
    const what = `A capability of ${length} bytes cannot be at 0x${offset.toString(16)}`;
    if (offset < first || offset + length > end) {
      throw new Error(`${what}: there is room from 0x${first.toString(16)} to 0x${(end - 1).toString(16)}`);
    }
    if (offset % 4 !== 0) throw new Error(`${what}: capabilities start on a multiple of 4`);
    const other = list.find((one) => offset < one.offset + one.length && one.offset < offset + length);
    if (other !== undefined) {
      throw new Error(`${what}: it overlaps capability 0x${other.id.toString(16)} at 0x${other.offset.toString(16)}`);
    }
  }
}
