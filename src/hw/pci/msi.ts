/**
 * The MSI capability (PCI Local Bus 3.0, 6.8.1): 1 to 32 vectors, 32 or 64-bit address, with or without a mask per vector.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { ConfigSpace } from './config-space.ts';
import type { PciFunction } from './function.ts';
import type { CapabilitySpec } from './function-spec.ts';

export interface MsiOptions {
  /** 1, 2, 4, 8, 16 or 32. */
  readonly vectors: number;
  /** 64-bit message address; true unless said otherwise. */
  readonly is64?: boolean;
  /** A mask and a pending bit for each vector. */
  readonly maskable?: boolean;
  readonly at?: number;
}

export class MsiCapability {
  /** Vectors that the function asks for. */
  readonly vectors: number;
  /** Offset of the capability. */
  readonly offset: number;
  readonly #fn: PciFunction;
  readonly #config: ConfigSpace;
  readonly #maskAt: number;
  readonly #dataAt: number;

  constructor(fn: PciFunction, offset: number, options: MsiOptions) {
    const { vectors } = options;
    if (vectors < 1 || vectors > 32 || !Number.isInteger(Math.log2(vectors))) {
      throw new Error(`MSI cannot have ${vectors} vectors`);
    }
    const is64 = options.is64 ?? true;
    const maskable = options.maskable ?? false;
    const config = fn.config;
    this.vectors = vectors;
    this.offset = offset;
    this.#fn = fn;
    this.#config = config;
    const flags =
      (Math.log2(vectors) << 1) | (is64 ? reg.PCI_MSI_FLAGS_64BIT : 0) | (maskable ? reg.PCI_MSI_FLAGS_MASKBIT : 0);
    config.define(offset + reg.PCI_MSI_FLAGS, 2, flags, reg.PCI_MSI_FLAGS_ENABLE | reg.PCI_MSI_FLAGS_QSIZE);
    config.define(offset + reg.PCI_MSI_ADDRESS_LO, 4, 0, 0xfffffffc);
    if (is64) config.define(offset + reg.PCI_MSI_ADDRESS_HI, 4, 0, 0xffffffff);
    this.#dataAt = is64 ? reg.PCI_MSI_DATA_64 : reg.PCI_MSI_DATA_32;
    config.define(offset + this.#dataAt, 2, 0, 0xffff);
    this.#maskAt = maskable ? offset + (is64 ? reg.PCI_MSI_MASK_64 : reg.PCI_MSI_MASK_32) : 0;
    if (maskable) {
      config.define(this.#maskAt, 4, 0, 2 ** vectors - 1);
      config.watch(this.#maskAt, 4, () => this.#deliverPending());
    }
    config.watch(offset + reg.PCI_MSI_FLAGS, 2, () => this.#deliverPending());
    fn.onReset(() => {
      if (this.#maskAt !== 0) config.set(this.#maskAt + 4, 4, 0);
    });
  }

  get enabled(): boolean {
    return (this.#config.get(this.offset + reg.PCI_MSI_FLAGS, 2) & reg.PCI_MSI_FLAGS_ENABLE) !== 0;
  }

  /** Vectors that software granted, never more than the function has. */
  get enabledVectors(): number {
    const granted = (this.#config.get(this.offset + reg.PCI_MSI_FLAGS, 2) & reg.PCI_MSI_FLAGS_QSIZE) >> 4;
    return Math.min(this.vectors, 2 ** granted);
  }

  /**
   * Sends the message of `vector`; with fewer vectors granted, the lower bits of the number decide. Masked: it stays pending.
   * Nothing happens while MSI is not enabled.
   */
  fire(vector: number): void {
    if (!this.enabled) return;
    const sent = vector & (this.enabledVectors - 1);
    if (this.#maskAt !== 0 && ((this.#config.get(this.#maskAt, 4) >>> sent) & 1) === 1) {
      const pending = this.#maskAt + 4;
      this.#config.set(pending, 4, (this.#config.get(pending, 4) | (1 << sent)) >>> 0);
      return;
    }
    this.#send(sent);
  }

  /** The low bits of the data are the vector's. */
  #send(vector: number): void {
    const { offset } = this;
    const low = this.#config.get(offset + reg.PCI_MSI_ADDRESS_LO, 4);
    const high = this.#dataAt === reg.PCI_MSI_DATA_64 ? this.#config.get(offset + reg.PCI_MSI_ADDRESS_HI, 4) : 0;
    const data = this.#config.get(offset + this.#dataAt, 2);
    this.#fn.sendMessage(vector, low, high, (data & ~(this.enabledVectors - 1)) | vector);
  }

  #deliverPending(): void {
    if (this.#maskAt === 0 || !this.enabled) return;
    const config = this.#config;
    const ready = (config.get(this.#maskAt + 4, 4) & ~config.get(this.#maskAt, 4)) >>> 0;
    if (ready === 0) return;
    config.set(this.#maskAt + 4, 4, (config.get(this.#maskAt + 4, 4) & ~ready) >>> 0);
    for (let vector = 0; vector < this.vectors; vector++) {
      if (((ready >>> vector) & 1) === 1) this.#send(vector);
    }
  }
}

export function msi(options: MsiOptions): CapabilitySpec {
  const is64 = options.is64 ?? true;
  return {
    id: reg.PCI_CAP_ID_MSI,
    extended: false,
    length: (options.maskable ? 20 : 10) + (is64 ? 4 : 0),
    ...(options.at === undefined ? {} : { at: options.at }),
    install: (fn, _config, offset) => {
      fn.msi = new MsiCapability(fn, offset, options);
    },
  };
}
