/**
 * What all open /dev/iommu of one machine share: the physical memory behind mapped files, the user's locked memory, and the
 * module's parameters.
 */
import { type AllocateShared, privateShared } from '../../hw/memory/backing.ts';
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { MappedFiles } from './mapped-files.ts';
import { LockedMemory } from './pages.ts';

export interface IommufdOptions {
  readonly physical: PhysicalMemory;
  /** Module parameter `allow_unsafe_interrupts`: devices are bound although their interrupts can be forged. */
  readonly allowUnsafeInterrupts?: boolean;
  /** The kernel is built for tests: IOMMU_TEST_CMD and the mock driver are there. */
  readonly selftest?: boolean;
  /** VT-d units that nest have virtual IOMMUs, of a type that Linux does not know (vtd-viommu.ts). */
  readonly vtdViommu?: boolean;
  /** Memory that programs may map; plain bytes when absent. */
  readonly allocateShared?: AllocateShared;
  /** Whether the kernel has noiommu support, which the container's CHECK_EXTENSION tells. */
  readonly noIommu?: boolean;
}

export class IommufdShared {
  readonly physical: PhysicalMemory;
  readonly allowUnsafeInterrupts: boolean;
  readonly noIommu: boolean;
  readonly selftest: boolean;
  readonly vtdViommu: boolean;
  readonly allocateShared: AllocateShared;
  /** Locked pages of the user who runs all programs of this machine. */
  readonly userLocked = new LockedMemory();
  readonly files: MappedFiles;

  constructor(options: IommufdOptions) {
    this.physical = options.physical;
    this.allowUnsafeInterrupts = options.allowUnsafeInterrupts ?? false;
    this.noIommu = options.noIommu ?? true;
    this.selftest = options.selftest ?? false;
    this.vtdViommu = options.vtdViommu ?? false;
    this.allocateShared = options.allocateShared ?? privateShared;
    this.files = new MappedFiles(options.physical);
  }
}
