/**
 * The power of a PCI function in the hands of a user: the state that he writes (PCI Power Management), and the low power that he asks
 * VFIO for, in which the function is suspended between uses and every use wakes it.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import { restoreState, type SavedState, saveState } from '../../../hw/pci/saved-state.ts';
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import type { EventContext } from '../../core/task.ts';
import type { VfioPciIrqs } from './vfio-pci-intrs.ts';

const D3HOT = 3;

export class VfioPciPower {
  readonly #fn: PciFunction;
  readonly #irqs: Pick<VfioPciIrqs, 'mask' | 'unmask'>;
  readonly #memoryChanged: () => void;
  #state = 0;
  #saved: SavedState | undefined;
  /** Set by LOW_POWER_ENTRY until LOW_POWER_EXIT or a wake. */
  #low: { wake: EventContext | undefined; suspended: boolean; intxMasked: boolean } | undefined;

  /** `memoryChanged` is called when BARs may have become reachable, or unreachable. */
  constructor(fn: PciFunction, irqs: Pick<VfioPciIrqs, 'mask' | 'unmask'>, memoryChanged: () => void) {
    this.#fn = fn;
    this.#irqs = irqs;
    this.#memoryChanged = memoryChanged;
  }

  /** Not in D3. */
  get isOn(): boolean {
    return this.#state < D3HOT;
  }

  /** Between LOW_POWER_ENTRY and its end. */
  get isLow(): boolean {
    return this.#low !== undefined;
  }

  /** D0, at the opening. */
  turnOn(): void {
    this.#setHardware(0);
    this.#state = 0;
  }

  /** The power state, 0 to 3. A function that forgets its registers on the way back from D3 gets them again. */
  set(state: number): void {
    if (state !== 0 && (this.#fn.sriov?.functions.length ?? 0) > 0) return;
    const forgets = this.#forgetsInD3();
    if (forgets && this.#state < D3HOT && state >= D3HOT) this.#saved = saveState(this.#fn);
    const wakes = this.#state >= D3HOT && state < D3HOT;
    this.#setHardware(state);
    if (wakes && this.#saved !== undefined) {
      restoreState(this.#fn, this.#saved);
      this.#saved = undefined;
    }
    this.#state = this.#fn.config.findCapability(reg.PCI_CAP_ID_PM) === 0 ? 0 : state;
    this.#memoryChanged();
  }

  /** LOW_POWER_ENTRY. Takes `wake` over. EINVAL: in low power already. */
  beginLow(wake: EventContext | undefined): void {
    if (this.#low !== undefined) throw new Errno('EINVAL', 'the device is in low power already');
    this.#low = { wake, suspended: false, intxMasked: false };
    this.#memoryChanged();
  }

  /** LOW_POWER_EXIT, or the device has been used. */
  endLow(): void {
    const low = this.#low;
    if (low === undefined) return;
    this.#low = undefined;
    low.wake?.close();
    if (low.intxMasked) this.#irqs.unmask();
    this.#memoryChanged();
  }

  /** A use of the device, which is awake meanwhile. */
  during<T>(use: () => T): T {
    this.#resume();
    try {
      return use();
    } finally {
      this.#suspend();
    }
  }

  /** A use of the device wakes it: for good when the user wanted to be told, else for this use. */
  #resume(): void {
    const low = this.#low;
    if (low === undefined || !low.suspended) return;
    low.suspended = false;
    if (low.wake !== undefined) {
      low.wake.signal();
      this.endLow();
    } else if (low.intxMasked) {
      low.intxMasked = false;
      this.#irqs.unmask();
    }
  }

  #suspend(): void {
    const low = this.#low;
    if (low === undefined || low.suspended) return;
    this.set(0);
    low.suspended = true;
    low.intxMasked = this.#irqs.mask();
  }

  #forgetsInD3(): boolean {
    const at = this.#fn.config.findCapability(reg.PCI_CAP_ID_PM);
    return at !== 0 && (this.#fn.config.read(at + reg.PCI_PM_CTRL, 2) & reg.PCI_PM_CTRL_NO_SOFT_RESET) === 0;
  }

  #setHardware(state: number): void {
    const { config } = this.#fn;
    const at = config.findCapability(reg.PCI_CAP_ID_PM);
    if (at === 0) return;
    const control = config.read(at + reg.PCI_PM_CTRL, 2);
    if ((control & reg.PCI_PM_CTRL_STATE_MASK) === state) return;
    config.write(at + reg.PCI_PM_CTRL, 2, (control & ~reg.PCI_PM_CTRL_STATE_MASK) | state);
  }
}
