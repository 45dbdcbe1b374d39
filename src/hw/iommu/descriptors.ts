/**
 * Invalidation descriptors, bit by bit (VT-d specification, 6.5.2): 16 bytes, or 32 of which the second half is zero. Made by software,
 * read by the invalidation queue.
 */
import type { PageResponseCode } from '../pci/ats.ts';

export const DescriptorType = {
  CONTEXT: 1,
  IOTLB: 2,
  DEVICE_TLB: 3,
  INTERRUPT_ENTRY: 4,
  WAIT: 5,
  PASID_IOTLB: 6,
  PASID_CACHE: 7,
  PASID_DEVICE_TLB: 8,
  PAGE_GROUP_RESPONSE: 9,
} as const;

const GLOBAL = 1;
const DOMAIN = 2;
const SELECTIVE = 3;

/** Two qwords as four words, low halves first. */
export type Descriptor = Uint32Array;

export type Invalidation =
  | { readonly kind: 'context'; readonly did?: number; readonly rid?: number }
  | { readonly kind: 'iotlb'; readonly did?: number; readonly pages?: Pages }
  | { readonly kind: 'device-tlb'; readonly rid: number; readonly pages: Pages }
  | { readonly kind: 'interrupt-entry'; readonly index?: number; readonly order?: number }
  | {
      readonly kind: 'wait';
      readonly status?: { readonly address: bigint; readonly data: number };
      readonly isFence?: boolean;
      readonly drains?: boolean;
      readonly interrupts?: boolean;
    }
  | { readonly kind: 'pasid-iotlb'; readonly did: number; readonly pasid: number; readonly pages?: Pages }
  | { readonly kind: 'pasid-cache'; readonly did?: number; readonly pasid?: number }
  | {
      readonly kind: 'pasid-device-tlb';
      readonly rid: number;
      readonly pasid: number;
      readonly isAllPasids?: boolean;
      readonly pages: Pages;
    }
  | {
      readonly kind: 'response';
      readonly rid: number;
      readonly pasid: number;
      readonly group: number;
      readonly code: PageResponseCode;
    };

/** `2^order` pages from `firstPage`, aligned to that. */
export interface Pages {
  readonly firstPage: number;
  readonly order: number;
}

const CODES: readonly [PageResponseCode, number][] = [
  ['success', 0],
  ['invalid', 1],
  ['failure', 15],
];

/** The four words of a descriptor. */
export function encodeDescriptor(what: Invalidation): Descriptor {
  switch (what.kind) {
    case 'context': {
      const granularity = what.rid !== undefined ? SELECTIVE : what.did !== undefined ? DOMAIN : GLOBAL;
      return words(DescriptorType.CONTEXT | (granularity << 4) | ((what.did ?? 0) << 16), what.rid ?? 0);
    }
    case 'iotlb': {
      const granularity = what.pages !== undefined ? SELECTIVE : what.did !== undefined ? DOMAIN : GLOBAL;
      // Bits 6 and 7: reads and writes that are under way are drained.
      const low = DescriptorType.IOTLB | (granularity << 4) | 0xc0 | ((what.did ?? 0) << 16);
      return words(low, 0, ...masked(what.pages));
    }
    case 'device-tlb':
      return words(DescriptorType.DEVICE_TLB, what.rid, ...ranged(what.pages, 1));
    case 'interrupt-entry': {
      const selective = what.index === undefined ? 0 : 16 | ((what.order ?? 0) << 27);
      return words(DescriptorType.INTERRUPT_ENTRY | selective, what.index ?? 0);
    }
    case 'wait': {
      const { status, isFence, drains, interrupts } = what;
      const bits =
        (interrupts === true ? 16 : 0) |
        (status !== undefined ? 32 : 0) |
        (isFence === true ? 64 : 0) |
        (drains === true ? 128 : 0);
      const address = status?.address ?? 0n;
      return words(
        DescriptorType.WAIT | bits,
        status?.data ?? 0,
        Number(address & 0xffff_ffffn),
        Number(address >> 32n),
      );
    }
    case 'pasid-iotlb': {
      const granularity = what.pages === undefined ? 2 : 3;
      return words(
        DescriptorType.PASID_IOTLB | (granularity << 4) | (what.did << 16),
        what.pasid,
        ...masked(what.pages),
      );
    }
    case 'pasid-cache': {
      const granularity = what.did === undefined ? 3 : what.pasid === undefined ? 0 : 1;
      return words(DescriptorType.PASID_CACHE | (granularity << 4) | ((what.did ?? 0) << 16), what.pasid ?? 0);
    }
    case 'pasid-device-tlb': {
      const [low, high] = ranged(what.pages, 1 << 11);
      return words(
        DescriptorType.PASID_DEVICE_TLB | (what.rid << 16),
        what.pasid,
        low | (what.isAllPasids === true ? 1 : 0),
        high,
      );
    }
    case 'response': {
      const code = CODES.find(([name]) => name === what.code)![1];
      const low = DescriptorType.PAGE_GROUP_RESPONSE | (what.pasid >= 0 ? 16 : 0) | (code << 12) | (what.rid << 16);
      return words(low, Math.max(what.pasid, 0), what.group << 3);
    }
  }
}

function words(...given: number[]): Descriptor {
  const four = new Uint32Array(4);
  four.set(given);
  return four;
}

/** Address and mask of an IOTLB invalidation. */
function masked(pages: Pages | undefined): [number, number] {
  if (pages === undefined) return [0, 0];
  return [((pages.firstPage & 0xfffff) << 12) | pages.order, Math.floor(pages.firstPage / 0x10_0000)];
}

/** Address of a device-TLB invalidation: the ones from bit 12 up tell the size, one less than its order, when `sizeBit` is set. */
function ranged({ firstPage, order }: Pages, sizeBit: number): [number, number] {
  if (order === 0) return [(firstPage & 0xfffff) << 12, Math.floor(firstPage / 0x10_0000)];
  const ones = 2n ** BigInt(order - 1) - 1n;
  const page = order >= 52 ? 2n ** 51n - 1n : BigInt(firstPage) | ones;
  return [Number((page & 0xfffffn) << 12n) | sizeBit, Number(page >> 20n)];
}

/** What each type may set in its four words. */
const KNOWN_BITS: Readonly<Record<number, readonly [number, number, number, number]>> = {
  [DescriptorType.CONTEXT]: [0xffff_003f, 0x0003_ffff, 0, 0],
  [DescriptorType.IOTLB]: [0xffff_00ff, 0, 0xffff_f07f, 0xffff_ffff],
  [DescriptorType.DEVICE_TLB]: [0x001f_f00f, 0xfff0_ffff, 0xffff_f001, 0xffff_ffff],
  [DescriptorType.INTERRUPT_ENTRY]: [0xf800_001f, 0x0000_ffff, 0, 0],
  [DescriptorType.WAIT]: [0x0000_00ff, 0xffff_ffff, 0xffff_fffc, 0xffff_ffff],
  [DescriptorType.PASID_IOTLB]: [0xffff_003f, 0x000f_ffff, 0xffff_f07f, 0xffff_ffff],
  [DescriptorType.PASID_CACHE]: [0xffff_003f, 0x000f_ffff, 0, 0],
  [DescriptorType.PASID_DEVICE_TLB]: [0xffff_f1ff, 0xffff_ffff, 0xffff_f801, 0xffff_ffff],
  [DescriptorType.PAGE_GROUP_RESPONSE]: [0xffff_f03f, 0x000f_ffff, 0x0000_0ffc, 0],
};

/** What a descriptor asks for; undefined: it is malformed. */
export function decodeDescriptor(descriptor: Descriptor): Invalidation | undefined {
  const [low = 0, high = 0, low2 = 0, high2 = 0] = descriptor;
  const known = KNOWN_BITS[low & 15];
  if (known === undefined || known.some((mask, i) => ((descriptor[i] ?? 0) & ~mask) !== 0)) return undefined;
  const granularity = (low >>> 4) & 3;
  const did = low >>> 16;
  const pasid = high & 0xf_ffff;
  const pages = { firstPage: high2 * 0x10_0000 + (low2 >>> 12), order: low2 & 0x3f };
  switch (low & 15) {
    case DescriptorType.CONTEXT:
      if (granularity === GLOBAL) return { kind: 'context' };
      if (granularity === DOMAIN) return { kind: 'context', did };
      return granularity === SELECTIVE ? { kind: 'context', did, rid: high & 0xffff } : undefined;
    case DescriptorType.IOTLB:
      if (granularity === GLOBAL) return { kind: 'iotlb' };
      if (granularity === DOMAIN) return { kind: 'iotlb', did };
      return granularity === SELECTIVE ? { kind: 'iotlb', did, pages } : undefined;
    case DescriptorType.DEVICE_TLB:
      return { kind: 'device-tlb', rid: high & 0xffff, pages: unranged(low2, high2, (low2 & 1) !== 0) };
    case DescriptorType.INTERRUPT_ENTRY:
      if ((low & 16) === 0) return { kind: 'interrupt-entry' };
      return { kind: 'interrupt-entry', index: high & 0xffff, order: low >>> 27 };
    case DescriptorType.WAIT: {
      const address = (BigInt(high2) << 32n) | BigInt(low2);
      const rest = { isFence: (low & 64) !== 0, drains: (low & 128) !== 0, interrupts: (low & 16) !== 0 };
      return { kind: 'wait', ...rest, ...((low & 32) !== 0 ? { status: { address, data: high } } : {}) };
    }
    case DescriptorType.PASID_IOTLB:
      if (granularity < 2) return undefined;
      return { kind: 'pasid-iotlb', did, pasid, ...(granularity === 3 ? { pages } : {}) };
    case DescriptorType.PASID_CACHE:
      if (granularity === 2) return undefined;
      return granularity === 3
        ? { kind: 'pasid-cache' }
        : { kind: 'pasid-cache', did, ...(granularity === 1 ? { pasid } : {}) };
    case DescriptorType.PASID_DEVICE_TLB: {
      const range = unranged(low2, high2, (low2 & (1 << 11)) !== 0);
      return { kind: 'pasid-device-tlb', rid: low >>> 16, pasid, isAllPasids: (low2 & 1) !== 0, pages: range };
    }
    default: {
      const code = CODES.find(([, number]) => number === ((low >>> 12) & 15))?.[0];
      if (code === undefined) return undefined;
      const hasPasid = (low & 16) !== 0;
      return { kind: 'response', rid: low >>> 16, pasid: hasPasid ? pasid : -1, group: (low2 >>> 3) & 0x1ff, code };
    }
  }
}

function unranged(low: number, high: number, isRange: boolean): Pages {
  const page = high * 0x10_0000 + (low >>> 12);
  if (!isRange) return { firstPage: page, order: 0 };
  let order = 1;
  for (let rest = page; rest % 2 === 1; rest = (rest - 1) / 2) order++;
  return { firstPage: order >= 52 ? 0 : page - (page % 2 ** order), order };
}
