/**
 * The configuration space as a user of VFIO sees it: hardware registers where that does no harm, a copy of them where it would.
 *
 * Accesses are cut into naturally aligned parts of at most 4 bytes that lie in one capability, each part goes by the masks of
 * `config-layout.ts`, and some registers then act: COMMAND, the power state, the reset bits, MSI's control, VPD.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import { type ConfigLayout, layOut, OWNER_HEADER, OWNER_NONE, RAW_WRITE, RAW_WRITE_EXTENDED } from './config-layout.ts';

type Size = 1 | 2 | 4;

const DECODE = reg.PCI_COMMAND_IO | reg.PCI_COMMAND_MEMORY;
const BARS_END = reg.PCI_BASE_ADDRESS_0 + 4 * reg.PCI_STD_NUM_BARS;
const PCI_CAP_ID_VPD = 0x03;
const PCI_VPD_ADDR = 2;
const PCI_VPD_ADDR_F = 0x8000;
const PCI_VPD_DATA = 4;

/** What a register of configuration space may set off; the device. */
export interface ConfigActions {
  readonly fn: PciFunction;
  /** 1 while MSI is enabled by SET_IRQS. */
  readonly msiEnabled: boolean;
  /** Binary logarithm of the vectors that were last enabled by SET_IRQS. */
  readonly msiQueueMax: number;
  /** COMMAND.INTX_DISABLE as the user sees it has changed. */
  intxDisabled(disabled: boolean): void;
  /** The memory decode bit of the user has changed, or may have: mappings come and go. */
  memoryChanged(): void;
  setPowerState(state: number): void;
  /** Resets the function if it can be reset; never fails. */
  tryReset(): void;
}

function isBar(offset: number): boolean {
  return (
    (offset >= reg.PCI_BASE_ADDRESS_0 && offset < BARS_END) ||
    (offset >= reg.PCI_ROM_ADDRESS && offset < reg.PCI_ROM_ADDRESS + 4)
  );
}

function load(bytes: Uint8Array, at: number, size: Size): number {
  if (size === 1) return bytes[at]!;
  if (size === 2) return bytes[at]! | (bytes[at + 1]! << 8);
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

function store(bytes: Uint8Array, at: number, size: Size, value: number): void {
  for (let i = 0; i < size; i++) bytes[at + i] = value >>> (8 * i);
}

export class VfioPciConfig {
  readonly #actions: ConfigActions;
  readonly #fn: PciFunction;
  readonly #layout: ConfigLayout;
  readonly #copy: Uint8Array;
  /** BARs and ROM as firmware set them. */
  readonly #realBars: number[] = [];
  #barsDirty = true;
  #intxDisabled = false;

  /** `hasIntx` false: the pin reads 0. */
  constructor(actions: ConfigActions, hasIntx: boolean) {
    const { fn } = actions;
    this.#actions = actions;
    this.#fn = fn;
    this.#layout = layOut(fn.config);
    this.#copy = this.#layout.copy;
    for (let at = reg.PCI_BASE_ADDRESS_0; at < BARS_END; at += 4) this.#realBars.push(load(this.#copy, at, 4));
    this.#realBars.push(load(this.#copy, reg.PCI_ROM_ADDRESS, 4));
    if (fn.isVirtfn) {
      store(this.#copy, reg.PCI_VENDOR_ID, 2, fn.vendor);
      store(this.#copy, reg.PCI_DEVICE_ID, 2, fn.device);
      this.#copy[reg.PCI_COMMAND]! |= reg.PCI_COMMAND_MEMORY;
    }
    if (!hasIntx) this.#copy[reg.PCI_INTERRUPT_PIN] = 0;
  }

  /** Whether the user has memory decoding on (virtual functions have no bit for it). */
  get memoryEnabled(): boolean {
    return this.#fn.isVirtfn || (this.#copy[reg.PCI_COMMAND]! & reg.PCI_COMMAND_MEMORY) !== 0;
  }

  /** Whether the user sees an interrupt pin. */
  get hasIntx(): boolean {
    return this.#copy[reg.PCI_INTERRUPT_PIN] !== 0;
  }

  /** Reads all of `into`. EFAULT: a part of it lies beyond the end of the space. */
  read(offset: number, into: Uint8Array): number {
    this.#inside(offset, into.length);
    let done = 0;
    while (done < into.length) {
      const at = offset + done;
      const size = this.#part(at, into.length - done);
      const value = this.#read(at, size);
      for (let i = 0; i < size; i++) into[done + i] = value >>> (8 * i);
      done += size;
    }
    return done;
  }

  /** Writes all of `from` as far as it may be written. EFAULT: a part of it lies beyond the end of the space. */
  write(offset: number, from: Uint8Array): number {
    this.#inside(offset, from.length);
    let done = 0;
    while (done < from.length) {
      const at = offset + done;
      const size = this.#part(at, from.length - done);
      this.#write(at, size, load(from, done, size));
      done += size;
    }
    return done;
  }

  #inside(offset: number, length: number): void {
    if (offset + length > this.#fn.config.length) {
      throw new Errno(
        'EFAULT',
        `configuration space has ${this.#fn.config.length} bytes, the access is to ${length} from ${offset}`,
      );
    }
  }

  /** Bytes from `at` that one access may take: aligned, within a dword and within one capability. */
  #part(at: number, left: number): Size {
    const { owner } = this.#layout;
    let same = 1;
    while ((at + same) % 4 !== 0 && owner[at + same] === owner[at]) same++;
    const most = Math.min(same, left);
    if (most >= 4 && at % 4 === 0) return 4;
    return most >= 2 && at % 2 === 0 ? 2 : 1;
  }

  #read(at: number, size: Size): number {
    if (isBar(at)) this.#fixBars();
    const virtual = load(this.#layout.virtual, at, size);
    const copy = load(this.#copy, at, size);
    const all = size === 4 ? 0xffff_ffff : 2 ** (8 * size) - 1;
    let value = virtual === all ? copy : (this.#fn.config.read(at, size) & ~virtual) | (copy & virtual);
    if (at === reg.PCI_COMMAND && this.#fn.isVirtfn) value |= this.#copy[at]! & reg.PCI_COMMAND_MEMORY;
    return value >>> 0;
  }

  #write(at: number, size: Size, value: number): void {
    const owner = this.#layout.owner[at]!;
    if (owner === OWNER_NONE || (at < 0x100 ? RAW_WRITE : RAW_WRITE_EXTENDED).has(owner)) {
      this.#fn.config.write(at, size, value);
      return;
    }
    const start = this.#layout.start[at]!;
    if (at >= 0x100) this.#writeMasked(at, size, value);
    else if (owner === OWNER_HEADER) this.#writeHeader(at, size, value);
    else {
      const before = load(this.#copy, start + reg.PCI_EXP_DEVCTL, 2);
      this.#writeMasked(at, size, value);
      if (owner === reg.PCI_CAP_ID_PM) {
        if (at === start + reg.PCI_PM_CTRL) this.#actions.setPowerState(value & reg.PCI_PM_CTRL_STATE_MASK);
      } else if (owner === reg.PCI_CAP_ID_MSI) this.#msiWritten(start, at - start, size);
      else if (owner === reg.PCI_CAP_ID_EXP) this.#expressWritten(start, before);
      else if (owner === reg.PCI_CAP_ID_AF) this.#featuresWritten(start);
      else if (owner === PCI_CAP_ID_VPD) this.#vpdWritten(start, at - start, size);
    }
  }

  /** Writable bits that are virtual go to the copy, the others to hardware. */
  #writeMasked(at: number, size: Size, value: number): void {
    const writable = load(this.#layout.writable, at, size);
    if (writable === 0) return;
    const virtual = load(this.#layout.virtual, at, size);
    const copied = writable & virtual;
    if (copied !== 0) store(this.#copy, at, size, (load(this.#copy, at, size) & ~copied) | (value & copied));
    const passed = writable & ~virtual;
    if (passed !== 0) {
      const { config } = this.#fn;
      config.write(at, size, ((config.read(at, size) & ~passed) | (value & passed)) >>> 0);
    }
  }

  #writeHeader(at: number, size: Size, value: number): void {
    if (at === reg.PCI_COMMAND) this.#recoverFromReset(value);
    this.#writeMasked(at, size, value);
    if (at === reg.PCI_COMMAND) {
      this.#copy[at] = (this.#copy[at]! & ~DECODE) | (value & DECODE);
      this.#actions.memoryChanged();
    }
    if (at === reg.PCI_COMMAND || at === reg.PCI_COMMAND + 1) {
      const disabled = (load(this.#copy, reg.PCI_COMMAND, 2) & reg.PCI_COMMAND_INTX_DISABLE) !== 0;
      if (disabled !== this.#intxDisabled) {
        this.#intxDisabled = disabled;
        this.#actions.intxDisabled(disabled);
      }
    }
    if (isBar(at)) this.#barsDirty = true;
  }

  /**
   * A device that was reset behind our back has lost its BARs; this is noticed when decoding, which should be on, is off. The
   * real BARs are written again before the user can turn decoding on.
   */
  #recoverFromReset(value: number): void {
    if (this.#fn.isVirtfn) return;
    const { config } = this.#fn;
    const lost = value & this.#copy[reg.PCI_COMMAND]! & ~config.read(reg.PCI_COMMAND, 1) & DECODE;
    let moved = false;
    for (let i = 0; i < reg.PCI_STD_NUM_BARS; i++) {
      const real = this.#realBars[i]!;
      if (real !== 0 && config.read(reg.PCI_BASE_ADDRESS_0 + 4 * i, 4) !== real) moved = true;
    }
    if (lost === 0 && !moved) return;
    for (let i = 0; i < reg.PCI_STD_NUM_BARS; i++) config.write(reg.PCI_BASE_ADDRESS_0 + 4 * i, 4, this.#realBars[i]!);
    config.write(reg.PCI_ROM_ADDRESS, 4, this.#realBars[reg.PCI_STD_NUM_BARS]!);
  }

  /** Makes the copied BARs answer sizing as the hardware would: low bits fixed, address bits below the size zero. */
  #fixBars(): void {
    if (!this.#barsDirty) return;
    this.#barsDirty = false;
    const { bars, rom } = this.#fn;
    for (let i = 0; i < reg.PCI_STD_NUM_BARS; i++) {
      const at = reg.PCI_BASE_ADDRESS_0 + 4 * i;
      const bar = bars[i];
      if (bar === undefined || bar.address === 0) {
        store(this.#copy, at, 4, 0);
        continue;
      }
      const mask = ~(BigInt(bar.size) - 1n);
      let flags = 0;
      if (bar.kind === 'io') flags = reg.PCI_BASE_ADDRESS_SPACE_IO;
      else {
        if (bar.prefetchable) flags |= reg.PCI_BASE_ADDRESS_MEM_PREFETCH;
        if (bar.is64) flags |= reg.PCI_BASE_ADDRESS_MEM_TYPE_64;
      }
      store(this.#copy, at, 4, (load(this.#copy, at, 4) & Number(BigInt.asUintN(32, mask))) | flags);
      if (bar.is64) {
        i++;
        store(this.#copy, at + 4, 4, load(this.#copy, at + 4, 4) & Number(BigInt.asUintN(32, mask >> 32n)));
      }
    }
    const romMask = rom === undefined || rom.address === 0 ? 0 : ~(rom.size - 1) | reg.PCI_ROM_ADDRESS_ENABLE;
    store(this.#copy, reg.PCI_ROM_ADDRESS, 4, load(this.#copy, reg.PCI_ROM_ADDRESS, 4) & romMask);
  }

  /** MSI is enabled by SET_IRQS only, and with no more vectors than were enabled there. */
  #msiWritten(start: number, offset: number, size: Size): void {
    if (offset > reg.PCI_MSI_FLAGS || offset + size < reg.PCI_MSI_FLAGS) return;
    let flags = load(this.#copy, start + reg.PCI_MSI_FLAGS, 2);
    if (!this.#actions.msiEnabled) flags &= ~reg.PCI_MSI_FLAGS_ENABLE;
    if ((flags & reg.PCI_MSI_FLAGS_QSIZE) >> 4 > this.#actions.msiQueueMax) {
      flags = (flags & ~reg.PCI_MSI_FLAGS_QSIZE) | (this.#actions.msiQueueMax << 4);
    }
    store(this.#copy, start + reg.PCI_MSI_FLAGS, 2, flags);
    this.#fn.config.write(start + reg.PCI_MSI_FLAGS, 2, flags);
  }

  /** The reset bit reads 0 again; the read request size follows the user, but never below the payload size of hardware. */
  #expressWritten(start: number, before: number): void {
    const { config } = this.#fn;
    const at = start + reg.PCI_EXP_DEVCTL;
    const control = load(this.#copy, at, 2);
    if (control & reg.PCI_EXP_DEVCTL_BCR_FLR) {
      store(this.#copy, at, 2, control & ~reg.PCI_EXP_DEVCTL_BCR_FLR);
      if (config.read(start + reg.PCI_EXP_DEVCAP, 4) & reg.PCI_EXP_DEVCAP_FLR) this.#actions.tryReset();
    }
    if ((control & reg.PCI_EXP_DEVCTL_READRQ) === (before & reg.PCI_EXP_DEVCTL_READRQ)) return;
    const hardware = config.read(at, 2);
    const size = Math.max((control & reg.PCI_EXP_DEVCTL_READRQ) >> 12, (hardware & reg.PCI_EXP_DEVCTL_PAYLOAD) >> 5);
    if (size <= 5) config.write(at, 2, (hardware & ~reg.PCI_EXP_DEVCTL_READRQ) | (size << 12));
  }

  #featuresWritten(start: number): void {
    const at = start + reg.PCI_AF_CTRL;
    if (!(this.#copy[at]! & reg.PCI_AF_CTRL_FLR)) return;
    this.#copy[at]! &= ~reg.PCI_AF_CTRL_FLR;
    const both = reg.PCI_AF_CAP_FLR | reg.PCI_AF_CAP_TP;
    if ((this.#fn.config.read(start + reg.PCI_AF_CAP, 1) & both) === both) this.#actions.tryReset();
  }

  /** A write of the address register carries out the transfer and flips the flag; a transfer that fails leaves it. */
  #vpdWritten(start: number, offset: number, size: Size): void {
    if (offset > PCI_VPD_ADDR + 1 || offset + size <= PCI_VPD_ADDR + 1) return;
    const { config } = this.#fn;
    const address = load(this.#copy, start + PCI_VPD_ADDR, 2);
    const isWrite = (address & PCI_VPD_ADDR_F) !== 0;
    if (isWrite) config.write(start + PCI_VPD_DATA, 4, load(this.#copy, start + PCI_VPD_DATA, 4));
    config.write(start + PCI_VPD_ADDR, 2, address);
    const isDone = ((config.read(start + PCI_VPD_ADDR, 2) & PCI_VPD_ADDR_F) !== 0) !== isWrite;
    if (!isDone) return;
    if (!isWrite) store(this.#copy, start + PCI_VPD_DATA, 4, config.read(start + PCI_VPD_DATA, 4));
    store(this.#copy, start + PCI_VPD_ADDR, 2, address ^ PCI_VPD_ADDR_F);
  }
}
