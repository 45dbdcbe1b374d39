/**
 * MAP_DMA: puts a program's memory behind a range of IOVAs, or gives a mapping whose address was taken away a new one.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, pageOf, U64_MAX } from '../../lib/pages.ts';
import {
  VFIO_DMA_MAP_FLAG_READ,
  VFIO_DMA_MAP_FLAG_VADDR,
  VFIO_DMA_MAP_FLAG_WRITE,
  vfio_iommu_type1_dma_map,
} from '../../uapi/vfio.ts';
import { copyFromUser, type Task } from '../core/task.ts';
import { IOMMU_READ, IOMMU_WRITE } from '../iommu/domain.ts';
import { contains, rangesText, span } from './iova-list.ts';
import type { Type1 } from './type1.ts';
import { allocateBitmap } from './type1-dirty.ts';
import { Dma } from './type1-dma.ts';
import { checkLimit, mapIntoAll, movePins, pin, unmapAndUnpin, unpin } from './type1-pin.ts';

const KNOWN_FLAGS = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE | VFIO_DMA_MAP_FLAG_VADDR;

/** Programs make this call a hundred thousand times: its fields are read one by one, a fourth of what the table's loop takes. */
function readMap(bytes: Uint8Array): vfio_iommu_type1_dma_map {
  const { offsets } = vfio_iommu_type1_dma_map;
  const view = new DataView(bytes.buffer);
  return {
    argsz: view.getUint32(offsets.argsz, true),
    flags: view.getUint32(offsets.flags, true),
    vaddr: view.getBigUint64(offsets.vaddr, true),
    iova: view.getBigUint64(offsets.iova, true),
    size: view.getBigUint64(offsets.size, true),
  };
}

export function mapDma(type1: Type1, task: Task, argument: bigint): number {
  const size = vfio_iommu_type1_dma_map.size;
  const map = readMap(copyFromUser(task, argument, size));
  if (map.argsz < size) throw new Errno('EINVAL', `argsz ${map.argsz} is less than the ${size} bytes of the structure`);
  if ((map.flags & ~KNOWN_FLAGS) !== 0) {
    throw new Errno('EINVAL', `flags ${hex(map.flags)} has bits that are not known (known: ${hex(KNOWN_FLAGS)})`);
  }
  if (map.size === 0n) throw new Errno('EINVAL', `the size of a mapping at IOVA ${hex(map.iova)} cannot be 0`);
  if (map.iova + map.size - 1n > U64_MAX) {
    throw new Errno('EOVERFLOW', `IOVA ${hex(map.iova)} and size ${hex(map.size)} go beyond 2^64`);
  }
  if (map.vaddr + map.size - 1n > U64_MAX) {
    throw new Errno('EOVERFLOW', `address ${hex(map.vaddr)} and size ${hex(map.size)} go beyond 2^64`);
  }
  let prot = 0;
  if ((map.flags & VFIO_DMA_MAP_FLAG_READ) !== 0) prot |= IOMMU_READ;
  if ((map.flags & VFIO_DMA_MAP_FLAG_WRITE) !== 0) prot |= IOMMU_WRITE;
  const isVaddr = (map.flags & VFIO_DMA_MAP_FLAG_VADDR) !== 0;
  if (isVaddr && prot !== 0) throw new Errno('EINVAL', 'VADDR updates a mapping and goes without READ and WRITE');
  if (!isVaddr && prot === 0)
    throw new Errno('EINVAL', 'neither READ nor WRITE is set, so no device could use the mapping');
  const unaligned = type1.pageSize - 1n;
  if (((map.size | map.iova | map.vaddr) & unaligned) !== 0n) {
    throw new Errno(
      'EINVAL',
      `IOVA ${hex(map.iova)}, address ${hex(map.vaddr)} and size ${hex(map.size)} have to be multiples of the smallest page, ${hex(type1.pageSize)}`,
    );
  }
  const first = pageOf(map.iova);
  const count = pageOf(map.size);
  const page = pageOf(map.vaddr);
  const last = first + count - 1;
  if (isVaddr) return updateVaddr(type1, task, first, count, page);

  const overlapped = type1.dmas.firstIn(first, last);
  if (overlapped !== undefined) {
    throw new Errno('EEXIST', `${span(first, count)} overlaps the mapping ${overlapped.value.text}`);
  }
  if (type1.dmaAvail === 0) {
    throw new Errno('ENOSPC', `the container has all the ${type1.dmas.size} mappings that dma_entry_limit allows`);
  }
  if (type1.ranges.length > 0 && !contains(type1.ranges, first, last)) {
    throw new Errno(
      'EINVAL',
      `${span(first, count)} is not within one of the usable ranges ${rangesText(type1.ranges)}`,
    );
  }

  const dma = new Dma(first, count, page, prot, task, task.capable('CAP_IPC_LOCK'));
  if (type1.domains.length > 0) {
    pin(dma, type1.options);
    try {
      mapIntoAll(type1.hardwareDomains, dma, type1.options);
    } catch (error) {
      unpin(dma);
      throw error;
    }
    dma.isMapped = true;
  }
  if (type1.isTrackingDirty) {
    try {
      allocateBitmap(type1, dma);
    } catch (error) {
      unmapAndUnpin(type1.hardwareDomains, dma);
      throw error;
    }
  }
  type1.dmas.insert(first, last, dma);
  type1.dmaAvail--;
  return 0;
}

/** The owner's memory has moved, or the mapping has a new owner. */
function updateVaddr(type1: Type1, task: Task, first: number, count: number, page: number): number {
  const dma = type1.dmas.firstIn(first, first + count - 1)?.value;
  if (dma === undefined)
    throw new Errno('ENOENT', `nothing is mapped in ${span(first, count)} whose address could be set`);
  if (!dma.isVaddrInvalid) {
    throw new Errno('EINVAL', `the address of ${dma.text} is valid: UNMAP with VADDR has to take it away first`);
  }
  if (dma.first !== first || dma.count !== count) {
    throw new Errno('EINVAL', `${span(first, count)} is not exactly the mapping ${dma.text}`);
  }
  if (task.mm !== dma.mm) {
    const moved = new Dma(first, count, page, dma.prot, task, task.capable('CAP_IPC_LOCK'));
    checkLimit(moved, dma.lockedPages);
    dma.mm.lockedPages -= dma.lockedPages;
    task.mm.lockedPages += dma.lockedPages;
    movePins(type1.hardwareDomains, dma, type1.options, task, page);
    dma.setOwner(task, moved.hasLockCap);
  } else movePins(type1.hardwareDomains, dma, type1.options, dma.task, page);
  dma.isVaddrInvalid = false;
  type1.vaddrInvalidCount--;
  return 0;
}
