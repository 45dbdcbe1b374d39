/**
 * Devices that are bound to an iommufd: bind, attach, replace, detach, unbind, and what GET_HW_INFO tells about their IOMMU.
 *
 * Binding takes the device's group from the host's drivers and blocks its DMA until it is attached. A device is held by whoever
 * bound it: DESTROY of its number is refused, and the context lives on until `unbind` although its file is closed.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  IOMMU_HW_CAP_DIRTY_TRACKING,
  IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
  IOMMU_HW_INFO_FLAG_INPUT_TYPE,
  IOMMU_HW_INFO_TYPE_DEFAULT,
  type iommu_hw_info,
} from '../../uapi/iommufd.ts';
import { copyToUser } from '../core/task.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { IommufdGroup, NO_PASID } from './attach.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import type { DeviceIommu } from './device-iommu.ts';
import { allocatePaging, getHwptDevice, HwPagetable, type HwptDevice } from './hw-pagetable.ts';
import { Ioas } from './ioas.ts';
import { PageRequestGroups } from './page-requests.ts';
import type { Ucmd } from './ucmd.ts';
import { VtdDeviceIommu } from './vtd-device-iommu.ts';

/** Bytes that are cleared at a time behind the data of GET_HW_INFO. */
const CLEARED_AT_ONCE = 65_536;

/** A device that can be bound: VFIO's devices are. Its group has a member function of this name. */
export interface BindableDevice {
  readonly name: string;
  readonly iommuGroup: IommuGroup;
}

export class IommufdDevice extends IommufdObject implements HwptDevice {
  readonly kind = 'device';
  readonly iommu: DeviceIommu;
  readonly igroup: IommufdGroup;
  /** What a guest sees of it: goes with it, and leaves its number dead. */
  vdevice: IommufdObject | undefined;
  /** PASIDs that `attachPasid` has attached. */
  readonly #pasids = new Set<number>();
  readonly #stopRequests: (() => void) | undefined;

  constructor(context: IommufdContext, iommu: DeviceIommu, igroup: IommufdGroup) {
    super(context);
    this.iommu = iommu;
    this.igroup = igroup;
    // Whoever binds is a user until `unbind`.
    this.users = 1;
    if (iommu.isOwnedByContext !== true) context.hold();
    const groups = new PageRequestGroups();
    this.#stopRequests = iommu.onPageRequest?.((request, respond) => groups.report(igroup, request, respond));
  }

  isAttached(pasid = NO_PASID): boolean {
    return this.igroup.isAttached(this, pasid);
  }

  /**
   * Attaches the device to a page table, or to an address space, for which a table is found or made. Returns the table's number.
   * ENOENT: no such object. EINVAL: not one of these, or it does not fit. EBUSY: it is attached already. EADDRINUSE, EFAULT, ENOMEM:
   * the areas of the address space cannot be used with the device.
   */
  attach(ptId: number, pasid = NO_PASID): number {
    const hwpt = this.#change(ptId, pasid, 'attach');
    this.users++;
    return hwpt;
  }

  /** Changes the attachment in one step. Errors as `attach`; EINVAL also when the device is not attached. Nothing is changed then. */
  replace(ptId: number, pasid = NO_PASID): number {
    return this.#change(ptId, pasid, 'replace');
  }

  /** DMA is blocked from now on. Nothing happens when the device is not attached. */
  detach(pasid = NO_PASID): void {
    const hwpt = this.igroup.detach(this, pasid);
    if (hwpt === undefined) return;
    hwpt.put();
    this.users--;
  }

  /** Attaches a PASID, or replaces what `attachPasid` attached there before: VFIO_DEVICE_ATTACH_IOMMUFD_PT with a PASID. */
  attachPasid(pasid: number, ptId: number): number {
    if (this.#pasids.has(pasid)) return this.replace(ptId, pasid);
    const hwpt = this.attach(ptId, pasid);
    this.#pasids.add(pasid);
    return hwpt;
  }

  /** Ends `attachPasid`. Nothing happens when it was not made. */
  detachPasid(pasid: number): void {
    if (this.#pasids.delete(pasid)) this.detach(pasid);
  }

  /** Detaches everything and gives the device back to the host. Cannot fail. */
  unbind(): void {
    for (const pasid of [...this.#pasids]) this.detachPasid(pasid);
    this.detach();
    const { context, vdevice } = this;
    if (vdevice !== undefined) {
      vdevice.users++;
      context.destroyUser(vdevice, true);
    }
    context.destroyUser(this);
    if (this.iommu.isOwnedByContext !== true) context.drop();
  }

  override destroy(): void {
    this.#stopRequests?.();
    this.iommu.release();
    this.igroup.put();
  }

  #change(ptId: number, pasid: number, way: 'attach' | 'replace'): number {
    const target = this.context.get(ptId);
    if (target instanceof HwPagetable) {
      this.#changeTo(target, pasid, way)?.put();
      return target.id;
    }
    if (target instanceof Ioas) return this.#changeToAuto(target, pasid, way);
    throw new Errno('EINVAL', `object ${ptId} is a ${target.kind}, not a page table or an address space`);
  }

  #changeTo(hwpt: HwPagetable, pasid: number, way: 'attach' | 'replace'): HwPagetable | undefined {
    if (way === 'replace') return this.igroup.replace(hwpt, this, pasid);
    this.igroup.attach(hwpt, this, pasid);
    return undefined;
  }

  /** The first automatic table of the address space that the device takes, or a new one. */
  #changeToAuto(ioas: Ioas, pasid: number, way: 'attach' | 'replace'): number {
    for (const hwpt of ioas.hwpts) {
      if (!hwpt.isAuto) continue;
      let old: HwPagetable | undefined;
      try {
        old = this.#changeTo(hwpt, pasid, way);
      } catch (error) {
        // EINVAL says that this table does not fit; another one may.
        if (error instanceof Errno && error.code === 'EINVAL') continue;
        throw error;
      }
      old?.put();
      return hwpt.id;
    }
    const immediate =
      way === 'replace'
        ? undefined
        : {
            attach: (hwpt: HwPagetable) => this.igroup.attach(hwpt, this, pasid),
            detach: () => {
              const hwpt = this.igroup.detach(this, pasid);
              if (hwpt !== undefined) hwpt.users--;
            },
          };
    const hwpt = allocatePaging(this.context, ioas, this, 0, undefined, immediate);
    let old: HwPagetable | undefined;
    try {
      if (way === 'replace') old = this.#changeTo(hwpt, pasid, way);
    } catch (error) {
      this.context.abort(hwpt);
      throw error;
    }
    hwpt.isAuto = true;
    this.context.publish(hwpt);
    old?.put();
    return hwpt.id;
  }
}

/**
 * Binds a device to an iommufd. EINVAL: its DMA is not coherent. ENODEV: it has no IOMMU. EPERM: its interrupts can be forged, or
 * another owner holds its group. EBUSY, EINVAL of taking the group.
 */
export function bindDevice(file: { readonly context: IommufdContext }, device: BindableDevice): IommufdDevice {
  const { iommuGroup } = device;
  if (iommuGroup.unit === undefined) throw new Errno('ENODEV', `no IOMMU translates ${device.name}`);
  const f = [...iommuGroup.members].find((member) => member.name === device.name);
  if (f === undefined) throw new Errno('ENODEV', `${device.name} is not in IOMMU group ${iommuGroup.id}`);
  return bindIommu(file.context, new VtdDeviceIommu(iommuGroup, f, file.context.core.vtdViommu));
}

/** Binds any device that has an IOMMU driver. */
export function bindIommu(context: IommufdContext, iommu: DeviceIommu): IommufdDevice {
  if (!iommu.isCoherent) throw new Errno('EINVAL', `the DMA of ${iommu.name} is not coherent`);
  if (!iommu.hasIsolatedMsi && iommu.isOwnedByContext !== true && !context.core.allowUnsafeInterrupts) {
    throw new Errno('EPERM', `interrupts of ${iommu.name} can be forged by DMA (allow_unsafe_interrupts is off)`);
  }
  iommu.claim(context);
  const device = new IommufdDevice(context, iommu, IommufdGroup.get(context, iommu.group));
  context.publish(device);
  return device;
}

export function getHwInfo(ucmd: Ucmd<iommu_hw_info>): void {
  const { context, cmd, task } = ucmd;
  if ((cmd.flags & ~IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0 || cmd.__reserved.some((byte) => byte !== 0)) {
    throw new Errno('EOPNOTSUPP', `flags ${hex(cmd.flags)} or reserved bytes`);
  }
  const type = (cmd.flags & IOMMU_HW_INFO_FLAG_INPUT_TYPE) === 0 ? IOMMU_HW_INFO_TYPE_DEFAULT : cmd.out_data_type;
  const { iommu } = getHwptDevice(context, cmd.dev_id);
  const info = iommu.hwInfo(type);
  copyToUser(task, cmd.data_uptr, info.data.subarray(0, cmd.data_len));
  for (let at = info.data.length; at < cmd.data_len; at += CLEARED_AT_ONCE) {
    const length = Math.min(CLEARED_AT_ONCE, cmd.data_len - at);
    copyToUser(task, cmd.data_uptr + BigInt(at), new Uint8Array(length));
  }
  cmd.out_data_type = info.type;
  cmd.data_len = info.data.length;
  cmd.out_max_pasid_log2 = iommu.maxPasids === 0 ? 0 : 31 - Math.clz32(iommu.maxPasids);
  cmd.out_capabilities =
    BigInt(iommu.hasDirtyTracking ? IOMMU_HW_CAP_DIRTY_TRACKING : 0) |
    BigInt(iommu.hasAts ? 0 : IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED) |
    BigInt(iommu.pasidCapabilities ?? 0);
  ucmd.respond();
}
