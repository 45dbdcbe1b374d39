/**
 * Type1: the IOMMU driver of a container. It stores which of a program's memory is behind which IOVA, keeps that memory pinned,
 * and has it in the page tables of every domain of the container.
 *
 * Here is the state and what programs ask of it; the calls that change it are in the files type1-*.ts, each taking this object.
 * Words: a *mapping* (Dma) is what one MAP call made; a *domain* is one set of page tables, shared by the groups that can share it;
 * an *emulated* group has no hardware translation, its driver pins pages and copies through `type1-mediated.ts`.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { IntervalMap } from '../../lib/interval-map.ts';
import { addressOf, hex } from '../../lib/pages.ts';
import {
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_IOMMU_DIRTY_PAGES,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_TYPE1_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  VFIO_UNMAP_ALL,
  VFIO_UPDATE_VADDR,
  vfio_iommu_type1_info,
  vfio_iommu_type1_info_cap_iova_range,
  vfio_iommu_type1_info_cap_migration,
  vfio_iommu_type1_info_dma_avail,
  vfio_iova_range,
} from '../../uapi/vfio.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { Domain } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
import type { ContainerDriver, GroupKind } from './container.ts';
import type { IovaRange } from './iova-list.ts';
import { ANY_PAGE_SIZE, attachEmulated, attachGroup, detachGroup } from './type1-attach.ts';
import { BITMAP_BYTES_MAX, dirtyPages } from './type1-dirty.ts';
import type { Dma } from './type1-dma.ts';
import { mapDma } from './type1-map.ts';
import type { PinOptions } from './type1-pin.ts';
import { removeDma, unmapDma } from './type1-unmap.ts';
import type { VfioDevice } from './vfio-device.ts';

export interface Type1Options extends PinOptions {
  /** Mappings a container may have; read when the driver is chosen. */
  readonly dmaEntryLimit: number;
  /** Take groups whose interrupts are not isolated. */
  readonly allowUnsafeInterrupts: boolean;
  /** Bytes that the dirty bitmaps of one container may take. */
  readonly dirtyBitmapLimit: number;
  allocateDomain(unit: IommuUnit): Domain;
}

/** A group in the container. */
export interface Type1Group {
  readonly iommuGroup: IommuGroup;
  /** Its DMA is known page by page: it pins what it writes. */
  isPinnedScope: boolean;
}

export interface Type1Domain {
  readonly domain: Domain;
  readonly enforcesCoherency: boolean;
  readonly groups: Type1Group[];
}

export class Type1 implements ContainerDriver {
  readonly name = 'vfio-iommu-type1';
  readonly version: 1 | 2;
  readonly options: Type1Options;
  readonly dmas = new IntervalMap<Dma>();
  readonly domains: Type1Domain[] = [];
  readonly emulatedGroups: Type1Group[] = [];
  /** Devices whose driver wants to hear of unmaps. */
  readonly devices = new Set<VfioDevice>();
  /** Where mappings may lie; empty: anywhere. */
  ranges: readonly IovaRange[] = [];
  pgsizeBitmap = ANY_PAGE_SIZE;
  dmaAvail: number;
  vaddrInvalidCount = 0;
  isTrackingDirty = false;
  /** Bytes that dirty bitmaps take now. */
  dirtyBytes = 0;
  /** Groups that may write anywhere in what is mapped. */
  unscopedGroups = 0;

  constructor(version: 1 | 2, options: Type1Options) {
    this.version = version;
    this.options = options;
    this.dmaAvail = options.dmaEntryLimit;
  }

  /** Bytes of the smallest page. */
  get pageSize(): bigint {
    return this.pgsizeBitmap & -this.pgsizeBitmap;
  }

  /** Pages of 4 KiB in the smallest page. */
  get pageCount(): number {
    return Number(this.pageSize >> 12n);
  }

  get hardwareDomains(): Domain[] {
    return this.domains.map((entry) => entry.domain);
  }

  findGroup(iommuGroup: IommuGroup): Type1Group | undefined {
    const isIt = (group: Type1Group): boolean => group.iommuGroup === iommuGroup;
    for (const entry of this.domains) {
      const group = entry.groups.find(isIt);
      if (group !== undefined) return group;
    }
    return this.emulatedGroups.find(isIt);
  }

  ioctl(task: Task, request: number, argument: bigint): number {
    switch (request) {
      case VFIO_CHECK_EXTENSION:
        return checkType1Extension(argument, this);
      case VFIO_IOMMU_MAP_DMA:
        return mapDma(this, task, argument);
      case VFIO_IOMMU_UNMAP_DMA:
        return unmapDma(this, task, argument);
      case VFIO_IOMMU_GET_INFO:
        return this.#getInfo(task, argument);
      case VFIO_IOMMU_DIRTY_PAGES:
        return dirtyPages(this, task, argument);
      default:
        throw new Errno('ENOTTY', `request ${hex(request)} is not one of the type1 IOMMU driver's`);
    }
  }

  attachGroup(iommuGroup: IommuGroup, kind: GroupKind): void {
    if (kind === 'emulated') attachEmulated(this, iommuGroup);
    else attachGroup(this, iommuGroup);
  }

  detachGroup(iommuGroup: IommuGroup): void {
    detachGroup(this, iommuGroup);
  }

  registerDevice(device: VfioDevice): void {
    if (device.dmaUnmap !== undefined) this.devices.add(device);
  }

  unregisterDevice(device: VfioDevice): void {
    this.devices.delete(device);
  }

  /** Everything goes: the last group has left. */
  release(): void {
    for (const area of this.dmas.areas()) removeDma(this, area.value);
    for (const { domain, groups } of this.domains.splice(0)) {
      for (const group of groups) group.iommuGroup.detach();
      domain.free();
    }
    this.emulatedGroups.length = 0;
    this.ranges = [];
  }

  #getInfo(task: Task, argument: bigint): number {
    const minsz = vfio_iommu_type1_info.endOf('iova_pgsizes');
    const info = vfio_iommu_type1_info.read(copyFromUser(task, argument, minsz));
    if (info.argsz < minsz) {
      throw new Errno('EINVAL', `argsz ${info.argsz} is less than the ${minsz} bytes of vfio_iommu_type1_info`);
    }
    const size = Math.min(info.argsz, vfio_iommu_type1_info.size);
    const chain = this.#capabilities(vfio_iommu_type1_info.size);
    const needed = vfio_iommu_type1_info.size + chain.length;
    info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
    info.iova_pgsizes = this.pgsizeBitmap;
    info.cap_offset = 0;
    info.pad = 0;
    if (info.argsz < needed) info.argsz = needed;
    else {
      copyToUser(task, argument + BigInt(vfio_iommu_type1_info.size), chain);
      info.cap_offset = vfio_iommu_type1_info.size;
    }
    copyToUser(task, argument, vfio_iommu_type1_info.write(info, size));
    return 0;
  }

  /** The chain as it lies at byte `start` of the answer: migration, mappings left, IOVA ranges. */
  #capabilities(start: number): Uint8Array {
    const header = (id: number) => ({ id, version: 1, next: 0 });
    const parts = [
      vfio_iommu_type1_info_cap_migration.write({
        header: header(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION),
        flags: 0,
        pgsize_bitmap: this.pageSize,
        max_dirty_bitmap_size: BigInt(BITMAP_BYTES_MAX),
      }),
      vfio_iommu_type1_info_dma_avail.write({
        header: header(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL),
        avail: this.dmaAvail,
      }),
    ];
    if (this.ranges.length > 0) {
      const base = vfio_iommu_type1_info_cap_iova_range.size;
      const part = new Uint8Array(base + vfio_iova_range.size * this.ranges.length);
      part.set(
        vfio_iommu_type1_info_cap_iova_range.write({
          header: header(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
          nr_iovas: this.ranges.length,
          reserved: 0,
        }),
      );
      this.ranges.forEach(({ first, last }, i) => {
        const range = vfio_iova_range.write({ start: addressOf(first), end: addressOf(last) + 0xfffn });
        part.set(range, base + i * vfio_iova_range.size);
      });
      parts.push(part);
    }
    const sizes = parts.map((part) => Math.ceil(part.length / 8) * 8);
    const chain = new Uint8Array(sizes.reduce((sum, size) => sum + size, 0));
    const view = new DataView(chain.buffer);
    let at = 0;
    parts.forEach((part, i) => {
      chain.set(part, at);
      const next = at + sizes[i]!;
      if (i < parts.length - 1) view.setUint32(at + 4, start + next, true);
      at = next;
    });
    return chain;
  }
}

/** CHECK_EXTENSION of this driver; `type1` undefined: it is not chosen yet. */
export function checkType1Extension(extension: bigint, type1: Type1 | undefined): number {
  switch (Number(extension)) {
    case VFIO_TYPE1_IOMMU:
    case VFIO_TYPE1v2_IOMMU:
    case VFIO_UNMAP_ALL:
      return 1;
    case VFIO_UPDATE_VADDR:
      return type1 !== undefined && type1.emulatedGroups.length === 0 ? 1 : 0;
    case VFIO_DMA_CC_IOMMU:
      return type1?.domains.every((entry) => entry.enforcesCoherency) === true ? 1 : 0;
    default:
      return 0;
  }
}
