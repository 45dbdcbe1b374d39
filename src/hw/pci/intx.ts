/**
 * A function's INTx pin: a level, shown in STATUS.INTx and, unless COMMAND.INTX_DISABLE is set, to whoever listens
 * (PCI Local Bus 3.0, 6.2.2 and 6.2.3).
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { ConfigSpace } from './config-space.ts';

export class IntxPin {
  readonly #config: ConfigSpace;
  readonly #deliver: (level: boolean) => void;
  #asserted = false;
  #level = false;

  constructor(config: ConfigSpace, deliver: (level: boolean) => void) {
    this.#config = config;
    this.#deliver = deliver;
    config.watch(reg.PCI_COMMAND, 2, () => this.#update());
  }

  /** What the device wants. */
  get asserted(): boolean {
    return this.#asserted;
  }

  /** What is on the wire: asserted and not disabled. */
  get level(): boolean {
    return this.#level;
  }

  assert(): void {
    this.#set(true);
  }

  deassert(): void {
    this.#set(false);
  }

  #set(asserted: boolean): void {
    this.#asserted = asserted;
    this.#update();
  }

  /** Looks at COMMAND again, after a reset of configuration space. */
  refresh(): void {
    this.#update();
  }

  #update(): void {
    const config = this.#config;
    const status = config.get(reg.PCI_STATUS, 2) & ~reg.PCI_STATUS_INTERRUPT;
    config.set(reg.PCI_STATUS, 2, this.#asserted ? status | reg.PCI_STATUS_INTERRUPT : status);
    const level = this.#asserted && (config.get(reg.PCI_COMMAND, 2) & reg.PCI_COMMAND_INTX_DISABLE) === 0;
    if (level === this.#level) return;
    this.#level = level;
    this.#deliver(level);
  }
}
