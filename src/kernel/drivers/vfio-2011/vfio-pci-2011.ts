/**
 * The driver `vfio`: the VFIO bus driver for PCI of 2011. It registers all functions of its groups with the core as they appear, answers the
 * core's operations, and binds functions to which `new_id` or a claim gives it the right.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import type { FileMapping } from '../../core/file.ts';
import type { Task } from '../../core/task.ts';
import type { IommuGroup } from '../../iommu/group.ts';
import type { VfioPciEnvironment } from '../../vfio/pci/environment.ts';
import { VfioPciDevice } from '../../vfio/pci/vfio-pci-core.ts';
import type { VfioCore } from '../../vfio/vfio.ts';
import type { BusDevice, DeviceBus, VfioDeviceOps } from '../../vfio-2011/bus-driver.ts';
import { pciIoctl2011 } from '../../vfio-2011/pci-device.ts';
import type { Vfio2011 } from '../../vfio-2011/vfio-2011.ts';
import type { PciBus, PciDriver } from '../pci-bus.ts';

/** How a group is handed out: by the API of 2011, or by that and today's, whichever takes it first. Undefined: not by this driver. */
export type ServedBy = '2011' | 'both' | undefined;

export interface VfioPci2011Options {
  servedBy(group: IommuGroup): ServedBy;
  /** The core of today's API, for groups that both hand out. */
  readonly today?: VfioCore | undefined;
}

const pciBus: DeviceBus = { name: 'pci', isHotplug: true };

/** A function as the core of 2011 knows it. */
export interface PciBusDevice extends BusDevice {
  readonly fn: PciFunction;
}

export class VfioPci2011Driver implements PciDriver {
  readonly name = 'vfio';
  readonly ids = [];
  readonly managesOwnDma = true;
  readonly #core: Vfio2011;
  readonly #bus: PciBus;
  readonly #environment: VfioPciEnvironment;
  readonly #options: VfioPci2011Options;
  readonly #devices = new Map<PciFunction, PciBusDevice>();
  readonly #ops: VfioDeviceOps<PciBusDevice, VfioPciDevice>;

  constructor(core: Vfio2011, bus: PciBus, environment: VfioPciEnvironment, options: VfioPci2011Options) {
    this.#core = core;
    this.#bus = bus;
    this.#environment = environment;
    this.#options = options;
    this.#ops = this.#operations();
  }

  /** Functions are registered from now on, as they appear. */
  watch(): void {
    this.#bus.watch((event, fn) => {
      if (event === 'added') this.#appeared(fn);
      else if (event === 'removing' || event === 'removed') this.#leaves(fn, event === 'removed');
    });
  }

  deviceOf(fn: PciFunction): BusDevice | undefined {
    return this.#devices.get(fn);
  }

  /** ENODEV: its group is not handed out by this API. EINVAL: a bridge, or no IOMMU. */
  probe(fn: PciFunction): void {
    if (fn.isBridge) throw new Errno('EINVAL', `${fn.name} is a bridge; vfio takes header type 0 only`);
    const group = this.#environment.groupOf(fn);
    if (group === undefined) throw new Errno('EINVAL', `${fn.name} is in no IOMMU group`);
    const device = this.#devices.get(fn);
    if (device === undefined) {
      throw new Errno('ENODEV', `group ${group.id} of ${fn.name} is not handed out by the API of 2011`);
    }
    const data = new VfioPciDevice(fn, group, this.#environment);
    try {
      if (this.#options.servedBy(group) === 'both') this.#options.today?.register(data);
      this.#core.bindDevice(device, data);
    } catch (error) {
      data.destroy();
      throw error;
    }
  }

  /** Waits until no program uses the group or one that is merged with it; where both APIs hand it out, until neither's does. */
  remove(fn: PciFunction, done: () => void): void {
    const device = this.#devices.get(fn)!;
    const data = this.#environment.sets.deviceOf(fn)!;
    const finish = (): void => {
      data.destroy();
      done();
    };
    const { today } = this.#options;
    const unregister = (): void => {
      if (today?.groupOf(data) === undefined || today.unregister(data, finish) === 'done') finish();
    };
    if (this.#core.unbindDevice(device, unregister) === 'done') unregister();
  }

  /** Ends the wait of `remove`: the function stays bound. False: it does not wait for users of this API. */
  cancelRemove(fn: PciFunction): boolean {
    const device = this.#devices.get(fn);
    return device !== undefined && this.#core.cancelUnbind(device);
  }

  #appeared(fn: PciFunction): void {
    const iommuGroup = this.#environment.groupOf(fn);
    if (fn.isBridge || iommuGroup === undefined || this.#options.servedBy(iommuGroup) === undefined) return;
    const device: PciBusDevice = { name: fn.name, bus: pciBus, iommuGroup, fn };
    this.#devices.set(fn, device);
    this.#core.groupAddDevice(device, this.#ops);
  }

  #leaves(fn: PciFunction, isGone: boolean): void {
    const device = this.#devices.get(fn);
    if (device === undefined) return;
    this.#core.groupRemoveDevice(device);
    if (isGone) this.#devices.delete(fn);
  }

  #operations(): VfioDeviceOps<PciBusDevice, VfioPciDevice> {
    const { revision } = this.#core.options;
    return {
      match: (device, text) => device.name === text,
      claim: ({ fn }) => this.#bus.claim(this.name, fn),
      open: (data) => {
        if (data.openCount === 0) data.openDevice();
        data.openCount++;
      },
      release: (data) => {
        if (--data.openCount === 0) data.closeDevice();
      },
      read: (data, task, into, position) => data.read(task, into, position),
      write: (data, task, from, position) => data.write(task, from, position),
      ioctl: (data, task, request, argument) => pciIoctl2011(data, revision, task, request, argument),
      mmap: (data, task, length, prot, flags, offset): FileMapping => data.mmap(task, length, prot, flags, offset),
      access: (data, task: Task, buffer, position, isWrite) => data.access(task, buffer, position, isWrite),
    };
  }
}
