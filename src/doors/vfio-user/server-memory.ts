/**
 * The server's memory as the machine's kernel sees it: what a user program would have mapped.
 *
 * | from | what |
 * |---|---|
 * | 0 | the client's maps: at their own IOVA, or (those from 64 TiB on) at a place of their own |
 * | `WINDOW` | pages that the client never mapped and that are asked for by message |
 * | `ARGUMENTS` | arguments of ioctls |
 */
import type { UserMemory, Vma } from '../../host/index.ts';
import type { DmaMap, DmaMaps } from './dma-maps.ts';

const PAGE = 4096;
/** IOVAs below it are virtual addresses, too. */
const IDENTITY_END = 2 ** 46;
const WINDOW = 2 ** 46 + 2 ** 45;
const WINDOW_END = WINDOW + 2 ** 30;
export const ARGUMENTS = 2 ** 46 + 2 ** 45 + 2 ** 44;
const ARGUMENTS_LENGTH = 2 ** 20 + 2 ** 16;
const GIB = 2 ** 30;

/** Who answers for the window: bytes from `offset` of it. */
export interface WindowBacking {
  read(offset: number, into: Uint8Array): boolean;
  write(offset: number, from: Uint8Array): boolean;
}

const nobody: WindowBacking = { read: () => false, write: () => false };

export class ServerMemory implements UserMemory {
  readonly arguments = new Uint8Array(ARGUMENTS_LENGTH);
  readonly view = new DataView(this.arguments.buffer);
  window: WindowBacking = nobody;
  readonly #maps: DmaMaps;
  /** Maps whose virtual address is not their IOVA. */
  readonly #high: DmaMap[] = [];
  #nextHigh = IDENTITY_END;
  #last: DmaMap | undefined;

  constructor(maps: DmaMaps) {
    this.#maps = maps;
  }

  /** Virtual address for a map of `length` bytes at `iova`; undefined: there is no room left. */
  place(iova: number, length: number): number | undefined {
    if (iova + length <= IDENTITY_END) return iova;
    if (this.#high.length === 0) this.#nextHigh = IDENTITY_END;
    // Same place within a gigabyte as the IOVA: large leaves stay possible.
    const address = this.#nextHigh + (iova % GIB);
    const end = Math.ceil((address + length) / GIB) * GIB;
    if (end > WINDOW) return undefined;
    this.#nextHigh = end;
    return address;
  }

  /** A map was inserted. */
  added(map: DmaMap): void {
    if (map.vaPage !== map.firstPage) this.#high.push(map);
  }

  /** A map is about to go. */
  removed(map: DmaMap): void {
    if (this.#last === map) this.#last = undefined;
    const at = this.#high.indexOf(map);
    if (at >= 0) this.#high.splice(at, 1);
  }

  /** All maps are gone. */
  cleared(): void {
    this.#last = undefined;
    this.#high.length = 0;
  }

  windowAddress(page: number): number {
    return WINDOW + page * PAGE;
  }

  read(address: number, into: Uint8Array): boolean {
    return this.#move(address, into, false);
  }

  write(address: number, from: Uint8Array): boolean {
    return this.#move(address, from, true);
  }

  direct(address: number, length: number): Uint8Array | undefined {
    if (address >= WINDOW) return undefined;
    const map = this.#find(address);
    if (map === undefined) return undefined;
    const offset = address - map.vaPage * PAGE;
    return offset + length > map.count * PAGE ? undefined : map.backing.direct?.(offset, length);
  }

  vma(address: number): Vma | undefined {
    if (address >= ARGUMENTS) {
      if (address >= ARGUMENTS + ARGUMENTS_LENGTH) return undefined;
      return { start: ARGUMENTS, end: ARGUMENTS + ARGUMENTS_LENGTH, readable: true, writable: true, shared: false };
    }
    if (address >= WINDOW) {
      if (address >= WINDOW_END) return undefined;
      return { start: WINDOW, end: WINDOW_END, readable: true, writable: true, shared: true };
    }
    const map = this.#find(address);
    if (map === undefined) return undefined;
    const { vaPage, count, writable } = map;
    // What cannot be written can still be read by the kernel that pins it.
    return { start: vaPage * PAGE, end: (vaPage + count) * PAGE, readable: true, writable, shared: true };
  }

  #find(address: number): DmaMap | undefined {
    const page = Math.floor(address / PAGE);
    const last = this.#last;
    if (last !== undefined && page >= last.vaPage && page < last.vaPage + last.count) return last;
    const found =
      address < IDENTITY_END
        ? this.#maps.find(page)
        : this.#high.find((map) => page >= map.vaPage && page < map.vaPage + map.count);
    if (found === undefined) return undefined;
    // A map that reaches beyond the identical part lies elsewhere.
    if (page < found.vaPage || page >= found.vaPage + found.count) return undefined;
    this.#last = found;
    return found;
  }

  #move(address: number, bytes: Uint8Array, isWrite: boolean): boolean {
    if (address >= ARGUMENTS) {
      const at = address - ARGUMENTS;
      if (at + bytes.length > ARGUMENTS_LENGTH) return false;
      if (isWrite) this.arguments.set(bytes, at);
      else bytes.set(this.arguments.subarray(at, at + bytes.length));
      return true;
    }
    if (address >= WINDOW) {
      const at = address - WINDOW;
      return isWrite ? this.window.write(at, bytes) : this.window.read(at, bytes);
    }
    let done = 0;
    while (done < bytes.length) {
      const map = this.#find(address + done);
      if (map === undefined) return false;
      const offset = address + done - map.vaPage * PAGE;
      const length = Math.min(bytes.length - done, map.count * PAGE - offset);
      const part = length === bytes.length ? bytes : bytes.subarray(done, done + length);
      if (!(isWrite ? map.backing.write(offset, part) : map.backing.read(offset, part))) return false;
      done += length;
    }
    return true;
  }
}
