/**
 * What VFIO and KVM know of each other: a virtual machine as a device's driver sees it, and a file of VFIO as a virtual machine
 * sees it. Neither room imports the other.
 */
import type { File } from './file.ts';

export interface VirtualMachine {
  readonly name: string;
  /** One more reference; false: it is at its end. */
  hold(): boolean;
  drop(): void;
}

/** How the DMA of one device stands to the caches of the processors. */
export interface DmaCoherence {
  readonly device: string;
  /** Its IOMMU can make no-snoop requests coherent (IOMMU_CAP_ENFORCE_CACHE_COHERENCY). False without an IOMMU of its own. */
  readonly canEnforce: boolean;
  /** The device may send no-snoop requests now: it knows how to, and software has not switched it off. */
  readonly mayIssueNoSnoop: boolean;
  /** Everything it can reach now is reached through page tables that make no-snoop requests coherent. */
  readonly pathEnforces: boolean;
}

/** A group's or device's file, which a program gives to its virtual machine (KVM_DEV_VFIO_FILE_ADD). */
export interface AssignableFile {
  /** The machine that uses what the file stands for; undefined: none any more. Drivers see it when a device is opened next. */
  setVirtualMachine(vm: VirtualMachine | undefined): void;
  /** Every device that the file gives access to. */
  dmaCoherence(): DmaCoherence[];
}

/** Undefined: a file of another kind. */
export function assignable(file: File): (File & AssignableFile) | undefined {
  return 'setVirtualMachine' in file && 'dmaCoherence' in file ? (file as File & AssignableFile) : undefined;
}
