/**
 * UNMAP_DMA: removes mappings, or takes their addresses away for an update.
 *
 * Version 2 removes whole mappings and refuses a range that would cut one. Version 1 once merged mappings and could cut anything;
 * what is left of that is its answer: a mapping whose start lies in the range goes whole, a range that starts inside a mapping
 * removes nothing and succeeds.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, LAST_PAGE, pageOf, U64_MAX } from '../../lib/pages.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import {
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_DMA_UNMAP_FLAG_VADDR,
  vfio_bitmap,
  vfio_iommu_type1_dma_unmap,
} from '../../uapi/vfio.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { Type1 } from './type1.ts';
import { checkBitmap, copyDirty, freeBitmap } from './type1-dirty.ts';
import { type Dma, refuseCut } from './type1-dma.ts';
import { unmapAndUnpin } from './type1-pin.ts';

const KNOWN_FLAGS = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR;
/** How often a driver is asked again to let go of its pages before they are taken from it. */
const RETRIES = 10;

/** A mediated driver did not release its pages when it was told that they vanish; a kernel stops there. */
export const misbehavedDriver = new Tracepoint<{ iova: bigint; length: bigint; pages: number }>(
  'vfio:misbehaved_driver',
);

/** Takes one mapping out of the container with all that it holds. */
export function removeDma(type1: Type1, dma: Dma): void {
  dropPins(dma);
  unmapAndUnpin(type1.hardwareDomains, dma);
  freeBitmap(type1, dma);
  if (dma.isVaddrInvalid) type1.vaddrInvalidCount--;
  type1.dmas.remove(dma.first);
  type1.dmaAvail++;
}

/** Takes the pages away that mediated drivers still hold. */
function dropPins(dma: Dma): void {
  const pinned = dma.pinned;
  if (pinned === undefined || pinned.size === 0) return;
  misbehavedDriver.fire(() => ({
    iova: BigInt(dma.first) << 12n,
    length: BigInt(dma.count) << 12n,
    pages: pinned.size,
  }));
  for (const page of pinned.keys()) {
    dma.mm.unpin(dma.page + (page - dma.first), 1);
    if (!dma.isMapped) dma.account(-1);
  }
  pinned.clear();
}

/** Tells every mediated driver that a mapping is about to vanish. They let go of its pages before they return. */
function notifyUnmap(type1: Type1, dma: Dma): void {
  for (const device of [...type1.devices]) device.dmaUnmap?.(BigInt(dma.first) << 12n, BigInt(dma.count) << 12n);
}

export function unmapDma(type1: Type1, task: Task, argument: bigint): number {
  const size = vfio_iommu_type1_dma_unmap.size;
  const { offsets } = vfio_iommu_type1_dma_unmap;
  const bytes = copyFromUser(task, argument, size);
  const view = new DataView(bytes.buffer);
  // Field by field, as MAP: called as often.
  const unmap = {
    argsz: view.getUint32(offsets.argsz, true),
    flags: view.getUint32(offsets.flags, true),
    iova: view.getBigUint64(offsets.iova, true),
    size: view.getBigUint64(offsets.size, true),
  };
  if (unmap.argsz < size)
    throw new Errno('EINVAL', `argsz ${unmap.argsz} is less than the ${size} bytes of the structure`);
  if ((unmap.flags & ~KNOWN_FLAGS) !== 0) {
    throw new Errno('EINVAL', `flags ${hex(unmap.flags)} has bits that are not known (known: ${hex(KNOWN_FLAGS)})`);
  }
  const isAll = (unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL) !== 0;
  const isVaddr = (unmap.flags & VFIO_DMA_UNMAP_FLAG_VADDR) !== 0;
  let bitmap: vfio_bitmap | undefined;
  if ((unmap.flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) !== 0) {
    if (isAll || isVaddr) throw new Errno('EINVAL', 'GET_DIRTY_BITMAP goes neither with ALL nor with VADDR');
    if (unmap.argsz < size + vfio_bitmap.size) {
      throw new Errno(
        'EINVAL',
        `argsz ${unmap.argsz} leaves no room for vfio_bitmap (${size} and ${vfio_bitmap.size} bytes)`,
      );
    }
    bitmap = vfio_bitmap.read(copyFromUser(task, argument + BigInt(size), vfio_bitmap.size));
    checkBitmap(bitmap, unmap.size);
  }
  const pages = unmapRange(type1, task, unmap, { isAll, isVaddr, bitmap });
  view.setBigUint64(offsets.size, BigInt(pages) << 12n, true);
  copyToUser(task, argument, bytes);
  return 0;
}

interface UnmapOrder {
  readonly isAll: boolean;
  readonly isVaddr: boolean;
  readonly bitmap: vfio_bitmap | undefined;
}

/** Returns the pages that were removed (or whose addresses were taken away). */
function unmapRange(type1: Type1, task: Task, unmap: { iova: bigint; size: bigint }, order: UnmapOrder): number {
  if (order.isVaddr && type1.emulatedGroups.length > 0) {
    throw new Errno('EBUSY', 'a mediated device is in the container; its driver needs the addresses all the time');
  }
  const unaligned = type1.pageSize - 1n;
  if ((unmap.iova & unaligned) !== 0n) {
    throw new Errno('EINVAL', `IOVA ${hex(unmap.iova)} is not a multiple of the smallest page, ${hex(type1.pageSize)}`);
  }
  let last = LAST_PAGE;
  const first = pageOf(unmap.iova);
  if (order.isAll) {
    if (unmap.iova !== 0n || unmap.size !== 0n) {
      throw new Errno('EINVAL', `ALL goes with IOVA 0 and size 0, not ${hex(unmap.iova)} and ${hex(unmap.size)}`);
    }
  } else {
    if (unmap.size === 0n || (unmap.size & unaligned) !== 0n) {
      throw new Errno(
        'EINVAL',
        `size ${hex(unmap.size)} is 0 or not a multiple of the smallest page, ${hex(type1.pageSize)}`,
      );
    }
    if (unmap.iova + unmap.size - 1n > U64_MAX) {
      throw new Errno('EOVERFLOW', `IOVA ${hex(unmap.iova)} and size ${hex(unmap.size)} go beyond 2^64`);
    }
    last = first + pageOf(unmap.size) - 1;
  }
  if (order.bitmap !== undefined) {
    if (!type1.isTrackingDirty)
      throw new Errno('EINVAL', 'dirty pages are not tracked (DIRTY_PAGES with START comes first)');
    if (order.bitmap.pgsize !== type1.pageSize) {
      throw new Errno(
        'EINVAL',
        `bitmap.pgsize ${hex(order.bitmap.pgsize)} is not the smallest page, ${hex(type1.pageSize)}`,
      );
    }
  }
  if (order.isVaddr) return invalidate(type1, first, last, order.isAll);

  let removed = 0;
  let asked: Dma | undefined;
  let retries = 0;
  for (let again = true; again; ) {
    again = false;
    if (type1.version === 2 && !order.isAll) refuseCut(type1.dmas, first, last);
    for (
      let area = type1.dmas.firstIn(first, last);
      area !== undefined;
      area = type1.dmas.firstIn(area.last + 1, last)
    ) {
      const dma = area.value;
      if (type1.version === 1 && first > dma.first) break;
      if (dma.pinned !== undefined && dma.pinned.size > 0) {
        retries = asked === dma ? retries + 1 : 0;
        asked = dma;
        if (retries <= RETRIES) {
          notifyUnmap(type1, dma);
          // The drivers ran meanwhile and may have changed anything: look again from the start.
          again = true;
          break;
        }
      }
      if (order.bitmap !== undefined) copyDirty(type1, task, dma, first, order.bitmap.data);
      removeDma(type1, dma);
      removed += dma.count;
    }
  }
  return removed;
}

/** Takes the addresses of all mappings in the range away, or of none. */
function invalidate(type1: Type1, first: number, last: number, isAll: boolean): number {
  if (type1.version === 2 && !isAll) refuseCut(type1.dmas, first, last);
  const marked: Dma[] = [];
  let pages = 0;
  for (const { value: dma } of type1.dmas.areas(first, last)) {
    if (type1.version === 1 && first > dma.first) break;
    if (dma.isVaddrInvalid) {
      for (const other of marked) other.isVaddrInvalid = false;
      throw new Errno('EINVAL', `the address of ${dma.text} was taken away before`);
    }
    marked.push(dma);
    dma.isVaddrInvalid = true;
    pages += dma.count;
  }
  type1.vaddrInvalidCount += marked.length;
  return pages;
}
