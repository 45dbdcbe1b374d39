/**
 * Virtual IOMMUs: a slice of a physical one that a guest sees as its own. What belongs to one has a file each: vdevice.ts,
 * veventq.ts, hw-queue.ts.
 *
 * The hardware's driver makes its part (`ViommuOps`) and asks this one for what programs have told: which device has which number,
 * and where events go.
 */
import type { SharedMemory } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import { IOMMU_VIOMMU_TYPE_DEFAULT, type iommu_viommu_alloc } from '../../uapi/iommufd.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import { type DeviceIommu, UserData, type ViommuCore, type ViommuOps } from './device-iommu.ts';
import type { HwptDevice, HwptPaging } from './hw-pagetable.ts';
import type { Ucmd } from './ucmd.ts';

/** Where the driver's events of one type go. */
export interface EventSink {
  report(data: Uint8Array): void;
}

export class Viommu extends IommufdObject implements ViommuCore {
  readonly kind = 'viommu';
  readonly hwpt: HwptPaging;
  /** The physical IOMMU of which it is a slice. */
  readonly #physical: object;
  /** What the hardware does; undefined until it is made. */
  ops: ViommuOps = {};
  /** Devices by the number that the guest gives them. */
  readonly vdevices = new Map<bigint, { readonly device: HwptDevice }>();
  readonly eventQueues = new Map<number, EventSink>();

  constructor(context: IommufdContext, hwpt: HwptPaging, iommu: DeviceIommu) {
    super(context);
    this.hwpt = hwpt;
    this.#physical = physicalOf(iommu);
    hwpt.users++;
  }

  isFor(iommu: DeviceIommu): boolean {
    return physicalOf(iommu) === this.#physical;
  }

  virtIdOf(iommu: DeviceIommu): bigint | undefined {
    for (const [virtId, { device }] of this.vdevices) if (device.iommu === iommu) return virtId;
    return undefined;
  }

  deviceOf(virtId: bigint): DeviceIommu | undefined {
    return this.vdevices.get(virtId)?.device.iommu;
  }

  reportEvent(type: number, data: Uint8Array): void {
    const queue = this.eventQueues.get(type);
    if (queue === undefined)
      throw new Errno('EOPNOTSUPP', `virtual IOMMU ${this.id} has no queue for events ${hex(type)}`);
    queue.report(data);
  }

  addMmap(memory: SharedMemory, length: number): number {
    return this.context.addMmap(memory, length, this);
  }

  removeMmap(offset: number): void {
    this.context.removeMmap(offset);
  }

  override destroy(): void {
    this.ops.destroy?.();
    this.hwpt.users--;
  }
}

function physicalOf(iommu: DeviceIommu): object {
  return iommu.instance ?? iommu.driver;
}

/** ENOENT. */
export function getViommu(context: IommufdContext, id: number): Viommu {
  const object = context.get(id);
  if (!(object instanceof Viommu)) throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a virtual IOMMU`);
  return object;
}

/** ENOENT. */
function getParent(context: IommufdContext, id: number): HwptPaging {
  const object = context.get(id);
  if (object.kind !== 'hwpt-paging') throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a page table`);
  return object as HwptPaging;
}

export function viommuAlloc(ucmd: Ucmd<iommu_viommu_alloc>): void {
  const { context, cmd, task } = ucmd;
  if (cmd.flags !== 0 || cmd.type === IOMMU_VIOMMU_TYPE_DEFAULT) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)}, type ${cmd.type}`);
  }
  const device = getDevice(context, cmd.dev_id);
  const init = device.iommu.viommuOfType?.(cmd.type);
  if (init === undefined) {
    throw new Errno('EOPNOTSUPP', `the IOMMU of device ${cmd.dev_id} has no virtual IOMMU of type ${hex(cmd.type)}`);
  }
  const parent = getParent(context, cmd.hwpt_id);
  if (!parent.isNestParent)
    throw new Errno('EINVAL', `page table ${parent.id} was not made as a parent of nested ones`);
  const viommu = new Viommu(context, parent, device.iommu);
  try {
    const data = cmd.data_len === 0 ? undefined : new UserData(task, cmd.type, cmd.data_uptr, cmd.data_len);
    viommu.ops = init(viommu, parent.domain, data);
    cmd.out_viommu_id = viommu.id;
    ucmd.respond();
  } catch (error) {
    context.abort(viommu);
    throw error;
  }
  context.publish(viommu);
}

/** ENOENT. */
export function getDevice(context: IommufdContext, id: number): HwptDevice {
  const object = context.get(id);
  if (object.kind !== 'device') throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a device`);
  return object as HwptDevice;
}
