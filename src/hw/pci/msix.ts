/**
 * The MSI-X capability (PCI Local Bus 3.0, 6.8.2): a table of messages and an array of pending bits, both inside BARs.
 *
 * After reset every entry is masked. A masked message is kept in its pending bit and sent when entry and function are unmasked.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { Registers } from './bar.ts';
import type { ConfigSpace } from './config-space.ts';
import type { PciFunction } from './function.ts';
import type { CapabilitySpec } from './function-spec.ts';

export interface MsixOptions {
  /** 1 to 2048. */
  readonly vectors: number;
  readonly tableBar: number;
  readonly tableOffset: number;
  /** The table's BAR unless said otherwise. */
  readonly pbaBar?: number;
  /** Behind the table, on the next 8 bytes, unless said otherwise. */
  readonly pbaOffset?: number;
  readonly at?: number;
}

export class MsixCapability {
  readonly vectors: number;
  readonly offset: number;
  readonly tableBar: number;
  readonly tableOffset: number;
  readonly pbaBar: number;
  readonly pbaOffset: number;
  /** The table's bytes, 16 for each vector. */
  readonly table: Uint8Array;
  readonly #pending: Uint8Array;
  readonly #fn: PciFunction;
  readonly #config: ConfigSpace;

  constructor(fn: PciFunction, offset: number, options: MsixOptions) {
    const { vectors, tableBar, tableOffset } = options;
    if (vectors < 1 || vectors > 2048) throw new Error(`MSI-X cannot have ${vectors} vectors`);
    this.vectors = vectors;
    this.offset = offset;
    this.tableBar = tableBar;
    this.tableOffset = tableOffset;
    this.pbaBar = options.pbaBar ?? tableBar;
    this.pbaOffset = options.pbaOffset ?? tableOffset + vectors * reg.PCI_MSIX_ENTRY_SIZE;
    this.table = new Uint8Array(vectors * reg.PCI_MSIX_ENTRY_SIZE);
    this.#pending = new Uint8Array(Math.ceil(vectors / 64) * 8);
    this.#fn = fn;
    this.#config = fn.config;
    const config = fn.config;
    const control = reg.PCI_MSIX_FLAGS_ENABLE | reg.PCI_MSIX_FLAGS_MASKALL;
    config.define(offset + reg.PCI_MSIX_FLAGS, 2, vectors - 1, control);
    config.define(offset + reg.PCI_MSIX_TABLE, 4, (tableOffset | tableBar) >>> 0);
    config.define(offset + reg.PCI_MSIX_PBA, 4, (this.pbaOffset | this.pbaBar) >>> 0);
    config.watch(offset + reg.PCI_MSIX_FLAGS, 2, () => this.#deliverPending());
    const table = fn.bars[tableBar];
    const pba = fn.bars[this.pbaBar];
    if (table === undefined || pba === undefined) throw new Error('MSI-X names a BAR that does not exist');
    if (tableOffset % 8 !== 0 || this.pbaOffset % 8 !== 0) throw new Error('MSI-X needs offsets on a multiple of 8');
    const behindTable = tableOffset + this.table.length;
    const behindPba = this.pbaOffset + this.#pending.length;
    if (table === pba && tableOffset < behindPba && this.pbaOffset < behindTable) {
      throw new Error(`MSI-X has its pending bits at 0x${this.pbaOffset.toString(16)}, inside its table`);
    }
    table.overlay(tableOffset, this.table.length, this.#tableRegisters());
    pba.overlay(this.pbaOffset, this.#pending.length, this.#pbaRegisters());
    this.#reset();
    fn.onReset(() => this.#reset());
  }

  get enabled(): boolean {
    return (this.#config.get(this.offset + reg.PCI_MSIX_FLAGS, 2) & reg.PCI_MSIX_FLAGS_ENABLE) !== 0;
  }

  get functionMasked(): boolean {
    return (this.#config.get(this.offset + reg.PCI_MSIX_FLAGS, 2) & reg.PCI_MSIX_FLAGS_MASKALL) !== 0;
  }

  isMasked(vector: number): boolean {
    const control = vector * reg.PCI_MSIX_ENTRY_SIZE + reg.PCI_MSIX_ENTRY_VECTOR_CTRL;
    return (this.table[control]! & reg.PCI_MSIX_ENTRY_CTRL_MASKBIT) !== 0;
  }

  isPending(vector: number): boolean {
    return ((this.#pending[vector >> 3]! >> (vector & 7)) & 1) === 1;
  }

  /** What software does to one entry through the table: its mask bit. */
  setMask(vector: number, masked: boolean): void {
    const control = vector * reg.PCI_MSIX_ENTRY_SIZE + reg.PCI_MSIX_ENTRY_VECTOR_CTRL;
    this.table[control] = masked ? reg.PCI_MSIX_ENTRY_CTRL_MASKBIT : 0;
    this.#deliver(vector);
  }

  /** Sends the message of `vector`, or keeps it pending while it is masked. Nothing happens while MSI-X is not enabled. */
  fire(vector: number): void {
    if (!this.enabled || vector < 0 || vector >= this.vectors) return;
    if (this.functionMasked || this.isMasked(vector)) {
      this.#pending[vector >> 3] = this.#pending[vector >> 3]! | (1 << (vector & 7));
      return;
    }
    this.#send(vector);
  }

  #deliver(vector: number): void {
    if (!this.isPending(vector) || !this.enabled || this.functionMasked || this.isMasked(vector)) return;
    this.#pending[vector >> 3] = this.#pending[vector >> 3]! & ~(1 << (vector & 7));
    this.#send(vector);
  }

  #deliverPending(): void {
    for (let vector = 0; vector < this.vectors; vector++) this.#deliver(vector);
  }

  #reset(): void {
    this.table.fill(0);
    this.#pending.fill(0);
    for (let vector = 0; vector < this.vectors; vector++) {
      this.table[vector * reg.PCI_MSIX_ENTRY_SIZE + reg.PCI_MSIX_ENTRY_VECTOR_CTRL] = reg.PCI_MSIX_ENTRY_CTRL_MASKBIT;
    }
  }

  /** What the entry says is sent to where it says. */
  #send(vector: number): void {
    const entry = new DataView(this.table.buffer, vector * reg.PCI_MSIX_ENTRY_SIZE, reg.PCI_MSIX_ENTRY_SIZE);
    this.#fn.sendMessage(
      vector,
      entry.getUint32(reg.PCI_MSIX_ENTRY_LOWER_ADDR, true),
      entry.getUint32(reg.PCI_MSIX_ENTRY_UPPER_ADDR, true),
      entry.getUint32(reg.PCI_MSIX_ENTRY_DATA, true),
    );
  }

  #tableRegisters(): Registers {
    const table = this.table;
    return {
      read: (offset, into) => {
        for (let i = 0; i < into.length; i++) into[i] = table[offset + i]!;
      },
      write: (offset, from) => {
        for (let i = 0; i < from.length; i++) {
          const within = (offset + i) % reg.PCI_MSIX_ENTRY_SIZE;
          let byte = from[i]!;
          // Messages are aligned, and of Vector Control only the mask bit exists.
          if (within === reg.PCI_MSIX_ENTRY_LOWER_ADDR) byte &= 0xfc;
          if (within === reg.PCI_MSIX_ENTRY_VECTOR_CTRL) byte &= reg.PCI_MSIX_ENTRY_CTRL_MASKBIT;
          if (within > reg.PCI_MSIX_ENTRY_VECTOR_CTRL) byte = 0;
          table[offset + i] = byte;
        }
        const last = Math.floor((offset + from.length - 1) / reg.PCI_MSIX_ENTRY_SIZE);
        for (let vector = Math.floor(offset / reg.PCI_MSIX_ENTRY_SIZE); vector <= last; vector++) this.#deliver(vector);
      },
    };
  }

  #pbaRegisters(): Registers {
    const pending = this.#pending;
    return {
      read: (offset, into) => {
        for (let i = 0; i < into.length; i++) into[i] = pending[offset + i]!;
      },
      write: () => {},
    };
  }
}

export function msix(options: MsixOptions): CapabilitySpec {
  return {
    id: reg.PCI_CAP_ID_MSIX,
    extended: false,
    length: reg.PCI_CAP_MSIX_SIZEOF,
    ...(options.at === undefined ? {} : { at: options.at }),
    install: (fn, _config, offset) => {
      fn.msix = new MsixCapability(fn, offset, options);
    },
  };
}
