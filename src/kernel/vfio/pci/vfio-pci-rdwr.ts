/**
 * The BARs and the ROM of an open device: read and write as a file, mapped into programs.
 *
 * A transfer is cut into naturally aligned accesses of 8, 4, 2 and 1 bytes, clipped at the end of the BAR. The MSI-X table reads as
 * ones and takes no writes, because the kernel programs it. A mapping of memory bypasses all that; accesses to a trapped mapping
 * come here one by one, exactly as the instruction made them.
 */
import type { AllocateShared, SharedMemory } from '../../../hw/memory/backing.ts';
import type { FunctionBar } from '../../../hw/pci/bar.ts';
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import { VFIO_PCI_NUM_REGIONS, VFIO_PCI_ROM_REGION_INDEX } from '../../../uapi/vfio.ts';
import type { FileMapping } from '../../core/file.ts';
import { msixTable } from './msi-hardware.ts';

const MAP_TYPE = 0xf;
const MAP_SHARED = 1;
const MAP_SHARED_VALIDATE = 3;
const WIDEST = 8;
/** Some ROMs do not answer accesses of 8 bytes. */
const WIDEST_OF_ROM = 4;

/** What the regions need of their device. */
export interface RegionHost {
  readonly fn: PciFunction;
  /** Whether the user may reach memory now. */
  readonly memoryEnabled: boolean;
  readonly environment: { readonly allocateShared: AllocateShared };
}

/** The BAR bytes that read as ones and take no writes: the MSI-X table. */
interface Excluded {
  readonly bar: number;
  readonly first: number;
  readonly end: number;
}

export class VfioPciRegions {
  readonly #host: RegionHost;
  readonly #fn: PciFunction;
  /** Those that have an address; none while the device is closed. */
  #bars: readonly (FunctionBar | undefined)[] = [];
  #excluded: Excluded | undefined;
  /** Memory that stands for a trapped BAR in mappings. */
  readonly #mappable = new Map<number, SharedMemory>();

  constructor(host: RegionHost) {
    this.#host = host;
    this.#fn = host.fn;
  }

  open(): void {
    const table = msixTable(this.#fn);
    this.#excluded =
      table === undefined ? undefined : { bar: table.bar, first: table.offset, end: table.offset + table.length };
    this.#bars = this.#fn.bars.map((bar) => (bar === undefined || bar.address === 0 ? undefined : bar));
  }

  close(): void {
    this.#bars = [];
  }

  /** The device is no more. */
  destroy(): void {
    for (const memory of this.#mappable.values()) memory.close();
    this.#mappable.clear();
  }

  /** Returns the bytes moved. EINVAL: no such BAR, or the offset is beyond it. EIO: memory is disabled. */
  bar(index: number, buffer: Uint8Array, offset: number, isWrite: boolean): number {
    const bar = this.#bars[index];
    if (bar === undefined) throw new Errno('EINVAL', `${this.#fn.name} has no BAR ${index}`);
    const count = clip(bar.size, buffer.length, offset, index);
    const isMemory = bar.kind === 'memory';
    if (isMemory && !this.#host.memoryEnabled) throw this.#disabled();
    // The bit of the hardware can be off although the user's is on: the device was reset behind our back.
    const decode = isMemory ? reg.PCI_COMMAND_MEMORY : reg.PCI_COMMAND_IO;
    const { config } = this.#fn;
    if (config.gone || (!this.#fn.isVirtfn && (config.bytes[reg.PCI_COMMAND]! & decode) === 0)) {
      if (!isWrite) buffer.fill(0xff, 0, count);
      return count;
    }
    const excluded = this.#excluded;
    const hits =
      excluded !== undefined && excluded.bar === index && offset < excluded.end && excluded.first < offset + count;
    if (!hits) {
      if (count === buffer.length && count <= WIDEST && isNatural(count, offset)) {
        if (isWrite) bar.write(offset, buffer);
        else bar.read(offset, buffer);
      } else moveAll(bar, buffer, offset, count, isWrite, WIDEST);
      return count;
    }
    const before = Math.max(0, excluded.first - offset);
    const after = Math.min(count, excluded.end - offset);
    moveAll(bar, buffer, offset, before, isWrite, WIDEST);
    if (!isWrite) buffer.fill(0xff, before, after);
    moveAll(bar, buffer.subarray(after), offset + after, count - after, isWrite, WIDEST);
    return count;
  }

  /** EINVAL: a write, or there is no ROM. EIO: memory is disabled. */
  rom(buffer: Uint8Array, offset: number, isWrite: boolean): number {
    if (isWrite) throw new Errno('EINVAL', 'the ROM cannot be written');
    const { rom } = this.#fn;
    if (rom === undefined || rom.address === 0) throw new Errno('EINVAL', `${this.#fn.name} has no ROM`);
    const count = clip(rom.size, buffer.length, offset, VFIO_PCI_ROM_REGION_INDEX);
    if (!this.#host.memoryEnabled) throw this.#disabled();
    moveAll(rom, buffer, offset, count, false, WIDEST_OF_ROM);
    return count;
  }

  /** One access of the processor to a trapped mapping. EIO: nobody answers. */
  trapped(index: number, buffer: Uint8Array, offset: number, isWrite: boolean): number {
    const bar = this.#bars[index];
    if (bar === undefined || bar.kind !== 'memory') throw new Errno('EIO', `nothing answers in region ${index}`);
    if (!this.#host.memoryEnabled) throw this.#disabled();
    if (isWrite) bar.write(offset, buffer);
    else bar.read(offset, buffer);
    return buffer.length;
  }

  /** Whether programs may map BAR `index`: memory of a page or more, or alone in its page. */
  canMap(index: number): boolean {
    const bar = this.#bars[index];
    if (bar === undefined || bar.kind !== 'memory' || (bar.shared === undefined && !bar.trapped)) return false;
    return bar.size >= 4096 || bar.address % 4096 === 0;
  }

  /** `offset` in the region. EINVAL: not a BAR that can be mapped, not shared, or beyond its end. */
  mmap(index: number, length: number, flags: number, offset: number): FileMapping {
    const type = flags & MAP_TYPE;
    if (index >= VFIO_PCI_NUM_REGIONS) throw new Errno('EINVAL', `there is no region ${index}`);
    if (type !== MAP_SHARED && type !== MAP_SHARED_VALIDATE) throw new Errno('EINVAL', 'regions are mapped MAP_SHARED');
    const bar = this.#bars[index];
    if (bar === undefined || !this.canMap(index)) {
      throw new Errno('EINVAL', `region ${index} of ${this.#fn.name} cannot be mapped`);
    }
    if (offset + pageAlign(length) > pageAlign(bar.size)) {
      throw new Errno('EINVAL', `${length} bytes from ${offset} are beyond the ${bar.size} bytes of BAR ${index}`);
    }
    return { memory: this.#memoryOf(bar), offset, trapped: bar.trapped };
  }

  /** The physical page of byte `offset` of a memory that `mmap` gave, -1 when it is not one of this device's BARs. */
  physicalPage(memory: SharedMemory, offset: number): number {
    for (const bar of this.#bars) {
      if (bar === undefined || (bar.shared ?? this.#mappable.get(bar.index)) !== memory) continue;
      return offset < pageAlign(bar.size) ? Math.floor((bar.address + offset) / 4096) : -1;
    }
    return -1;
  }

  #memoryOf(bar: FunctionBar): SharedMemory {
    if (bar.shared !== undefined) return bar.shared;
    let memory = this.#mappable.get(bar.index);
    if (memory === undefined) {
      memory = this.#host.environment.allocateShared(`${this.#fn.name} BAR${bar.index}`, pageAlign(bar.size));
      this.#mappable.set(bar.index, memory);
    }
    return memory;
  }

  #disabled(): Errno {
    return new Errno('EIO', `memory of ${this.#fn.name} is disabled (COMMAND.MEM is 0, or it is in D3)`);
  }
}

function clip(size: number, length: number, offset: number, index: number): number {
  if (offset >= size) throw new Errno('EINVAL', `offset ${offset} is beyond the ${size} bytes of region ${index}`);
  return Math.min(length, size - offset);
}

function pageAlign(length: number): number {
  return Math.ceil(length / 4096) * 4096;
}

function isNatural(count: number, offset: number): boolean {
  return (count & (count - 1)) === 0 && offset % count === 0;
}

/** Cuts a transfer into naturally aligned accesses of at most `widest` bytes. */
function moveAll(
  bar: FunctionBar,
  buffer: Uint8Array,
  offset: number,
  count: number,
  isWrite: boolean,
  widest: number,
): void {
  for (let done = 0; done < count; ) {
    let size = widest;
    while (size > count - done || (offset + done) % size !== 0) size /= 2;
    const part = buffer.subarray(done, done + size);
    if (isWrite) bar.write(offset + done, part);
    else bar.read(offset + done, part);
    done += size;
  }
}
