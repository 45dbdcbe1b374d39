/** Nodes and sysfs entries of VFIO groups and devices, kept in step with what is registered. */

import type { File } from '../kernel/core/file.ts';
import { openCdev } from '../kernel/vfio/cdev.ts';
import { VfioPciDevice } from '../kernel/vfio/pci/vfio-pci-core.ts';
import type { VfioCore } from '../kernel/vfio/vfio.ts';
import type { VfioDevice } from '../kernel/vfio/vfio-device.ts';
import type { Counters } from './counters.ts';
import { CDEV_MAJOR, CONTAINER_MINOR, type DeviceNodes, GROUP_MAJOR, IOMMU_MINOR, MISC_MAJOR } from './nodes.ts';
import type { Process } from './process.ts';
import type { VfioSysfs } from './sysfs/vfio.ts';

type Opener = (caller: Process) => File;

export class VfioNodes {
  readonly #vfio: VfioCore;
  readonly #nodes: DeviceNodes<Opener>;
  readonly #sysfs: VfioSysfs;
  readonly #counters: Counters;
  readonly #groups = new Set<number>();
  readonly #devices = new Map<VfioDevice, number>();

  /** `openContainer`: who answers on the container's node, when it is not VFIO. */
  constructor(
    vfio: VfioCore,
    nodes: DeviceNodes<Opener>,
    sysfs: VfioSysfs,
    counters: Counters,
    openIommufd: Opener,
    openContainer: Opener = (caller) => vfio.openContainer(caller),
  ) {
    this.#vfio = vfio;
    this.#nodes = nodes;
    this.#sysfs = sysfs;
    this.#counters = counters;
    nodes.add('/dev/iommu', MISC_MAJOR, IOMMU_MINOR, 0o660, (caller) => counters.opened(openIommufd(caller)));
    nodes.add('/dev/vfio/vfio', MISC_MAJOR, CONTAINER_MINOR, 0o666, (caller) => counters.opened(openContainer(caller)));
    nodes.addFolder('/dev/vfio/devices');
  }

  /** Makes what is new and removes what is gone. */
  refresh(): void {
    const groups = new Map(this.#vfio.groups().map((group) => [group.id, group]));
    for (const id of this.#groups) {
      if (groups.has(id)) continue;
      this.#nodes.remove(`/dev/vfio/${id}`);
      this.#sysfs.removeGroup(id);
      this.#groups.delete(id);
    }
    for (const [id, group] of groups) {
      if (this.#groups.has(id)) continue;
      this.#groups.add(id);
      this.#nodes.add(`/dev/vfio/${id}`, GROUP_MAJOR, group.minor, 0o600, (caller) =>
        this.#counters.opened(this.#vfio.openGroup(id, caller)),
      );
      this.#sysfs.addGroup(id, group.minor);
    }
    const devices = new Set(this.#vfio.devices());
    for (const [device, index] of this.#devices) {
      if (devices.has(device)) continue;
      this.#nodes.remove(`/dev/vfio/devices/vfio${index}`);
      if (device instanceof VfioPciDevice) this.#sysfs.removeDevice(device.fn, index);
      this.#devices.delete(device);
    }
    for (const device of devices) {
      if (this.#devices.has(device)) continue;
      const { index } = device;
      this.#devices.set(device, index);
      const path = `/dev/vfio/devices/vfio${index}`;
      this.#nodes.add(path, CDEV_MAJOR, index, 0o600, () => openCdev(this.#vfio, device, path));
      if (device instanceof VfioPciDevice) this.#sysfs.addDevice(device.fn, index);
    }
  }
}
