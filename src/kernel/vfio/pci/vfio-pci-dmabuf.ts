/**
 * Pages of BARs as dma-bufs, which other devices' address spaces may map. Taken back while the device's memory is disabled, and
 * for good when it is closed.
 */
import { Errno } from '../../../lib/errno.ts';
import {
  VFIO_DEVICE_FEATURE_GET,
  VFIO_PCI_ROM_REGION_INDEX,
  vfio_device_feature_dma_buf,
  vfio_region_dma_range,
} from '../../../uapi/vfio.ts';
import { DmaBuf, type PhysicalRange } from '../../core/dma-buf.ts';
import type { NewDescriptor } from '../../core/file.ts';
import { copyFromUser, type Task } from '../../core/task.ts';
import { checkFeature, type FeatureRequest } from '../device-feature.ts';
import type { VfioPciDevice } from './vfio-pci-core.ts';

const O_CLOEXEC = 0o2000000;
/** More ranges than this do not fit into what the kernel would allocate for them. */
const MOST_RANGES = 1 << 16;
const U64_END = 1n << 64n;

export class BarDmaBufs {
  readonly #buffers = new Set<DmaBuf>();

  add(ranges: readonly PhysicalRange[]): DmaBuf {
    const buffer: DmaBuf = new DmaBuf(ranges, () => {
      this.#buffers.delete(buffer);
    });
    this.#buffers.add(buffer);
    return buffer;
  }

  /** Takes all pages back, or gives them again. */
  move(revoked: boolean): void {
    for (const buffer of this.#buffers) {
      if (revoked) buffer.revoke();
      else buffer.restore();
    }
  }

  /** The device is closed: what was handed out stays without pages. */
  cleanup(): void {
    this.move(true);
    this.#buffers.clear();
  }
}

/** VFIO_DEVICE_FEATURE_DMA_BUF: the new descriptor, 0 when it was only probed. ENODEV: no BAR. EINVAL, EOVERFLOW: bad ranges. */
export function featureDmaBuf(device: VfioPciDevice, task: Task, request: FeatureRequest): NewDescriptor | number {
  const { size } = vfio_device_feature_dma_buf;
  if (!checkFeature(request, VFIO_DEVICE_FEATURE_GET, size)) return 0;
  const get = vfio_device_feature_dma_buf.read(copyFromUser(task, request.data, size));
  if (get.nr_ranges === 0 || get.flags !== 0) throw new Errno('EINVAL', 'no range is given, or flags are set');
  const bar = get.region_index < VFIO_PCI_ROM_REGION_INDEX ? device.fn.bars[get.region_index] : undefined;
  if (bar === undefined || bar.address === 0)
    throw new Errno('ENODEV', `region ${get.region_index} is not a BAR of the device`);
  if (get.nr_ranges > MOST_RANGES) throw new Errno('ENOMEM', `${get.nr_ranges} ranges are too many`);
  const step = vfio_region_dma_range.size;
  const bytes = copyFromUser(task, request.data + BigInt(size), get.nr_ranges * step);
  const asked = Array.from({ length: get.nr_ranges }, (_, i) => vfio_region_dma_range.read(bytes.subarray(i * step)));
  let total = 0n;
  for (const { offset, length } of asked) {
    total += length;
    if (length === 0n || (offset | length) & 0xfffn || total >= U64_END) {
      throw new Errno('EINVAL', 'ranges of a dma-buf are whole pages');
    }
  }
  if (bar.kind !== 'memory') throw new Errno('EINVAL', `BAR ${get.region_index} is not memory`);
  const start = BigInt(bar.address);
  for (const { offset, length } of asked) {
    if (start + offset + length >= U64_END) throw new Errno('EOVERFLOW', 'a range wraps around');
    if (offset + length > BigInt(bar.size))
      throw new Errno('EINVAL', `a range is beyond the ${bar.size} bytes of the BAR`);
  }
  const ranges = asked.map(({ offset, length }) => ({
    firstPage: Number((start + offset) >> 12n),
    count: Number(length >> 12n),
  }));
  const file = device.dmaBufs.add(ranges);
  if (!device.memoryEnabled) file.revoke();
  return { file, closeOnExec: (get.open_flags & O_CLOEXEC) !== 0 };
}
