/**
 * Interrupts of one machine: its processors' vectors, the remapping tables of its IOMMU units, and the manager that brings devices'
 * interrupts and virtual machines together.
 */
import type { IommuUnit } from '../hw/iommu/unit.ts';
import type { PhysicalMemory } from '../hw/memory/physical-memory.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { HostInterrupts } from '../kernel/core/host-interrupts.ts';
import { IrqBypass } from '../kernel/core/irq-bypass.ts';
import { IrqRemapping, type RemappedIrq } from '../kernel/iommu/irq-remapping.ts';

export class Interrupts {
  readonly processors = new HostInterrupts();
  /** Undefined: the machine has no virtual machines, so that nothing is to be brought together. */
  readonly bypass: IrqBypass | undefined;
  readonly #tables = new Map<IommuUnit, IrqRemapping>();
  readonly #unitOf: (fn: PciFunction) => IommuUnit | undefined;

  /** Switches remapping on in every unit that can. */
  constructor(
    units: readonly IommuUnit[],
    unitOf: (fn: PciFunction) => IommuUnit | undefined,
    physical: PhysicalMemory,
    hasVirtualMachines: boolean,
  ) {
    this.#unitOf = unitOf;
    this.bypass = hasVirtualMachines ? new IrqBypass() : undefined;
    for (const unit of units) {
      if (!unit.capabilities.hasInterruptRemapping) continue;
      const table = new IrqRemapping(unit, physical, this.processors);
      this.#tables.set(unit, table);
      unit.interrupts = table.hardware;
    }
  }

  /** Entries of all tables that are in use. */
  get used(): number {
    let sum = 0;
    for (const table of this.#tables.values()) sum += table.used;
    return sum;
  }

  tableOf(unit: IommuUnit): IrqRemapping | undefined {
    return this.#tables.get(unit);
  }

  /** Interrupts for messages of `fn`; undefined when nothing remaps them. ENOSPC. */
  allocate(fn: PciFunction, handlers: readonly (() => void)[]): RemappedIrq[] | undefined {
    const unit = this.#unitOf(fn);
    return unit === undefined ? undefined : this.#tables.get(unit)?.allocate(fn, handlers);
  }
}
