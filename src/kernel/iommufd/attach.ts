/**
 * Which page table the devices of one IOMMU group use, for their requester IDs and for each PASID.
 *
 * The IOMMU cannot tell the devices of a group apart, so that they share one attachment: the first device brings the table, the
 * others must name the same one, and a replacement changes it for all. Each device that follows brings its reserved IOVAs along.
 */
import { Errno } from '../../lib/errno.ts';
import { Failpoint } from '../../lib/failpoint.ts';
import type { IommufdContext } from './context.ts';
import type { DeviceIommu, NestedDomain } from './device-iommu.ts';
import type { HwPagetable, HwptDevice } from './hw-pagetable.ts';
import type { IoPagetable } from './io-pagetable.ts';
import type { PagingDomain } from './paging-domain.ts';

const attachFails = new Failpoint('iommufd:attach', 'ENOMEM');
const replaceFails = new Failpoint('iommufd:replace', 'ENOMEM');

/** The attachment of the requester IDs themselves. */
export const NO_PASID = 0;

export class Attachment {
  hwpt: HwPagetable;
  /** The device through which the hardware was attached: page requests of the group are reported as its. */
  device: HwptDevice;
  readonly devices = new Set<HwptDevice>();

  constructor(hwpt: HwPagetable, device: HwptDevice) {
    this.hwpt = hwpt;
    this.device = device;
  }
}

export class IommufdGroup {
  readonly context: IommufdContext;
  readonly group: object;
  readonly attachments = new Map<number, Attachment>();
  /** Bound devices. */
  references = 0;

  private constructor(context: IommufdContext, group: object) {
    this.context = context;
    this.group = group;
  }

  /** What `context` knows of an IOMMU group, one more reference of it. */
  static get(context: IommufdContext, group: object): IommufdGroup {
    let igroup = context.groups.get(group) as IommufdGroup | undefined;
    if (igroup === undefined) {
      igroup = new IommufdGroup(context, group);
      context.groups.set(group, igroup);
    }
    igroup.references++;
    return igroup;
  }

  put(): void {
    this.references--;
    if (this.references === 0) this.context.groups.delete(this.group);
  }

  /**
   * The attachment that page requests with a PASID go to: its own, or that of the requester ID when that is nested and guests of this IOMMU
   * have the PASID table.
   */
  attachmentOfRequest(pasid: number | undefined): Attachment | undefined {
    if (pasid === undefined) return this.attachments.get(NO_PASID);
    const own = this.attachments.get(pasid);
    if (own !== undefined) return own;
    const whole = this.attachments.get(NO_PASID);
    return whole?.hwpt.kind === 'hwpt-nested' && whole.device.iommu.hasUserPasidTable === true ? whole : undefined;
  }

  isAttached(device: HwptDevice, pasid: number): boolean {
    return this.attachments.get(pasid)?.devices.has(device) ?? false;
  }

  /**
   * EBUSY: the device is attached. EINVAL: the group uses another table; the table does not fit the device, or PASIDs. EADDRINUSE:
   * IOVAs that the device reserves are mapped or allowed.
   */
  attach(hwpt: HwPagetable, device: HwptDevice, pasid: number): void {
    const attachment = this.attachments.get(pasid);
    if (attachment?.devices.has(device) === true) {
      throw new Errno('EBUSY', `${device.iommu.name} is attached to page table ${attachment.hwpt.id} already`);
    }
    if (attachment !== undefined && attachment.hwpt !== hwpt) {
      throw new Errno('EINVAL', `the group of ${device.iommu.name} uses page table ${attachment.hwpt.id}`);
    }
    const { iopt } = hwpt.paging.ioas;
    if (pasid === NO_PASID) reserveRanges(iopt, device);
    try {
      if (attachment === undefined) {
        this.#check(hwpt, device, pasid);
        attachFails.hit();
        if (hwpt.fault !== undefined) device.iommu.checkPageRequests?.();
        attachHardware(device.iommu, hwpt.domain, pasid);
      }
    } catch (error) {
      if (pasid === NO_PASID) iopt.reserved.release(device);
      throw error;
    }
    const joined = attachment ?? new Attachment(hwpt, device);
    this.attachments.set(pasid, joined);
    joined.devices.add(device);
    hwpt.users++;
  }

  /** Returns the table that the device used; undefined: it used none. Whoever calls puts it. */
  detach(device: HwptDevice, pasid: number): HwPagetable | undefined {
    const attachment = this.attachments.get(pasid);
    if (attachment?.devices.delete(device) !== true) return undefined;
    const { hwpt, devices } = attachment;
    if (devices.size === 0) {
      if (hwpt.fault !== undefined) device.iommu.drainPageRequests?.();
      this.attachments.delete(pasid);
      if (pasid === NO_PASID) device.iommu.detach();
      else device.iommu.detachPasid?.(pasid);
      hwpt.fault?.drop(attachment);
    }
    if (pasid === NO_PASID) hwpt.paging.ioas.iopt.reserved.release(device);
    return hwpt;
  }

  /**
   * Changes the table of the whole group and returns the old one, which whoever calls puts; undefined: it is the same one. EINVAL:
   * the device is not attached, or as attach. On failure nothing is changed.
   */
  replace(hwpt: HwPagetable, device: HwptDevice, pasid: number): HwPagetable | undefined {
    const attachment = this.attachments.get(pasid);
    if (attachment?.devices.has(device) !== true) throw new Errno('EINVAL', `${device.iommu.name} is not attached`);
    const old = attachment.hwpt;
    if (old === hwpt) return undefined;
    const { ioas } = hwpt.paging;
    const isOtherIoas = ioas !== old.paging.ioas;
    const reserves = pasid === NO_PASID && isOtherIoas;
    const releaseAll = (iopt: IoPagetable): void => {
      for (const member of attachment.devices) iopt.reserved.release(member);
    };
    try {
      if (reserves) for (const member of attachment.devices) reserveRanges(ioas.iopt, member);
      this.#check(hwpt, device, pasid);
      replaceFails.hit();
      if (hwpt.fault !== undefined) device.iommu.checkPageRequests?.();
      if (old.fault !== undefined) device.iommu.drainPageRequests?.();
      if (pasid === NO_PASID) device.iommu.replace(hwpt.domain);
      else device.iommu.replacePasid?.(hwpt.domain, pasid);
    } catch (error) {
      if (reserves) releaseAll(ioas.iopt);
      throw error;
    }
    old.fault?.drop(attachment);
    if (reserves) releaseAll(old.paging.ioas.iopt);
    attachment.hwpt = hwpt;
    attachment.device = device;
    hwpt.users += attachment.devices.size;
    // The last use of the old table is returned to the caller.
    old.users -= attachment.devices.size - 1;
    return old;
  }

  /** EINVAL: the table does not go together with the device's page requests, or with the other attachments of the group. */
  #check(hwpt: HwPagetable, device: HwptDevice, pasid: number): void {
    const { iommu } = device;
    if (hwpt.fault !== undefined && iommu.hasSharedPageRequests) {
      throw new Errno('EINVAL', `page requests of ${iommu.name} go through its physical function`);
    }
    if (pasid === NO_PASID) {
      const hasPasids = [...this.attachments.keys()].some((other) => other !== NO_PASID);
      if (!hwpt.isPasidCompatible && hasPasids) {
        throw new Errno('EINVAL', `${iommu.name} has PASIDs attached and page table ${hwpt.id} is not made for that`);
      }
      return;
    }
    if (!hwpt.isPasidCompatible) throw new Errno('EINVAL', `page table ${hwpt.id} is not made for PASIDs`);
    const own = this.attachments.get(NO_PASID);
    if (own !== undefined && !own.hwpt.isPasidCompatible) {
      throw new Errno('EINVAL', `page table ${own.hwpt.id} of ${iommu.name} itself is not made for PASIDs next to it`);
    }
  }
}

function attachHardware(iommu: DeviceIommu, domain: PagingDomain | NestedDomain, pasid: number): void {
  if (pasid === NO_PASID) {
    iommu.attach(domain);
    return;
  }
  // A device without PASIDs cannot issue any, so that every number is as good as the next.
  if (iommu.maxPasids > 0 && pasid >= iommu.maxPasids) {
    throw new Errno('EINVAL', `${iommu.name} has PASIDs below ${iommu.maxPasids}`);
  }
  iommu.attachPasid?.(domain, pasid);
}

function reserveRanges(iopt: IoPagetable, device: HwptDevice): void {
  try {
    for (const range of device.iommu.reservedRanges()) iopt.reserve(range, device);
  } catch (error) {
    iopt.reserved.release(device);
    throw error;
  }
}
