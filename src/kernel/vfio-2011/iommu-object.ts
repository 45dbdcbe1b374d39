/**
 * The IOMMU object of 2011: one address space, shared by the groups of a merged set.
 *
 * A group has one of its own from the start; merging lets the mergee's go and puts the group into the merger's. It is *open* while
 * a descriptor of it or of a device of its groups is: then it has a domain, all groups are claimed and attached, and the process that opened
 * it has it for itself. With the last of these descriptors everything is undone.
 */
import type { IommuUnit } from '../../hw/iommu/unit.ts';
import { Errno } from '../../lib/errno.ts';
import { addressOf, hex } from '../../lib/pages.ts';
import { Unwind } from '../../lib/unwind.ts';
import {
  VFIO_IOMMU_GET_INFO,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  vfio_dma_map,
  vfio_dma_unmap,
  vfio_iommu_info,
} from '../../uapi/vfio-2011.ts';
import * as late from '../../uapi/vfio-2011-late.ts';
import { File } from '../core/file.ts';
import type { Mm } from '../core/mm.ts';
import { copyFromUser, copyToUser, type Task } from '../core/task.ts';
import type { Domain } from '../iommu/domain.ts';
import { DmaMaps, type DmaMapsOptions } from './dma-maps.ts';
import type { Group2011 } from './group.ts';

export interface IommuObjectOptions extends DmaMapsOptions {
  /** Names and numbers of December 2011, or of the revision after it. */
  readonly revision: 'seed' | 'late';
  /** When groups may be merged. `always`: also with units that differ in no-snoop DMA; then nothing makes it coherent. */
  readonly mergePolicy: 'never' | 'sameCoherency' | 'always';
  /** Block the DMA of a set in use while one of its members is not bound. */
  readonly revokeOnNonViable: boolean;
  allocateDomain(unit: IommuUnit): Domain;
}

export class IommuObject {
  /** Tells owners of the two APIs apart, see `IommuGroup.claim`. */
  readonly api = '2011';
  readonly groups: Group2011[] = [];
  readonly maps: DmaMaps;
  readonly options: IommuObjectOptions;
  /** Open descriptors of the object itself. */
  files = 0;
  /** Which of a process's objects was opened first. */
  openedAt = 0;
  #domain: Domain | undefined;
  #mm: Mm | undefined;
  #isRevoked = false;

  constructor(options: IommuObjectOptions) {
    this.options = options;
    this.maps = new DmaMaps(options);
  }

  get domain(): Domain | undefined {
    return this.#domain;
  }

  /** The address space of the process that has it open. */
  get mm(): Mm | undefined {
    return this.#mm;
  }

  /** A descriptor of it, or of a device of one of its groups, is open. */
  get isInUse(): boolean {
    return this.files > 0 || this.groups.some((group) => group.openDevices > 0);
  }

  get isViable(): boolean {
    return this.groups.every((group) => group.isViable);
  }

  /** Whether no-snoop DMA of the set is, or would be, made coherent. */
  get isCoherent(): boolean {
    return this.groups.every(({ iommuGroup }) => iommuGroup?.unit?.canEnforceCoherency ?? true);
  }

  /** For people: `pci:240 and pci:241`. */
  get text(): string {
    return this.groups.map((group) => group.name).join(' and ');
  }

  /** EPERM: another process has it. */
  checkOwner(task: Task): void {
    if (this.#mm !== undefined && this.#mm !== task.mm) {
      throw new Errno('EPERM', `the address space of ${this.text} belongs to another process`);
    }
  }

  /**
   * Makes it ready for descriptors; nothing happens when it is open. EBUSY: a member of a group is not bound, or somebody else holds a
   * group. ENOMEM, and what attaching gives. On failure nothing is changed.
   */
  open(task: Task): void {
    if (!this.isViable) throw new Errno('EBUSY', this.#whyNotViable());
    if (this.#domain !== undefined) return;
    const unit = this.groups.find((group) => group.iommuGroup !== undefined)?.iommuGroup?.unit;
    if (unit === undefined) throw new Errno('EBUSY', `group ${this.text} has no device`);
    using undo = new Unwind();
    const domain = this.options.allocateDomain(unit);
    undo.add(() => domain.free());
    if (this.options.mergePolicy !== 'always') domain.enforceCacheCoherency();
    for (const group of this.groups) {
      this.#attach(group, domain);
      undo.add(() => this.#detach(group));
    }
    undo.keep();
    this.#domain = domain;
    this.#mm = task.mm;
  }

  /** Undoes `open`: no translation, no pin and no claim is left. */
  close(): void {
    const domain = this.#domain;
    if (domain === undefined) return;
    for (const group of this.groups) this.#detach(group);
    this.maps.clear(domain, this.#mm!);
    domain.free();
    this.#domain = undefined;
    this.#mm = undefined;
    this.#isRevoked = false;
  }

  /** A group joins; all that is mapped is mapped for it at once. Errors as of attaching; nothing is changed then. */
  add(group: Group2011): void {
    if (this.#domain !== undefined) this.#attach(group, this.#domain);
    this.groups.push(group);
    group.iommu = this;
  }

  /** A group leaves. Its DMA is the host's again, which has nothing mapped for it. */
  remove(group: Group2011): void {
    if (this.#domain !== undefined) this.#detach(group);
    this.groups.splice(this.groups.indexOf(group), 1);
  }

  /** A group got its first device while the set is open. Errors as of attaching. */
  adopt(group: Group2011): void {
    if (this.#domain !== undefined) this.#attach(group, this.#domain);
  }

  /** The last device of a group goes. */
  disown(group: Group2011): void {
    if (this.#domain !== undefined) this.#detach(group);
  }

  /** With the option: blocks all DMA while a member is not bound, and lets it pass again when all are. */
  reviewRevocation(): void {
    const domain = this.#domain;
    if (!this.options.revokeOnNonViable || domain === undefined || this.isViable !== this.#isRevoked) return;
    this.#isRevoked = !this.#isRevoked;
    for (const { iommuGroup } of this.groups) {
      if (this.#isRevoked) iommuGroup?.detach();
      else iommuGroup?.attach(domain);
    }
  }

  #attach(group: Group2011, domain: Domain): void {
    const { iommuGroup } = group;
    if (iommuGroup === undefined) return;
    try {
      iommuGroup.claim(this);
    } catch (error) {
      if (error instanceof Errno && error.code === 'EPERM') throw new Errno('EBUSY', error.why);
      throw error;
    }
    try {
      iommuGroup.attach(domain);
    } catch (error) {
      iommuGroup.release();
      throw error;
    }
    group.isAttached = true;
  }

  #detach(group: Group2011): void {
    if (!group.isAttached) return;
    group.isAttached = false;
    group.iommuGroup!.detach();
    group.iommuGroup!.release();
  }

  #whyNotViable(): string {
    const tainted = this.groups.find((group) => group.isTainted);
    if (tainted !== undefined) return `group ${tainted.name} is tainted: a device of it escaped VFIO`;
    const unbound = this.groups.flatMap((group) => group.devices).filter((device) => !device.isBound);
    const names = unbound.map((device) => device.name).join(', ');
    return `group ${this.text} is not viable: ${names} ${unbound.length === 1 ? 'is' : 'are'} not bound to a VFIO driver`;
  }
}

/** The descriptor of GET_IOMMU_FD. */
export class IommuFile extends File {
  readonly kind = 'vfioiommu';
  readonly path = 'anon_inode:[vfio-iommu]';
  readonly iommu: IommuObject;
  readonly #released: () => void;

  constructor(iommu: IommuObject, released: () => void) {
    super();
    this.iommu = iommu;
    this.#released = released;
    iommu.files++;
  }

  /** ENOTTY: none of its requests. EPERM: another process has the address space. Else as of `DmaMaps`. */
  override ioctl(task: Task, request: number, argument: bigint): number {
    const { iommu } = this;
    const domain = iommu.domain!;
    switch (request) {
      case VFIO_IOMMU_GET_INFO:
        return this.#getInfo(task, argument, domain);
      case VFIO_IOMMU_MAP_DMA: {
        iommu.checkOwner(task);
        const map = vfio_dma_map.read(copyFromUser(task, argument, vfio_dma_map.size));
        needArgsz(map.argsz, vfio_dma_map.size);
        iommu.maps.map(domain, task, map);
        return 0;
      }
      case VFIO_IOMMU_UNMAP_DMA: {
        iommu.checkOwner(task);
        const unmap = vfio_dma_unmap.read(copyFromUser(task, argument, vfio_dma_unmap.size));
        needArgsz(unmap.argsz, vfio_dma_unmap.size);
        iommu.maps.unmap(domain, task.mm, unmap);
        return 0;
      }
      default:
        throw new Errno('ENOTTY', `request ${hex(request)} is not one of an IOMMU's`);
    }
  }

  override release(): void {
    this.iommu.files--;
    this.#released();
  }

  #getInfo(task: Task, argument: bigint, domain: Domain): number {
    const { revision, entryLimit } = this.iommu.options;
    const table = revision === 'seed' ? vfio_iommu_info : late.vfio_iommu_info;
    const { argsz } = table.read(copyFromUser(task, argument, table.size));
    needArgsz(argsz, table.size);
    const first = addressOf(domain.firstPage);
    const last = addressOf(domain.lastPage) + 0xfffn;
    const sizes = domain.pgsizeBitmap;
    const answer =
      revision === 'seed'
        ? vfio_iommu_info.write({ argsz, flags: 0, iova_max: last, iova_min: first, pgsize_bitmap: sizes })
        : late.vfio_iommu_info.write({
            argsz,
            flags: 0,
            iova_start: first,
            iova_size: last - first + 1n,
            iova_entries: BigInt(entryLimit),
            iova_pgsizes: sizes,
          });
    copyToUser(task, argument, answer);
    return 0;
  }
}

/** EINVAL: the caller's structure is shorter than what is needed. */
export function needArgsz(argsz: number, size: number): void {
  if (argsz < size) throw new Errno('EINVAL', `argsz ${argsz} is less than the ${size} bytes of the structure`);
}
