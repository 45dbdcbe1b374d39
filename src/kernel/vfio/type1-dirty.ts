/**
 * Which pages devices may have written: DIRTY_PAGES, and UNMAP with the bitmap.
 *
 * While pages are tracked every mapping has one bit for each smallest page. Bits are set for what mediated drivers pin or write. A
 * group that does DMA of its own makes everything that is mapped dirty, as nobody sees what it writes, until it pins pages itself.
 */
import { bitmapBytes, clearBits, orBits, setBits } from '../../lib/bitmap.ts';
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import { hex, pageOf, U64_MAX } from '../../lib/pages.ts';
import {
  VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
  type vfio_bitmap,
  vfio_iommu_type1_dirty_bitmap,
  vfio_iommu_type1_dirty_bitmap_get,
} from '../../uapi/vfio.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { Type1 } from './type1.ts';
import { type Dma, extraOf, refuseCut } from './type1-dma.ts';

/** Bits of one bitmap, and its bytes: 8 TiB of pages of 4 KiB. */
export const BITMAP_BITS_MAX = 2 ** 31 - 1;
export const BITMAP_BYTES_MAX = bitmapBytes(BITMAP_BITS_MAX);
const KNOWN_FLAGS =
  VFIO_IOMMU_DIRTY_PAGES_FLAG_START | VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP | VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
/** The highest address of a program, beyond which a pointer is refused without being tried. */
const TASK_SIZE = (1n << 47n) - 4096n;

const bitmapPoint = new Failpoint('vfio:dirty_bitmap', 'ENOMEM');

/** Bits of a mapping's bitmap. */
function bitsOf(type1: Type1, dma: Dma): number {
  return dma.count / type1.pageCount;
}

/** Gives a mapping its bitmap, clear. EINVAL: more bits than a bitmap may have. ENOMEM: more bytes than the container may use. */
export function allocateBitmap(type1: Type1, dma: Dma): void {
  const bits = bitsOf(type1, dma);
  if (bits > BITMAP_BITS_MAX) {
    throw new Errno('EINVAL', `${dma.text} has ${bits} pages, more than a dirty bitmap has bits (${BITMAP_BITS_MAX})`);
  }
  bitmapPoint.hit();
  const bytes = bitmapBytes(bits);
  if (type1.dirtyBytes + bytes > type1.options.dirtyBitmapLimit) {
    throw new Errno(
      'ENOMEM',
      `the dirty bitmaps of this container would take ${type1.dirtyBytes + bytes} bytes, ${type1.options.dirtyBitmapLimit} are allowed`,
    );
  }
  extraOf(dma).dirty = new Uint8Array(bytes);
  type1.dirtyBytes += bytes;
}

export function freeBitmap(type1: Type1, dma: Dma): void {
  if (dma.extra?.dirty === undefined) return;
  type1.dirtyBytes -= dma.extra.dirty.length;
  delete dma.extra.dirty;
}

/** Marks `count` pages from IOVA page `first` as written. */
export function markDirty(type1: Type1, dma: Dma, first: number, count: number): void {
  if (dma.dirty === undefined) return;
  const from = Math.floor((first - dma.first) / type1.pageCount);
  const to = Math.floor((first + count - 1 - dma.first) / type1.pageCount);
  setBits(dma.dirty, from, to - from + 1);
}

/** Pages that are still held may be written at any time: they are dirty again at once. */
function markPinned(type1: Type1, dma: Dma): void {
  for (const page of dma.pinned?.keys() ?? []) markDirty(type1, dma, page, 1);
}

/** Everything mapped counts as written: the last group whose DMA nobody sees has left. */
export function markAllDirty(type1: Type1): void {
  for (const { value: dma } of type1.dmas.areas()) markDirty(type1, dma, dma.first, dma.count);
}

/** EINVAL when a bitmap of the program is not of a legal size for `length` bytes, or lies outside what a program can have. */
export function checkBitmap(bitmap: vfio_bitmap, length: bigint): void {
  if (bitmap.data + bitmap.size > TASK_SIZE) {
    throw new Errno(
      'EINVAL',
      `bitmap.data ${hex(bitmap.data)} and size ${hex(bitmap.size)} lie beyond a program's addresses`,
    );
  }
  const pageSize = bitmap.pgsize & -bitmap.pgsize;
  const pages = pageSize === 0n ? 0n : length / pageSize;
  const needed = ((pages + 63n) / 64n) * 8n;
  if (pages === 0n || bitmap.size === 0n || bitmap.size > BigInt(BITMAP_BYTES_MAX) || bitmap.size < needed) {
    throw new Errno(
      'EINVAL',
      `a bitmap of ${bitmap.size} bytes for ${hex(length)} bytes in pages of ${hex(bitmap.pgsize)}: ${needed} to ${BITMAP_BYTES_MAX} bytes are needed`,
    );
  }
}

/**
 * Copies a mapping's bits into the program's bitmap, which starts at IOVA page `base`. Bits of the first word that belong to what
 * lies before the mapping stay; the rest of the last word becomes 0. EFAULT.
 */
export function copyDirty(type1: Type1, task: Task, dma: Dma, base: number, data: bigint): void {
  const dirty = dma.dirty!;
  const bits = bitsOf(type1, dma);
  if (type1.unscopedGroups > 0 && dma.isMapped) setBits(dirty, 0, bits);
  const offset = (dma.first - base) / type1.pageCount;
  const shift = offset % 64;
  const target = data + BigInt((offset - shift) / 8);
  const out = new Uint8Array(bitmapBytes(bits + shift));
  if (shift > 0) {
    orBits(out, 0, copyFromUser(task, target, 8), 0, shift);
  }
  if (shift % 8 === 0) {
    // Whole bytes: the byte in which `before` ends belongs to it alone.
    out.set(dirty.subarray(0, Math.ceil(bits / 8)), shift / 8);
  } else orBits(out, shift, dirty, 0, bits);
  copyToUser(task, target, out);
}

export function dirtyPages(type1: Type1, task: Task, argument: bigint): number {
  if (type1.version === 1)
    throw new Errno('EACCES', 'version 1 of the driver tracks no dirty pages (SET_IOMMU with TYPE1v2)');
  const size = vfio_iommu_type1_dirty_bitmap.size;
  const dirty = vfio_iommu_type1_dirty_bitmap.read(copyFromUser(task, argument, size));
  if (dirty.argsz < size)
    throw new Errno('EINVAL', `argsz ${dirty.argsz} is less than the ${size} bytes of the structure`);
  switch (dirty.flags) {
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
      start(type1);
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
      type1.isTrackingDirty = false;
      for (const { value: dma } of type1.dmas.areas()) freeBitmap(type1, dma);
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: {
      if (dirty.argsz < size + vfio_iommu_type1_dirty_bitmap_get.size) {
        throw new Errno('EINVAL', `argsz ${dirty.argsz} leaves no room for vfio_iommu_type1_dirty_bitmap_get`);
      }
      const from = copyFromUser(task, argument + BigInt(size), vfio_iommu_type1_dirty_bitmap_get.size);
      getBitmap(type1, task, vfio_iommu_type1_dirty_bitmap_get.read(from));
      return 0;
    }
    default:
      throw new Errno('EINVAL', `flags ${hex(dirty.flags)} is not exactly one of ${hex(KNOWN_FLAGS)}`);
  }
}

function start(type1: Type1): void {
  if (type1.isTrackingDirty) return;
  try {
    for (const { value: dma } of type1.dmas.areas()) {
      allocateBitmap(type1, dma);
      markPinned(type1, dma);
    }
  } catch (error) {
    for (const { value: dma } of type1.dmas.areas()) freeBitmap(type1, dma);
    throw error;
  }
  type1.isTrackingDirty = true;
}

function getBitmap(type1: Type1, task: Task, get: vfio_iommu_type1_dirty_bitmap_get): void {
  const { iova, size, bitmap } = get;
  if (size === 0n) throw new Errno('EINVAL', `the size of the range at IOVA ${hex(iova)} cannot be 0`);
  if (iova + size - 1n > U64_MAX)
    throw new Errno('EOVERFLOW', `IOVA ${hex(iova)} and size ${hex(size)} go beyond 2^64`);
  checkBitmap(bitmap, size);
  if (bitmap.pgsize !== type1.pageSize) {
    throw new Errno('EINVAL', `bitmap.pgsize ${hex(bitmap.pgsize)} is not the smallest page, ${hex(type1.pageSize)}`);
  }
  if (((iova | size) & (type1.pageSize - 1n)) !== 0n) {
    throw new Errno('EINVAL', `IOVA ${hex(iova)} and size ${hex(size)} have to be multiples of ${hex(type1.pageSize)}`);
  }
  if (!type1.isTrackingDirty) throw new Errno('EINVAL', 'dirty pages are not tracked (START comes first)');
  const first = pageOf(iova);
  const last = first + pageOf(size) - 1;
  refuseCut(type1.dmas, first, last);
  for (const { value: dma } of type1.dmas.areas(first, last)) {
    copyDirty(type1, task, dma, first, bitmap.data);
    clearBits(dma.dirty!, 0, bitsOf(type1, dma));
    markPinned(type1, dma);
  }
}
