/**
 * Which pages devices have written to: HWPT_SET_DIRTY_TRACKING and HWPT_GET_DIRTY_BITMAP, for page tables with dirty bits.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, smallest, U64_MAX } from '../../lib/pages.ts';
import {
  IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
  IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
  type iommu_hwpt_get_dirty_bitmap,
  type iommu_hwpt_set_dirty_tracking,
} from '../../uapi/iommufd.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import { getHwptPaging, type HwptPaging } from './hw-pagetable.ts';
import type { DirtyTracking } from './paging-domain.ts';
import type { Ucmd } from './ucmd.ts';

export function hwptSetDirtyTracking({ context, cmd }: Ucmd<iommu_hwpt_set_dirty_tracking>): void {
  if ((cmd.flags & ~IOMMU_HWPT_DIRTY_TRACKING_ENABLE) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}`);
  const hwpt = getHwptPaging(context, cmd.hwpt_id);
  const dirty = trackingOf(hwpt);
  const isOn = cmd.flags !== 0;
  if (isOn) for (const area of hwpt.ioas.iopt.areas) dirty.readAndClear(area.first, area.last, true);
  dirty.setTracking(isOn);
}

export function hwptGetDirtyBitmap({ context, cmd, task }: Ucmd<iommu_hwpt_get_dirty_bitmap>): void {
  if ((cmd.flags & ~IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) !== 0 || cmd.__reserved !== 0) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, reserved member ${hex(cmd.__reserved)}`);
  }
  const hwpt = getHwptPaging(context, cmd.hwpt_id);
  const { iopt } = hwpt.ioas;
  const last = checkRange(cmd, iopt.alignment);
  const dirty = trackingOf(hwpt);
  const isCleared = (cmd.flags & IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR) === 0;
  // The range is walked up to the first hole, which is no error.
  for (let at = cmd.iova; at <= last; ) {
    const area = iopt.areas.firstIn(at, at);
    if (area === undefined) break;
    const end = smallest(area.last, last);
    dirty.readAndClear(at, end, isCleared, (from, to) => {
      setBits(task, cmd.data, (from - cmd.iova) / cmd.page_size, (to - cmd.iova) / cmd.page_size);
    });
    at = end + 1n;
  }
}

function trackingOf(hwpt: HwptPaging): DirtyTracking {
  const { dirty } = hwpt.domain;
  if (dirty === undefined) throw new Errno('EOPNOTSUPP', `page table ${hwpt.id} has no dirty bits`);
  return dirty;
}

/** The last byte. EOVERFLOW, EINVAL. A page size that is no power of two is taken as the mask that it makes. */
function checkRange(cmd: iommu_hwpt_get_dirty_bitmap, alignment: bigint): bigint {
  const last = cmd.iova + BigInt.asUintN(64, cmd.length - 1n);
  if (last > U64_MAX) throw new Errno('EOVERFLOW', `${hex(cmd.length)} bytes at ${hex(cmd.iova)}`);
  const isMultiple = (size: bigint): boolean => (cmd.iova & (size - 1n)) === 0n && ((last + 1n) & (size - 1n)) === 0n;
  if (!isMultiple(alignment) || cmd.page_size === 0n || !isMultiple(cmd.page_size)) {
    throw new Errno('EINVAL', `${hex(cmd.length)} bytes at ${hex(cmd.iova)} in pages of ${cmd.page_size} bytes`);
  }
  return last;
}

/** Sets bits `first` to `last` of a program's bitmap; the others stay as they are. EFAULT. */
function setBits(task: Task, bitmap: bigint, first: bigint, last: bigint): void {
  const start = first >> 3n;
  const bytes = copyFromUser(task, bitmap + start, Number((last >> 3n) - start) + 1);
  for (let bit = Number(first - start * 8n), end = Number(last - start * 8n); bit <= end; bit++) {
    bytes[bit >> 3]! |= 1 << (bit & 7);
  }
  copyToUser(task, bitmap + start, bytes);
}
