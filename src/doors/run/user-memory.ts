/**
 * A program's memory as the kernel's calls see it.
 *
 * While a call runs, the first bytes of its argument are at hand (they came with the request), and what the call stores there goes
 * back with the answer; so most calls touch the program's memory not at all. Everything else is read and written directly.
 *
 * The window is `[start, start + known)`: bytes that were read. Stores that touch or extend it without a hole are gathered, up to
 * `LONGEST_REPLY`. Once something is gathered, reads see it.
 */
import type { MemoryFile, SharedMemory, UserMemory, Vma } from '../../host/index.ts';
import type { Mapping, NativeShared } from '../../sys/index.ts';
import { LONGEST_REPLY } from './protocol.ts';

/** What the window needs of the process itself; another process in the box, a buffer in tests. */
export interface RawMemory {
  read(address: number, into: Uint8Array): boolean;
  write(address: number, from: Uint8Array): boolean;
  mapping(address: number): Mapping | undefined;
  /** The memory file behind a shared mapping. Undefined: it is none, or out of reach. */
  openFile?(mapping: Mapping): MemoryFile | undefined;
}

/** Device memory by the file that backs it: `major:minor:inode`. */
export type SharedByKey = ReadonlyMap<string, SharedMemory & Pick<NativeShared, 'fd'>>;

export class ProgramMemory implements UserMemory {
  readonly #raw: RawMemory;
  readonly #shared: SharedByKey;
  /** Where the bytes of the argument are: as they came, and as they go back. */
  readonly #arrived: Uint8Array;
  readonly #gathered: Uint8Array;
  #start = 0;
  /** Bytes from `start` that are at hand. */
  #known = 0;
  /** End of what was stored, from `start`; 0 when nothing was. */
  #dirtyEnd = 0;
  #isOpen = false;
  // The last mapping that was found writable: arguments lie on the stack nearly always. A stale answer only costs the exact undo of a call
  // whose result cannot be stored, never a wrong errno.
  #writableStart = 0;
  #writableEnd = 0;

  constructor(raw: RawMemory, shared: SharedByKey, arrived: Uint8Array, gathered: Uint8Array) {
    this.#raw = raw;
    this.#shared = shared;
    this.#arrived = arrived;
    this.#gathered = gathered;
  }

  /** From here on a call runs whose argument is at `start`, `known` bytes of which have arrived. */
  openWindow(start: number, known: number): void {
    this.#start = start;
    this.#known = known;
    this.#dirtyEnd = 0;
    this.#isOpen = true;
  }

  /** The call has ended. Returns how many bytes of the gathered ones belong at the argument. */
  closeWindow(): number {
    this.#isOpen = false;
    return this.#dirtyEnd;
  }

  read(address: number, into: Uint8Array): boolean {
    if (!this.#isOpen) return this.#raw.read(address, into);
    const length = into.length;
    const at = address - this.#start;
    if (at >= 0 && at + length <= this.#known) {
      const from = this.#dirtyEnd > 0 ? this.#gathered : this.#arrived;
      if (length <= 64) for (let i = 0; i < length; i++) into[i] = from[at + i]!;
      else into.set(from.subarray(at, at + length));
      return true;
    }
    if (!this.#raw.read(address, into)) return false;
    // What the call itself stored before is not there yet.
    if (this.#dirtyEnd > 0) {
      const from = Math.max(at, 0);
      const to = Math.min(at + length, this.#dirtyEnd);
      if (from < to) into.set(this.#gathered.subarray(from, to), from - at);
    }
    return true;
  }

  write(address: number, from: Uint8Array): boolean {
    const length = from.length;
    if (this.#isOpen && length > 0) {
      const at = address - this.#start;
      const end = at + length;
      if (at >= 0 && at <= this.#known && end <= LONGEST_REPLY) return this.#gather(address, at, end, from);
      if (at < this.#known && end > 0) {
        // Overlaps the window without fitting in: what was gathered goes first, so that the order of stores is kept.
        if (!this.#flush()) return false;
        this.#known = 0;
      }
    }
    return this.#raw.write(address, from);
  }

  vma(address: number): Vma | undefined {
    const mapping = this.#raw.mapping(address);
    if (mapping === undefined) return undefined;
    const { start, end, readable, writable, shared } = mapping;
    const { key } = mapping;
    if (key === undefined) return { start, end, readable, writable, shared };
    const memory = this.#shared.get(key);
    if (memory === undefined) {
      if (!shared || this.#raw.openFile === undefined) return { start, end, readable, writable, shared };
      const raw = this.#raw;
      const file = { identity: key, offset: mapping.offset, open: () => raw.openFile!(mapping) };
      return { start, end, readable, writable, shared, file };
    }
    return { start, end, readable, writable, shared, device: { memory, offset: mapping.offset } };
  }

  #gather(address: number, at: number, end: number, from: Uint8Array): boolean {
    if (address < this.#writableStart || address + (end - at) > this.#writableEnd) {
      if (!this.#isWritable(address, end - at)) return false;
    }
    const into = this.#gathered;
    if (this.#dirtyEnd === 0) {
      const arrived = this.#arrived;
      const known = this.#known;
      for (let i = 0; i < known; i++) into[i] = arrived[i]!;
    }
    if (end - at <= 64) for (let i = at; i < end; i++) into[i] = from[i - at]!;
    else into.set(from, at);
    if (end > this.#dirtyEnd) this.#dirtyEnd = end;
    if (end > this.#known) this.#known = end;
    return true;
  }

  #isWritable(address: number, length: number): boolean {
    let at = address;
    const end = address + length;
    while (at < end) {
      const mapping = this.#raw.mapping(at);
      if (mapping === undefined || !mapping.writable) return false;
      this.#writableStart = at === address ? mapping.start : this.#writableStart;
      this.#writableEnd = mapping.end;
      at = mapping.end;
    }
    return true;
  }

  #flush(): boolean {
    const end = this.#dirtyEnd;
    this.#dirtyEnd = 0;
    return end === 0 || this.#raw.write(this.#start, this.#gathered.subarray(0, end));
  }
}
