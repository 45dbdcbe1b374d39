/**
 * /sys/class/vfio, /sys/class/vfio-dev, a device's vfio-dev folder, and the modules that programs look for.
 */

import type { PciFunction } from '../../hw/pci/function.ts';
import { Errno } from '../../lib/errno.ts';
import { CDEV_MAJOR, GROUP_MAJOR } from '../nodes.ts';
import { functionPath } from './function-path.ts';
import { onOrOff } from './numbers.ts';
import { type SysfsTree, text } from './tree.ts';

/** A number that programs may change under /sys/module. */
export interface Parameter<T = number> {
  get(): T;
  set(value: T): void;
}

const Y_OR_N = (value: boolean): string => (value ? 'Y\n' : 'N\n');

export class VfioSysfs {
  readonly #tree: SysfsTree;

  constructor(
    tree: SysfsTree,
    dmaEntryLimit: Parameter,
    allowUnsafeInterrupts: boolean,
    disableHugePages: boolean,
    enableSriov: Parameter<boolean>,
  ) {
    this.#tree = tree;
    tree.directory('/sys/class/vfio');
    tree.directory('/sys/class/vfio-dev');
    const module = '/sys/module';
    const parameters = `${module}/vfio_iommu_type1/parameters`;
    tree.attribute(`${parameters}/dma_entry_limit`, {
      mode: 0o644,
      show: () => text(`${dmaEntryLimit.get()}\n`),
      store: (bytes) => {
        const word = new TextDecoder().decode(bytes).trim();
        const value = Number(word);
        if (!/^(0x[0-9a-f]+|[0-9]+)$/i.test(word) || value > 0xffffffff) {
          throw new Errno('EINVAL', `dma_entry_limit takes an unsigned number, not '${word}'`);
        }
        dmaEntryLimit.set(value);
        return bytes.length;
      },
    });
    tree.file(`${parameters}/allow_unsafe_interrupts`, Y_OR_N(allowUnsafeInterrupts));
    tree.file(`${parameters}/disable_hugepages`, Y_OR_N(disableHugePages));
    tree.file(`${module}/vfio/parameters/enable_unsafe_noiommu_mode`, 'N\n');
    tree.file(`${module}/vfio_pci/parameters/ids`, '\n');
    tree.file(`${module}/vfio_pci/parameters/disable_idle_d3`, 'N\n');
    tree.attribute(`${module}/vfio_pci/parameters/enable_sriov`, {
      mode: 0o644,
      show: () => text(Y_OR_N(enableSriov.get())),
      store: (bytes) => {
        enableSriov.set(onOrOff(bytes, 'enable_sriov'));
        return bytes.length;
      },
    });
    tree.directory(`${module}/vfio_pci/drivers`);
    tree.link(`${module}/vfio_pci/drivers/pci:vfio-pci`, '/sys/bus/pci/drivers/vfio-pci');
    tree.directory(`${module}/vfio_pci_core`);
    tree.directory(`${module}/iommufd`);
  }

  addGroup(id: number, minor: number): void {
    const folder = `/sys/devices/virtual/vfio/${id}`;
    this.#tree.file(`${folder}/dev`, `${GROUP_MAJOR}:${minor}\n`);
    this.#tree.file(`${folder}/uevent`, `MAJOR=${GROUP_MAJOR}\nMINOR=${minor}\nDEVNAME=vfio/${id}\n`);
    this.#tree.link(`${folder}/subsystem`, '/sys/class/vfio');
    this.#tree.link(`/sys/class/vfio/${id}`, folder);
  }

  removeGroup(id: number): void {
    this.#tree.remove(`/sys/class/vfio/${id}`);
    this.#tree.remove(`/sys/devices/virtual/vfio/${id}`);
  }

  addDevice(fn: PciFunction, index: number): void {
    const folder = `${functionPath(fn)}/vfio-dev/vfio${index}`;
    this.#tree.file(`${folder}/dev`, `${CDEV_MAJOR}:${index}\n`);
    this.#tree.file(`${folder}/uevent`, `MAJOR=${CDEV_MAJOR}\nMINOR=${index}\nDEVNAME=vfio/devices/vfio${index}\n`);
    this.#tree.link(`${folder}/device`, functionPath(fn));
    this.#tree.link(`${folder}/subsystem`, '/sys/class/vfio-dev');
    this.#tree.link(`/sys/class/vfio-dev/vfio${index}`, folder);
  }

  removeDevice(fn: PciFunction, index: number): void {
    this.#tree.remove(`/sys/class/vfio-dev/vfio${index}`);
    this.#tree.remove(`${functionPath(fn)}/vfio-dev`);
  }
}
