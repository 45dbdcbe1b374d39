/**
 * Who is behind whom: bus ranges of bridges, checked against each other, and the order in which functions can be placed.
 */
import { ConfigImage } from '../../hw/devices/stub/config-image.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { type Dump, type DumpedFunction, nameOf, refuse } from './dump.ts';

export interface Node {
  readonly fn: DumpedFunction;
  readonly name: string;
  /** Undefined: a tree without bytes. */
  readonly image: ConfigImage | undefined;
  readonly isBridge: boolean;
  /** Of a bridge that leads somewhere: the bus behind it and the last one of its range. */
  readonly behind: { readonly secondary: number; readonly subordinate: number } | undefined;
  /** The bridge above; undefined on a root bus. */
  parent: Node | undefined;
  readonly children: Node[];
  /** The function that makes this virtual one. */
  physfn: Node | undefined;
  /** Of a physical function: virtual ones that exist. */
  numVfs: number;
}

export interface Layout {
  /** Bridges before what is behind them, virtual functions behind their physical ones. */
  readonly nodes: readonly Node[];
  /** Root buses other than bus 0, as `0000:80`. */
  readonly roots: readonly string[];
}

const hex2 = (value: number): string => value.toString(16).padStart(2, '0');

/** HostFileError: two functions at one address, bridges whose buses overlap, buses to which nothing leads. */
export function layOut(dump: Dump): Layout {
  const nodes = dump.functions.map(nodeOf);
  if (nodes.length === 0) refuse(dump.origin, 'there is no PCI function in it');
  checkAddresses(nodes);
  const bySegment = new Map<number, Node[]>();
  for (const node of nodes) bySegment.set(node.fn.segment, [...(bySegment.get(node.fn.segment) ?? []), node]);
  const ordered: Node[] = [];
  const roots: string[] = [];
  for (const [segment, list] of [...bySegment].sort(([a], [b]) => a - b)) {
    list.sort((a, b) => a.fn.bus - b.fn.bus || a.fn.devfn - b.fn.devfn);
    markVirtual(list);
    checkBridges(list);
    const rootBuses = connect(list);
    for (const bus of rootBuses) {
      if (bus !== 0) roots.push(`${segment.toString(16).padStart(4, '0')}:${hex2(bus)}`);
    }
    const visit = (node: Node): void => {
      ordered.push(node);
      node.children.forEach(visit);
    };
    // Bus by bus on each level: a function before what is behind it and before its virtual functions.
    for (const node of list) if (node.parent === undefined && node.physfn === undefined) visit(node);
  }
  return { nodes: ordered, roots };
}

function nodeOf(fn: DumpedFunction): Node {
  const name = nameOf(fn);
  const image = fn.config === undefined ? undefined : new ConfigImage(fn.config);
  const header = image === undefined ? 0 : image.get(reg.PCI_HEADER_TYPE, 1) & 0x7f;
  if (image !== undefined && header > 2) {
    refuse(
      fn.where,
      `${name} has header type ${header.toString(16)}, which PCI does not know: these are no bytes of PCI`,
    );
  }
  const isBridge = image === undefined ? fn.behind !== undefined : header !== 0;
  let { behind } = fn;
  if (image !== undefined && isBridge) {
    const secondary = image.get(reg.PCI_SECONDARY_BUS, 1);
    const subordinate = image.get(reg.PCI_SUBORDINATE_BUS, 1);
    behind = secondary === 0 && subordinate === 0 ? undefined : { secondary, subordinate };
  }
  return { fn, name, image, isBridge, behind, parent: undefined, children: [], physfn: undefined, numVfs: 0 };
}

function checkAddresses(nodes: readonly Node[]): void {
  const seen = new Map<string, Node>();
  for (const node of nodes) {
    const other = seen.get(node.name);
    if (other !== undefined) refuse(node.fn.where, `${node.name} is there already, at ${other.fn.where}`);
    seen.set(node.name, node);
  }
}

/** Finds virtual functions by the requester IDs that the SR-IOV capabilities give them. */
function markVirtual(list: readonly Node[]): void {
  const byRid = new Map(list.map((node) => [(node.fn.bus << 8) | node.fn.devfn, node]));
  for (const node of list) {
    const { image } = node;
    const at = image?.findExtended(reg.PCI_EXT_CAP_ID_SRIOV) ?? 0;
    if (image === undefined || at === 0) continue;
    const count = image.get(at + reg.PCI_SRIOV_NUM_VF, 2);
    const first = ((node.fn.bus << 8) | node.fn.devfn) + image.get(at + reg.PCI_SRIOV_VF_OFFSET, 2);
    const stride = image.get(at + reg.PCI_SRIOV_VF_STRIDE, 2);
    if ((image.get(at + reg.PCI_SRIOV_CTRL, 2) & reg.PCI_SRIOV_CTRL_VFE) === 0) continue;
    for (let i = 0; i < count; i++) {
      const virtual = byRid.get(first + i * stride);
      if (virtual === undefined) continue;
      virtual.physfn = node;
      node.numVfs = count;
    }
  }
  for (const { fn, name, image, physfn } of list) {
    if (physfn !== undefined || image === undefined) continue;
    if (fn.isVirtfn) refuse(fn.where, `${name} is a virtual function, but no SR-IOV capability of the dump makes it`);
    if (image.get(reg.PCI_VENDOR_ID, 2) === 0xffff) {
      refuse(
        fn.where,
        `${name} reads as ff: nothing answered there, or it is a virtual function without its physical one`,
      );
    }
    if (image.get(reg.PCI_VENDOR_ID, 2) === 0) refuse(fn.where, `${name} has vendor 0000: these are no bytes of PCI`);
  }
}

function checkBridges(list: readonly Node[]): void {
  const bridges = list.filter((node) => node.behind !== undefined);
  for (const { fn, name, image, behind } of bridges) {
    const { secondary, subordinate } = behind!;
    const primary = image?.get(reg.PCI_PRIMARY_BUS, 1) ?? fn.bus;
    // Bridges exist whose primary bus reads as 0 wherever they are.
    if (primary !== fn.bus && primary !== 0) {
      refuse(fn.where, `bridge ${name} says that it is on bus ${hex2(primary)}, not ${hex2(fn.bus)}`);
    }
    if (secondary <= fn.bus || subordinate < secondary) {
      refuse(
        fn.where,
        `bridge ${name} on bus ${hex2(fn.bus)} cannot lead to buses ${hex2(secondary)} to ${hex2(subordinate)}`,
      );
    }
  }
  // Ranges by their start, wider ones first: each lies inside the nearest open one or behind all of it.
  const sorted = [...bridges].sort(
    (a, b) => a.behind!.secondary - b.behind!.secondary || b.behind!.subordinate - a.behind!.subordinate,
  );
  const open: Node[] = [];
  for (const node of sorted) {
    while (open.length > 0 && open[open.length - 1]!.behind!.subordinate < node.behind!.secondary) open.pop();
    const outer = open[open.length - 1];
    if (outer !== undefined) {
      const [a, b] = [outer.behind!, node.behind!];
      const isInside = b.subordinate <= a.subordinate && b.secondary > a.secondary && a.secondary <= node.fn.bus;
      if (!isInside) {
        refuse(
          node.fn.where,
          `buses ${hex2(b.secondary)} to ${hex2(b.subordinate)} of bridge ${node.name} overlap ${hex2(a.secondary)} to ${hex2(a.subordinate)} of bridge ${outer.name} (${outer.fn.where})`,
        );
      }
    }
    open.push(node);
  }
}

/** Gives each function the bridge above it. Returns the root buses. */
function connect(list: readonly Node[]): Set<number> {
  const leads = new Map(
    list.flatMap((node) => (node.behind === undefined ? [] : [[node.behind.secondary, node] as const])),
  );
  const roots = new Set<number>();
  for (const node of list) {
    const { physfn } = node;
    if (physfn !== undefined) {
      physfn.children.push(node);
      continue;
    }
    const { bus } = node.fn;
    node.parent = leads.get(bus);
    node.parent?.children.push(node);
    if (node.parent !== undefined) continue;
    const over = list.find(
      ({ behind }) => behind !== undefined && behind.secondary <= bus && bus <= behind.subordinate,
    );
    if (over !== undefined) {
      refuse(
        node.fn.where,
        `${node.name} is on bus ${hex2(bus)}, which lies behind ${over.name}, but no bridge leads there: one is missing`,
      );
    }
    roots.add(bus);
  }
  return roots;
}
