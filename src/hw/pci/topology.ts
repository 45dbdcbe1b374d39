/**
 * What isolation depends on: where functions stand and what their registers say about it. Real functions have it (`PciFunction`),
 * and so have plain copies on which a change is tried out; the rules of ACS, aliases and groups ask for no more.
 */

/** Access Control Services of a function: what exists and what is switched on (`PCI_ACS_…`). */
export interface AcsState {
  readonly capability: number;
  readonly control: number;
}

/** Marks of functions that do not behave as their registers say; the kernel's quirk tables as data. */
export interface IsolationMarks {
  /** Verdict of the ACS test whatever the registers say: documented isolation without ACS, or none in spite of it. */
  acsOverride?: boolean;
  /** Bridge with the translation unit at its level: aliases above it do not matter. */
  bridgeTranslationRoot?: boolean;
  /** PCIe-to-PCI bridge that passes requester IDs through. */
  bridgeNoAlias?: boolean;
  /** Conventional bridge in front of a PCIe-to-PCI function: takes the secondary bus's ID, not its own. */
  pcieBridgeAlias?: boolean;
  /** The function in whose name this one does DMA. */
  realDmaDevice?: TopologyFunction;
}

export interface TopologyBus {
  readonly segment: number;
  readonly number: number;
  readonly isRoot: boolean;
  /** The bridge above; undefined for a root bus and for a virtual bus of SR-IOV. */
  readonly self: TopologyFunction | undefined;
  readonly parent: TopologyBus | undefined;
  /** In the order of devfn. */
  readonly functions: readonly TopologyFunction[];
}

export interface TopologyFunction {
  /** `0000:00:04.0` */
  readonly name: string;
  readonly bus: TopologyBus;
  readonly devfn: number;
  /** Requester ID: bus number and devfn. */
  readonly rid: number;
  readonly vendor: number;
  readonly device: number;
  /** `PCI_EXP_TYPE_…`; undefined: conventional PCI. */
  readonly portType: number | undefined;
  readonly multifunction: boolean;
  readonly isVirtfn: boolean;
  /** devfns on the same bus that this function's DMA may also carry. */
  readonly dmaAliases: ReadonlySet<number>;
  readonly quirks: IsolationMarks;
  /** Undefined: no such capability. */
  readonly acs: AcsState | undefined;
}

/** Functions of the slot of `fn`, itself included. */
export function slotOf(fn: TopologyFunction): TopologyFunction[] {
  const first = fn.devfn & ~7;
  const { functions } = fn.bus;
  let at = firstFrom(functions, first);
  const slot: TopologyFunction[] = [];
  for (; at < functions.length && functions[at]!.devfn < first + 8; at++) slot.push(functions[at]!);
  return slot;
}

/** Position of the first function whose devfn is not below `devfn`. */
export function firstFrom(functions: readonly Pick<TopologyFunction, 'devfn'>[], devfn: number): number {
  let low = 0;
  let high = functions.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (functions[middle]!.devfn < devfn) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The nearest bridge above `fn`; over virtual buses of SR-IOV, which have none. */
export function bridgeAbove(fn: TopologyFunction): TopologyFunction | undefined {
  let bus = fn.bus;
  while (bus.self === undefined && bus.parent !== undefined) bus = bus.parent;
  return bus.self;
}
