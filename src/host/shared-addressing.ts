/**
 * The machine's part in shared addressing: its PASIDs, who answers the page requests of its units, and the processes whose addresses
 * devices use.
 */
import type { Clock } from '../hw/pci/clock.ts';
import { PageFaults } from '../kernel/iommu/io-pgfault.ts';
import { Ioasids } from '../kernel/iommu/ioasid.ts';
import type { IommuCore } from '../kernel/iommu/iommu.ts';
import { Sva } from '../kernel/iommu/sva.ts';

/** From a unit's page request event until somebody looks, as an interrupt's thread would take. */
const INTERRUPT_NANOSECONDS = 1_000;

export class SharedAddressing {
  readonly ids = new Ioasids();
  readonly pageFaults: PageFaults;
  readonly sva: Sva;

  /** Serves the units that are known by now. */
  constructor(core: IommuCore, clock: Clock) {
    this.pageFaults = new PageFaults(core, { delay: { clock, nanoseconds: INTERRUPT_NANOSECONDS } });
    for (const unit of core.units) if (unit.capabilities.hasPageRequests) this.pageFaults.serve(unit);
    this.sva = new Sva(this.ids, this.pageFaults);
  }

  get bonds(): number {
    return this.sva.bonds;
  }

  get faults(): number {
    return this.pageFaults.pending + this.pageFaults.partial;
  }
}
