/**
 * Logging of a device's DMA writes (the features DMA_LOGGING_START, _STOP and _REPORT): which pages of its address space it has written,
 * under any PASID, since they were last reported.
 */
import { Errno } from '../../lib/errno.ts';
import * as uapi from '../../uapi/vfio.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import { checkFeature, type FeatureRequest } from './device-feature.ts';

const SMALLEST = 4096n;
const LARGEST = 1n << 30n;
const MOST_RANGES = 256;
const END = 1n << 64n;
/** Pages of one piece of the log. */
const PIECE = 32_768;
/** Bytes of bitmap that are copied at a time. */
const PART = 4096;

export interface LogRange {
  readonly first: bigint;
  /** Of the last byte. */
  readonly last: bigint;
}

/**
 * The ranges that a device with `slots` places watches: neighbours with the smallest gap between them are joined until they fit.
 */
export function combineRanges(ranges: readonly LogRange[], slots: number): LogRange[] {
  const sorted = [...ranges].sort((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0));
  while (sorted.length > Math.max(slots, 1)) {
    let best = 1;
    for (let i = 2; i < sorted.length; i++) if (gap(sorted, i) < gap(sorted, best)) best = i;
    const [left, right] = [sorted[best - 1]!, sorted[best]!];
    sorted.splice(best - 1, 2, { first: left.first, last: left.last > right.last ? left.last : right.last });
  }
  return sorted;
}

function gap(ranges: readonly LogRange[], i: number): bigint {
  return ranges[i]!.first - ranges[i - 1]!.last;
}

/** What hears of the device's writes. */
export interface WritingPort {
  onWrite: ((page: number, count: number) => void) | undefined;
}

export class DmaLogging {
  readonly #port: WritingPort;
  #ranges: readonly LogRange[] | undefined;
  #pageSize = SMALLEST;
  /** 4 KiB pages of one page of the log. */
  #pagesEach = 1;
  /** One bit for each page of the log, in pieces. */
  readonly #pieces = new Map<number, Uint32Array>();

  constructor(port: WritingPort) {
    this.#port = port;
  }

  get isRunning(): boolean {
    return this.#ranges !== undefined;
  }

  /** Pages are remembered from now on. The page size that is used. EINVAL: it runs already. */
  start(ranges: readonly LogRange[], pageSize: bigint): bigint {
    if (this.#ranges !== undefined) throw new Errno('EINVAL', 'DMA is being logged already');
    let chosen = SMALLEST;
    while (chosen * 2n <= pageSize && chosen < LARGEST) chosen *= 2n;
    this.#pageSize = chosen;
    this.#pagesEach = Number(chosen >> 12n);
    this.#ranges = ranges;
    this.#port.onWrite = (page, count) => this.#written(page, count);
    return chosen;
  }

  /** EINVAL: it does not run. */
  stop(): void {
    if (this.#ranges === undefined) throw new Errno('EINVAL', 'DMA is not being logged');
    this.reset();
  }

  /** As before `start`. */
  reset(): void {
    this.#ranges = undefined;
    this.#port.onWrite = undefined;
    this.#pieces.clear();
  }

  /** Tells of each page of the log within [first, last] that was written, by its first byte, and forgets it. EINVAL: it does not run. */
  report(first: bigint, last: bigint, dirty: (address: bigint, pageSize: bigint) => void): void {
    if (this.#ranges === undefined) throw new Errno('EINVAL', 'DMA is not being logged');
    const firstPage = Number(first / this.#pageSize);
    const lastPage = Number(last / this.#pageSize);
    for (const [index, piece] of this.#pieces) {
      if ((index + 1) * PIECE <= firstPage || index * PIECE > lastPage) continue;
      for (let word = 0; word < piece.length; word++) {
        if (piece[word] === 0) continue;
        for (let bit = 0; bit < 32; bit++) {
          const page = index * PIECE + word * 32 + bit;
          if ((piece[word]! & (1 << bit)) === 0 || page < firstPage || page > lastPage) continue;
          piece[word] = piece[word]! & ~(1 << bit);
          dirty(BigInt(page) * this.#pageSize, this.#pageSize);
        }
      }
    }
  }

  #written(page: number, count: number): void {
    const first = BigInt(page) << 12n;
    const last = (BigInt(page + count) << 12n) - 1n;
    for (const range of this.#ranges!) {
      if (range.first > last || range.last < first) continue;
      const from = Math.floor(Math.max(page, Number(range.first >> 12n)) / this.#pagesEach);
      const to = Math.floor(Math.min(page + count - 1, Number(range.last >> 12n)) / this.#pagesEach);
      for (let at = from; at <= to; at++) this.#mark(at);
    }
  }

  #mark(page: number): void {
    const index = Math.floor(page / PIECE);
    let piece = this.#pieces.get(index);
    if (piece === undefined) {
      piece = new Uint32Array(PIECE / 32);
      this.#pieces.set(index, piece);
    }
    const at = page - index * PIECE;
    piece[at >>> 5] = piece[at >>> 5]! | (1 << (at & 31));
  }

  // ---- features ----

  /** DMA_LOGGING_START. EINVAL, E2BIG, EOVERFLOW: ranges that cannot be. */
  startFeature(task: Task, request: FeatureRequest): number {
    const table = uapi.vfio_device_feature_dma_logging_control;
    if (!checkFeature(request, uapi.VFIO_DEVICE_FEATURE_SET, table.size)) return 0;
    const control = table.read(copyFromUser(task, request.data, table.size));
    const { num_ranges: count, page_size } = control;
    if (count === 0) throw new Errno('EINVAL', 'no range is given');
    if (count > MOST_RANGES) throw new Errno('E2BIG', `${count} ranges are more than ${MOST_RANGES}`);
    const { size } = uapi.vfio_device_feature_dma_logging_range;
    const bytes = copyFromUser(task, control.ranges, count * size);
    const ranges: LogRange[] = [];
    for (let i = 0; i < count; i++) {
      const { iova, length } = uapi.vfio_device_feature_dma_logging_range.read(bytes.subarray(i * size));
      const mask = BigInt.asUintN(64, page_size - 1n);
      if ((iova & mask) !== 0n || (length & mask) !== 0n) {
        throw new Errno('EINVAL', `range ${i} is not made of whole pages of ${page_size} bytes`);
      }
      if (iova + length >= END) throw new Errno('EOVERFLOW', `range ${i} reaches beyond the address space`);
      const range = { first: iova, last: iova + length - 1n };
      if (ranges.some((other) => range.first <= other.last && other.first <= range.last)) {
        throw new Errno('EINVAL', `range ${i} overlaps another one`);
      }
      ranges.push(range);
    }
    control.page_size = this.start(ranges, page_size);
    try {
      copyToUser(task, request.data, table.write(control));
    } catch (error) {
      this.reset();
      throw error;
    }
    return 0;
  }

  /** DMA_LOGGING_STOP. */
  stopFeature(request: FeatureRequest): number {
    if (checkFeature(request, uapi.VFIO_DEVICE_FEATURE_SET, 0)) this.stop();
    return 0;
  }

  /** DMA_LOGGING_REPORT: sets the bits of pages that were written, and no others. EINVAL, EOVERFLOW. */
  reportFeature(task: Task, request: FeatureRequest): number {
    const table = uapi.vfio_device_feature_dma_logging_report;
    if (!checkFeature(request, uapi.VFIO_DEVICE_FEATURE_GET, table.size)) return 0;
    const { iova, length, page_size, bitmap } = table.read(copyFromUser(task, request.data, table.size));
    if (page_size < SMALLEST || (page_size & (page_size - 1n)) !== 0n) {
      throw new Errno('EINVAL', `pages of ${page_size} bytes: a power of two from 4096 on is needed`);
    }
    if (iova + length >= END) throw new Errno('EOVERFLOW', 'the range reaches beyond the address space');
    if (length === 0n) throw new Errno('EINVAL', 'a report of nothing');
    if (!this.isRunning) throw new Errno('EINVAL', 'DMA is not being logged');
    const bits = new UserBitmap(task, bitmap);
    const last = iova + length - 1n;
    this.report(iova, last, (address, size) => {
      const from = address < iova ? iova : address;
      const to = address + size - 1n > last ? last : address + size - 1n;
      for (let bit = (from - iova) / page_size; bit <= (to - iova) / page_size; bit++) bits.set(Number(bit));
    });
    bits.flush();
    return 0;
  }
}

/** A bitmap of a program, of which a part is held at a time. */
class UserBitmap {
  readonly #task: Task;
  readonly #address: bigint;
  #part = -1;
  #bytes = new Uint8Array(0);

  constructor(task: Task, address: bigint) {
    this.#task = task;
    this.#address = address;
  }

  /** EFAULT. */
  set(bit: number): void {
    // Words of 64 bits, so that nothing behind the bitmap is touched.
    const word = Math.floor(bit / 64);
    const part = Math.floor((word * 8) / PART);
    if (part !== this.#part) {
      this.flush();
      this.#part = part;
      this.#bytes = new Uint8Array(0);
    }
    const at = word * 8 - part * PART;
    if (at + 8 > this.#bytes.length) this.#grow(at + 8);
    const byte = at + ((bit % 64) >> 3);
    this.#bytes[byte] = this.#bytes[byte]! | (1 << (bit & 7));
  }

  flush(): void {
    if (this.#bytes.length === 0) return;
    copyToUser(this.#task, this.#address + BigInt(this.#part * PART), this.#bytes);
  }

  #grow(length: number): void {
    const have = this.#bytes.length;
    const start = this.#address + BigInt(this.#part * PART + have);
    const more = copyFromUser(this.#task, start, length - have);
    const bytes = new Uint8Array(length);
    bytes.set(this.#bytes);
    bytes.set(more, have);
    this.#bytes = bytes;
  }
}
