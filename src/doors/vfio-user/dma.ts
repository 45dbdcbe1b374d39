/**
 * DMA_MAP and DMA_UNMAP: the client's requests turned into maps of the served device, and pages that it never mapped.
 */
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_USER_F_DMA_REGION_FILEIO,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VFIO_USER_F_DMA_UNMAP_ALL,
  type vfio_user_dma_map,
  type vfio_user_dma_unmap,
} from '../../uapi/vfio-user.ts';
import { type DmaMessages, fileBacking, identityOf, MappedFiles, messageBacking } from './backings.ts';
import type { DmaMap, MapBacking } from './dma-maps.ts';
import type { PrivateFiles } from './private-files.ts';
import type { ServedDevice } from './served-device.ts';

const PAGE = 4096;
const PAGE_MASK = 4095n;
const LARGEST = 8n * 2n ** 40n;
const ADDRESS_END = 1n << 64n;
/** Pages of the window at most, and those above which it is emptied when no transfer runs. */
const WINDOW_PAGES = 65_536;
const WINDOW_FULL = 1024;

/** How the client's memory is reached: as it offers it, or always in one way. */
export type DmaMode = 'auto' | 'message' | 'file' | 'mapped';

export class ClientDma {
  readonly files = new MappedFiles();
  readonly #device: ServedDevice;
  readonly #messages: DmaMessages;
  readonly #mode: DmaMode;
  readonly #strictUnmap: boolean;
  readonly #privateFiles: PrivateFiles;
  /** Most maps at a time. */
  readonly #most: number;
  /** IOVA pages that are asked for by message: page of the window → IOVA page, -1 where one was taken back. */
  readonly #window: number[] = [];
  /** IOVA page → page of the window. */
  readonly #inWindow = new Map<number, number>();

  constructor(
    device: ServedDevice,
    messages: DmaMessages,
    options: { mode: DmaMode; strictUnmap: boolean; maxDmaMaps: number },
    privateFiles: PrivateFiles,
  ) {
    this.#device = device;
    this.#messages = messages;
    this.#mode = options.mode;
    this.#strictUnmap = options.strictUnmap;
    this.#most = options.maxDmaMaps;
    this.#privateFiles = privateFiles;
    device.memory.window = {
      read: (offset, into) => this.#inPages(offset, into, (at, part) => messages.readDma(at, part)),
      write: (offset, from) => this.#inPages(offset, from, (at, part) => messages.writeDma(at, part)),
    };
  }

  /** EINVAL, EEXIST, ENOSPC, and what the map itself says. Descriptors stay the caller's. */
  map(request: vfio_user_dma_map, descriptors: readonly number[]): void {
    const { flags, addr, size, offset } = request;
    const readable = (flags & VFIO_USER_F_DMA_REGION_READ) !== 0;
    const writable = (flags & VFIO_USER_F_DMA_REGION_WRITE) !== 0;
    const access = flags & (VFIO_USER_F_DMA_REGION_MMAP | VFIO_USER_F_DMA_REGION_FILEIO);
    if (flags >>> 4 !== 0) throw new Errno('EINVAL', `unknown flags 0x${flags.toString(16)}`);
    if (!readable && !writable) throw new Errno('EINVAL', 'a map that can be neither read nor written');
    if (descriptors.length > 1) throw new Errno('EINVAL', `${descriptors.length} descriptors; a map has one at most`);
    if (access !== 0 && descriptors.length === 0) throw new Errno('EINVAL', 'a way of access, but no descriptor');
    if (size === 0n || addr + size > ADDRESS_END) throw new Errno('EINVAL', `${size} bytes at 0x${addr.toString(16)}`);
    if (size > LARGEST) throw new Errno('ENOSPC', `${size} bytes are more than the 8 TiB of one map`);
    if ((addr & PAGE_MASK) !== 0n || (size & PAGE_MASK) !== 0n) {
      throw new Errno('EINVAL', `${size} bytes at 0x${addr.toString(16)} are no whole pages`);
    }
    const device = this.#device;
    const firstPage = Number(addr >> 12n);
    const count = Number(size >> 12n);
    if (device.maps.overlaps(firstPage, count)) {
      throw new Errno('EEXIST', `part of ${size} bytes at 0x${addr.toString(16)} is mapped already`);
    }
    if (device.maps.count >= this.#most) throw new Errno('ENOSPC', `${this.#most} maps are there already`);
    if (!device.isTranslated(firstPage, count)) {
      throw new Errno('EINVAL', `${size} bytes at 0x${addr.toString(16)} are not all translated by the IOMMU`);
    }
    this.#dropFromWindow(firstPage, count);
    const length = Number(size);
    const iova = Number(addr);
    const address = device.memory.place(iova, length);
    if (address === undefined) throw new Errno('ENOSPC', 'no room is left for maps above 64 TiB');
    const backing = this.#backing(access, iova, offset, length, writable, descriptors[0]);
    const map: DmaMap = { firstPage, count, readable, writable, vaPage: address / PAGE, backing, isMapped: false };
    device.maps.insert(map);
    device.memory.added(map);
  }

  /** EINVAL, ENOENT. */
  unmap({ flags, addr, size }: vfio_user_dma_unmap): void {
    const { maps } = this.#device;
    if ((flags & ~VFIO_USER_F_DMA_UNMAP_ALL) !== 0) throw new Errno('EINVAL', `flags 0x${flags.toString(16)}`);
    if ((flags & VFIO_USER_F_DMA_UNMAP_ALL) !== 0) {
      if (addr !== 0n || size !== 0n) throw new Errno('EINVAL', 'an address or a size with the flag ALL');
      this.#device.unmapAll();
      this.#window.length = 0;
      this.#inWindow.clear();
      return;
    }
    if (size === 0n || addr + size > ADDRESS_END) throw new Errno('EINVAL', `${size} bytes at 0x${addr.toString(16)}`);
    const first = addr >> 12n;
    const end = (addr + size + PAGE_MASK) >> 12n;
    const met = maps.meets(Number(first), Number(end - first));
    const isAligned = (addr & PAGE_MASK) === 0n && (size & PAGE_MASK) === 0n;
    if (met.kind === 'nothing' && !this.#strictUnmap) return;
    if (met.kind !== 'whole' || !isAligned || (this.#strictUnmap && !isExact(met.maps, first, end))) {
      throw new Errno('ENOENT', `${size} bytes at 0x${addr.toString(16)} are not made of whole maps`);
    }
    for (const map of met.maps) this.#unmap(map);
  }

  /** A device reaches for a page without translation. True: it is asked for by message from now on. */
  miss(page: number): boolean {
    const device = this.#device;
    const map = device.maps.find(page);
    // A map that refuses this access refuses it here, without a message.
    if (map !== undefined) return !map.isMapped && this.#mapNow(map);
    if (this.#inWindow.has(page)) return false;
    // A transfer may be under way through pages of the window, so none of them can go now.
    if (this.#window.length >= WINDOW_PAGES) return false;
    const at = this.#window.length;
    this.#window.push(page);
    try {
      device.map(page * PAGE, PAGE, device.memory.windowAddress(at), true, true);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      this.#window.pop();
      return false;
    }
    this.#inWindow.set(page, at);
    return true;
  }

  /** The device reaches for a map for the first time. */
  #mapNow(map: DmaMap): boolean {
    const { firstPage, count, vaPage, readable, writable } = map;
    try {
      this.#device.map(firstPage * PAGE, count * PAGE, vaPage * PAGE, readable, writable);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      return false;
    }
    map.isMapped = true;
    return true;
  }

  get isWindowFull(): boolean {
    return this.#window.length > WINDOW_FULL;
  }

  /** Not while a transfer runs. */
  dropWindow(): void {
    for (const page of this.#inWindow.keys()) this.#device.unmap(page * PAGE, PAGE);
    this.#window.length = 0;
    this.#inWindow.clear();
  }

  /** These pages have a map from now on. A transfer may be under way through others. */
  #dropFromWindow(firstPage: number, count: number): void {
    for (const [page, at] of this.#inWindow) {
      if (page < firstPage || page >= firstPage + count) continue;
      this.#device.unmap(page * PAGE, PAGE);
      this.#window[at] = -1;
      this.#inWindow.delete(page);
    }
  }

  #backing(
    access: number,
    iova: number,
    offset: bigint,
    length: number,
    writable: boolean,
    fd: number | undefined,
  ): MapBacking {
    const mode = this.#mode;
    if (fd === undefined || mode === 'message') return messageBacking(this.#messages, iova);
    if (offset + BigInt(length) > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new Errno('EINVAL', `offset ${offset} is beyond the end of any file`);
    }
    // What a client keeps to itself is not what lies in its file.
    const file = identityOf(fd);
    if (mode === 'auto' && this.#privateFiles.has(file)) return messageBacking(this.#messages, iova);
    const isFile = mode === 'file' || (mode === 'auto' && access === VFIO_USER_F_DMA_REGION_FILEIO);
    return isFile ? fileBacking(fd, Number(offset)) : this.files.open(fd, file, Number(offset), length, writable);
  }

  #unmap(map: DmaMap): void {
    if (map.isMapped) this.#device.unmap(map.firstPage * PAGE, map.count * PAGE);
    this.#device.memory.removed(map);
    this.#device.maps.remove(map);
    map.backing.close();
  }

  /** Pages of the window are neighbours there, not in the client's addresses. */
  #inPages(offset: number, bytes: Uint8Array, move: (address: number, part: Uint8Array) => boolean): boolean {
    let done = 0;
    while (done < bytes.length) {
      const at = offset + done;
      const first = Math.floor(at / PAGE);
      const page = this.#window[first];
      if (page === undefined || page < 0) return false;
      // Neighbours in both go by one message.
      let count = 1;
      while (count * PAGE - (at % PAGE) < bytes.length - done && this.#window[first + count] === page + count) count++;
      const length = Math.min(bytes.length - done, count * PAGE - (at % PAGE));
      if (!move(page * PAGE + (at % PAGE), bytes.subarray(done, done + length))) return false;
      done += length;
    }
    return true;
  }
}

function isExact(maps: readonly DmaMap[], first: bigint, end: bigint): boolean {
  const [map] = maps;
  return maps.length === 1 && map!.firstPage === Number(first) && map!.count === Number(end - first);
}
