/**
 * The driver `vfio-pci`: makes a VFIO device of whatever function it is bound to. It matches nothing by itself; `new_id` or
 * `driver_override` gives it functions.
 */
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import type { VfioPciEnvironment } from '../../vfio/pci/environment.ts';
import { VfioPciDevice } from '../../vfio/pci/vfio-pci-core.ts';
import type { VfioCore } from '../../vfio/vfio.ts';
import { type RemoveVirtualFunctions, removeAtOnce } from '../host-drivers.ts';
import type { PciBus, PciDriver } from '../pci-bus.ts';
import { deviceId, PCI_ANY_ID } from '../pci-ids.ts';

const INTEL = 0x8086;
/** Devices that can be used to harm the host: QuickAssist and the first accelerators. */
const denied: ReadonlySet<number> = new Set([0x19e2, 0x19e3, 0x37c8, 0x37c9, 0x0435, 0x0443, 0x0b25, 0x0cfe]);

export interface VfioPciOptions {
  /** Module parameter `disable_denylist`. */
  readonly disableDenylist?: boolean;
  /** Module parameter `enable_sriov`, which may change at run time. */
  readonly enableSriov?: () => boolean;
  readonly removeVirtualFunctions?: RemoveVirtualFunctions;
  /** Told when a function's device cannot be opened any more, while somebody still holds it. */
  readonly hidden?: (fn: PciFunction) => void;
}

export class VfioPciDriver implements PciDriver {
  readonly name = 'vfio-pci';
  readonly ids = [{ ...deviceId(PCI_ANY_ID), override_only: true }];
  readonly managesOwnDma = true;
  readonly #core: VfioCore;
  readonly #environment: VfioPciEnvironment;
  readonly #options: VfioPciOptions;

  constructor(core: VfioCore, environment: VfioPciEnvironment, options: VfioPciOptions = {}) {
    this.#core = core;
    this.#environment = environment;
    this.#options = options;
  }

  deviceOf(fn: PciFunction): VfioPciDevice | undefined {
    return this.#environment.sets.deviceOf(fn);
  }

  /** EINVAL: a bridge, no IOMMU, or denied. EBUSY: virtual functions exist already. */
  probe(fn: PciFunction): void {
    if (fn.vendor === INTEL && denied.has(fn.device) && this.#options.disableDenylist !== true) {
      throw new Errno(
        'EINVAL',
        `${fn.name} is on vfio-pci's list of devices that are not handed out (disable_denylist)`,
      );
    }
    if (fn.isBridge) throw new Errno('EINVAL', `${fn.name} is a bridge; vfio-pci takes header type 0 only`);
    if ((fn.sriov?.functions.length ?? 0) > 0) {
      throw new Errno('EBUSY', `${fn.name} has virtual functions; sriov_numvfs must be 0 first`);
    }
    const group = this.#environment.groupOf(fn);
    if (group === undefined) throw new Errno('EINVAL', `${fn.name} is in no IOMMU group`);
    const device = new VfioPciDevice(fn, group, this.#environment);
    try {
      this.#core.register(device);
    } catch (error) {
      device.destroy();
      throw error;
    }
  }

  /** Takes virtual functions away first, each when nobody holds it; then waits until no program holds the device. */
  remove(fn: PciFunction, done: () => void): void {
    const device = this.deviceOf(fn);
    if (device === undefined) throw new Error(`${fn.name} is not one of vfio-pci's`);
    const finish = (): void => {
      device.destroy();
      done();
    };
    this.#removeVirtualFunctions(fn, () => {
      if (this.#core.unregister(device, finish) === 'done') finish();
      else this.#options.hidden?.(fn);
    });
  }

  /** ENOENT: the parameter `enable_sriov` is off. EINVAL: more than the function has. */
  sriovConfigure(fn: PciFunction, count: number, done: () => void): void {
    if (this.#options.enableSriov?.() !== true) {
      throw new Errno('ENOENT', "vfio-pci makes virtual functions only when its parameter 'enable_sriov' is on");
    }
    if (count === 0) {
      this.#removeVirtualFunctions(fn, done);
      return;
    }
    this.deviceOf(fn)?.setPowerState(0);
    fn.sriov!.enable(count);
    done();
  }

  get #removeVirtualFunctions(): RemoveVirtualFunctions {
    return this.#options.removeVirtualFunctions ?? removeAtOnce;
  }

  /**
   * Virtual functions of a function that vfio-pci holds are for vfio-pci as well: they get its name as driver_override when they
   * appear, so that no host driver takes them. The result stops that.
   */
  captureVirtualFunctions(bus: PciBus): () => void {
    return bus.watch((event, fn) => {
      if (event !== 'added' || fn.physfn === undefined || this.deviceOf(fn.physfn) === undefined) return;
      bus.setOverride(fn, this.name);
    });
  }
}
