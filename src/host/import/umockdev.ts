/**
 * umockdev's text dump (`umockdev-record`): blocks of `P:` path, `E:` properties, `A:` attributes, `H:` binary attributes in
 * hexadecimal, `L:` links, `N:` nodes, `S:` symlinks. Blocks that are not PCI are passed over.
 */
import { CONFIG_LENGTHS, type Dump, type DumpedFunction, parseName, parseResources, refuse } from './dump.ts';
import { standInOf } from './stand-in.ts';

export function isUmockdev(text: string): boolean {
  const first = text.split('\n').find((line) => line.trim() !== '' && !line.startsWith('#'));
  return first !== undefined && /^P: \//.test(first);
}

interface Block {
  readonly line: number;
  readonly path: string;
  readonly properties: Map<string, string>;
  readonly attributes: Map<string, { readonly value: string; readonly line: number }>;
  readonly binary: Map<string, { readonly value: string; readonly line: number }>;
  readonly links: Map<string, string>;
}

export function readUmockdev(text: string, origin: string): Dump {
  const functions: DumpedFunction[] = [];
  let block: Block | undefined;
  const finish = (): void => {
    const fn = block === undefined ? undefined : functionOf(block, origin);
    if (fn !== undefined) functions.push(fn);
    block = undefined;
  };
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    const where = `${origin}:${i + 1}`;
    if (line.startsWith('#')) continue;
    if (line.trim() === '') {
      finish();
      continue;
    }
    const match = /^([A-Z]): (.*)$/.exec(line);
    if (match === null)
      return refuse(where, `'${line.slice(0, 60)}' is no record of umockdev, such as "P: /devices/…"`);
    const [, kind, rest] = match as unknown as [string, string, string];
    if (kind === 'P') {
      finish();
      block = {
        line: i + 1,
        path: rest,
        properties: new Map(),
        attributes: new Map(),
        binary: new Map(),
        links: new Map(),
      };
      continue;
    }
    if (block === undefined) return refuse(where, `a record ${kind}: before the first P:`);
    if (kind === 'N' || kind === 'S') continue;
    const at = rest.indexOf('=');
    if (at < 0 && 'EAHL'.includes(kind)) return refuse(where, `record ${kind}: has no '=': the dump is cut off`);
    const [name, value] = [rest.slice(0, at), rest.slice(at + 1)];
    if (kind === 'E') block.properties.set(name, value);
    else if (kind === 'A') block.attributes.set(name, { value: unescaped(value), line: i + 1 });
    else if (kind === 'H') block.binary.set(name, { value, line: i + 1 });
    else if (kind === 'L') block.links.set(name, value);
    else refuse(where, `there is no record ${kind}:`);
  }
  finish();
  return { origin, functions };
}

const unescaped = (value: string): string => value.replace(/\\n/g, '\n').replace(/\\\\/g, '\\');
const last = (path: string | undefined): string | undefined => path?.split('/').pop();

function functionOf(block: Block, origin: string): DumpedFunction | undefined {
  const where = `${origin}:${block.line}`;
  const name = last(block.path)!;
  const address = parseName(name);
  const isPci = block.properties.get('SUBSYSTEM') === 'pci' || last(block.links.get('subsystem')) === 'pci';
  if (address === undefined)
    return isPci ? refuse(where, `${block.path} is of PCI but has no address of PCI`) : undefined;
  if (!isPci && !block.binary.has('config')) return undefined;
  const config = block.binary.get('config');
  if (config === undefined)
    return refuse(where, `${name} has no record H: config=…: its configuration space is missing`);
  const group = last(block.links.get('iommu_group'));
  const resource = block.attributes.get('resource');
  return {
    ...address,
    where,
    config: bytesOf(config.value, name, `${origin}:${config.line}`),
    ...(resource === undefined ? {} : { resources: parseResources(resource.value, `${origin}:${resource.line}`) }),
    driver: last(block.links.get('driver')) ?? block.properties.get('DRIVER'),
    group: group !== undefined && /^\d+$/.test(group) ? Number(group) : undefined,
    unit: last(block.links.get('iommu')),
    isVirtfn: block.links.has('physfn'),
    realDmaDevice: standInOf(block.path),
  };
}

function bytesOf(hex: string, name: string, where: string): Uint8Array {
  if (!/^[0-9a-f]*$/i.test(hex)) return refuse(where, `config of ${name} is not hexadecimal`);
  if (hex.length % 2 !== 0 || !CONFIG_LENGTHS.includes(hex.length / 2)) {
    return refuse(
      where,
      `config of ${name} has ${hex.length / 2} bytes, not ${CONFIG_LENGTHS.join(', ')}: the dump is cut off`,
    );
  }
  return Uint8Array.from(Buffer.from(hex, 'hex'));
}
