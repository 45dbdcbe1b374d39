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

/** Bytes of a bitmap that are gathered before they are stored. */
const PIECE = 4096;
const PIECE_BITS = PIECE * 8;

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
  const bitmap = new UserBitmap(task, cmd.data);
  // A size that is no power of two counts as the lowest bit of it, as the kernel's shift does.
  const pageSize = cmd.page_size & -cmd.page_size;
  // The range is walked up to the first hole, which is no error.
  for (let at = cmd.iova; at <= last; ) {
    const area = iopt.areas.firstIn(at, at);
    if (area === undefined) break;
    const end = smallest(area.last, last);
    dirty.readAndClear(at, end, isCleared, (from, to) => {
      bitmap.set(Number((from - cmd.iova) / pageSize), Number((to - cmd.iova) / pageSize));
    });
    at = end + 1n;
  }
  bitmap.flush();
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

/**
 * Sets bits of a program's bitmap and leaves the others; a piece of it is gathered here. Bits that the program cannot be given are
 * lost without a refusal, as the kernel loses them: the entries are clean by then.
 */
class UserBitmap {
  readonly #task: Task;
  readonly #address: bigint;
  readonly #piece = new Uint8Array(PIECE);
  #index = -1;

  constructor(task: Task, address: bigint) {
    this.#task = task;
    this.#address = address;
  }

  set(first: number, last: number): void {
    for (let bit = first; bit <= last; ) {
      const index = Math.floor(bit / PIECE_BITS);
      if (index !== this.#index) {
        this.flush();
        this.#index = index;
      }
      const base = index * PIECE_BITS;
      const end = Math.min(last, base + PIECE_BITS - 1) - base;
      for (let at = bit - base; at <= end; ) {
        if ((at & 7) === 0 && end - at >= 7) {
          const stop = (end + 1) & ~7;
          this.#piece.fill(0xff, at >> 3, stop >> 3);
          at = stop;
        } else {
          this.#piece[at >> 3]! |= 1 << (at & 7);
          at++;
        }
      }
      bit = base + end + 1;
    }
  }

  flush(): void {
    if (this.#index < 0) return;
    const first = this.#piece.findIndex((byte) => byte !== 0);
    const last = this.#piece.findLastIndex((byte) => byte !== 0);
    if (first >= 0) this.#merge(first, last);
    this.#piece.fill(0, first < 0 ? 0 : first, last + 1);
    this.#index = -1;
  }

  #merge(first: number, last: number): void {
    const address = this.#address + BigInt(this.#index * PIECE + first);
    const fresh = this.#piece.subarray(first, last + 1);
    try {
      const bytes = copyFromUser(this.#task, address, fresh.length);
      for (let i = 0; i < bytes.length; i++) bytes[i]! |= fresh[i]!;
      copyToUser(this.#task, address, bytes);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
    }
  }
}
