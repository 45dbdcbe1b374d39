/**
 * The client's memory as the server's device sees it: maps by device address, and the answers to DMA_READ and DMA_WRITE.
 *
 * A map without bytes and without file is known to the server only; asking for it is answered with EINVAL.
 */
import { readSync, writeSync } from 'node:fs';
import { Errno } from '../../lib/errno.ts';
import { NativeShared } from '../../sys/index.ts';
import {
  VFIO_USER_DMA_READ,
  VFIO_USER_DMA_WRITE,
  VFIO_USER_F_DMA_REGION_FILEIO,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  vfio_user_dma_region_access,
} from '../../uapi/vfio-user.ts';

/** Memory that a server can map: a memory file, and its bytes here. */
export class ClientMemory {
  readonly length: number;
  readonly #memory: NativeShared;

  /** `length` in bytes, rounded up to pages; the bytes are zero. SystemError. */
  constructor(length: number) {
    this.#memory = new NativeShared('dma', length);
    this.length = length;
  }

  get fd(): number {
    return this.#memory.fd;
  }

  get bytes(): Uint8Array {
    return this.#memory.bytes();
  }

  /** After the last map of it is gone. */
  close(): void {
    this.#memory.close();
  }
}

/** What is behind a map: a file the server gets (with its bytes here, if they are), or bytes that are served by messages. */
export type DmaBacking =
  | { readonly kind: 'memory'; readonly memory: ClientMemory; readonly offset?: number }
  | { readonly kind: 'file'; readonly fd: number; readonly offset?: bigint }
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }
  /** Not given to the server, and not served here. */
  | { readonly kind: 'none' };

export interface DmaMap {
  /** First device address. */
  readonly address: bigint;
  readonly length: bigint;
  readonly backing: DmaBacking;
  /** What the device may do. Default both. */
  readonly access?: 'read' | 'write' | 'read-write';
  /** How the server shall use the file; default: as it likes. */
  readonly fileAccess?: 'mmap' | 'file';
}

/** DMA_MAP's flags for this map. */
export function flagsOf(map: DmaMap): number {
  const { access = 'read-write', fileAccess } = map;
  return (
    (access === 'write' ? 0 : VFIO_USER_F_DMA_REGION_READ) |
    (access === 'read' ? 0 : VFIO_USER_F_DMA_REGION_WRITE) |
    (fileAccess === 'mmap' ? VFIO_USER_F_DMA_REGION_MMAP : 0) |
    (fileAccess === 'file' ? VFIO_USER_F_DMA_REGION_FILEIO : 0)
  );
}

/** The file that goes with DMA_MAP and the offset in it. */
export function fileOf(backing: DmaBacking): { fd: number; offset: bigint } | undefined {
  if (backing.kind === 'memory') return { fd: backing.memory.fd, offset: BigInt(backing.offset ?? 0) };
  return backing.kind === 'file' ? { fd: backing.fd, offset: backing.offset ?? 0n } : undefined;
}

export class DmaTable {
  /** In order of their address, none overlapping. */
  readonly #maps: DmaMap[] = [];

  get count(): number {
    return this.#maps.length;
  }

  [Symbol.iterator](): IterableIterator<DmaMap> {
    return this.#maps[Symbol.iterator]();
  }

  overlaps(address: bigint, length: bigint): boolean {
    const before = this.#maps[this.#after(address + length - 1n) - 1];
    return before !== undefined && before.address + before.length > address;
  }

  add(map: DmaMap): void {
    this.#maps.splice(this.#after(map.address), 0, map);
  }

  /** Forgets all maps within [address, address + length). */
  remove(address: bigint, length: bigint): void {
    const first = this.#after(address - 1n);
    let last = first;
    while (last < this.#maps.length && this.#maps[last]!.address < address + length) last++;
    this.#maps.splice(first, last - first);
  }

  clear(): void {
    this.#maps.length = 0;
  }

  /** Copies device memory for the server. Errno EINVAL: not mapped; EPERM: not readable. */
  read(address: bigint, into: Uint8Array): void {
    this.#each(address, into.length, (map, at, start, end) => {
      if (map.access === 'write') throw new Errno('EPERM', `the map at ${hex(map.address)} is write-only`);
      transfer(map.backing, at, into.subarray(start, end), false);
    });
  }

  /** Stores what the server's device wrote. All or nothing as far as maps and rights go. */
  write(address: bigint, from: Uint8Array): void {
    const check = (map: DmaMap): void => {
      if (map.access === 'read') throw new Errno('EPERM', `the map at ${hex(map.address)} is read-only`);
    };
    this.#each(address, from.length, check);
    this.#each(address, from.length, (map, at, start, end) =>
      transfer(map.backing, at, from.subarray(start, end), true),
    );
  }

  /** Index of the first map beyond `address`. */
  #after(address: bigint): number {
    let low = 0;
    let high = this.#maps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#maps[middle]!.address <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The pieces [start, end) of an access, each with its map and the offset there. */
  #each(address: bigint, length: number, piece: (map: DmaMap, at: bigint, start: number, end: number) => void): void {
    let i = this.#after(address) - 1;
    for (let start = 0; start < length; i++) {
      const map = this.#maps[i];
      const here = address + BigInt(start);
      if (map === undefined || here < map.address || here >= map.address + map.length) {
        throw new Errno('EINVAL', `nothing is mapped at ${hex(here)}`);
      }
      const at = here - map.address;
      const end = Math.min(length, start + Number(map.length - at));
      piece(map, at, start, end);
      start = end;
    }
  }
}

function transfer(backing: DmaBacking, at: bigint, bytes: Uint8Array, isWrite: boolean): void {
  switch (backing.kind) {
    case 'memory':
    case 'bytes': {
      const source = backing.kind === 'memory' ? backing.memory.bytes : backing.bytes;
      const from = Number(at) + (backing.kind === 'memory' ? (backing.offset ?? 0) : 0);
      if (from + bytes.length > source.length) throw new Errno('EINVAL', 'beyond the end of the memory');
      if (isWrite) source.set(bytes, from);
      else bytes.set(source.subarray(from, from + bytes.length));
      return;
    }
    case 'file': {
      const from = Number((backing.offset ?? 0n) + at);
      const { fd } = backing;
      const done = fileCall(() =>
        isWrite ? writeSync(fd, bytes, 0, bytes.length, from) : readSync(fd, bytes, 0, bytes.length, from),
      );
      if (done !== bytes.length) throw new Errno('EINVAL', 'beyond the end of the file');
      return;
    }
    case 'none':
      throw new Errno('EINVAL', 'this memory is not served by messages');
  }
}

function fileCall(call: () => number): number {
  try {
    return call();
  } catch (error) {
    throw new Errno('EIO', (error as Error).message);
  }
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

/** Answers a DMA_READ or DMA_WRITE of the server from the maps. Errno: EINVAL, EPERM, E2BIG. */
export function answerDma(maps: DmaTable, command: number, payload: Uint8Array, most: number): Uint8Array {
  const { size } = vfio_user_dma_region_access;
  if (command !== VFIO_USER_DMA_READ && command !== VFIO_USER_DMA_WRITE) {
    throw new Errno('EINVAL', `a server has no command ${command}`);
  }
  if (payload.length < size) throw new Errno('EINVAL', `${payload.length} bytes of ${size}`);
  const { addr, count } = vfio_user_dma_region_access.read(payload);
  if (count > BigInt(most)) throw new Errno('E2BIG', `${count} bytes in one message`);
  const length = Number(count);
  if (command === VFIO_USER_DMA_READ) {
    const reply = new Uint8Array(size + length);
    reply.set(payload.subarray(0, size));
    maps.read(addr, reply.subarray(size));
    return reply;
  }
  if (payload.length !== size + length) throw new Errno('EINVAL', `${payload.length - size} of ${length} bytes`);
  maps.write(addr, payload.subarray(size));
  return payload.slice(0, size);
}
