/**
 * A unit with RAM for tests that build tables by hand: entries are written where the test says, by address.
 */
import { BufferBacking } from '../memory/backing.ts';
import { PhysicalMemory } from '../memory/physical-memory.ts';
import type { Access } from '../pci/dma.ts';
import type { PasidEntry } from './entries.ts';
import type { Fault } from './faults.ts';
import { IommuUnit, type IommuUnitOptions } from './unit.ts';

export const RID = 0x669; // 06:0d.1
const RAM_PAGES = 256;

export class TestUnit {
  readonly memory = new PhysicalMemory();
  readonly ram = new Uint8Array(RAM_PAGES * 4096);
  /** First physical page of `ram`. */
  readonly ramPage = this.memory.addBlock(new BufferBacking(this.ram));
  readonly unit: IommuUnit;
  #used = 0;

  constructor(options: IommuUnitOptions = { preset: 'nested-sm' }) {
    this.unit = new IommuUnit('dmar0', { memory: this.memory, ...options });
  }

  /** A page of RAM that nothing else has yet. */
  page(): number {
    return this.ramPage + this.#used++;
  }

  /** Writes entry `index` of the table at `page`. */
  put(page: number, index: number, value: bigint): void {
    if (!this.unit.memory.poke((BigInt(page) << 12n) + BigInt(index * 8), value))
      throw new Error(`No memory at ${page}`);
  }

  get(page: number, index: number): bigint {
    return this.unit.memory.peek((BigInt(page) << 12n) + BigInt(index * 8))!;
  }

  /**
   * A path of tables in RAM that leads the page `at` to `leaf`, an entry at `leafLevel`. `tableBits`: of the entries on the way.
   * Returns the pages of the tables, the top one first.
   */
  path(levels: number, at: number, leaf: bigint, tableBits: bigint, leafLevel = 0): number[] {
    const pages: number[] = [];
    for (let level = levels - 1; level >= leafLevel; level--) pages.push(this.page());
    for (const [i, page] of pages.entries()) {
      const level = levels - 1 - i;
      const next = pages[i + 1];
      const value = next === undefined ? leaf : (BigInt(next) << 12n) | tableBits;
      this.put(page, Math.floor(at / 512 ** level) % 512, value);
    }
    return pages;
  }

  /** Programs a PASID (0: requests without) with all rights. */
  bind(pasid: number, entry: PasidEntry): void {
    this.unit.setRights(RID, { hasDeviceTlb: true, hasPasids: true, hasPageRequests: true }, 2 ** 15);
    this.unit.setPasidEntry(RID, pasid, entry);
  }

  /** The code of the refusal in hex, or the physical page. */
  outcome(pasid: number, page: number, access: Access, how: { exec?: boolean; privileged?: boolean } = {}): string {
    const { unit } = this;
    unit.lastFault = undefined;
    const physicalPage = unit.request(RID, page, access, { pasid, ...how });
    return physicalPage >= 0
      ? `page ${physicalPage - this.ramPage}`
      : ((unit.lastFault as Fault | undefined)?.reason ?? 0).toString(16);
  }
}
