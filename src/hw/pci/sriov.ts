/**
 * Single root I/O virtualisation (SR-IOV 1.1, 3.3): a physical function that makes virtual ones.
 *
 * Software writes NumVFs and VF Enable; the virtual functions then stand on the bus at once, with requester IDs computed from the
 * first offset and the stride. Those beyond devfn 255 are on the next bus number, a bus without a bridge of its own.
 *
 * Differs from silicon: a reset of the physical function resets its virtual functions but does not take them off the bus, as
 * software restores VF Enable directly afterwards and finds the same functions again.
 */

import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import type { BarSpec } from './bar.ts';
import { Bus } from './bus.ts';
import type { ConfigSpace } from './config-space.ts';
import type { PciFunction } from './function.ts';
import type { CapabilitySpec, FunctionSpec } from './function-spec.ts';
import { writeBar } from './header.ts';

export interface SriovOptions {
  readonly totalVfs: number;
  readonly vfDevice: number;
  /** Requester ID of the first VF minus that of the physical function. */
  readonly firstOffset: number;
  readonly stride: number;
  /** BARs of each VF; the physical function's registers hold the address of the first VF's. */
  readonly vfBars: readonly Pick<BarSpec, 'index' | 'size' | 'is64' | 'prefetchable'>[];
  /** The model of VF `index`, from 0. Its BARs are those of `vfBars`. */
  virtualFunction(index: number): FunctionSpec;
}

/** A VF BAR register of the physical function. */
export interface VfBar {
  readonly index: number;
  readonly size: number;
  readonly is64: boolean;
  readonly prefetchable: boolean;
  address: number;
}

export class SriovCapability {
  readonly totalVfs: number;
  readonly offset: number;
  readonly vfBars: readonly VfBar[];
  /** Virtual functions that exist, in the order of their numbers. */
  readonly functions: PciFunction[] = [];
  readonly #options: SriovOptions;
  readonly #fn: PciFunction;
  readonly #config: ConfigSpace;
  readonly #buses: Bus[] = [];

  constructor(fn: PciFunction, offset: number, options: SriovOptions) {
    const config = fn.config;
    this.totalVfs = options.totalVfs;
    this.offset = offset;
    this.#options = options;
    this.#fn = fn;
    this.#config = config;
    this.vfBars = options.vfBars.map((bar) => ({
      index: bar.index,
      size: Math.max(bar.size, 4096),
      is64: bar.is64 ?? false,
      prefetchable: bar.prefetchable ?? false,
      address: 0,
    }));
    const control = reg.PCI_SRIOV_CTRL_VFE | reg.PCI_SRIOV_CTRL_MSE | reg.PCI_SRIOV_CTRL_ARI;
    config.define(offset + reg.PCI_SRIOV_CTRL, 2, 0, control);
    config.define(offset + reg.PCI_SRIOV_INITIAL_VF, 2, options.totalVfs);
    config.define(offset + reg.PCI_SRIOV_TOTAL_VF, 2, options.totalVfs);
    config.define(offset + reg.PCI_SRIOV_NUM_VF, 2, 0, 0xffff);
    config.define(offset + reg.PCI_SRIOV_VF_OFFSET, 2, options.firstOffset);
    config.define(offset + reg.PCI_SRIOV_VF_STRIDE, 2, options.stride);
    config.define(offset + reg.PCI_SRIOV_VF_DID, 2, options.vfDevice);
    config.define(offset + reg.PCI_SRIOV_SUP_PGSIZE, 4, 0x553);
    config.define(offset + reg.PCI_SRIOV_SYS_PGSIZE, 4, 1, 0x553);
    for (const bar of this.vfBars)
      writeBar(config, offset + reg.PCI_SRIOV_BAR + 4 * bar.index, { kind: 'memory', ...bar });
    config.watch(offset + reg.PCI_SRIOV_CTRL, 2, () => this.#controlWritten());
    fn.onReset((kind) => {
      if (this.functions.length > 0) {
        config.set(offset + reg.PCI_SRIOV_NUM_VF, 2, this.functions.length);
        config.set(offset + reg.PCI_SRIOV_CTRL, 2, reg.PCI_SRIOV_CTRL_VFE | reg.PCI_SRIOV_CTRL_MSE);
      }
      for (const virtual of this.functions) virtual.resetHardware(kind === 'bus' ? 'flr' : kind);
    });
  }

  /** Memory space of the virtual functions is on (VF MSE). */
  get memoryEnabled(): boolean {
    return this.#fn.present && (this.#config.get(this.offset + reg.PCI_SRIOV_CTRL, 2) & reg.PCI_SRIOV_CTRL_MSE) !== 0;
  }

  /** Requester ID of VF `index`, from 0: that of the physical function + first offset + index × stride. */
  ridOf(index: number): number {
    return this.#fn.rid + this.#options.firstOffset + index * this.#options.stride;
  }

  /** Firmware's half of a VF BAR. */
  setBarAddress(bar: VfBar, address: number): void {
    if (bar.address === address) return;
    bar.address = address;
    const at = this.offset + reg.PCI_SRIOV_BAR + 4 * bar.index;
    this.#config.write(at, 4, address % 2 ** 32);
    if (bar.is64) this.#config.write(at + 4, 4, Math.floor(address / 2 ** 32));
  }

  /** What software does: NumVFs, then VF Enable and VF MSE. EINVAL: more than the function has. EBUSY: some exist already, or a slot is taken. */
  enable(count: number): void {
    if (count < 1 || count > this.totalVfs) {
      throw new Errno('EINVAL', `${this.#fn.name} has ${this.totalVfs} virtual functions, not ${count}`);
    }
    if (this.functions.length > 0) {
      throw new Errno('EBUSY', `${this.functions.length} virtual functions of ${this.#fn.name} exist already`);
    }
    for (let index = 0; index < count; index++) {
      const taken = this.#taken(this.ridOf(index));
      if (taken !== undefined) {
        throw new Errno('EBUSY', `virtual function ${index} of ${this.#fn.name} would stand where ${taken.name} is`);
      }
    }
    this.#config.write(this.offset + reg.PCI_SRIOV_NUM_VF, 2, count);
    this.#config.write(this.offset + reg.PCI_SRIOV_CTRL, 2, reg.PCI_SRIOV_CTRL_VFE | reg.PCI_SRIOV_CTRL_MSE);
  }

  /** Whether the 32-bit register at `at` says that there are virtual functions, or how many. */
  countsAt(at: number): boolean {
    return at === this.offset + reg.PCI_SRIOV_CTRL || at === this.offset + reg.PCI_SRIOV_NUM_VF;
  }

  /** Who has this requester ID already. */
  #taken(rid: number): PciFunction | undefined {
    const { tree, segment } = this.#fn.bus;
    return tree.findBus(segment, rid >> 8)?.at(rid & 0xff);
  }

  get firstOffset(): number {
    return this.#options.firstOffset;
  }

  get stride(): number {
    return this.#options.stride;
  }

  get vfDevice(): number {
    return this.#options.vfDevice;
  }

  /** Takes all virtual functions away. */
  disable(): void {
    this.#config.write(this.offset + reg.PCI_SRIOV_CTRL, 2, 0);
    this.#config.write(this.offset + reg.PCI_SRIOV_NUM_VF, 2, 0);
  }

  #controlWritten(): void {
    const wanted = (this.#config.get(this.offset + reg.PCI_SRIOV_CTRL, 2) & reg.PCI_SRIOV_CTRL_VFE) !== 0;
    if (wanted && this.functions.length === 0) this.#create();
    else if (!wanted && this.functions.length > 0) this.#destroy();
    for (const virtual of this.functions) virtual.updateDecoding();
  }

  #create(): void {
    const count = Math.min(this.#config.get(this.offset + reg.PCI_SRIOV_NUM_VF, 2), this.totalVfs);
    const { tree } = this.#fn.bus;
    for (let index = 0; index < count; index++) {
      const rid = this.ridOf(index);
      // Two with one requester ID: on a real bus nobody could tell them apart.
      if (this.#taken(rid) !== undefined) continue;
      const model = this.#options.virtualFunction(index);
      const spec: FunctionSpec = {
        ...model,
        vendor: this.#fn.vendor,
        device: this.#options.vfDevice,
        // Whoever is told of the function finds it complete.
        attach: (virtual) => {
          this.functions.push(virtual);
          for (const bar of this.vfBars) {
            const own = virtual.bars[bar.index];
            if (own !== undefined && bar.address !== 0) own.address = bar.address + index * bar.size;
          }
          model.attach?.(virtual);
          virtual.updateDecoding();
        },
      };
      tree.add(spec, {
        bus: this.#busFor(rid >> 8),
        devfn: rid & 0xff,
        physfn: this.#fn,
        untrusted: this.#fn.untrusted,
        wellBehaved: 'vf',
      });
    }
  }

  #destroy(): void {
    const { tree } = this.#fn.bus;
    for (const virtual of this.functions.splice(0).reverse()) tree.remove(virtual);
    for (const bus of this.#buses.splice(0)) {
      // Another physical function's may still be there.
      const list = bus.parent!.virtual;
      if (bus.functions.length === 0) list.splice(list.indexOf(bus), 1);
    }
  }

  #busFor(number: number): Bus {
    const own = this.#fn.bus;
    if (number === own.number) return own;
    const present = own.virtual.find((bus) => bus.number === number);
    if (present !== undefined) {
      if (!this.#buses.includes(present)) this.#buses.push(present);
      return present;
    }
    const bus = new Bus(own.tree, own.segment, number, own);
    own.virtual.push(bus);
    this.#buses.push(bus);
    return bus;
  }
}

export function sriov(options: SriovOptions): CapabilitySpec {
  return {
    id: reg.PCI_EXT_CAP_ID_SRIOV,
    extended: true,
    length: reg.PCI_EXT_CAP_SRIOV_SIZEOF,
    install: (fn, _config, offset) => {
      fn.sriov = new SriovCapability(fn, offset, options);
    },
  };
}
