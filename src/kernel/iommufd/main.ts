/**
 * /dev/iommu: the file, and the table of its requests.
 *
 * Rules of all requests. The structure begins with its size as the program knows it: smaller than the members that were there from
 * the start is EINVAL; larger is fine as long as what we do not know is zero, else E2BIG; what the program does not know is taken
 * as zero and not written back. Unknown flags and reserved members that are not zero are EOPNOTSUPP, an unknown number ENOENT, an
 * unknown request ENOTTY. Requests below the iommufd's own numbers are the VFIO container's.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  IOMMU_DESTROY,
  IOMMU_FAULT_QUEUE_ALLOC,
  IOMMU_GET_HW_INFO,
  IOMMU_HW_QUEUE_ALLOC,
  IOMMU_HWPT_ALLOC,
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_HWPT_INVALIDATE,
  IOMMU_HWPT_SET_DIRTY_TRACKING,
  IOMMU_IOAS_ALLOC,
  IOMMU_IOAS_ALLOW_IOVAS,
  IOMMU_IOAS_CHANGE_PROCESS,
  IOMMU_IOAS_COPY,
  IOMMU_IOAS_IOVA_RANGES,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FILE,
  IOMMU_IOAS_UNMAP,
  IOMMU_OPTION,
  IOMMU_TEST_CMD,
  IOMMU_VDEVICE_ALLOC,
  IOMMU_VEVENTQ_ALLOC,
  IOMMU_VFIO_IOAS,
  IOMMU_VIOMMU_ALLOC,
  IOMMUFD_CMD_BASE,
  iommu_destroy,
  iommu_fault_alloc,
  iommu_hw_info,
  iommu_hw_queue_alloc,
  iommu_hwpt_alloc,
  iommu_hwpt_get_dirty_bitmap,
  iommu_hwpt_invalidate,
  iommu_hwpt_set_dirty_tracking,
  iommu_ioas_alloc,
  iommu_ioas_allow_iovas,
  iommu_ioas_change_process,
  iommu_ioas_copy,
  iommu_ioas_iova_ranges,
  iommu_ioas_map,
  iommu_ioas_map_file,
  iommu_ioas_unmap,
  iommu_option,
  iommu_vdevice_alloc,
  iommu_veventq_alloc,
  iommu_vfio_ioas,
  iommu_viommu_alloc,
} from '../../uapi/iommufd.ts';
import { File, type FileMapping, type IoctlResult } from '../core/file.ts';
import { copyFromUser, readU32, type Task } from '../core/task.ts';
import { ioasChangeProcess } from './change-process.ts';
import type { IommufdContext, IommufdObject } from './context.ts';
import { getHwInfo } from './device.ts';
import { hwptGetDirtyBitmap, hwptSetDirtyTracking } from './dirty.ts';
import { faultQueueAlloc } from './eventq.ts';
import { hwptAlloc } from './hw-pagetable.ts';
import { hwQueueAlloc } from './hw-queue.ts';
import { hwptInvalidate } from './invalidate.ts';
import { ioasAlloc, ioasAllowIovas, ioasCopy, ioasIovaRanges, ioasMap, ioasMapFile, ioasUnmap } from './ioas.ts';
import { option } from './options.ts';
import { testOp } from './selftest/command.ts';
import { type IoctlOp, ioctlOp, type Ucmd } from './ucmd.ts';
import { vdeviceAlloc } from './vdevice.ts';
import { veventqAlloc } from './veventq.ts';
import { vfioIoas, vfioIoctl } from './vfio-compat.ts';
import { viommuAlloc } from './viommu.ts';

const PROT_EXEC = 4;
const MAP_SHARED_MASK = 0x3;
const MAP_PRIVATE = 0x2;
/** Bytes behind a structure that are looked at together. */
const TAIL_AT_ONCE = 65_536;

const ioctlOps: ReadonlyMap<number, IoctlOp> = new Map([
  [IOMMU_DESTROY, ioctlOp(iommu_destroy, 'id', destroy)],
  [IOMMU_FAULT_QUEUE_ALLOC, ioctlOp(iommu_fault_alloc, 'out_fault_fd', faultQueueAlloc)],
  [IOMMU_GET_HW_INFO, ioctlOp(iommu_hw_info, '__reserved', getHwInfo)],
  [IOMMU_HW_QUEUE_ALLOC, ioctlOp(iommu_hw_queue_alloc, 'length', hwQueueAlloc)],
  [IOMMU_HWPT_ALLOC, ioctlOp(iommu_hwpt_alloc, '__reserved', hwptAlloc)],
  [IOMMU_HWPT_GET_DIRTY_BITMAP, ioctlOp(iommu_hwpt_get_dirty_bitmap, 'data', hwptGetDirtyBitmap)],
  [IOMMU_HWPT_INVALIDATE, ioctlOp(iommu_hwpt_invalidate, '__reserved', hwptInvalidate)],
  [IOMMU_HWPT_SET_DIRTY_TRACKING, ioctlOp(iommu_hwpt_set_dirty_tracking, '__reserved', hwptSetDirtyTracking)],
  [IOMMU_IOAS_ALLOC, ioctlOp(iommu_ioas_alloc, 'out_ioas_id', ioasAlloc)],
  [IOMMU_IOAS_ALLOW_IOVAS, ioctlOp(iommu_ioas_allow_iovas, 'allowed_iovas', ioasAllowIovas)],
  [IOMMU_IOAS_CHANGE_PROCESS, ioctlOp(iommu_ioas_change_process, '__reserved', ioasChangeProcess)],
  [IOMMU_IOAS_COPY, ioctlOp(iommu_ioas_copy, 'src_iova', ioasCopy)],
  [IOMMU_IOAS_IOVA_RANGES, ioctlOp(iommu_ioas_iova_ranges, 'out_iova_alignment', ioasIovaRanges)],
  [IOMMU_IOAS_MAP, ioctlOp(iommu_ioas_map, 'iova', ioasMap)],
  [IOMMU_IOAS_MAP_FILE, ioctlOp(iommu_ioas_map_file, 'iova', ioasMapFile)],
  [IOMMU_IOAS_UNMAP, ioctlOp(iommu_ioas_unmap, 'length', ioasUnmap)],
  [IOMMU_OPTION, ioctlOp(iommu_option, 'val64', option)],
  [IOMMU_VDEVICE_ALLOC, ioctlOp(iommu_vdevice_alloc, 'virt_id', vdeviceAlloc)],
  [IOMMU_VEVENTQ_ALLOC, ioctlOp(iommu_veventq_alloc, 'out_veventq_fd', veventqAlloc)],
  [IOMMU_VFIO_IOAS, ioctlOp(iommu_vfio_ioas, '__reserved', vfioIoas)],
  [IOMMU_VIOMMU_ALLOC, ioctlOp(iommu_viommu_alloc, 'out_viommu_id', viommuAlloc)],
]);

function destroy({ context, cmd }: Ucmd<iommu_destroy>): void {
  context.destroy(cmd.id);
}

export class IommufdFile extends File {
  readonly kind = 'iommufd';
  readonly path: string;
  readonly context: IommufdContext;

  constructor(context: IommufdContext, path = '/dev/iommu') {
    super();
    this.context = context;
    this.path = path;
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    const number = request & 0xff;
    // The kernel looks at the number first: foreign requests of these numbers are read before they are refused.
    if (number < IOMMUFD_CMD_BASE || number > (IOMMU_TEST_CMD & 0xff)) {
      return vfioIoctl(this.context, task, request, argument);
    }
    const userSize = readU32(task, argument);
    const op = request === IOMMU_TEST_CMD && this.context.core.selftest ? testOp : ioctlOps.get(request);
    if (op === undefined) throw new Errno('ENOTTY', `an iommufd has no ioctl ${hex(request)}`);
    if (userSize < op.minimum)
      throw new Errno('EINVAL', `size ${userSize}; the structure has at least ${op.minimum} bytes`);
    if (userSize > op.size) checkTail(task, argument + BigInt(op.size), userSize - op.size);
    let bytes = copyFromUser(task, argument, Math.min(userSize, op.size));
    if (bytes.length < op.size) {
      const known = bytes;
      bytes = new Uint8Array(op.size);
      bytes.set(known);
    }
    return op.execute(this.context, task, bytes, argument, userSize) ?? 0;
  }

  override mmap(_task: Task, length: number, prot: number, flags: number, offset: number): FileMapping {
    if (length % 4096 !== 0 || (flags & MAP_SHARED_MASK) === MAP_PRIVATE) {
      throw new Errno(
        'EINVAL',
        `${length} bytes, flags ${hex(flags)}: only whole pages can be mapped, and only shared`,
      );
    }
    if ((prot & PROT_EXEC) !== 0) throw new Errno('EPERM', 'pages of an IOMMU cannot be executed');
    const found = this.context.mmaps.find(({ start }) => start === offset);
    if (found === undefined || found.length !== length) {
      throw new Errno('ENXIO', `no virtual IOMMU has ${length} bytes at offset ${hex(offset)}`);
    }
    const { owner, memory } = found;
    return { memory, offset: 0, trapped: false, keep: new MmapKeeper(owner) };
  }

  override release(): void {
    this.context.drop();
  }
}

/** A mapping of a virtual IOMMU's memory, which cannot be destroyed meanwhile. */
class MmapKeeper extends File {
  readonly kind = 'mapping';
  readonly path = '/dev/iommu';
  readonly #owner: IommufdObject;

  constructor(owner: IommufdObject) {
    super();
    this.#owner = owner;
    owner.users++;
    owner.context.hold();
  }

  override release(): void {
    this.#owner.users--;
    this.#owner.context.drop();
  }
}

/** Checks that what a program passes beyond the structure is zero. E2BIG, EFAULT. */
function checkTail(task: Task, address: bigint, length: number): void {
  let at = address;
  let left = length;
  while (left > 0) {
    const inPage = Math.min(left, 4096 - Number(at & 0xfffn));
    let part = Math.min(left, TAIL_AT_ONCE);
    let bytes: Uint8Array;
    try {
      bytes = copyFromUser(task, at, part);
    } catch (error) {
      if (part === inPage) throw error;
      // What can be read is judged before what cannot.
      part = inPage;
      bytes = copyFromUser(task, at, part);
    }
    const found = bytes.findIndex((byte) => byte !== 0);
    if (found >= 0) throw new Errno('E2BIG', `byte ${Number(at - address) + found} behind the structure is not zero`);
    at += BigInt(part);
    left -= part;
  }
}
