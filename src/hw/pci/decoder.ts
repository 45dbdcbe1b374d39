/**
 * Which physical addresses a function answers: its memory BARs, as windows of physical memory, where its BAR registers put them
 * while COMMAND.MEM is on. This is how one device's DMA reaches another device.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { PhysicalMemory } from '../memory/physical-memory.ts';
import { barBacking, type FunctionBar } from './bar.ts';
import type { PciFunction } from './function.ts';

export class Decoder {
  readonly #fn: PciFunction;
  readonly #memory: PhysicalMemory;
  /** First page of the window of each BAR that is decoded now. */
  readonly #windows = new Map<FunctionBar, number>();

  constructor(fn: PciFunction, memory: PhysicalMemory) {
    this.#fn = fn;
    this.#memory = memory;
    const update = (): void => this.update();
    fn.config.watch(reg.PCI_COMMAND, 1, update);
    fn.config.watch(reg.PCI_BASE_ADDRESS_0, fn.isBridge ? 8 : 24, update);
  }

  update(): void {
    const enabled = this.#fn.memoryEnabled;
    for (const bar of this.#fn.bars) {
      if (bar === undefined || bar.kind === 'io') continue;
      const address = enabled ? this.#address(bar) : 0;
      const wanted = address !== 0 && address % 4096 === 0 ? address / 4096 : -1;
      const present = this.#windows.get(bar) ?? -1;
      if (wanted === present) continue;
      if (present >= 0) {
        this.#memory.removeWindow(present);
        this.#windows.delete(bar);
      }
      const pages = Math.ceil(bar.size / 4096);
      // Two devices at one address is what a sizing write can look like for a moment: the first one answers.
      if (wanted >= 0 && this.#memory.isFree(wanted, pages)) {
        this.#memory.addWindow(wanted, pages, barBacking(bar));
        this.#windows.set(bar, wanted);
      }
    }
  }

  /** Where a memory BAR answers now, -1 while it does not. */
  decodedAddress(bar: FunctionBar): number {
    const page = this.#windows.get(bar);
    return page === undefined ? -1 : page * 4096;
  }

  #address(bar: FunctionBar): number {
    // Virtual functions have no BAR registers: their physical function's decide, and only as a whole.
    if (this.#fn.isVirtfn) return bar.address;
    const at = reg.PCI_BASE_ADDRESS_0 + 4 * bar.index;
    const low = (this.#fn.config.get(at, 4) & ~0xf) >>> 0;
    return bar.is64 ? this.#fn.config.get(at + 4, 4) * 2 ** 32 + low : low;
  }
}
