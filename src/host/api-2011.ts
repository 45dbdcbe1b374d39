/**
 * The VFIO API of 2011 in a machine: which groups it hands out, their nodes (/dev/vfio/pci:240) and their folders in sysfs.
 */
import type { SharedMemory } from '../hw/memory/backing.ts';
import type { File } from '../kernel/core/file.ts';
import type { ServedBy } from '../kernel/drivers/vfio-2011/vfio-pci-2011.ts';
import type { BusDevice } from '../kernel/vfio-2011/bus-driver.ts';
import type { Group2011 } from '../kernel/vfio-2011/group.ts';
import { Vfio2011 } from '../kernel/vfio-2011/vfio-2011.ts';
import { type ApiName, type HostConfig, HostFileError } from './host-file.ts';
import type { DeviceNodes } from './nodes.ts';
import type { Process } from './process.ts';
import type { SysfsTree } from './sysfs/tree.ts';

type Opener = (caller: Process) => File;

/** As the first documentation shows it: 252:27. */
const GROUP_MAJOR_2011 = 252;

interface Surroundings {
  log(text: string): void;
  physicalOfDevice(memory: SharedMemory, offset: number): number;
}

export class Api2011 {
  readonly core: Vfio2011;
  /** Today's API is not there at all. */
  readonly isAlone: boolean;
  readonly #config: HostConfig;
  /** Links that a group's folder has now. */
  readonly #shown = new Map<Group2011, Set<string>>();
  #refresh: (group: Group2011) => void = () => {};

  /** Undefined: the host file wants it for no group. */
  static of(config: HostConfig, surroundings: Surroundings): Api2011 | undefined {
    const apis = apisOf(config);
    return apis.some((api) => api !== 'today') ? new Api2011(config, surroundings) : undefined;
  }

  private constructor(config: HostConfig, surroundings: Surroundings) {
    this.#config = config;
    this.isAlone = apisOf(config).every((api) => api === 2011);
    const minors = Object.entries(config.groups ?? {}).flatMap(([id, { minor }]) =>
      minor === undefined ? [] : [[Number(id), minor] as const],
    );
    const { revision, mergePolicy, automaticMerge, revokeOnNonViable } = config.vfio2011 ?? {};
    this.core = new Vfio2011({
      ...(revision !== undefined && { revision }),
      ...(mergePolicy !== undefined && { mergePolicy }),
      ...(automaticMerge !== undefined && { automaticMerge }),
      ...(revokeOnNonViable !== undefined && { revokeOnNonViable }),
      entryLimit: config.options?.dmaEntryLimit ?? 65535,
      minors: new Map(minors),
      physicalOfDevice: (memory, offset) => surroundings.physicalOfDevice(memory, offset),
      log: (text) => surroundings.log(`vfio: ${text}`),
      changed: (group) => this.#refresh(group),
    });
  }

  /** How a group is handed out by this API; undefined: not at all. */
  servedBy(id: number): ServedBy {
    const api = this.#config.groups?.[id]?.api ?? this.#config.api;
    return api === 2011 ? '2011' : api === 'both' ? 'both' : undefined;
  }

  /** HostFileError: the host file speaks of a group that the machine has not. */
  checkGroups(ids: readonly number[]): void {
    const known = new Set(ids);
    for (const id of Object.keys(this.#config.groups ?? {})) {
      if (!known.has(Number(id))) throw new HostFileError(`at groups.${id}: the machine has no IOMMU group ${id}`);
    }
  }

  /** From now on each group has its node and its folder. `folderOf`: where a device's folder is in sysfs. */
  publish(nodes: DeviceNodes<Opener>, tree: SysfsTree, folderOf: (device: BusDevice) => string): void {
    tree.directory('/sys/class/vfio');
    this.#refresh = (group) => {
      if (this.core.has(group)) this.#show(group, nodes, tree, folderOf);
      else this.#hide(group, nodes, tree);
    };
  }

  #show(group: Group2011, nodes: DeviceNodes<Opener>, tree: SysfsTree, folderOf: (device: BusDevice) => string): void {
    const { name, minor } = group;
    const folder = groupFolder(group);
    let shown = this.#shown.get(group);
    if (shown === undefined) {
      shown = new Set();
      this.#shown.set(group, shown);
      nodes.add(`/dev/vfio/${name}`, GROUP_MAJOR_2011, minor, 0o660, () => this.core.openGroup(name));
      tree.file(`${folder}/dev`, `${GROUP_MAJOR_2011}:${minor}\n`);
      tree.file(`${folder}/uevent`, `MAJOR=${GROUP_MAJOR_2011}\nMINOR=${minor}\nDEVNAME=vfio/${name}\n`);
      tree.directory(`${folder}/devices`);
      tree.link(`${folder}/subsystem`, '/sys/class/vfio');
      tree.link(`/sys/class/vfio/${name}`, folder);
    }
    const devices = new Map(group.devices.map(({ device }) => [device.name, device]));
    for (const link of [...shown]) {
      if (devices.has(link)) continue;
      tree.remove(`${folder}/devices/${link}`);
      shown.delete(link);
    }
    for (const [link, device] of devices) {
      if (shown.has(link)) continue;
      tree.link(`${folder}/devices/${link}`, folderOf(device));
      shown.add(link);
    }
  }

  #hide(group: Group2011, nodes: DeviceNodes<Opener>, tree: SysfsTree): void {
    this.#shown.delete(group);
    nodes.remove(`/dev/vfio/${group.name}`);
    tree.remove(`/sys/class/vfio/${group.name}`);
    tree.remove(groupFolder(group));
  }
}

function groupFolder(group: Group2011): string {
  return `/sys/devices/virtual/vfio/${group.name}`;
}

/** The APIs that the host file asks for, of the box and of single groups. */
function apisOf(config: HostConfig): ApiName[] {
  const own = Object.values(config.groups ?? {}).flatMap(({ api }) => (api === undefined ? [] : [api]));
  return [config.api ?? 'today', ...own];
}
