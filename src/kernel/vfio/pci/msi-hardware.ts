/**
 * MSI and MSI-X as the kernel programs them into a function: address and data, masks, the enable bit. COMMAND.INTX_DISABLE goes
 * with them, because a function may use one kind of interrupt only.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import type { MessageIrq, VfioPciEnvironment } from './environment.ts';

const MESSAGE_ADDRESS = 0xfee0_0000;

type AllocateIrqs = NonNullable<VfioPciEnvironment['allocateIrqs']>;

/** Sets or clears COMMAND.INTX_DISABLE. */
export function setIntx(fn: PciFunction, enabled: boolean): void {
  const command = fn.config.read(reg.PCI_COMMAND, 2);
  const wanted = enabled ? command & ~reg.PCI_COMMAND_INTX_DISABLE : command | reg.PCI_COMMAND_INTX_DISABLE;
  if (wanted !== command) fn.config.write(reg.PCI_COMMAND, 2, wanted);
}

/** Vectors that the function's MSI capability has, 0 without one. */
export function msiVectors(fn: PciFunction): number {
  const at = fn.config.findCapability(reg.PCI_CAP_ID_MSI);
  return at === 0 ? 0 : 1 << ((fn.config.read(at + reg.PCI_MSI_FLAGS, 2) & reg.PCI_MSI_FLAGS_QMASK) >> 1);
}

/** Entries of the function's MSI-X table, 0 without one. */
export function msixVectors(fn: PciFunction): number {
  const at = fn.config.findCapability(reg.PCI_CAP_ID_MSIX);
  return at === 0 ? 0 : (fn.config.read(at + reg.PCI_MSIX_FLAGS, 2) & reg.PCI_MSIX_FLAGS_QSIZE) + 1;
}

/** The bytes of BARs that MSI-X tables take: which BAR, from where, how many. Undefined without MSI-X. */
export function msixTable(fn: PciFunction): { bar: number; offset: number; length: number } | undefined {
  const at = fn.config.findCapability(reg.PCI_CAP_ID_MSIX);
  if (at === 0) return undefined;
  const table = fn.config.read(at + reg.PCI_MSIX_TABLE, 4);
  return {
    bar: table & reg.PCI_MSIX_TABLE_BIR,
    offset: (table & reg.PCI_MSIX_TABLE_OFFSET) >>> 0,
    length: msixVectors(fn) * reg.PCI_MSIX_ENTRY_SIZE,
  };
}

/** The MSI or MSI-X registers of one function while SET_IRQS has them enabled. */
export class MessageInterrupts {
  readonly isMsix: boolean;
  readonly #fn: PciFunction;
  /** Vectors that have an entry of the kernel; MSI-X may get more later. */
  readonly #allocated = new Set<number>();
  readonly #open = new Set<number>();
  readonly #entry = new Uint8Array(reg.PCI_MSIX_ENTRY_SIZE);
  readonly #allocateIrqs: AllocateIrqs;
  /** Interrupts of the host behind the vectors; none where messages are not remapped. */
  readonly #irqs = new Map<number, MessageIrq>();

  /** Enables `count` vectors, all masked as far as the function can mask. ENOSPC: the host has not that many interrupts. */
  constructor(fn: PciFunction, isMsix: boolean, count: number, allocateIrqs: AllocateIrqs = () => undefined) {
    this.#fn = fn;
    this.isMsix = isMsix;
    this.#allocateIrqs = allocateIrqs;
    try {
      if (isMsix) for (let vector = 0; vector < count; vector++) this.#takeIrqs(vector, 1);
      else this.#takeIrqs(0, count);
    } catch (error) {
      this.#freeIrqs();
      throw error;
    }
    for (let vector = 0; vector < count; vector++) this.#allocated.add(vector);
    this.program();
  }

  /** The host's interrupt behind a vector. */
  irqOf(vector: number): MessageIrq | undefined {
    return this.#irqs.get(vector);
  }

  isAllocated(vector: number): boolean {
    return this.#allocated.has(vector);
  }

  /** Adds a vector to running MSI-X. ENOSPC. */
  allocate(vector: number): void {
    this.#takeIrqs(vector, 1);
    this.#allocated.add(vector);
    this.#writeEntry(vector);
  }

  /** Lets a vector's messages out, or holds them back. */
  setOpen(vector: number, isOpen: boolean): void {
    if (isOpen) this.#open.add(vector);
    else this.#open.delete(vector);
    if (this.isMsix) this.#writeEntry(vector);
    else this.#writeMask();
  }

  /** Writes all registers again, after a reset. */
  program(): void {
    const { config } = this.#fn;
    setIntx(this.#fn, false);
    if (this.isMsix) {
      const at = config.findCapability(reg.PCI_CAP_ID_MSIX);
      const flags = config.read(at + reg.PCI_MSIX_FLAGS, 2);
      for (const vector of this.#allocated) this.#writeEntry(vector);
      config.write(at + reg.PCI_MSIX_FLAGS, 2, (flags | reg.PCI_MSIX_FLAGS_ENABLE) & ~reg.PCI_MSIX_FLAGS_MASKALL);
      return;
    }
    const at = config.findCapability(reg.PCI_CAP_ID_MSI);
    const flags = config.read(at + reg.PCI_MSI_FLAGS, 2);
    const is64 = (flags & reg.PCI_MSI_FLAGS_64BIT) !== 0;
    this.#writeMask();
    const message = this.#irqs.get(0)?.message ?? { address: MESSAGE_ADDRESS, data: 0 };
    config.write(at + reg.PCI_MSI_ADDRESS_LO, 4, message.address);
    if (is64) config.write(at + reg.PCI_MSI_ADDRESS_HI, 4, 0);
    config.write(at + (is64 ? reg.PCI_MSI_DATA_64 : reg.PCI_MSI_DATA_32), 2, message.data);
    const queue = Math.ceil(Math.log2(Math.max(1, this.#allocated.size)));
    config.write(
      at + reg.PCI_MSI_FLAGS,
      2,
      (flags & ~reg.PCI_MSI_FLAGS_QSIZE) | (queue << 4) | reg.PCI_MSI_FLAGS_ENABLE,
    );
  }

  /** Turns them off; INTx may be used again. */
  disable(): void {
    const { config } = this.#fn;
    this.#open.clear();
    if (this.isMsix) {
      const at = config.findCapability(reg.PCI_CAP_ID_MSIX);
      for (const vector of this.#allocated) this.#writeEntry(vector);
      const flags = config.read(at + reg.PCI_MSIX_FLAGS, 2);
      config.write(at + reg.PCI_MSIX_FLAGS, 2, flags & ~(reg.PCI_MSIX_FLAGS_ENABLE | reg.PCI_MSIX_FLAGS_MASKALL));
    } else {
      const at = config.findCapability(reg.PCI_CAP_ID_MSI);
      const flags = config.read(at + reg.PCI_MSI_FLAGS, 2);
      config.write(at + reg.PCI_MSI_FLAGS, 2, flags & ~(reg.PCI_MSI_FLAGS_ENABLE | reg.PCI_MSI_FLAGS_QSIZE));
    }
    this.#allocated.clear();
    this.#freeIrqs();
    setIntx(this.#fn, true);
  }

  /** Interrupts for `count` vectors from `first`; their handlers hand the vector to who takes the function's interrupts. */
  #takeIrqs(first: number, count: number): void {
    const handlers = Array.from({ length: count }, (_, i) => () => this.#fn.sink?.message(first + i));
    this.#allocateIrqs(this.#fn, handlers)?.forEach((irq, i) => {
      this.#irqs.set(first + i, irq);
    });
  }

  #freeIrqs(): void {
    for (const irq of this.#irqs.values()) irq.free();
    this.#irqs.clear();
  }

  #writeEntry(vector: number): void {
    const table = msixTable(this.#fn);
    const bar = table === undefined ? undefined : this.#fn.bars[table.bar];
    if (table === undefined || bar === undefined) return;
    const at = table.offset + vector * reg.PCI_MSIX_ENTRY_SIZE;
    const message = this.#irqs.get(vector)?.message ?? { address: MESSAGE_ADDRESS, data: vector };
    const words = [message.address, 0, message.data, this.#open.has(vector) ? 0 : reg.PCI_MSIX_ENTRY_CTRL_MASKBIT];
    for (let i = 0; i < 4; i++) {
      const word = this.#entry.subarray(4 * i, 4 * i + 4);
      for (let byte = 0; byte < 4; byte++) word[byte] = words[i]! >>> (8 * byte);
      bar.write(at + 4 * i, word);
    }
  }

  #writeMask(): void {
    const { config } = this.#fn;
    const at = config.findCapability(reg.PCI_CAP_ID_MSI);
    const flags = config.read(at + reg.PCI_MSI_FLAGS, 2);
    if (!(flags & reg.PCI_MSI_FLAGS_MASKBIT)) return;
    let mask = 0xffff_ffff;
    for (const vector of this.#open) mask &= ~(1 << vector);
    const is64 = (flags & reg.PCI_MSI_FLAGS_64BIT) !== 0;
    config.write(at + (is64 ? reg.PCI_MSI_MASK_64 : reg.PCI_MSI_MASK_32), 4, mask >>> 0);
  }
}
