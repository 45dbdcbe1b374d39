/**
 * Hardware page tables (HWPT): a domain of the IOMMU under a number. A paging one translates the IOVAs of one address space and is
 * filled with its areas from the start; a nested one is a guest's table on top of a paging one.
 *
 * A page table is made for a device, but used by any that it fits. One that attach makes by itself (`isAuto`) goes with its last
 * device; one that HWPT_ALLOC makes stays until DESTROY.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import {
  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  IOMMU_HWPT_ALLOC_NEST_PARENT,
  IOMMU_HWPT_ALLOC_PASID,
  IOMMU_HWPT_DATA_NONE,
  IOMMU_HWPT_FAULT_ID_VALID,
  type iommu_hwpt_alloc,
} from '../../uapi/iommufd.ts';
import { type IommufdContext, IommufdObject } from './context.ts';
import { type DeviceIommu, type NestedDomain, UserData } from './device-iommu.ts';
import { type FaultQueue, getFaultQueue } from './eventq.ts';
import { Ioas } from './ioas.ts';
import type { PagingDomain } from './paging-domain.ts';
import type { Ucmd } from './ucmd.ts';
import { Viommu } from './viommu.ts';

const PAGING_FLAGS =
  IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING | IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
const NESTED_FLAGS = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;

/** A bound device, as far as page tables are concerned. */
export interface HwptDevice extends IommufdObject {
  readonly iommu: DeviceIommu;
  vdevice: IommufdObject | undefined;
}

export abstract class HwPagetable extends IommufdObject {
  /** Can be attached next to PASIDs, and to them. */
  isPasidCompatible = false;
  fault: FaultQueue | undefined;
  abstract readonly domain: PagingDomain | NestedDomain;
  /** Its own if it is a paging one, the one below if it is nested. */
  abstract readonly paging: HwptPaging;

  /** Takes back a use by a device. */
  abstract put(): void;

  protected freeDomain(): void {
    this.domain.free();
    if (this.fault !== undefined) this.fault.users--;
  }
}

export class HwptPaging extends HwPagetable {
  readonly kind = 'hwpt-paging';
  readonly ioas: Ioas;
  readonly domain: PagingDomain;
  readonly driver: object;
  isNestParent = false;
  /** Made by attach; destroyed with its last use. */
  isAuto = false;
  enforcesCoherency = false;
  #isLinked = false;

  constructor(context: IommufdContext, ioas: Ioas, driver: object, allocate: () => PagingDomain) {
    super(context);
    this.ioas = ioas;
    this.driver = driver;
    try {
      this.domain = allocate();
    } catch (error) {
      context.objects.abandon(this.id);
      throw error;
    }
    ioas.users++;
  }

  get paging(): HwptPaging {
    return this;
  }

  /** EINVAL: the hardware says that it can, and does not. */
  enforceCoherency(): void {
    this.enforcesCoherency = this.domain.enforceCacheCoherency();
    if (!this.enforcesCoherency) throw new Errno('EINVAL', 'the page table cannot make all DMA coherent');
  }

  /** Fills the table with the areas of its address space, which keeps it filled from now on. */
  link(): void {
    this.ioas.iopt.addDomain(this.domain);
    this.ioas.hwpts.add(this);
    this.#isLinked = true;
  }

  override put(): void {
    this.users--;
    if (this.isAuto && this.users === 0) this.context.destroy(this.id);
  }

  override destroy(): void {
    if (this.#isLinked) {
      this.ioas.hwpts.delete(this);
      this.ioas.iopt.removeDomain(this.domain);
    }
    this.freeDomain();
    this.ioas.users--;
  }
}

export class HwptNested extends HwPagetable {
  readonly kind = 'hwpt-nested';
  readonly paging: HwptPaging;
  readonly domain: NestedDomain;
  /** The virtual IOMMU it was made for. */
  readonly viommu: Viommu | undefined;

  constructor(context: IommufdContext, parent: HwptPaging, viommu: Viommu | undefined, allocate: () => NestedDomain) {
    super(context);
    this.paging = parent;
    this.viommu = viommu;
    try {
      this.domain = allocate();
    } catch (error) {
      context.objects.abandon(this.id);
      throw error;
    }
    (viommu ?? parent).users++;
  }

  override put(): void {
    this.users--;
  }

  override destroy(): void {
    this.freeDomain();
    (this.viommu ?? this.paging).users--;
  }
}

/** The attachment that is made before the table is filled; undefined: none. */
export interface ImmediateAttach {
  attach(hwpt: HwptPaging): void;
  detach(): void;
}

/**
 * Makes a filled page table of `ioas` for a device. It is not published yet. EOPNOTSUPP, EINVAL; EADDRINUSE, EFAULT, ENOMEM of
 * filling it.
 */
export function allocatePaging(
  context: IommufdContext,
  ioas: Ioas,
  device: HwptDevice,
  flags: number,
  data: UserData | undefined,
  immediate: ImmediateAttach | undefined,
): HwptPaging {
  const { iommu } = device;
  if ((flags & ~PAGING_FLAGS) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)}`);
  if ((flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING) !== 0 && !iommu.hasDirtyTracking) {
    throw new Errno('EOPNOTSUPP', `the IOMMU of ${iommu.name} has no dirty bits`);
  }
  if ((flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0 && (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0) {
    throw new Errno('EOPNOTSUPP', 'a parent of nested tables takes no page faults');
  }
  const hwpt = new HwptPaging(context, ioas, iommu.driver, () =>
    iommu.allocatePaging(flags & ~IOMMU_HWPT_FAULT_ID_VALID, data),
  );
  try {
    hwpt.isPasidCompatible = (flags & IOMMU_HWPT_ALLOC_PASID) !== 0;
    hwpt.isNestParent = (flags & IOMMU_HWPT_ALLOC_NEST_PARENT) !== 0;
    // Before anything is mapped, because it is a bit of each leaf.
    if (iommu.canEnforceCoherency) hwpt.enforceCoherency();
    immediate?.attach(hwpt);
    try {
      hwpt.link();
    } catch (error) {
      immediate?.detach();
      throw error;
    }
  } catch (error) {
    context.abort(hwpt);
    throw error;
  }
  return hwpt;
}

/** EOPNOTSUPP, EINVAL, and what the hardware says about the data. */
function allocateNested(
  context: IommufdContext,
  parent: HwptPaging,
  device: HwptDevice,
  flags: number,
  data: UserData,
): HwptNested {
  const { iommu } = device;
  checkNested(flags, data);
  if (iommu.allocateNested === undefined) {
    throw new Errno('EOPNOTSUPP', `the IOMMU of ${iommu.name} has no nested translation`);
  }
  if (parent.isAuto || !parent.isNestParent || parent.driver !== iommu.driver) {
    throw new Errno('EINVAL', `page table ${parent.id} was not made as a parent of nested ones for this IOMMU`);
  }
  const hwpt = new HwptNested(context, parent, undefined, () =>
    iommu.allocateNested!(parent.domain, flags & ~IOMMU_HWPT_FAULT_ID_VALID, data),
  );
  hwpt.isPasidCompatible = (flags & IOMMU_HWPT_ALLOC_PASID) !== 0;
  return hwpt;
}

function allocateNestedOfViommu(viommu: Viommu, device: HwptDevice, flags: number, data: UserData): HwptNested {
  if (!viommu.isFor(device.iommu)) {
    throw new Errno('EINVAL', `${device.iommu.name} is behind another IOMMU than the virtual one ${viommu.id}`);
  }
  checkNested(flags, data);
  const { ops } = viommu;
  if (ops.allocateNested === undefined) throw new Errno('EOPNOTSUPP', 'the virtual IOMMU has no nested tables');
  const hwpt = new HwptNested(viommu.context, viommu.hwpt, viommu, () =>
    ops.allocateNested!(flags & ~IOMMU_HWPT_FAULT_ID_VALID, data),
  );
  hwpt.isPasidCompatible = (flags & IOMMU_HWPT_ALLOC_PASID) !== 0;
  return hwpt;
}

function checkNested(flags: number, data: UserData): void {
  if ((flags & ~NESTED_FLAGS) !== 0) throw new Errno('EOPNOTSUPP', `flags ${hex(flags)} of a nested page table`);
  if (data.length === 0) throw new Errno('EOPNOTSUPP', 'a nested page table needs data that describe the guest table');
}

export function hwptAlloc(ucmd: Ucmd<iommu_hwpt_alloc>): void {
  const { context, cmd } = ucmd;
  if (cmd.__reserved !== 0) throw new Errno('EOPNOTSUPP', `the reserved member is ${hex(cmd.__reserved)}`);
  if ((cmd.data_type === IOMMU_HWPT_DATA_NONE) !== (cmd.data_len === 0)) {
    throw new Errno('EINVAL', `data of type ${cmd.data_type} with ${cmd.data_len} bytes`);
  }
  const device = getHwptDevice(context, cmd.dev_id);
  const data = new UserData(ucmd.task, cmd.data_type, cmd.data_uptr, cmd.data_len);
  const hwpt = allocateOn(context, device, cmd, data);
  try {
    if ((cmd.flags & IOMMU_HWPT_FAULT_ID_VALID) !== 0) {
      const fault = getFaultQueue(context, cmd.fault_id);
      fault.users++;
      hwpt.fault = fault;
    }
    cmd.out_hwpt_id = hwpt.id;
    ucmd.respond();
  } catch (error) {
    context.abort(hwpt);
    throw error;
  }
  context.publish(hwpt);
}

function allocateOn(context: IommufdContext, device: HwptDevice, cmd: iommu_hwpt_alloc, data: UserData): HwPagetable {
  const parent = context.objects.get(cmd.pt_id);
  if (parent instanceof Ioas) {
    return allocatePaging(context, parent, device, cmd.flags, data.length === 0 ? undefined : data, undefined);
  }
  if (parent instanceof HwptPaging) return allocateNested(context, parent, device, cmd.flags, data);
  if (parent instanceof Viommu) return allocateNestedOfViommu(parent, device, cmd.flags, data);
  throw new Errno('EINVAL', `object ${cmd.pt_id} (${parent?.kind ?? 'none'}) cannot have a page table`);
}

/** ENOENT. */
export function getHwptDevice(context: IommufdContext, id: number): HwptDevice {
  const object = context.get(id);
  if (object.kind !== 'device') throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a device`);
  return object as HwptDevice;
}

/** ENOENT. */
export function getHwptPaging(context: IommufdContext, id: number): HwptPaging {
  const object = context.get(id);
  if (!(object instanceof HwptPaging)) {
    throw new Errno('ENOENT', `object ${id} is a ${object.kind}, not a page table of an address space`);
  }
  return object;
}
