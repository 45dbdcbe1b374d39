/**
 * How long it takes to compute groups, and that it grows with the number of functions and not faster: machines of three shapes with
 * 1,250 to 10,000 functions. Goal: 10,000 functions in at most 1 s; twice the functions in
 * less than three times the time. Of several rounds the quickest counts, as the collector of garbage comes when it likes.
 */
import { IommuUnit } from '../src/hw/iommu/unit.ts';
import { PhysicalMemory } from '../src/hw/memory/physical-memory.ts';
import { pciExpress } from '../src/hw/pci/capabilities.ts';
import { acs } from '../src/hw/pci/extended-capabilities.ts';
import type { FunctionSpec } from '../src/hw/pci/function-spec.ts';
import { type Bus, PciTree } from '../src/hw/pci/tree.ts';
import { groupsOf } from '../src/kernel/iommu/group-of.ts';
import { IommuCore } from '../src/kernel/iommu/iommu.ts';
import * as reg from '../src/uapi/pci-regs.ts';

const ROUNDS = 5;
const SIZES = [1250, 2500, 5000, 10000];
/** Buses that one root bus of these machines carries; more need another segment. */
const PORTS = 30;

const express = (type: number, isBridge: boolean, hasAcs: boolean): FunctionSpec => ({
  vendor: 0x1234,
  device: 1,
  class24: isBridge ? 0x060400 : 0x020000,
  ...(isBridge ? { bridge: {} } : {}),
  capabilities: [pciExpress({ type }), ...(hasAcs ? [acs({ capability: 0x1d })] : [])],
});
const endpoint = (hasAcs: boolean): FunctionSpec => express(reg.PCI_EXP_TYPE_ENDPOINT, false, hasAcs);
const port = (hasAcs: boolean): FunctionSpec => express(reg.PCI_EXP_TYPE_ROOT_PORT, true, hasAcs);
const conventional: FunctionSpec = { vendor: 0x1234, device: 2, class24: 0x020000 };
const bridge: FunctionSpec = { vendor: 0x1234, device: 3, class24: 0x060400, bridge: {} };

/** How a bus is filled: each machine is root ports or bridges with full buses behind them, over as many segments as it takes. */
const shapes: Record<string, { above: FunctionSpec; below: FunctionSpec }> = {
  'each function alone (ACS everywhere)': { above: port(true), below: endpoint(true) },
  'ports and functions without ACS': { above: port(false), below: endpoint(false) },
  'conventional bridges': { above: bridge, below: conventional },
};

function machine(count: number, { above, below }: { above: FunctionSpec; below: FunctionSpec }): PciTree {
  const tree = new PciTree({ memory: new PhysicalMemory() });
  let left = count;
  for (let segment = 0; left > 0; segment++) {
    const root = tree.addRoot(segment, 0);
    for (let i = 0; i < PORTS && left > 0; i++, left--) {
      const fn = tree.add(above, { bus: root, devfn: i << 3, secondary: i + 1 });
      left = fill(tree, fn.secondary!, below, left);
    }
  }
  tree.enumerate();
  return tree;
}

function fill(tree: PciTree, bus: Bus, spec: FunctionSpec, left: number): number {
  let rest = left;
  for (let devfn = 0; devfn < 256 && rest > 1; devfn++, rest--) tree.add(spec, { bus, devfn });
  return rest;
}

/** Milliseconds of this process, others do not count: the rules alone, and with units and default domains as a machine has them. */
function time(tree: PciTree): { rules: number; whole: number; groups: number } {
  const core = new IommuCore();
  core.units.push(new IommuUnit('dmar0', {}));
  const functions = tree.functions();
  const rules = spent(() => groupsOf(functions, false));
  const whole = spent(() => {
    for (const fn of functions) core.probe(fn);
  });
  return { rules, whole, groups: core.groups().length };
}

function spent(act: () => void): number {
  globalThis.gc?.();
  const begin = process.cpuUsage();
  act();
  const { user, system } = process.cpuUsage(begin);
  return (user + system) / 1000;
}

let isMissed = false;
for (const [name, shape] of Object.entries(shapes)) {
  const rules: number[] = [];
  let whole = 0;
  let groups = 0;
  for (const size of SIZES) {
    const tree = machine(size, shape);
    const rounds = Array.from({ length: ROUNDS }, () => time(tree));
    groups = rounds[0]!.groups;
    rules.push(Math.min(...rounds.map((round) => round.rules)));
    whole = Math.min(...rounds.map((round) => round.whole));
  }
  const ratio = rules.at(-1)! / rules.at(-2)!;
  // Below that, one pause of the collector of garbage is more than the rules.
  const isBad = whole > 1000 || (ratio > 3 && rules.at(-1)! > 50);
  isMissed ||= isBad;
  const curve = SIZES.map((size, i) => `${size}: ${rules[i]!.toFixed(1)} ms`).join(', ');
  console.log(`${name}: rules ${curve}; ${groups} groups`);
  console.log(
    `  twice the functions ${ratio.toFixed(2)}x (goal 3); 10,000 functions with their domains ${whole.toFixed(0)} ms (goal 1000)${isBad ? ', MISSED' : ''}`,
  );
}
process.exitCode = isMissed ? 1 : 0;
