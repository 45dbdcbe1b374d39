/** Which function does DMA for those behind a VMD controller, as paths in sysfs show it. */
import { parseName } from './dump.ts';

/**
 * `0000:00:0e.0` of `…/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0`: a root bus below a function is that of a VMD controller.
 * Undefined: the root bus is the machine's own.
 */
export function standInOf(path: string): string | undefined {
  const parts = path.split('/');
  const root = parts.findLastIndex((part) => /^pci[0-9a-f]{4,8}:[0-9a-f]{2}$/.test(part));
  const above = root > 0 ? parts[root - 1]! : '';
  return parseName(above) === undefined ? undefined : above;
}
