/** Where a function's folder is. */
import type { PciFunction } from '../../hw/pci/function.ts';

/** `/sys/devices/pci0000:00/0000:00:08.0/0000:01:00.0`: the function's own folder. */
export function functionPath(fn: PciFunction): string {
  if (fn.physfn !== undefined) {
    const beside = functionPath(fn.physfn);
    return `${beside.slice(0, beside.lastIndexOf('/'))}/${fn.name}`;
  }
  const bridge = fn.bus.self;
  if (bridge !== undefined) return `${functionPath(bridge)}/${fn.name}`;
  const segment = fn.name.slice(0, 4);
  return `/sys/devices/pci${segment}:${fn.bus.number.toString(16).padStart(2, '0')}/${fn.name}`;
}
