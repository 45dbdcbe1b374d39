/**
 * Hardware queues of virtual IOMMUs: a queue in guest memory that the hardware reads by physical address, past any page table. So its
 * pages must be physically neighbours, and stay: an access inside the kernel pins them and locks their areas against UNMAP.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, U64_MAX } from '../../lib/pages.ts';
import { IOMMU_HW_QUEUE_TYPE_DEFAULT, type iommu_hw_queue_alloc } from '../../uapi/iommufd.ts';
import { IommufdAccess } from './access.ts';
import { IommufdObject } from './context.ts';
import type { HwQueueOps } from './device-iommu.ts';
import type { Ucmd } from './ucmd.ts';
import { getViommu, type Viommu } from './viommu.ts';

/** More pages than the kernel would find memory for. */
const MOST_PAGES = 2n ** 20n;

/** Queues of one virtual IOMMU by what the hardware made of them. */
const queues = new WeakMap<HwQueueOps, HwQueue>();

class HwQueue extends IommufdObject {
  readonly kind = 'hw-queue';
  readonly viommu: Viommu;
  /** Where the pages are pinned; undefined until they are. */
  pinned: { access: IommufdAccess; iova: bigint; length: bigint } | undefined;
  ops: HwQueueOps | undefined;

  constructor(viommu: Viommu) {
    super(viommu.context);
    this.viommu = viommu;
    viommu.users++;
  }

  /** The queue that has to live as long as this one. */
  get dependsOn(): HwQueue | undefined {
    const ops = this.ops?.dependsOn;
    return ops && queues.get(ops);
  }

  override destroy(): void {
    if (this.ops !== undefined) {
      this.ops.destroy();
      const { dependsOn } = this;
      if (dependsOn !== undefined) dependsOn.users--;
    }
    if (this.pinned !== undefined) {
      const { access, iova, length } = this.pinned;
      access.unpin(iova, length);
      access.unbind();
    }
    this.viommu.users--;
  }
}

export function hwQueueAlloc(ucmd: Ucmd<iommu_hw_queue_alloc>): void {
  const { context, cmd } = ucmd;
  if (cmd.flags !== 0 || cmd.type === IOMMU_HW_QUEUE_TYPE_DEFAULT) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, type ${cmd.type}`);
  }
  const { nesting_parent_iova: iova, length } = cmd;
  if (length === 0n) throw new Errno('EINVAL', 'the queue has no length');
  if (iova + length - 1n > U64_MAX) throw new Errno('EOVERFLOW', `${hex(length)} bytes at ${hex(iova)}`);
  const viommu = getViommu(context, cmd.viommu_id);
  const { ops } = viommu;
  if (ops.initHwQueue === undefined || ops.hasHwQueueType?.(cmd.type) !== true) {
    throw new Errno('EOPNOTSUPP', `the virtual IOMMU has no hardware queues of type ${hex(cmd.type)}`);
  }
  const queue = new HwQueue(viommu);
  try {
    const page = pinNeighbours(queue, iova, length);
    queue.ops = ops.initHwQueue({
      type: cmd.type,
      index: cmd.index,
      iova,
      physical: { page, offset: Number(iova & 0xfffn) },
      length,
    });
    queues.set(queue.ops, queue);
    if (queue.dependsOn !== undefined) queue.dependsOn.users++;
    cmd.out_hw_queue_id = queue.id;
    ucmd.respond();
  } catch (error) {
    context.abort(queue);
    throw error;
  }
  context.publish(queue);
}

/** Pins the queue's pages and returns the first one. ERANGE, ENOENT, EFAULT: they are not neighbours. */
function pinNeighbours(queue: HwQueue, iova: bigint, length: bigint): number {
  const first = iova & ~0xfffn;
  const end = iova - first + length + 4095n;
  if (end > U64_MAX) throw new Errno('ERANGE', `${hex(length)} bytes at ${hex(iova)} end beyond 64 bits`);
  const whole = end & ~0xfffn;
  if (whole >> 12n > MOST_PAGES) throw new Errno('ENOMEM', `a queue of ${hex(length)} bytes is too long`);
  const { context } = queue;
  const access = new IommufdAccess(context, { isInternal: true });
  context.publish(access);
  try {
    access.attachTo(queue.viommu.hwpt.ioas);
    const pages = access.pin(first, whole, false);
    queue.pinned = { access, iova: first, length: whole };
    for (let i = 1; i < pages.length; i++) {
      if (pages[i] !== pages[i - 1]! + 1) {
        throw new Errno('EFAULT', `the pages of the queue are not neighbours from page ${i} on`);
      }
    }
    return pages[0]!;
  } catch (error) {
    if (queue.pinned === undefined) access.unbind();
    throw error;
  }
}
