/**
 * One bus: the functions on it, the bridge above it, the buses below it.
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { PciFunction } from './function.ts';
import { firstFrom } from './topology.ts';
import type { PciTree } from './tree.ts';

export class Bus {
  readonly tree: PciTree;
  readonly segment: number;
  /** 0 to 255, given by the description or by firmware. -1: not numbered yet. */
  number: number;
  /** Highest bus number below this bus; its own when nothing is. */
  subordinate: number;
  /** The bridge whose secondary bus this is; undefined for a root bus and for a virtual bus of SR-IOV. */
  readonly self: PciFunction | undefined;
  /** The bus on the other side of the bridge; of a virtual bus the bus of the physical function. */
  readonly parent: Bus | undefined;
  /** In the order of devfn. */
  readonly functions: PciFunction[] = [];
  /** Buses behind the bridges of this bus, in the order of the bridges; kept by the tree. */
  readonly below: Bus[] = [];
  /** Virtual buses of SR-IOV under this one. */
  readonly virtual: Bus[] = [];

  constructor(tree: PciTree, segment: number, number: number, parent?: Bus, self?: PciFunction) {
    this.tree = tree;
    this.segment = segment;
    this.number = number;
    this.subordinate = number;
    this.parent = parent;
    this.self = self;
  }

  get isRoot(): boolean {
    return this.parent === undefined;
  }

  /** The number as the bridge above has it; -1 on a root bus. */
  get primary(): number {
    return this.parent?.number ?? -1;
  }

  /** `0000:02` */
  get name(): string {
    const h = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
    return `${h(this.segment, 4)}:${h(this.number, 2)}`;
  }

  at(devfn: number): PciFunction | undefined {
    const fn = this.functions[firstFrom(this.functions, devfn)];
    return fn?.devfn === devfn ? fn : undefined;
  }

  /** Buses behind the bridges of this bus, then its virtual ones. */
  children(): readonly Bus[] {
    return this.virtual.length === 0 ? this.below : [...this.below, ...this.virtual];
  }

  /** All functions of this bus and below, every bridge before what is behind it. */
  subtree(): PciFunction[] {
    return [...this.functions, ...this.children().flatMap((bus) => bus.subtree())];
  }

  /** The requester ID at the root of a request that enters this bus as `rid`. */
  requesterId(rid: number): number {
    let result = rid;
    for (let bus: Bus | undefined = this; bus?.parent !== undefined; bus = bus.parent) {
      const bridge: PciFunction | undefined = bus.self;
      if (bridge === undefined) continue;
      if (bridge.portType === undefined) {
        result = bridge.quirks.pcieBridgeAlias ? bus.number << 8 : bridge.rid;
      } else if (bridge.portType === reg.PCI_EXP_TYPE_PCI_BRIDGE && !bridge.quirks.bridgeNoAlias) {
        result = bus.number << 8;
      } else if (bridge.portType === reg.PCI_EXP_TYPE_PCIE_BRIDGE) result = bridge.rid;
    }
    return result;
  }
}
