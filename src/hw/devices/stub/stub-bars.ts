/** BARs as the host file lists them, for models whose BARs are options. */
import { Errno } from '../../../lib/errno.ts';
import type { BarSpec } from '../../pci/bar.ts';
import { type DeviceEnvironment, parseInteger } from '../../pci/device-model.ts';

/** The BARs of the list in option `option` of `model`. EINVAL names the entry. */
export function readBars(env: DeviceEnvironment, model: string, option: string, list: readonly unknown[]): BarSpec[] {
  return list.map((bar, i) => barOf(env, `model '${model}', ${option}[${i}]`, bar));
}

const BAR_FIELDS = ['index', 'kind', 'size', 'is64', 'prefetchable', 'mappable'];

function barOf(env: DeviceEnvironment, where: string, given: unknown): BarSpec {
  const refuse = (what: string): never => {
    throw new Errno('EINVAL', `${where}: ${what}`);
  };
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return refuse('must be an object');
  const bar = given as Record<string, unknown>;
  for (const name of Object.keys(bar)) {
    if (!BAR_FIELDS.includes(name)) refuse(`there is no '${name}', only ${BAR_FIELDS.join(', ')}`);
  }
  const index = parseInteger(bar['index']) ?? refuse('index must be 0 to 5');
  if (index > 5) refuse('index must be 0 to 5');
  const kind = bar['kind'] ?? 'memory';
  if (kind !== 'memory' && kind !== 'io') return refuse('kind must be memory or io');
  const size = parseInteger(bar['size']) ?? refuse('size must be a number or a text such as "16M"');
  const least = kind === 'io' ? 4 : 16;
  if (size < least || !Number.isInteger(Math.log2(size))) refuse(`size must be a power of two from ${least}`);
  const flag = (name: string): boolean => {
    const value = bar[name] ?? false;
    return typeof value === 'boolean' ? value : refuse(`${name} must be true or false`);
  };
  if (kind === 'io' && (flag('is64') || flag('prefetchable') || flag('mappable'))) refuse('ports are none of these');
  return {
    index,
    kind,
    size,
    is64: flag('is64'),
    prefetchable: flag('prefetchable'),
    ...(flag('mappable') ? { shared: env.allocateShared(`stub-bar${index}`, size) } : {}),
  };
}
