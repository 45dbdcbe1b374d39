/**
 * What software keeps over a reset and writes back afterwards (the kernel's pci_save_state and pci_restore_state): every register
 * of configuration space that takes writes, and the MSI-X table. How many virtual functions there are is not part of it: they may have come or
 * gone in between.
 */
import type { PciFunction } from './function.ts';

export interface SavedState {
  readonly config: Uint8Array;
  readonly msixTable: Uint8Array | undefined;
}

export function saveState(fn: PciFunction): SavedState {
  return { config: fn.config.bytes.slice(), msixTable: fn.msix?.table.slice() };
}

export function restoreState(fn: PciFunction, saved: SavedState): void {
  const config = fn.config;
  if (config.gone) return;
  if (saved.msixTable !== undefined) fn.msix?.table.set(saved.msixTable);
  // From the top down, so that BARs are in place before COMMAND lets them answer.
  for (let at = config.length - 4; at >= 4; at -= 4) {
    const writable = config.writableBits(at, 4);
    if (writable === 0 || fn.sriov?.countsAt(at) === true) continue;
    const view = new DataView(saved.config.buffer, saved.config.byteOffset + at, 4);
    const wanted = (view.getUint32(0, true) & writable) >>> 0;
    if ((config.get(at, 4) & writable) >>> 0 !== wanted) config.write(at, 4, wanted);
  }
}

/**
 * Resets everything behind a bridge as software does a hot reset: saves all functions below, pulses Secondary Bus Reset,
 * restores them, bridges before what is behind them.
 */
export function resetBus(bridge: PciFunction): void {
  const below = bridge.secondary?.subtree() ?? [];
  for (const fn of below) fn.resetGuard?.begin();
  const saved = below.map((fn) => saveState(fn));
  bridge.pulseBusReset();
  below.forEach((fn, i) => {
    restoreState(fn, saved[i]!);
  });
  for (const fn of below) fn.resetGuard?.end();
}
