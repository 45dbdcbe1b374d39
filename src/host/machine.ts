/**
 * One machine, composed: its functions and memory, its IOMMU, its kernel, its drivers, and the names under which programs find
 * them. Everything here is wiring; what the parts do is theirs.
 */

import { PhysicalMemory } from '../hw/memory/physical-memory.ts';
import { noUpstream } from '../hw/pci/dma.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { PciTree } from '../hw/pci/tree.ts';
import type { File } from '../kernel/core/file.ts';
import { Mm } from '../kernel/core/mm.ts';
import type { UserMemory } from '../kernel/core/user-memory.ts';
import { IommuCore } from '../kernel/iommu/iommu.ts';
import { IommufdCore } from '../kernel/iommufd/core.ts';
import type { IommufdFile } from '../kernel/iommufd/main.ts';
import { KvmHost } from '../kernel/kvm/host.ts';
import { KvmFile } from '../kernel/kvm/kvm-files.ts';
import { VfioCore } from '../kernel/vfio/vfio.ts';
import { Errno } from '../lib/errno.ts';
import { Api2011 } from './api-2011.ts';
import { AttributeFile } from './attribute-file.ts';
import { Counters, type Invariants } from './counters.ts';
import { DemandUpstream } from './demand-upstream.ts';
import { Drivers } from './drivers.ts';
import type { HostConfig } from './host-file.ts';
import { Hotplug } from './hotplug.ts';
import { Interrupts } from './interrupts.ts';
import { DeviceNodes, KVM_MINOR, MISC_MAJOR, type NodeStat, WALKER_MAJOR } from './nodes.ts';
import { MAY_READ, MAY_WRITE, permit } from './permissions.ts';
import { placeFunctions } from './place-functions.ts';
import type { Platform } from './platform.ts';
import { type DescriptorSource, Process, type ProcessIdentity, type ProcessRights } from './process.ts';
import { SharedAddressing } from './shared-addressing.ts';
import { functionPath } from './sysfs/function-path.ts';
import { IommuSysfs } from './sysfs/iommu.ts';
import { PciSysfs } from './sysfs/pci.ts';
import { SysfsTree } from './sysfs/tree.ts';
import { VfioSysfs } from './sysfs/vfio.ts';
import { makeUnits } from './units.ts';
import { VfioNodes } from './vfio-nodes.ts';

type Opener = (caller: Process) => File;

const O_ACCMODE = 3;
const O_RDONLY = 0;
const X_OK = 1;
const O_CREAT = 0o100;
/** By access mode: O_RDONLY, O_WRONLY, O_RDWR, and the one that only ioctls are made with. */
const wantedBy = [MAY_READ, MAY_WRITE, MAY_READ | MAY_WRITE, MAY_READ | MAY_WRITE];

export class Machine {
  readonly config: HostConfig;
  readonly tree = new SysfsTree();
  readonly physical = new PhysicalMemory();
  readonly pci: PciTree;
  readonly iommu: IommuCore;
  readonly vfio: VfioCore;
  readonly iommufd: IommufdCore;
  /** Undefined: no group is handed out by the API of 2011. */
  readonly api2011: Api2011 | undefined;
  readonly drivers: Drivers;
  readonly counters: Counters;
  readonly interrupts: Interrupts;
  /** Set with the option `kvm`: the machine has its own /dev/kvm. */
  readonly kvm: KvmHost | undefined;
  /** PASIDs, page requests, and processes whose addresses devices use. */
  readonly shared: SharedAddressing;
  #walkers = 0;
  readonly #nodes: DeviceNodes<Opener>;
  readonly #platform: Platform;
  readonly hotplug: Hotplug;

  /** HostFileError: the description cannot be built. */
  constructor(config: HostConfig, platform: Platform) {
    this.config = config;
    this.counters = new Counters(this.physical);
    const units = makeUnits(config, this.physical);
    this.iommu = new IommuCore({
      groupMultifunction: config.options?.groupMultifunction ?? false,
      unitOf: units.of,
    });
    for (const unit of units.all) this.iommu.units.push(unit);
    this.shared = new SharedAddressing(this.iommu, platform.clock);
    this.counters.watchShared(this.shared);
    this.interrupts = new Interrupts(units.all, units.of, this.physical, hasKvm(config));
    this.pci = new PciTree({
      memory: this.physical,
      log: platform.log,
      upstreamOf: (fn) => {
        const unit = units.of(fn) ?? noUpstream;
        const { dmaMiss } = platform;
        return dmaMiss === undefined ? unit : new DemandUpstream(unit, () => fn.name, dmaMiss);
      },
    });
    const placed = placeFunctions(config, this.pci, platform);
    this.iommu.reserveIds([...placed.values()].flatMap(({ group }) => (group === undefined ? [] : [group])));

    this.vfio = new VfioCore({
      dmaEntryLimit: config.options?.dmaEntryLimit ?? 65535,
      allowUnsafeInterrupts: config.options?.allowUnsafeInterrupts ?? false,
      disableHugePages: config.options?.disableHugePages ?? false,
      physicalOfDevice: (memory, offset) => this.drivers.physicalOf(memory, offset),
      clock: platform.clock,
    });
    this.iommufd = new IommufdCore({
      physical: this.physical,
      allowUnsafeInterrupts: config.options?.allowUnsafeInterrupts ?? false,
      selftest: config.iommufd?.selftest ?? false,
      vtdViommu: config.iommufd?.vtdViommu ?? false,
      allocateShared: platform.allocateShared,
    });
    this.#platform = platform;
    this.api2011 = Api2011.of(config, {
      log: platform.log,
      physicalOfDevice: (memory, offset) => this.drivers.physicalOf(memory, offset),
    });
    this.drivers = new Drivers({
      tree: this.pci,
      iommu: this.iommu,
      vfio: this.vfio,
      platform,
      interrupts: this.interrupts,
      enableSriov: config.options?.enableSriov ?? false,
      api2011: this.api2011,
      walkers: {
        sva: this.shared.sva,
        publish: (path, open) => {
          this.#nodes.add(path, WALKER_MAJOR, this.#walkers++, 0o660, () => this.counters.opened(open()));
          return () => this.#nodes.remove(path);
        },
      },
    });

    this.counters.watchVfio(this.vfio, this.api2011?.core);
    this.#nodes = new DeviceNodes(this.tree);
    this.api2011?.publish(this.#nodes, this.tree, (device) => functionPath(this.pci.find(device.name)!));
    this.counters.watchInterrupts(this.interrupts);
    this.kvm = this.#makeKvm(config);
    const pciSysfs = new PciSysfs(this.tree, this.drivers);
    const iommuSysfs = new IommuSysfs(this.tree, this.iommu, (group) => this.api2011?.servedBy(group.id) === '2011');
    const vfioSysfs = new VfioSysfs(
      this.tree,
      {
        get: () => this.vfio.options.dmaEntryLimit,
        set: (value) => {
          this.vfio.options.dmaEntryLimit = value;
        },
      },
      this.vfio.options.allowUnsafeInterrupts,
      this.vfio.options.disableHugePages,
      {
        get: () => this.drivers.enableSriov,
        set: (value) => {
          this.drivers.enableSriov = value;
        },
      },
    );
    const watched = (file: IommufdFile): IommufdFile => {
      this.counters.watchContext(file.context);
      return file;
    };
    const vfioNodes = this.api2011?.isAlone
      ? undefined
      : new VfioNodes(
          this.vfio,
          this.#nodes,
          vfioSysfs,
          this.counters,
          (caller) => watched(this.iommufd.open(caller)),
          config.iommufd?.container === 'iommufd' ? (caller) => watched(this.iommufd.openContainer(caller)) : undefined,
        );

    units.all.forEach((unit, i) => {
      iommuSysfs.addUnit(unit, i);
    });
    this.drivers.bus.watch((event, fn) => {
      const group = this.iommu.groupOf(fn);
      if (event === 'added') {
        pciSysfs.add(fn);
        if (group !== undefined) iommuSysfs.addMember(group, fn);
      } else if (event === 'removed') {
        if (group !== undefined) iommuSysfs.removeMember(group, fn);
        pciSysfs.remove(fn);
      }
    });
    this.drivers.watchFor2011();
    for (const [fn, { group }] of placed) this.drivers.core.add(fn, { group });
    this.drivers.onChange((fn) => {
      pciSysfs.driverChanged(fn);
      const group = this.iommu.groupOf(fn);
      if (group !== undefined) iommuSysfs.refresh(group);
      vfioNodes?.refresh();
    });
    this.drivers.publish(this.tree);
    this.counters.publish(this.tree);
    this.drivers.bindAtStart(placed, config.bindOrder ?? []);
    this.api2011?.checkGroups(this.iommu.groups().map((group) => group.id));
    this.drivers.core.watch();
    this.hotplug = new Hotplug(this.pci, this.drivers, platform, placed);
  }

  // ---- while it runs ----

  #makeKvm({ options }: HostConfig): KvmHost | undefined {
    const { kvm } = options ?? {};
    const { bypass } = this.interrupts;
    if (kvm === undefined || kvm === false || bypass === undefined) return undefined;
    const host = new KvmHost({
      memory: this.physical,
      interrupts: this.interrupts.processors,
      bypass,
      ...(kvm !== true && kvm.policy !== undefined && { policy: kvm.policy }),
      ...(kvm !== true &&
        kvm.platformHonoursNoSnoop !== undefined && { platformHonoursNoSnoop: kvm.platformHonoursNoSnoop }),
    });
    this.physical.snoop = (page, offset, length) => host.cache.snoop(page, offset, length);
    this.#nodes.add('/dev/kvm', MISC_MAJOR, KVM_MINOR, 0o660, () => this.counters.opened(new KvmFile(host)));
    this.counters.watchKvm(host);
    return host;
  }

  /** Absolute sysfs paths that the tree replaces, longest first. */
  get prefixes(): string[] {
    const roots = this.pci.roots.map((root) => {
      const first = root.functions[0];
      return first === undefined ? undefined : functionPath(first).split('/').slice(0, 4).join('/');
    });
    const fixed = [
      '/sys/bus/pci',
      '/sys/kernel/iommu_groups',
      '/sys/devices/virtual/iommu',
      '/sys/devices/virtual/vfio',
      '/sys/class/iommu',
      '/sys/class/vfio',
      '/sys/class/vfio-dev',
      ...this.tree.list('/sys/module').map((name) => `/sys/module/${name}`),
    ];
    return [...fixed, ...new Set(roots.filter((root) => root !== undefined))].sort((a, b) => b.length - a.length);
  }

  /** Nodes that are the machine's beside those of VFIO: without them these names are the system's. */
  get otherNodes(): string[] {
    return this.kvm === undefined ? [] : ['/dev/kvm'];
  }

  createProcess(
    identity: ProcessIdentity,
    memory: UserMemory,
    descriptors: DescriptorSource,
    rights: ProcessRights,
  ): Process {
    const mm = new Mm(memory, this.physical);
    this.counters.watch(mm);
    return new Process(identity, mm, descriptors, rights, () => {
      this.shared.sva.exit(mm);
      this.counters.ended(mm);
    });
  }

  /**
   * Opens a node or a live file. Undefined: nothing of the machine, make the real call. ENOENT: the machine has no such node.
   * EACCES: the file cannot be opened that way.
   */
  open(caller: Process, path: string, flags: number): File | undefined {
    const wanted = wantedBy[flags & O_ACCMODE]!;
    if (path.startsWith('/dev/')) {
      const node = this.#nodes.find(path);
      if (node !== undefined) this.#permit(caller, path, wanted);
      return node?.open(caller);
    }
    const found = this.tree.resolve(path);
    if (found === undefined && (flags & O_CREAT) !== 0) {
      const folder = this.tree.resolve(path.slice(0, path.lastIndexOf('/')));
      if (folder?.node.kind === 'directory') throw new Errno('EACCES', `${folder.path} takes no new files`);
    }
    if (found?.node.kind !== 'file') return undefined;
    const { attribute } = found.node;
    const access = flags & O_ACCMODE;
    if (attribute === undefined) {
      if (access === O_RDONLY) return undefined;
      throw new Errno('EACCES', `${found.path} cannot be written`);
    }
    this.#permit(caller, found.path, wanted);
    if (access !== O_RDONLY && attribute.store === undefined)
      throw new Errno('EACCES', `${found.path} cannot be written`);
    if (access === O_RDONLY && attribute.show === undefined) throw new Errno('EACCES', `${found.path} cannot be read`);
    return new AttributeFile(found.path, attribute, () => this.tree.refresh(found.path));
  }

  /** Whether `caller` may reach a node in this way (R_OK and so on). Undefined: not the machine's. ENOENT, EACCES. */
  access(caller: Process, path: string, mode: number): boolean | undefined {
    if (!path.startsWith('/dev/')) return undefined;
    if (this.#nodes.find(path) === undefined) return undefined;
    if ((mode & X_OK) !== 0) throw new Errno('EACCES', 'a device node cannot be executed');
    if (mode !== 0) this.#permit(caller, path, mode);
    return true;
  }

  /** EACCES: the file's owner and mode forbid it. */
  #permit(caller: Process, path: string, wanted: number): void {
    const owner = this.#platform.ownershipOf?.(path);
    const credentials = owner === undefined ? undefined : caller.rights?.credentials?.bind(caller.rights);
    if (owner !== undefined && credentials !== undefined) permit(path, owner, wanted, credentials);
  }

  /** What is held at this moment; all zero when no program holds anything. */
  invariants(): Invariants {
    return this.counters.now();
  }

  /** What stat says of a node. Undefined: not the machine's. ENOENT. */
  stat(path: string, uid: number): NodeStat | undefined {
    return this.#nodes.stat(path, uid, this.#platform.ownershipOf?.(path));
  }

  /** Functions in bus order, for lists. */
  functions(): PciFunction[] {
    return this.pci.functions();
  }
}

/** Whether the machine has a /dev/kvm of its own. */
function hasKvm({ options }: HostConfig): boolean {
  return options?.kvm !== undefined && options.kvm !== false;
}
