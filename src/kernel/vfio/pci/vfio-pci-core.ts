/**
 * A PCI function in the hands of a user: opening and closing it, its regions and its memory.
 *
 * Memory answers while the user has COMMAND.MEM on, the function is in D0 to D2 and the device is not in low power; when that
 * ends, every mapping of a BAR in any program faults (SIGBUS), and it works again when it begins. Configuration space is in
 * `vfio-pci-config.ts`, power in `vfio-pci-power.ts`, interrupts in `vfio-pci-intrs.ts`, the ioctls in `vfio-pci-ioctl.ts`.
 */
import type { SharedMemory } from '../../../hw/memory/backing.ts';
import type { PciFunction } from '../../../hw/pci/function.ts';
import { resetBus, restoreState, type SavedState, saveState } from '../../../hw/pci/saved-state.ts';
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import {
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_ERR_IRQ_INDEX,
  VFIO_PCI_NUM_REGIONS,
  VFIO_PCI_REQ_IRQ_INDEX,
  VFIO_PCI_ROM_REGION_INDEX,
} from '../../../uapi/vfio.ts';
import type { FileMapping, IoctlResult } from '../../core/file.ts';
import type { Task } from '../../core/task.ts';
import type { IommuGroup } from '../../iommu/group.ts';
import { DmaLogging } from '../dma-logging.ts';
import { Migration } from '../migration/migration.ts';
import { type DeviceFile, VfioDevice } from '../vfio-device.ts';
import type { DeviceSet } from './device-set.ts';
import type { VfioPciEnvironment } from './environment.ts';
import { IoEventfds } from './ioeventfd.ts';
import { parseDeviceText, VfToken } from './vf-token.ts';
import { VfioPciConfig } from './vfio-pci-config.ts';
import { BarDmaBufs } from './vfio-pci-dmabuf.ts';
import { VfioPciIrqs } from './vfio-pci-intrs.ts';
import { vfioPciIoctl } from './vfio-pci-ioctl.ts';
import { MigratableFunction } from './vfio-pci-migration.ts';
import { VfioPciPower } from './vfio-pci-power.ts';
import { VfioPciRegions } from './vfio-pci-rdwr.ts';

/** Region `index` begins at byte `index * REGION_SIZE` of the device's file. */
export const REGION_SIZE = 2 ** 40;

export class VfioPciDevice extends VfioDevice {
  readonly fn: PciFunction;
  readonly environment: VfioPciEnvironment;
  readonly set: DeviceSet;
  readonly irqs: VfioPciIrqs;
  readonly regions: VfioPciRegions;
  readonly ioeventfds: IoEventfds;
  readonly dmaBufs: BarDmaBufs;
  readonly power: VfioPciPower;
  /** Of a function that can be migrated. */
  readonly migration: Migration | undefined;
  /** The same: it can log its DMA as well. */
  readonly logging: DmaLogging | undefined;
  /** Of a physical function with SR-IOV: what its virtual functions' users must know. */
  readonly token: VfToken | undefined;
  /** Whether the function can be reset by itself; found out at each open. */
  resetWorks = false;
  /** Left dirty by a user because it cannot be reset by itself. */
  needsReset = false;
  #config: VfioPciConfig | undefined;
  #opened: SavedState | undefined;
  #mapped = true;
  /** The physical function's token is in use by us. */
  #guardian: VfToken | undefined;

  constructor(fn: PciFunction, group: IommuGroup, environment: VfioPciEnvironment) {
    super(group);
    this.fn = fn;
    this.environment = environment;
    this.irqs = new VfioPciIrqs(this);
    this.regions = new VfioPciRegions(this);
    this.ioeventfds = new IoEventfds(this);
    this.dmaBufs = new BarDmaBufs();
    this.power = new VfioPciPower(fn, this.irqs, () => this.memoryChanged());
    const ability = fn.spec.migration;
    if (ability !== undefined) {
      this.migration = new Migration(new MigratableFunction(fn, () => this.config), ability);
      this.logging = new DmaLogging(fn.dma);
    }
    this.token = fn.sriov === undefined || fn.isVirtfn ? undefined : new VfToken(environment.makeToken);
    this.set = environment.sets.add(this);
  }

  /** The device is no more; the function may get another driver. */
  destroy(): void {
    this.environment.sets.remove(this);
    this.regions.destroy();
  }

  get name(): string {
    return this.fn.name;
  }

  get hasIntx(): boolean {
    return this.config.hasIntx;
  }

  /** Device Control says whether it may; functions without PCI Express cannot. */
  override get mayIssueNoSnoop(): boolean {
    const { config } = this.fn;
    const at = config.findCapability(reg.PCI_CAP_ID_EXP);
    if (at === 0) return false;
    // Of a virtual function the bit is reserved: its physical function's counts.
    const owner = this.fn.physfn?.config ?? config;
    const express = this.fn.physfn === undefined ? at : owner.findCapability(reg.PCI_CAP_ID_EXP);
    return express !== 0 && (owner.get(express + reg.PCI_EXP_DEVCTL, 2) & reg.PCI_EXP_DEVCTL_NOSNOOP_EN) !== 0;
  }

  availableVectors(wanted: number, isMsix: boolean): number {
    return this.environment.availableVectors?.(this.fn, wanted, isMsix) ?? wanted;
  }

  /** The user's view of configuration space; there is one while the device is open. */
  get config(): VfioPciConfig {
    if (this.#config === undefined) throw new Error(`${this.name} is not open`);
    return this.#config;
  }

  // ---- opening and closing ----

  match(text: string): boolean {
    const parsed = parseDeviceText(this.name, text);
    if (parsed === undefined) return false;
    this.matchToken(parsed.token);
    return true;
  }

  /** EACCES: a token is needed and it is not this one. EINVAL: none is needed. */
  override matchToken(token: Uint8Array | undefined): void {
    const { fn } = this;
    if (fn.physfn !== undefined) {
      const guardian = this.environment.sets.deviceOf(fn.physfn)?.token;
      if (guardian !== undefined) guardian.check(token);
      else if (token !== undefined)
        throw new Errno('EINVAL', `the physical function of ${this.name} is not held by vfio-pci`);
    } else if (this.token !== undefined) {
      if (this.token.users > 0) this.token.check(token);
      else if (token !== undefined) this.token.set(token);
    } else if (token !== undefined)
      throw new Errno('EINVAL', `${this.name} has no virtual functions, a token means nothing`);
  }

  openDevice(): void {
    const { fn } = this;
    const { config } = fn;
    const has = (kind: 'memory' | 'io'): boolean => fn.bars.some((bar) => bar?.kind === kind && bar.address !== 0);
    let command = config.read(reg.PCI_COMMAND, 2) & ~reg.PCI_COMMAND_MASTER;
    if (has('memory') || (fn.rom?.address ?? 0) !== 0) command |= reg.PCI_COMMAND_MEMORY;
    if (has('io')) command |= reg.PCI_COMMAND_IO;
    this.power.turnOn();
    config.write(reg.PCI_COMMAND, 2, command);
    this.resetWorks = fn.resetMethods.length > 0;
    if (this.resetWorks) fn.reset();
    this.#opened = saveState(fn);
    this.irqs.canMask = canMaskIntx(fn);
    if (this.irqs.canMask) {
      config.write(reg.PCI_COMMAND, 2, config.read(reg.PCI_COMMAND, 2) & ~reg.PCI_COMMAND_INTX_DISABLE);
    }
    this.#config = new VfioPciConfig(this, fn.interruptPin !== 0 && !fn.isVirtfn);
    this.regions.open();
    this.#guardian = fn.physfn === undefined ? undefined : this.environment.sets.deviceOf(fn.physfn)?.token;
    if (this.#guardian !== undefined) this.#guardian.users++;
    fn.sink = {
      intx: (asserted) => this.irqs.intx(asserted),
      message: (vector) => this.irqs.message(vector),
      error: () => void this.irqs.singles.signal(VFIO_PCI_ERR_IRQ_INDEX),
    };
  }

  closeDevice(): void {
    const { fn } = this;
    if (this.#guardian !== undefined) this.#guardian.users--;
    this.#guardian = undefined;
    this.dmaBufs.cleanup();
    this.migration?.close();
    this.logging?.reset();
    this.power.endLow();
    this.power.set(0);
    fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) & ~reg.PCI_COMMAND_MASTER);
    this.irqs.close();
    this.ioeventfds.close();
    fn.sink = undefined;
    this.#config = undefined;
    this.regions.close();
    if (!this.#mapped) this.#setMapped(true);
    this.needsReset = true;
    fn.config.write(reg.PCI_COMMAND, 2, reg.PCI_COMMAND_INTX_DISABLE);
    // What worked at the opening may not work any more: a neighbour on the bus has appeared, or the methods were changed.
    if (this.resetWorks && fn.present && fn.resetMethods.length > 0) {
      fn.reset();
      this.needsReset = false;
    }
    if (this.#opened !== undefined) restoreState(fn, this.#opened);
    this.#opened = undefined;
    this.#resetSet();
  }

  /** After the last close in a set: a bus reset for those that could not be reset by themselves. */
  #resetSet(): void {
    const { devices } = this.set;
    let open = 0;
    let needed = false;
    for (const device of devices) {
      open += device.openCount;
      needed ||= device.needsReset;
    }
    if (open > 0 || !needed || !this.fn.present) return;
    const bridge = this.fn.bus.self;
    if (
      bridge === undefined ||
      !this.fn.bus.subtree().every((fn) => this.environment.sets.deviceOf(fn)?.set === this.set)
    ) {
      return;
    }
    resetBus(bridge);
    for (const device of devices) device.needsReset = false;
  }

  /** REQ: somebody wants the device back. */
  override request(_count: number): void {
    this.irqs.singles.signal(VFIO_PCI_REQ_IRQ_INDEX);
  }

  // ---- memory and power ----

  /** Whether the user may reach the BARs: his COMMAND.MEM, and not in D3. */
  get memoryEnabled(): boolean {
    return this.#config !== undefined && this.power.isOn && this.#config.memoryEnabled;
  }

  get msiEnabled(): boolean {
    return this.irqs.msiEnabled;
  }

  get msiQueueMax(): number {
    return this.irqs.msiQueueMax;
  }

  intxDisabled(disabled: boolean): void {
    this.irqs.setVirqDisabled(disabled);
  }

  memoryChanged(): void {
    const enabled = this.memoryEnabled;
    const mapped = enabled && !this.power.isLow;
    if (mapped !== this.#mapped) this.#setMapped(mapped);
    this.dmaBufs.move(!enabled || this.power.isLow);
  }

  #setMapped(mapped: boolean): void {
    this.#mapped = mapped;
    for (const bar of this.fn.bars) {
      if (bar?.shared === undefined || bar.trapped) continue;
      if (mapped) bar.shared.restore();
      else bar.shared.revoke();
    }
  }

  /** The user writes the power state: 0 to 3. */
  setPowerState(state: number): void {
    this.power.set(state);
  }

  /** Resets the function with all that its user holds on it kept. ENOTTY: it cannot be reset. */
  resetFunction(): void {
    this.beforeReset();
    try {
      this.fn.reset();
    } finally {
      this.afterReset();
    }
  }

  tryReset(): void {
    if (this.fn.resetMethods.length > 0) this.resetFunction();
  }

  /** Before this function, or its bus, is reset. */
  beforeReset(): void {
    this.setPowerState(0);
    if (this.#mapped) this.#setMapped(false);
    this.dmaBufs.move(true);
  }

  afterReset(): void {
    if (this.#config === undefined) {
      this.#setMapped(true);
      return;
    }
    this.migration?.wasReset();
    this.irqs.afterReset();
    this.memoryChanged();
  }

  // ---- calls ----

  ioctl(task: Task, _file: DeviceFile, request: number, argument: bigint): IoctlResult {
    return this.power.during(() => vfioPciIoctl(this, task, request, argument));
  }

  read(_task: Task, into: Uint8Array, position: number): number {
    return into.length === 0 ? 0 : this.#transfer(into, position, false);
  }

  write(_task: Task, from: Uint8Array, position: number): number {
    return from.length === 0 ? 0 : this.#transfer(from, position, true);
  }

  #transfer(buffer: Uint8Array, position: number, isWrite: boolean): number {
    const index = Math.floor(position / REGION_SIZE);
    const offset = position - index * REGION_SIZE;
    if (!this.power.isLow) return this.#access(index, buffer, offset, isWrite);
    if (index >= VFIO_PCI_NUM_REGIONS) throw new Errno('EINVAL', `there is no region ${index}`);
    return this.power.during(() => this.#access(index, buffer, offset, isWrite));
  }

  #access(index: number, buffer: Uint8Array, offset: number, isWrite: boolean): number {
    if (index < VFIO_PCI_ROM_REGION_INDEX) return this.regions.bar(index, buffer, offset, isWrite);
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) {
      return isWrite ? this.config.write(offset, buffer) : this.config.read(offset, buffer);
    }
    if (index !== VFIO_PCI_ROM_REGION_INDEX) throw new Errno('EINVAL', `there is no region ${index}`);
    return this.regions.rom(buffer, offset, isWrite);
  }

  /** One load or store of the processor to a trapped mapping: as the instruction made it, or EIO (the program gets SIGBUS). */
  access(_task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number {
    const index = Math.floor(position / REGION_SIZE);
    if (this.power.isLow) throw new Errno('EIO', `${this.name} is in low power`);
    return this.regions.trapped(index, buffer, position - index * REGION_SIZE, isWrite);
  }

  mmap(_task: Task, length: number, _prot: number, flags: number, offset: number): FileMapping {
    const index = Math.floor(offset / REGION_SIZE);
    return this.regions.mmap(index, length, flags, offset - index * REGION_SIZE);
  }

  /** The physical page of byte `offset` of a memory that `mmap` gave, -1 when it is not one of this device's BARs. */
  physicalPage(memory: SharedMemory, offset: number): number {
    return this.regions.physicalPage(memory, offset);
  }
}

/** Whether COMMAND.INTX_DISABLE can be toggled, which PCI 2.3 brought. */
function canMaskIntx(fn: PciFunction): boolean {
  const { config } = fn;
  const command = config.read(reg.PCI_COMMAND, 2);
  config.write(reg.PCI_COMMAND, 2, command ^ reg.PCI_COMMAND_INTX_DISABLE);
  const toggled = config.read(reg.PCI_COMMAND, 2);
  if (toggled !== command) config.write(reg.PCI_COMMAND, 2, command);
  return ((toggled ^ command) & reg.PCI_COMMAND_INTX_DISABLE) !== 0;
}
