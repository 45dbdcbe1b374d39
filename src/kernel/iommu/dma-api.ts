/**
 * The host's DMA API: how a driver of the host gives its device an address for a buffer.
 *
 * Without an IOMMU, or in an identity domain, that is the physical address. In a DMA domain it is an IOVA of the domain's space,
 * mapped for what the device is to do and for no longer than until the buffer is unmapped. The same page mapped twice has two
 * addresses. Addresses are bytes as numbers, below 2^53.
 */

import { BufferBacking } from '../../hw/memory/backing.ts';
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { BouncePool, type Slot } from './dma-api-bounce.ts';
import { DmaSpace, type DmaSpaceOptions } from './dma-api-space.ts';
import { type Domain, IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from './domain.ts';
import type { IommuGroup } from './group.ts';
import type { ReservedRegion } from './reserved-regions.ts';

/** What the device does with a buffer. */
export type DmaDirection = 'to-device' | 'from-device' | 'bidirectional';

/** No address: the buffer could not be mapped. All ones in the kernel. */
export const DMA_MAPPING_ERROR = -1;

export const DMA_BIT_MASK_32 = 2 ** 32 - 1;
/** Largest byte that an address can name here. */
const LARGEST_ADDRESS = Number.MAX_SAFE_INTEGER;
/** `dma_set_max_seg_size` as long as nobody calls it. */
const SEGMENT = 0x1_0000;

const protOf: Record<DmaDirection, number> = {
  'to-device': IOMMU_READ,
  'from-device': IOMMU_WRITE,
  bidirectional: IOMMU_READ | IOMMU_WRITE,
};

export interface DmaApiOptions extends DmaSpaceOptions {
  /** Pages of machine memory for bounce buffers, below 4 GiB; without them nothing bounces. */
  readonly bounce?: { readonly firstPage: number; readonly count: number };
  /** IOVAs that would be taken for accesses to devices behind the host bridge. */
  readonly hostWindows?: readonly Pick<ReservedRegion, 'firstPage' | 'lastPage'>[];
}

/** A piece of physical memory, as a driver has it. */
export interface Buffer {
  readonly page: number;
  readonly offset: number;
  readonly length: number;
}

/** What a device is told of a list of buffers. */
export interface Segment {
  readonly address: number;
  readonly length: number;
}

/** Memory that driver and device use together. */
export interface CoherentMemory {
  readonly address: number;
  readonly physicalPage: number;
  readonly count: number;
  readonly bytes: (offset: number, length: number) => Uint8Array;
  readonly write: (offset: number, from: Uint8Array) => void;
}

/** The DMA API of one machine. */
export class DmaApi {
  readonly memory: PhysicalMemory;
  readonly bounce: BouncePool | undefined;
  readonly #options: DmaApiOptions;
  readonly #spaces = new WeakMap<Domain, DmaSpace>();

  constructor(memory: PhysicalMemory, options: DmaApiOptions = {}) {
    this.memory = memory;
    this.#options = options;
    const { bounce } = options;
    this.bounce = bounce === undefined ? undefined : new BouncePool(memory, bounce.firstPage, bounce.count);
  }

  /** The space of the group's default domain, undefined when addresses are physical there. */
  spaceOf(group: IommuGroup | undefined): DmaSpace | undefined {
    if (group?.unit === undefined || group.defaultDomain.kind !== 'dma') return undefined;
    let space = this.#spaces.get(group.defaultDomain);
    if (space === undefined) {
      space = new DmaSpace(group.defaultDomain, this.#options);
      space.reserve(this.#options.hostWindows ?? []);
      this.#spaces.set(group.defaultDomain, space);
    }
    return space;
  }

  device(fn: PciFunction, group: IommuGroup | undefined): DmaDevice {
    this.spaceOf(group)?.reserve(group!.reservedRegions());
    return new DmaDevice(this, fn, group);
  }
}

/** One device's DMA. */
export class DmaDevice {
  readonly #api: DmaApi;
  readonly #fn: PciFunction;
  readonly #group: IommuGroup | undefined;
  /** The model CPU on which the driver runs. */
  cpu = 0;
  /** Whether ordinary DMA of the device snoops the caches (always so on x86). */
  isCoherent = true;
  maxSegment = SEGMENT;
  /** Why the last mapping gave `DMA_MAPPING_ERROR`. */
  why = '';
  #mask = DMA_BIT_MASK_32;
  #prefers32 = true;
  /** Bounce buffers by the address that the device has. */
  readonly #slots = new Map<number, Slot>();

  constructor(api: DmaApi, fn: PciFunction, group: IommuGroup | undefined) {
    this.#api = api;
    this.#fn = fn;
    this.#group = group;
  }

  get mask(): number {
    return this.#mask;
  }

  /** Addresses that the device can send: one bit less than a power of two. EIO: not even a page. */
  setMask(mask: number): void {
    if (!(mask >= 0xfff)) throw new Errno('EIO', `a DMA mask of 0x${mask.toString(16)} reaches no page`);
    this.#mask = Math.min(mask, LARGEST_ADDRESS);
  }

  /** The address of `length` bytes at `offset` of physical page `page`; DMA_MAPPING_ERROR, and `why`. */
  mapPage(page: number, offset: number, length: number, direction: DmaDirection): number {
    if (!(length >= 1)) return this.#refuse('no bytes to map');
    const holder = this.#refusal();
    if (holder !== undefined) return this.#refuse(holder);
    const space = this.#api.spaceOf(this.#group);
    if (space === undefined) return this.#mapDirect(page, offset, length);
    const within = offset % 4096;
    const firstPage = page + (offset - within) / 4096;
    const isWhole = within === 0 && length % 4096 === 0;
    if (this.#fn.untrusted && !isWhole && this.#api.bounce !== undefined) {
      const slot = this.#api.bounce.take(firstPage, within, length, LARGEST_ADDRESS / 4096);
      if (slot === undefined) return this.#refuse('no bounce buffers are left');
      const address = this.#mapPages(space, [{ page: slot.firstPage, count: slot.count }], direction);
      if (address === DMA_MAPPING_ERROR) this.#api.bounce.give(slot);
      else this.#slots.set(address + within, slot);
      return address === DMA_MAPPING_ERROR ? address : address + within;
    }
    const address = this.#mapPages(space, [{ page: firstPage, count: pagesOf(within, length) }], direction);
    return address === DMA_MAPPING_ERROR ? address : address + within;
  }

  /** The device is done with what `mapPage` gave. */
  unmapPage(address: number, length: number, direction: DmaDirection): void {
    const space = this.#api.spaceOf(this.#group);
    const slot = this.#slots.get(address);
    if (space !== undefined) {
      const within = address % 4096;
      space.release((address - within) / 4096, pagesOf(within, length), this.cpu);
    }
    if (slot === undefined) return;
    if (direction !== 'to-device') this.#api.bounce!.toCaller(slot);
    this.#slots.delete(address);
    this.#api.bounce!.give(slot);
  }

  /** The driver wants to see what the device wrote, while the buffer stays mapped. */
  syncForCpu(address: number): void {
    const slot = this.#slots.get(address);
    if (slot !== undefined) this.#api.bounce!.toCaller(slot);
  }

  /** The device is to see what the driver wrote. */
  syncForDevice(address: number): void {
    const slot = this.#slots.get(address);
    if (slot !== undefined) this.#api.bounce!.toDevice(slot);
  }

  /**
   * Addresses for a list of buffers: at neighbouring IOVAs, so that buffers that end and begin at page borders are one segment for
   * the device, up to `maxSegment` bytes. Empty: it could not be mapped.
   */
  mapSg(buffers: readonly Buffer[], direction: DmaDirection): Segment[] {
    const space = this.#api.spaceOf(this.#group);
    const mustBounce =
      this.#fn.untrusted && buffers.some(({ offset, length }) => offset % 4096 !== 0 || length % 4096 !== 0);
    if (space === undefined || mustBounce) return this.#mapEach(buffers, direction);
    const holder = this.#refusal();
    if (holder !== undefined || buffers.some(({ length }) => !(length >= 1))) {
      this.#refuse(holder ?? 'no bytes to map');
      return [];
    }
    const runs = buffers.map(({ page, offset, length }) => ({
      page: page + Math.floor(offset / 4096),
      count: pagesOf(offset % 4096, length),
    }));
    const base = this.#mapPages(space, runs, direction);
    if (base === DMA_MAPPING_ERROR) return [];
    const segments: Segment[] = [];
    let at = base;
    buffers.forEach(({ offset, length }, i) => {
      const within = offset % 4096;
      const last = segments.at(-1);
      const joins = last !== undefined && within === 0 && last.address + last.length === at;
      if (joins && last.length + length <= this.maxSegment) {
        segments[segments.length - 1] = { address: last.address, length: last.length + length };
      } else segments.push({ address: at + within, length });
      at += runs[i]!.count * 4096;
    });
    return segments;
  }

  /** The device is done with what `mapSg` gave. */
  unmapSg(segments: readonly Segment[], direction: DmaDirection): void {
    const first = segments[0];
    const last = segments.at(-1);
    if (first === undefined || last === undefined) return;
    const space = this.#api.spaceOf(this.#group);
    if (space === undefined || this.#slots.has(first.address)) {
      for (const { address, length } of segments) this.unmapPage(address, length, direction);
      return;
    }
    const firstPage = Math.floor(first.address / 4096);
    space.release(firstPage, Math.ceil((last.address + last.length) / 4096) - firstPage, this.cpu);
  }

  /** Zeroed memory for driver and device. ENOMEM: no memory, or no address within the mask. */
  allocCoherent(length: number): CoherentMemory {
    const count = Math.ceil(length / 4096);
    const holder = this.#refusal();
    if (holder !== undefined) throw new Errno('EBUSY', holder);
    const { memory, bounce } = this.#api;
    const space = this.#api.spaceOf(this.#group);
    const limit = Math.floor(this.#mask / 4096);
    const physicalPage =
      space === undefined ? (bounce?.takePages(count, limit) ?? 0) : memory.addBlock(new BufferBacking(count * 4096));
    const address =
      space === undefined
        ? physicalPage * 4096
        : this.#mapPages(space, [{ page: physicalPage, count }], 'bidirectional');
    if (address <= 0) {
      if (space !== undefined) memory.removeBlock(physicalPage);
      throw new Errno('ENOMEM', `no memory of ${length} bytes that ${this.#fn.name} can reach`);
    }
    return {
      address,
      physicalPage,
      count,
      bytes: (offset, wanted) => {
        const bytes = new Uint8Array(wanted);
        memory.read(physicalPage, offset, bytes);
        return bytes;
      },
      write: (offset, from) => void memory.write(physicalPage, offset, from),
    };
  }

  freeCoherent({ address, physicalPage, count }: CoherentMemory): void {
    const space = this.#api.spaceOf(this.#group);
    if (space === undefined) {
      this.#api.bounce!.givePages(physicalPage, count);
      return;
    }
    space.release(address / 4096, count, this.cpu);
    // A device may go on writing until a deferred flush: the memory must not be somebody else's by then.
    space.flushQueue?.drain();
    this.#api.memory.removeBlock(physicalPage);
  }

  /** Why the device's DMA is not the host's at this moment. */
  #refusal(): string | undefined {
    const group = this.#group;
    if (group?.unit === undefined) return undefined;
    if (group.owner === undefined && group.domain === group.defaultDomain) return undefined;
    return `a user holds group ${group.id}: the DMA of ${this.#fn.name} goes to his memory`;
  }

  #mapDirect(page: number, offset: number, length: number): number {
    const address = page * 4096 + offset;
    if (address + length - 1 <= this.#mask) return address;
    const within = offset % 4096;
    const slot = this.#api.bounce?.take(page + (offset - within) / 4096, within, length, Math.floor(this.#mask / 4096));
    if (slot === undefined) return this.#refuse(`0x${address.toString(16)} is beyond the device's mask`);
    const bounced = slot.firstPage * 4096 + within;
    this.#slots.set(bounced, slot);
    return bounced;
  }

  /** Maps runs of physical pages at neighbouring IOVAs. The first one's address. */
  #mapPages(space: DmaSpace, runs: readonly { page: number; count: number }[], direction: DmaDirection): number {
    const count = runs.reduce((sum, run) => sum + run.count, 0);
    const limit = Math.floor(this.#mask / 4096);
    const page = space.allocate(count, limit, this.cpu, this.#prefers32, () => {
      this.#prefers32 = false;
    });
    if (page === 0) return this.#refuse(`no ${count} IOVA pages are free within the mask 0x${this.#mask.toString(16)}`);
    const prot = protOf[direction] | (this.isCoherent ? IOMMU_CACHE : 0);
    let done = 0;
    try {
      for (const run of runs) {
        space.domain.map(page + done, run.page, run.count, prot);
        done += run.count;
      }
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      if (done > 0) space.domain.unmap(page, done);
      space.iova.free(page, count, this.cpu);
      return this.#refuse(error.why);
    }
    return page * 4096;
  }

  #mapEach(buffers: readonly Buffer[], direction: DmaDirection): Segment[] {
    const segments: Segment[] = [];
    for (const { page, offset, length } of buffers) {
      const address = this.mapPage(page, offset, length, direction);
      if (address === DMA_MAPPING_ERROR) {
        for (const done of segments) this.unmapPage(done.address, done.length, direction);
        return [];
      }
      segments.push({ address, length });
    }
    return segments;
  }

  #refuse(why: string): number {
    this.why = why;
    return DMA_MAPPING_ERROR;
  }
}

function pagesOf(within: number, length: number): number {
  return Math.ceil((within + length) / 4096);
}
