/**
 * One PCI function in its slot: configuration space, BARs, interrupts, DMA port, resets. Built from a model's `FunctionSpec`;
 * software drives it through configuration space and BARs, the model through `intx`, `msi`, `msix` and `dma`.
 *
 * The bus number, and with it the requester ID, belongs to the bus; a function never stores it.
 */

import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { PhysicalMemory } from '../memory/physical-memory.ts';
import { readAcs } from './acs-quirks.ts';
import { FunctionBar } from './bar.ts';
import type { Bus } from './bus.ts';
import { ConfigSpace } from './config-space.ts';
import { Decoder } from './decoder.ts';
import { DmaPort, type Upstream } from './dma.ts';
import type { FunctionSpec, Quirks, ResetKind } from './function-spec.ts';
import { writeHeader } from './header.ts';
import { IntxPin } from './intx.ts';
import type { MsiCapability } from './msi.ts';
import type { MsixCapability } from './msix.ts';
import { restoreState, saveState } from './saved-state.ts';
import type { SriovCapability } from './sriov.ts';
import { type AcsState, slotOf } from './topology.ts';

/** Who takes a function's interrupts. */
export interface InterruptSink {
  /** The level of INTx, called at each change and once at the start if it is asserted. */
  intx(asserted: boolean): void;
  /** An MSI or MSI-X message of this vector. */
  message(vector: number): void;
  /** An uncorrectable error was signalled (AER). */
  error?(fatal: boolean): void;
}

/** Safe to hand out as it is; as virtual function only; nobody knows; can be controlled from elsewhere. */
export type Behaviour = 'yes' | 'vf' | 'unknown' | 'backdoor';

/** Where a function stands, and what the host file pins. */
export interface Place {
  readonly bus: Bus;
  readonly devfn: number;
  /** Forces the multifunction bit; else it is set while the slot has several functions. */
  readonly multifunction?: boolean;
  readonly untrusted?: boolean;
  readonly dmaAliases?: Iterable<number>;
  readonly quirks?: Quirks;
  readonly wellBehaved?: Behaviour;
  /** Bus addresses of BARs by index, instead of firmware's choice. */
  readonly barAddresses?: Readonly<Record<number, number>>;
  readonly interruptLine?: number;
  /** The bus behind a bridge, instead of firmware's numbering. */
  readonly secondary?: number;
  readonly subordinate?: number;
  /** The physical function whose virtual function this is. */
  readonly physfn?: PciFunction;
}

/** Who has something to do around a reset by software: the IOMMU's driver blocks the function's requests meanwhile. */
export interface ResetGuard {
  begin(): void;
  end(): void;
}

export class PciFunction {
  readonly spec: FunctionSpec;
  readonly place: Place;
  readonly segment: number;
  readonly devfn: number;
  readonly bus: Bus;
  readonly vendor: number;
  readonly device: number;
  readonly class24: number;
  readonly revision: number;
  readonly subsystemVendor: number;
  readonly subsystemDevice: number;
  readonly interruptPin: number;
  readonly config: ConfigSpace;
  /** Six; the upper half of a 64-bit BAR is undefined. */
  readonly bars: readonly (FunctionBar | undefined)[];
  readonly rom: FunctionBar | undefined;
  readonly isBridge: boolean;
  readonly isVirtfn: boolean;
  readonly physfn: PciFunction | undefined;
  /** devfns on the same bus that this function's DMA may also carry. */
  dmaAliases: Set<number>;
  untrusted: boolean;
  readonly quirks: Quirks;
  wellBehaved: Behaviour;
  readonly dma: DmaPort;
  readonly intx: IntxPin;
  /** The bus behind a bridge; set by the tree. */
  secondary: Bus | undefined;
  // Set by the capabilities at installation.
  portType: number | undefined;
  msi: MsiCapability | undefined;
  msix: MsixCapability | undefined;
  sriov: SriovCapability | undefined;
  /** ACS control that the description wants instead of what the kernel switches on at boot. */
  acsControl: number | undefined;
  /** The methods that software wants tried, in its order (`reset_method`). Undefined: all of them. */
  resetChoice: readonly ResetKind[] | undefined;
  resetGuard: ResetGuard | undefined;
  /** Firmware has been here. */
  isConfigured = false;
  #sink: InterruptSink | undefined;
  readonly #decoder: Decoder;
  readonly #resetListeners: ((kind: ResetKind) => void)[] = [];

  constructor(spec: FunctionSpec, place: Place, memory: PhysicalMemory, upstream: Upstream) {
    this.spec = spec;
    this.place = place;
    this.segment = place.bus.segment;
    this.bus = place.bus;
    this.devfn = place.devfn;
    this.vendor = spec.vendor;
    this.device = spec.device;
    this.class24 = spec.class24;
    this.revision = spec.revision ?? 0;
    this.subsystemVendor = spec.subsystemVendor ?? 0;
    this.subsystemDevice = spec.subsystemDevice ?? 0;
    this.physfn = place.physfn;
    this.isVirtfn = place.physfn !== undefined;
    this.interruptPin = this.isVirtfn ? 0 : (spec.interruptPin ?? 0);
    this.isBridge = spec.bridge !== undefined;
    this.dmaAliases = new Set(place.dmaAliases);
    this.untrusted = place.untrusted ?? false;
    this.quirks = place.quirks ?? {};
    this.wellBehaved = place.wellBehaved ?? 'unknown';
    const isExpress = spec.capabilities?.some((c) => !c.extended && c.id === reg.PCI_CAP_ID_EXP) ?? false;
    this.config = new ConfigSpace(isExpress ? 4096 : 256);
    this.bars = this.#makeBars();
    this.rom = this.#makeRom();
    writeHeader(this);
    this.intx = new IntxPin(this.config, (level) => this.#sink?.intx(level));
    this.dma = new DmaPort(
      memory,
      upstream,
      () => this.requesterId,
      () => this.busMaster,
      (service) => this.#hasService(service),
    );
    for (const capability of spec.capabilities ?? []) {
      const offset = capability.extended
        ? this.config.addExtended(capability.id, capability.version ?? 1, capability.length, capability.at)
        : this.config.addCapability(capability.id, capability.length, capability.at);
      capability.install(this, this.config, offset);
    }
    this.config.seal();
    this.#decoder = new Decoder(this, memory);
  }

  /** Requester ID: bus number and devfn, 16 bits. */
  get rid(): number {
    return (this.bus.number << 8) | this.devfn;
  }

  /** `0000:00:04.0` */
  get name(): string {
    const h = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
    return `${h(this.segment, 4)}:${h(this.bus.number, 2)}:${h(this.devfn >> 3, 2)}.${this.devfn & 7}`;
  }

  /**
   * The requester ID that arrives at the root: a bridge to conventional PCI puts its own (or its secondary bus's) in place of the
   * function's (PCI Express to PCI Bridge 1.0, 2.3).
   */
  get requesterId(): number {
    return this.bus.requesterId(this.rid);
  }

  get multifunction(): boolean {
    if (this.isVirtfn) return false;
    return this.place.multifunction ?? slotOf(this).some((f) => f !== this && !f.isVirtfn);
  }

  get acs(): AcsState | undefined {
    return readAcs(this, this.config);
  }

  get sink(): InterruptSink | undefined {
    return this.#sink;
  }

  set sink(sink: InterruptSink | undefined) {
    this.#sink = sink;
    if (this.intx.level) sink?.intx(true);
  }

  /** 0 to 3 for D0 to D3hot. */
  get powerState(): number {
    const pm = this.config.findCapability(reg.PCI_CAP_ID_PM);
    return pm === 0 ? 0 : this.config.get(pm + reg.PCI_PM_CTRL, 2) & reg.PCI_PM_CTRL_STATE_MASK;
  }

  /** Whether memory BARs answer: COMMAND.MEM in D0; of a virtual function, its physical function's VF MSE. */
  get memoryEnabled(): boolean {
    if (this.config.gone) return false;
    if (this.physfn !== undefined) return this.physfn.sriov?.memoryEnabled ?? false;
    return this.#command(reg.PCI_COMMAND_MEMORY);
  }

  get ioEnabled(): boolean {
    return this.#command(reg.PCI_COMMAND_IO);
  }

  get busMaster(): boolean {
    return this.#command(reg.PCI_COMMAND_MASTER);
  }

  /** False after `remove`. */
  get present(): boolean {
    return !this.config.gone;
  }

  /** Ways to reset this function and no other, in the order in which they are tried: what software chose, else all there are. */
  get resetMethods(): readonly ResetKind[] {
    const all = this.supportedResetMethods;
    return this.resetChoice?.filter((method) => all.includes(method)) ?? all;
  }

  /** All ways to reset this function and no other, in the kernel's own order. */
  get supportedResetMethods(): readonly ResetKind[] {
    const config = this.config;
    const methods: ResetKind[] = [];
    const express = config.findCapability(reg.PCI_CAP_ID_EXP);
    if (express !== 0 && (config.get(express + reg.PCI_EXP_DEVCAP, 4) & reg.PCI_EXP_DEVCAP_FLR) !== 0)
      methods.push('flr');
    const af = config.findCapability(reg.PCI_CAP_ID_AF);
    const afBoth = reg.PCI_AF_CAP_FLR | reg.PCI_AF_CAP_TP;
    if (af !== 0 && (config.get(af + reg.PCI_AF_CAP, 1) & afBoth) === afBoth) methods.push('af_flr');
    const pm = config.findCapability(reg.PCI_CAP_ID_PM);
    if (pm !== 0 && (config.get(pm + reg.PCI_PM_CTRL, 2) & reg.PCI_PM_CTRL_NO_SOFT_RESET) === 0) methods.push('pm');
    if (this.bus.self !== undefined && !this.isBridge && this.bus.functions.length === 1) methods.push('bus');
    return methods;
  }

  /**
   * Resets this function as software does: saves what was set up in configuration space, resets by the first method (or the one
   * named), restores. Writing the FLR bit oneself does only the middle. ENOTTY: no such method.
   */
  reset(method: ResetKind | undefined = this.resetMethods[0]): void {
    if (method === undefined || !this.resetMethods.includes(method)) {
      throw new Errno('ENOTTY', `${this.name} cannot be reset${method === undefined ? '' : ` by ${method}`}`);
    }
    this.resetGuard?.begin();
    try {
      this.#resetBy(method);
    } finally {
      this.resetGuard?.end();
    }
  }

  #resetBy(method: ResetKind): void {
    const saved = saveState(this);
    const config = this.config;
    if (method === 'flr') {
      const at = config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_DEVCTL;
      config.write(at, 2, config.read(at, 2) | reg.PCI_EXP_DEVCTL_BCR_FLR);
    } else if (method === 'af_flr') {
      config.write(config.findCapability(reg.PCI_CAP_ID_AF) + reg.PCI_AF_CTRL, 1, reg.PCI_AF_CTRL_FLR);
    } else if (method === 'pm') {
      const at = config.findCapability(reg.PCI_CAP_ID_PM) + reg.PCI_PM_CTRL;
      config.write(at, 2, 3);
      config.write(at, 2, 0);
    } else this.bus.self!.pulseBusReset();
    restoreState(this, saved);
  }

  /** Of a bridge: sets and clears Secondary Bus Reset. Everything below is reset; nothing is saved or restored. */
  pulseBusReset(): void {
    const config = this.config;
    const control = config.read(reg.PCI_BRIDGE_CONTROL, 2);
    config.write(reg.PCI_BRIDGE_CONTROL, 2, control | reg.PCI_BRIDGE_CTL_BUS_RESET);
    config.write(reg.PCI_BRIDGE_CONTROL, 2, control & ~reg.PCI_BRIDGE_CTL_BUS_RESET);
  }

  /** What the hardware does when a reset reaches it, whatever caused it. */
  resetHardware(kind: ResetKind): void {
    this.config.reset();
    this.intx.deassert();
    for (const listener of this.#resetListeners) listener(kind);
    this.spec.reset?.(kind);
    this.intx.refresh();
    this.#decoder.update();
    if (kind === 'bus') for (const below of this.secondary?.functions ?? []) below.resetHardware('bus');
  }

  /** For capabilities: called at each reset, after configuration space and before the model. */
  onReset(listener: (kind: ResetKind) => void): void {
    this.#resetListeners.push(listener);
  }

  /** Sends a message: through interrupt remapping where there is one, which may send it elsewhere or drop it; else to who takes interrupts. */
  sendMessage(vector: number, low: number, high: number, data: number): void {
    if (!this.dma.message(low, high, data)) this.#sink?.message(vector);
  }

  /** An AER error is signalled: status registers first, then whoever takes interrupts. */
  reportError(uncorrectableBit: number, fatal: boolean): void {
    const config = this.config;
    const aer = config.findExtended(reg.PCI_EXT_CAP_ID_ERR);
    if (aer !== 0) {
      const at = aer + reg.PCI_ERR_UNCOR_STATUS;
      config.set(at, 4, (config.get(at, 4) | uncorrectableBit) >>> 0);
      if ((config.get(aer + reg.PCI_ERR_UNCOR_MASK, 4) & uncorrectableBit) !== 0) return;
    }
    const express = config.findCapability(reg.PCI_CAP_ID_EXP);
    if (express !== 0) {
      const at = express + reg.PCI_EXP_DEVSTA;
      config.set(at, 2, config.get(at, 2) | (fatal ? reg.PCI_EXP_DEVSTA_FED : reg.PCI_EXP_DEVSTA_NFED));
    }
    this.#sink?.error?.(fatal);
  }

  /** Pulls the function, and what is behind it, out of its slot: BARs vanish, DMA is refused, reads of configuration space give all ones. */
  remove(): void {
    this.bus.tree.remove(this);
  }

  /** The tree's half of `remove`. */
  detach(): void {
    this.intx.deassert();
    this.config.gone = true;
    for (const bar of [...this.bars, this.rom]) if (bar !== undefined) bar.gone = true;
    this.#decoder.update();
    this.spec.removed?.();
    this.#sink = undefined;
  }

  /** Looks at COMMAND, BARs and power state again and puts memory BARs where they decode. */
  updateDecoding(): void {
    this.#decoder.update();
  }

  /** Where a memory BAR answers now, -1 while it does not. */
  decodedAddress(bar: FunctionBar): number {
    return this.#decoder.decodedAddress(bar);
  }

  #hasService(service: 'ats' | 'pri'): boolean {
    const isAts = service === 'ats';
    // Virtual functions share the page requests of their parent.
    const { config } = isAts ? this : (this.physfn ?? this);
    const at = config.findExtended(isAts ? reg.PCI_EXT_CAP_ID_ATS : reg.PCI_EXT_CAP_ID_PRI);
    if (at === 0) return false;
    const control = config.get(at + (isAts ? reg.PCI_ATS_CTRL : reg.PCI_PRI_CTRL), 2);
    return (control & (isAts ? reg.PCI_ATS_CTRL_ENABLE : reg.PCI_PRI_CTRL_ENABLE)) !== 0;
  }

  #command(bit: number): boolean {
    const bytes = this.config.bytes;
    const command = bytes[reg.PCI_COMMAND]! | (bytes[reg.PCI_COMMAND + 1]! << 8);
    return (command & bit) !== 0 && !this.config.gone && this.powerState === 0;
  }

  #makeBars(): (FunctionBar | undefined)[] {
    const bars: (FunctionBar | undefined)[] = new Array(6).fill(undefined);
    const taken = new Set<number>();
    for (const spec of this.spec.bars ?? []) {
      const width = spec.is64 ? 2 : 1;
      for (let i = spec.index; i < spec.index + width; i++) {
        if (i < 0 || i > (this.isBridge ? 1 : 5) || taken.has(i)) throw new Error(`BAR ${spec.index} does not fit`);
        taken.add(i);
      }
      bars[spec.index] = new FunctionBar(spec);
    }
    return bars;
  }

  #makeRom(): FunctionBar | undefined {
    const contents = this.spec.rom;
    if (contents === undefined) return undefined;
    const size = Math.max(2048, 2 ** Math.ceil(Math.log2(contents.length)));
    return new FunctionBar({
      index: 6,
      kind: 'memory',
      size,
      registers: {
        read: (offset, into) => {
          for (let i = 0; i < into.length; i++) into[i] = contents[offset + i] ?? 0xff;
        },
        write: () => {},
      },
    });
  }
}
