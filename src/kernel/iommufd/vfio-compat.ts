/**
 * An iommufd used as a VFIO container: the container's ioctls, answered with one address space of the iommufd, and what a VFIO
 * group needs to use it so.
 *
 * Not everything is as in the native container: maps follow the rules of an address space, capabilities are written as far as
 * they fit, there is no dirty tracking, and type 1 really cuts maps (which is why it gives up large leaves).
 */
import { Errno } from '../../lib/errno.ts';
import { hex, largest, U64_MAX } from '../../lib/pages.ts';
import {
  IOMMU_VFIO_IOAS_CLEAR,
  IOMMU_VFIO_IOAS_GET,
  IOMMU_VFIO_IOAS_SET,
  type iommu_vfio_ioas,
} from '../../uapi/iommufd.ts';
import {
  VFIO_API_VERSION,
  VFIO_CHECK_EXTENSION,
  VFIO_DMA_CC_IOMMU,
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_WRITE,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_GET_API_VERSION,
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_INFO_CAPS,
  VFIO_IOMMU_INFO_PGSIZES,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_NOIOMMU_IOMMU,
  VFIO_SET_IOMMU,
  VFIO_TYPE1_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  VFIO_UNMAP_ALL,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
  vfio_iommu_type1_info,
  vfio_iommu_type1_info_cap_iova_range,
  vfio_iommu_type1_info_dma_avail,
  vfio_iova_range,
} from '../../uapi/vfio.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import { IOMMU_CACHE, IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.ts';
import type { IommufdContext } from './context.ts';
import { getIoas, Ioas, mapUserPages } from './ioas.ts';
import type { Ucmd } from './ucmd.ts';

/** An iommufd, or whatever else has its context. */
export interface HasContext {
  readonly context: IommufdContext;
}

// ---- What a VFIO group needs ----

/** The number of the container's address space. ENODEV: there is none. */
export function compatIoasId(file: HasContext): number {
  return compatIoas(file.context).id;
}

/**
 * Makes sure that the iommufd has an address space for the container's ioctls (GROUP_SET_CONTAINER). EINVAL: it is the container
 * of a group without an IOMMU.
 */
export function createCompatIoas({ context }: HasContext): void {
  if (context.noIommuMode) throw new Errno('EINVAL', 'the iommufd is the container of a group without an IOMMU');
  if (context.vfioIoas !== undefined) return;
  const ioas = new Ioas(context);
  context.publish(ioas);
  context.vfioIoas = ioas;
}

/** The iommufd is the container of a group without an IOMMU. EINVAL: it has an address space for one with an IOMMU. */
export function setNoIommu({ context }: HasContext): void {
  if (context.vfioIoas !== undefined) {
    throw new Errno('EINVAL', 'the iommufd is the container of a group with an IOMMU');
  }
  context.noIommuMode = true;
}

// ---- VFIO_IOAS ----

export function vfioIoas(ucmd: Ucmd<iommu_vfio_ioas>): void {
  const { context, cmd } = ucmd;
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  switch (cmd.op) {
    case IOMMU_VFIO_IOAS_GET:
      cmd.ioas_id = compatIoas(context).id;
      ucmd.respond();
      return;
    case IOMMU_VFIO_IOAS_SET:
      context.vfioIoas = getIoas(context, cmd.ioas_id);
      return;
    case IOMMU_VFIO_IOAS_CLEAR:
      context.vfioIoas = undefined;
      return;
    default:
      throw new Errno('EOPNOTSUPP', `operation ${cmd.op}`);
  }
}

function compatIoas(context: IommufdContext): Ioas {
  if (!(context.vfioIoas instanceof Ioas))
    throw new Errno('ENODEV', 'the iommufd has no address space for the container');
  return context.vfioIoas;
}

// ---- The container's ioctls ----

/** ENOTTY: not one of them. */
export function vfioIoctl(context: IommufdContext, task: Task, request: number, argument: bigint): number {
  switch (request) {
    case VFIO_GET_API_VERSION:
      return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
      return checkExtension(context, argument);
    case VFIO_SET_IOMMU:
      return setIommu(context, task, argument);
    case VFIO_IOMMU_GET_INFO:
      return getInfo(context, task, argument);
    case VFIO_IOMMU_MAP_DMA:
      return mapDma(context, task, argument);
    case VFIO_IOMMU_UNMAP_DMA:
      return unmapDma(context, task, argument);
    default:
      throw new Errno('ENOTTY', `an iommufd has no ioctl ${hex(request)}`);
  }
}

function checkExtension(context: IommufdContext, extension: bigint): number {
  switch (Number(extension)) {
    case VFIO_TYPE1_IOMMU:
    case VFIO_TYPE1v2_IOMMU:
    case VFIO_UNMAP_ALL:
      return context.noIommuMode ? 0 : 1;
    case VFIO_NOIOMMU_IOMMU:
      return context.core.noIommu ? 1 : 0;
    case VFIO_DMA_CC_IOMMU:
      return [...compatIoas(context).hwpts].every((hwpt) => hwpt.enforcesCoherency) ? 1 : 0;
    default:
      return 0;
  }
}

function setIommu(context: IommufdContext, task: Task, type: bigint): number {
  const number = Number(type);
  if (number === VFIO_NOIOMMU_IOMMU && context.noIommuMode && context.core.noIommu) {
    if (!task.capable('CAP_SYS_RAWIO')) throw new Errno('EPERM', 'a container without an IOMMU needs CAP_SYS_RAWIO');
    return 0;
  }
  if ((number !== VFIO_TYPE1_IOMMU && number !== VFIO_TYPE1v2_IOMMU) || context.noIommuMode) {
    throw new Errno('EINVAL', `an iommufd cannot be a container of type ${type}`);
  }
  const { iopt } = compatIoas(context);
  if (number === VFIO_TYPE1_IOMMU) iopt.disableLargePages();
  return 0;
}

function mapDma(context: IommufdContext, task: Task, argument: bigint): number {
  const size = vfio_iommu_type1_dma_map.size;
  const map = vfio_iommu_type1_dma_map.read(copyFromUser(task, argument, size));
  const known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  if (map.argsz < size || (map.flags & ~known) !== 0) {
    throw new Errno('EINVAL', `argsz ${map.argsz}, flags ${hex(map.flags)}`);
  }
  const read = (map.flags & VFIO_DMA_MAP_FLAG_READ) === 0 ? 0 : IOMMU_READ;
  const write = (map.flags & VFIO_DMA_MAP_FLAG_WRITE) === 0 ? 0 : IOMMU_WRITE;
  const { iopt } = compatIoas(context);
  mapUserPages(context, task, iopt, map.iova, map.vaddr, map.size, IOMMU_CACHE | read | write);
  return 0;
}

function unmapDma(context: IommufdContext, task: Task, argument: bigint): number {
  const size = vfio_iommu_type1_dma_unmap.size;
  const unmap = vfio_iommu_type1_dma_unmap.read(copyFromUser(task, argument, size));
  if (unmap.argsz < size || (unmap.flags & ~VFIO_DMA_UNMAP_FLAG_ALL) !== 0) {
    throw new Errno('EINVAL', `argsz ${unmap.argsz}, flags ${hex(unmap.flags)}`);
  }
  const { iopt } = compatIoas(context);
  let result: { bytes: bigint; refusal: Errno | undefined };
  if ((unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL) !== 0) {
    if (unmap.iova !== 0n || unmap.size !== 0n) {
      throw new Errno('EINVAL', `everything is to be unmapped, and ${hex(unmap.size)} bytes at ${hex(unmap.iova)}`);
    }
    result = iopt.unmapRange(0n, U64_MAX);
  } else {
    if (iopt.isSmallPagesOnly) {
      const last = BigInt.asUintN(64, unmap.iova + unmap.size - 1n);
      iopt.cut(unmap.iova === 0n ? [last] : [last, unmap.iova - 1n]);
    }
    result = tryUnmap(() => iopt.unmap(unmap.iova, unmap.size));
  }
  // The size goes back also with a refusal: maps before the one that refused are gone.
  unmap.size = result.bytes;
  copyToUser(task, argument, vfio_iommu_type1_dma_unmap.write(unmap));
  if (result.refusal !== undefined) throw result.refusal;
  return 0;
}

function tryUnmap(unmap: () => { bytes: bigint; refusal: Errno | undefined }): {
  bytes: bigint;
  refusal: Errno | undefined;
} {
  try {
    return unmap();
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    return { bytes: 0n, refusal: error };
  }
}

function getInfo(context: IommufdContext, task: Task, argument: bigint): number {
  const info = vfio_iommu_type1_info.read(copyFromUser(task, argument, vfio_iommu_type1_info.endOf('iova_pgsizes')));
  if (info.argsz < vfio_iommu_type1_info.endOf('iova_pgsizes')) {
    throw new Errno('EINVAL', `argsz ${info.argsz} ends before the page sizes`);
  }
  const length = Math.min(info.argsz, vfio_iommu_type1_info.size);
  const ioas = compatIoas(context);
  let at = vfio_iommu_type1_info.size;
  let previous: number | undefined;
  for (const write of [dmaAvailCapability, iovaRangeCapability]) {
    const room = Math.max(0, info.argsz - at);
    const { size, parts } = write(ioas, room);
    for (const { offset, bytes } of parts) copyToUser(task, argument + BigInt(at + offset), bytes);
    if (previous !== undefined && info.argsz >= at) {
      // `next` of the capability before.
      copyToUser(task, argument + BigInt(previous + 4), new Uint8Array(Uint32Array.of(at).buffer));
    }
    previous = at;
    at += Math.ceil(size / 8) * 8;
  }
  const answer = vfio_iommu_type1_info.write(
    {
      argsz: at,
      flags: VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS,
      iova_pgsizes: pageSizes(ioas),
      cap_offset: info.argsz >= at ? vfio_iommu_type1_info.size : 0,
      pad: 0,
    },
    length,
  );
  copyToUser(task, argument, answer);
  return 0;
}

/** A capability's size, and what of it is written into `room` bytes. */
type WriteCapability = (ioas: Ioas, room: number) => { size: number; parts: { offset: number; bytes: Uint8Array }[] };

const dmaAvailCapability: WriteCapability = (_ioas, room) => {
  const { size } = vfio_iommu_type1_info_dma_avail;
  const header = { id: VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, version: 1, next: 0 };
  // The number of maps is bounded by memory alone.
  const bytes = vfio_iommu_type1_info_dma_avail.write({ header, avail: 0xffff_ffff });
  return { size, parts: room >= size ? [{ offset: 0, bytes }] : [] };
};

const iovaRangeCapability: WriteCapability = (ioas, room) => {
  const headerSize = vfio_iommu_type1_info_cap_iova_range.size;
  const ranges = ioas.iopt.reserved.usable;
  const parts: { offset: number; bytes: Uint8Array }[] = [];
  let size = headerSize;
  for (const { first, last } of ranges) {
    if (room >= size + vfio_iova_range.size) {
      parts.push({ offset: size, bytes: vfio_iova_range.write({ start: first, end: last }) });
    }
    size += vfio_iova_range.size;
  }
  if (room >= size) {
    const header = { id: VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, version: 1, next: 0 };
    const bytes = vfio_iommu_type1_info_cap_iova_range.write({ header, nr_iovas: ranges.length, reserved: 0 });
    parts.push({ offset: 0, bytes });
  }
  return { size, parts };
};

/** Page sizes of all tables together; sizes below 4096 bytes show as 4096. */
function pageSizes({ iopt }: Ioas): bigint {
  let sizes = U64_MAX;
  for (const { pgsizeBitmap } of iopt.domains) sizes &= pgsizeBitmap;
  if ((sizes & 0xfffn) !== 0n) sizes = (sizes & ~0xfffn) | 0x1000n;
  return largest(sizes, iopt.alignment);
}
