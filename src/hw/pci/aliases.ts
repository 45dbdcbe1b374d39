/**
 * Under which requester IDs a function's DMA may arrive (specification 01, section 3).
 */
import * as reg from '../../uapi/pci-regs.ts';
import type { TopologyBus, TopologyFunction } from './topology.ts';

/** Called for each alias; `fn` is the function or the bridge that causes it. A result other than 0 stops the walk. */
export type AliasVisitor = (fn: TopologyFunction, rid: number) => number;

/** Visits every requester ID of `fn`, its own first, then upwards. Returns what stopped the walk, 0 if nothing did. */
export function forEachDmaAlias(fn: TopologyFunction, visit: AliasVisitor): number {
  const real = realDmaDevice(fn);
  let result = visit(real, real.rid);
  if (result !== 0) return result;
  for (const devfn of [...real.dmaAliases].sort((a, b) => a - b)) {
    result = visit(real, (real.bus.number << 8) | devfn);
    if (result !== 0) return result;
  }
  for (let bus: TopologyBus = real.bus; bus.parent !== undefined; bus = bus.parent) {
    const bridge = bus.self;
    if (bridge === undefined) continue;
    if (bridge.quirks.bridgeTranslationRoot) return 0;
    const rid = aliasOfBridge(bridge, bus);
    if (rid < 0) continue;
    result = visit(bridge, rid);
    if (result !== 0) return result;
  }
  return 0;
}

/** The requester ID that `bridge` puts on what comes from `secondary`, -1 if it passes IDs through. */
function aliasOfBridge(bridge: TopologyFunction, secondary: TopologyBus): number {
  switch (bridge.portType) {
    case undefined:
      return bridge.quirks.pcieBridgeAlias ? secondary.number << 8 : bridge.rid;
    case reg.PCI_EXP_TYPE_PCI_BRIDGE:
      return bridge.quirks.bridgeNoAlias ? -1 : secondary.number << 8;
    case reg.PCI_EXP_TYPE_PCIE_BRIDGE:
      return bridge.rid;
    default:
      return -1;
  }
}

/** The function in whose name `fn` does DMA: itself, unless something stands in for it. */
export function realDmaDevice(fn: TopologyFunction): TopologyFunction {
  return fn.quirks.realDmaDevice ?? fn;
}

/** Whether two functions of one bus cannot be told apart: either names the other, or one does DMA in the other's name. */
export function areDmaAliases(a: TopologyFunction, b: TopologyFunction): boolean {
  return (
    a.dmaAliases.has(b.devfn) ||
    b.dmaAliases.has(a.devfn) ||
    realDmaDevice(a) === b ||
    realDmaDevice(b) === a ||
    realDmaDevice(a) === realDmaDevice(b)
  );
}
