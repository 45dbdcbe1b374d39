/**
 * Devices that one bus reset hits: what VFIO calls a device set. On a root bus, and for virtual functions, each device is alone.
 */
import type { Bus } from '../../../hw/pci/bus.ts';
import type { PciFunction } from '../../../hw/pci/function.ts';
import type { VfioPciDevice } from './vfio-pci-core.ts';

export interface DeviceSet {
  readonly devices: Set<VfioPciDevice>;
}

export class DeviceSets {
  readonly #byBus = new Map<Bus, DeviceSet>();
  readonly #byFunction = new Map<PciFunction, VfioPciDevice>();

  /** The VFIO device of a function, undefined when another driver or none has it. */
  deviceOf(fn: PciFunction): VfioPciDevice | undefined {
    return this.#byFunction.get(fn);
  }

  devices(): Iterable<VfioPciDevice> {
    return this.#byFunction.values();
  }

  add(device: VfioPciDevice): DeviceSet {
    const { fn } = device;
    this.#byFunction.set(fn, device);
    if (fn.bus.self === undefined || fn.isVirtfn) return { devices: new Set([device]) };
    const set = this.#byBus.get(fn.bus) ?? { devices: new Set() };
    this.#byBus.set(fn.bus, set);
    set.devices.add(device);
    return set;
  }

  remove(device: VfioPciDevice): void {
    const { fn } = device;
    this.#byFunction.delete(fn);
    const set = this.#byBus.get(fn.bus);
    set?.devices.delete(device);
    if (set?.devices.size === 0) this.#byBus.delete(fn.bus);
  }
}
