/**
 * What all open /dev/iommu of one machine share: the physical memory behind mapped files, the user's locked memory, and the
 * module's parameters.
 */
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { LockedMemory, MappedFiles } from './pages.ts';

export interface IommufdOptions {
  readonly physical: PhysicalMemory;
  /** Module parameter `allow_unsafe_interrupts`: devices are bound although their interrupts can be forged. */
  readonly allowUnsafeInterrupts?: boolean;
  /** Whether the kernel has noiommu support, which the container's CHECK_EXTENSION tells. */
  readonly noIommu?: boolean;
}

export class IommufdShared {
  readonly physical: PhysicalMemory;
  readonly allowUnsafeInterrupts: boolean;
  readonly noIommu: boolean;
  /** Locked pages of the user who runs all programs of this machine. */
  readonly userLocked = new LockedMemory();
  readonly files: MappedFiles;

  constructor(options: IommufdOptions) {
    this.physical = options.physical;
    this.allowUnsafeInterrupts = options.allowUnsafeInterrupts ?? false;
    this.noIommu = options.noIommu ?? true;
    this.files = new MappedFiles(options.physical);
  }
}
