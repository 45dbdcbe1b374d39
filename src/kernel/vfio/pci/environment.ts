/**
 * What the machine gives to the PCI devices of VFIO: time, memory to share, and the options of the module.
 */
import type { AllocateShared } from '../../../hw/memory/backing.ts';
import type { Clock } from '../../../hw/pci/clock.ts';
import type { PciFunction } from '../../../hw/pci/function.ts';
import type { HostIrq, IrqBypass } from '../../core/irq-bypass.ts';
import type { IommuGroup } from '../../iommu/group.ts';
import type { DeviceSets } from './device-set.ts';

/** An interrupt of the host that a function causes by a message. */
export interface MessageIrq extends HostIrq {
  readonly message: { readonly address: number; readonly data: number };
  free(): void;
}

export interface VfioPciEnvironment {
  readonly clock: Clock;
  /** Stands for a trapped BAR in a mapping, where nothing is ever stored. */
  readonly allocateShared: AllocateShared;
  readonly groupOf: (fn: PciFunction) => IommuGroup | undefined;
  /** The devices that are reset together; one for the machine. */
  readonly sets: DeviceSets;
  /** How many vectors the host gives to a function that wants `wanted`; all of them when absent. */
  readonly availableVectors?: (fn: PciFunction, wanted: number, isMsix: boolean) => number;
  /**
   * Interrupts of the host for messages of `fn`, one for each handler, in one block when there are several; undefined: its messages
   * reach the processors without remapping. ENOSPC.
   */
  readonly allocateIrqs?: (fn: PciFunction, handlers: readonly (() => void)[]) => MessageIrq[] | undefined;
  /** Where interrupts are offered to virtual machines. */
  readonly bypass?: IrqBypass;
  /** Makes a token for virtual functions, 16 bytes; random when absent. */
  readonly makeToken?: () => Uint8Array;
}
