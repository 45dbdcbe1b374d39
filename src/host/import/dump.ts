/**
 * What is known of a real machine, whichever way it was written down: functions with the bytes of their configuration space, and what
 * else the source tells. The readers of the formats make it, assemble.ts makes a host file of it.
 */
import { HostFileError } from '../host-file.ts';

/** `[first, last]` of a BAR as the kernel has it (`resource` in sysfs); both 0: none. */
export interface Resource {
  readonly first: number;
  readonly last: number;
}

export interface DumpedFunction {
  readonly segment: number;
  readonly bus: number;
  readonly devfn: number;
  /** Where it was read, for messages: `dump.txt:12`. */
  readonly where: string;
  /** 64, 128, 256 or 4096 bytes; undefined: a tree without bytes. */
  readonly config: Uint8Array | undefined;
  /** BARs 0 to 5, ROM, BARs of all virtual functions, as the kernel numbers resources. */
  readonly resources?: readonly Resource[];
  /** Bytes of BARs by index (6: the ROM), where only sizes are told. */
  readonly sizes?: ReadonlyMap<number, number>;
  readonly driver?: string | undefined;
  readonly group?: number | undefined;
  /** Name of the IOMMU unit, `dmar0`, `ivhd1`. */
  readonly unit?: string | undefined;
  readonly isVirtfn?: boolean;
  /** Name of the function that stands in for it (devices behind VMD). */
  readonly realDmaDevice?: string | undefined;
  /** Of a tree: what the source says about it in words. */
  readonly text?: string;
  /** Of a tree: the bus behind it and the last one. */
  readonly behind?: { readonly secondary: number; readonly subordinate: number };
  readonly untrusted?: boolean;
}

export interface Dump {
  readonly origin: string;
  readonly functions: readonly DumpedFunction[];
}

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

/** `0000:00:04.0` */
export function nameOf(fn: Pick<DumpedFunction, 'segment' | 'bus' | 'devfn'>): string {
  return `${hex(fn.segment, 4)}:${hex(fn.bus, 2)}:${hex(fn.devfn >> 3, 2)}.${fn.devfn & 7}`;
}

const ADDRESS = /^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i;

/** Undefined: the text is no address of a function. */
export function parseName(text: string): { segment: number; bus: number; devfn: number } | undefined {
  const match = ADDRESS.exec(text);
  if (match === null) return undefined;
  return {
    segment: Number.parseInt(match[1] ?? '0', 16),
    bus: Number.parseInt(match[2]!, 16),
    devfn: (Number.parseInt(match[3]!, 16) << 3) | Number.parseInt(match[4]!, 16),
  };
}

/** Lengths that configuration space comes in: read without rights, of CardBus bridges, of PCI, of PCI Express. */
export const CONFIG_LENGTHS: readonly number[] = [64, 128, 256, 4096];

export function refuse(where: string, what: string): never {
  throw new HostFileError(`${where}: ${what}`);
}

/** Lines of `resource`: first, last and flags of each. */
export function parseResources(text: string, where: string): Resource[] {
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line, i) => {
      const match = /^0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) 0x[0-9a-f]{1,16}$/i.exec(line.trim());
      if (match === null) return refuse(where, `line ${i + 1} of 'resource' is not "0xSTART 0xEND 0xFLAGS": '${line}'`);
      return { first: Number.parseInt(match[1]!, 16), last: Number.parseInt(match[2]!, 16) };
    });
}
