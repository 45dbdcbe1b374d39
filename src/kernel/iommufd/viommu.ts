/**
 * Virtual IOMMUs: a slice of a physical one that a guest sees as its own, and what belongs to it. VT-d has none, so that on its
 * units every request ends with a refusal; the objects are here for hardware that has.
 */
import { Errno } from '../../lib/errno.ts';
import { hex, U64_MAX } from '../../lib/pages.ts';
import {
  IOMMU_HW_QUEUE_TYPE_DEFAULT,
  IOMMU_VEVENTQ_TYPE_DEFAULT,
  IOMMU_VIOMMU_TYPE_DEFAULT,
  type iommu_hw_queue_alloc,
  type iommu_vdevice_alloc,
  type iommu_veventq_alloc,
  type iommu_viommu_alloc,
} from '../../uapi/iommufd.ts';
import type { Task } from '../core/task.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import type { DeviceIommu, InvalidateRequest, NestedDomain, UserData } from './device-iommu.ts';
import type { HwptPaging } from './hw-pagetable.ts';
import type { Ucmd } from './ucmd.ts';

/** The most events that a queue may hold. */
const DEEPEST_QUEUE = 2 ** 19;

/** What the driver of the physical IOMMU does for a virtual one. */
export interface ViommuOps {
  allocateNested?(flags: number, data: UserData): NestedDomain;
  invalidate?(task: Task, request: InvalidateRequest): { done: number; refusal?: Errno };
  destroy?(): void;
}

export class Viommu extends IommufdObject {
  readonly kind = 'viommu';
  readonly hwpt: HwptPaging;
  readonly ops: ViommuOps;
  readonly #driver: object;

  constructor(context: IommufdContext, hwpt: HwptPaging, driver: object, ops: ViommuOps) {
    super(context);
    this.hwpt = hwpt;
    this.ops = ops;
    this.#driver = driver;
    hwpt.users++;
  }

  isFor(iommu: DeviceIommu): boolean {
    return iommu.driver === this.#driver;
  }

  override destroy(): void {
    this.ops.destroy?.();
    this.hwpt.users--;
  }
}

/** ENOENT. */
export function getViommu(context: IommufdContext, id: number): Viommu {
  const object = context.get(id);
  if (!(object instanceof Viommu)) throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a virtual IOMMU`);
  return object;
}

export function viommuAlloc({ context, cmd }: Ucmd<iommu_viommu_alloc>): void {
  if (cmd.flags !== 0 || cmd.type === IOMMU_VIOMMU_TYPE_DEFAULT) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, type ${cmd.type}`);
  }
  const device = context.get(cmd.dev_id);
  if (device.kind !== 'device') throw new Errno('ENOENT', `object ${cmd.dev_id} is a ${device.kind}, not a device`);
  throw new Errno('EOPNOTSUPP', `the IOMMU of device ${cmd.dev_id} has no virtual IOMMU of type ${cmd.type}`);
}

export function vdeviceAlloc({ context, cmd }: Ucmd<iommu_vdevice_alloc>): void {
  getViommu(context, cmd.viommu_id);
  const device = context.get(cmd.dev_id);
  if (device.kind !== 'device') throw new Errno('ENOENT', `object ${cmd.dev_id} is a ${device.kind}, not a device`);
  throw new Errno('EOPNOTSUPP', 'the virtual IOMMU has no virtual devices');
}

export function veventqAlloc({ context, cmd }: Ucmd<iommu_veventq_alloc>): void {
  if (cmd.flags !== 0 || cmd.__reserved !== 0 || cmd.type === IOMMU_VEVENTQ_TYPE_DEFAULT) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, type ${cmd.type}, reserved ${hex(cmd.__reserved)}`);
  }
  if (cmd.veventq_depth === 0 || cmd.veventq_depth > DEEPEST_QUEUE) {
    throw new Errno('EINVAL', `a queue of ${cmd.veventq_depth} events; 1 to ${DEEPEST_QUEUE} are possible`);
  }
  getViommu(context, cmd.viommu_id);
  throw new Errno('EOPNOTSUPP', `the virtual IOMMU has no events of type ${cmd.type}`);
}

export function hwQueueAlloc({ context, cmd }: Ucmd<iommu_hw_queue_alloc>): void {
  if (cmd.flags !== 0 || cmd.type === IOMMU_HW_QUEUE_TYPE_DEFAULT) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, type ${cmd.type}`);
  }
  if (cmd.length === 0n) throw new Errno('EINVAL', 'the queue has no length');
  if (cmd.nesting_parent_iova + cmd.length - 1n > U64_MAX) {
    throw new Errno('EOVERFLOW', `${hex(cmd.length)} bytes at ${hex(cmd.nesting_parent_iova)}`);
  }
  getViommu(context, cmd.viommu_id);
  throw new Errno('EOPNOTSUPP', `the virtual IOMMU has no hardware queues of type ${cmd.type}`);
}
