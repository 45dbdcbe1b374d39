/**
 * Which bytes of a function's configuration space a user sees as they are, which come from a copy, which he may write.
 *
 * Two masks, one bit per bit of the space: `virtual` (served from the copy, never from hardware) and `writable`. Capabilities that
 * a user must not see are unlinked from the lists; what belongs to no capability is passed through, because devices hide registers
 * there. Rules of 02 §5.3.
 */
import type { ConfigSpace } from '../../../hw/pci/config-space.ts';

/** Owner of the bytes of the header; also the owner below 0x40 only. */
export const OWNER_HEADER = 0;
/** Owner of bytes between capabilities. */
export const OWNER_NONE = 0xff;

export interface ConfigLayout {
  /** Per byte: the id of the capability it belongs to. From 0x100 on ids of extended capabilities. */
  readonly owner: Uint8Array;
  /** Per byte: where its capability begins. */
  readonly start: Uint16Array;
  readonly virtual: Uint8Array;
  readonly writable: Uint8Array;
  /** The copy: valid where a byte has an owner. */
  readonly copy: Uint8Array;
}

/** A field of a capability: offset in it, size, bits served from the copy, bits that may be written. */
type Field = readonly [offset: number, size: 1 | 2 | 4, virtual: number, writable: number];

const ALL = 0xffff_ffff;

const headerFields: readonly Field[] = [
  [0x00, 2, ALL, 0], // vendor and device: functions of SR-IOV have ffff in hardware
  [0x02, 2, ALL, 0],
  [0x04, 2, 0x0400, ALL], // COMMAND: INTx disable is emulated, the rest goes to hardware
  [0x06, 2, 0x0010, 0], // STATUS: the list of capabilities may be empty for the user
  [0x0c, 1, 0, ALL], // cache line, latency, BIST
  [0x0d, 1, 0, ALL],
  [0x0f, 1, 0, ALL],
  [0x10, 4, ALL, ALL], // BARs and ROM: the real ones are not to be moved
  [0x14, 4, ALL, ALL],
  [0x18, 4, ALL, ALL],
  [0x1c, 4, ALL, ALL],
  [0x20, 4, ALL, ALL],
  [0x24, 4, ALL, ALL],
  [0x30, 4, ALL, ALL],
  [0x34, 1, ALL, 0], // first capability
  [0x3c, 1, ALL, ALL], // interrupt line
  [0x3d, 1, ALL, 0], // interrupt pin
];

const NEXT: Field = [1, 1, ALL, 0];

/** Capabilities without a row are read-only, except their `next`. */
const fields = new Map<number, readonly Field[]>([
  [0x01, [NEXT, [2, 2, 0xf800, 0], [4, 4, 0x8100, ~(0x8100 | 3)]]], // PM: no PME for the user; states are trapped
  [0x03, [NEXT, [2, 2, ALL, ALL], [4, 4, ALL, ALL]]], // VPD: through the copy
  [0x07, [NEXT, [2, 2, 0, ALL], [8, 4, 0, ALL]]], // PCI-X
  [0x10, [NEXT, [8, 2, 0xf0e0, ~0x0200], [0x28, 2, 0, ~0x0020]]], // Express: no phantom functions, no ARI change
  [0x13, [NEXT, [4, 1, 0x01, 0x01]]], // AF: the reset is trapped
]);

const UNCORRECTABLE = 0x03ff_f031;
const CORRECTABLE = 0x0000_f1c1;
const extendedFields = new Map<number, readonly Field[]>([
  [
    0x01, // AER
    [
      [0x04, 4, 0, UNCORRECTABLE],
      [0x08, 4, 0, UNCORRECTABLE],
      [0x0c, 4, 0, UNCORRECTABLE],
      [0x10, 4, 0, CORRECTABLE],
      [0x14, 4, 0, CORRECTABLE],
      [0x18, 4, 0, 0x0000_0140],
    ],
  ],
  [0x04, [[0x04, 1, 0, ALL]]], // power budgeting: the selector
]);

/** Lengths of capabilities; 0 hides, `varies` asks the capability. */
const varies = -1;
const lengths: readonly number[] = [
  0,
  8,
  12,
  8,
  0,
  varies,
  0,
  varies,
  varies,
  varies,
  0,
  0,
  0,
  0,
  0,
  0,
  varies,
  12,
  varies,
  6,
  0,
];
const extendedLengths = new Map<number, number>([
  [0x01, 0x2c],
  [0x02, varies],
  [0x03, 12],
  [0x04, 0x10],
  [0x08, varies],
  [0x09, varies],
  [0x0b, varies],
  [0x0d, varies],
  [0x0e, 8],
  [0x0f, 8],
  [0x10, 0x40],
  [0x12, 40],
  [0x13, 16],
  [0x15, varies],
  [0x16, varies],
  [0x17, varies],
  [0x18, 8],
  [0x23, varies],
]);

/** Capabilities whose writes reach hardware unchanged: only the vendor knows what they mean. */
export const RAW_WRITE: ReadonlySet<number> = new Set([0x09]);
export const RAW_WRITE_EXTENDED: ReadonlySet<number> = new Set([0x0b, 0x23]);

function capabilityLength(config: ConfigSpace, id: number, at: number): number {
  switch (id) {
    case 0x05: {
      const control = config.read(at + 2, 2);
      return 10 + (control & 0x80 ? 4 : 0) + (control & 0x100 ? 10 : 0);
    }
    case 0x07:
      return (config.read(at + 2, 2) >> 12) & 3 ? 24 : 8;
    case 0x08:
      return config.read(at + 3, 1) & 0xe0 ? 24 : 28;
    case 0x09:
      return config.read(at + 2, 1);
    case 0x10: {
      const capabilities = config.read(at + 2, 2);
      const isIntegrated = ((capabilities >> 4) & 0xf) === 9;
      if ((capabilities & 0xf) === 1) return isIntegrated ? 0xc : 0x14;
      return isIntegrated ? 0x2c : 0x34;
    }
    case 0x12:
      return (config.read(at + 4, 1) & 0xf) === 0xf ? 16 : 8;
    default:
      return 0;
  }
}

function extendedLength(config: ConfigSpace, id: number, at: number): number {
  switch (id) {
    case 0x0b:
    case 0x23:
      return config.read(at + 4, 4) >>> 20;
    case 0x02:
    case 0x08:
    case 0x09: {
      const count = config.read(at + 4, 4) & 7;
      const arbitration = config.read(at + 8, 4);
      const phases = arbitration & 8 ? 128 : arbitration & 4 ? 64 : arbitration & 2 ? 32 : 0;
      const length = 0x10 + (1 + count) * 0xc;
      return phases === 0 ? length : Math.ceil(length / 16) * 16 + phases / 2;
    }
    case 0x0d: {
      if (!(config.read(at + 4, 1) & 0x20)) return 8;
      const bits = config.read(at + 5, 1);
      return 8 + (bits === 0 ? 256 : Math.ceil(bits / 32) * 32) / 8;
    }
    case 0x15:
      return 4 + ((config.read(at + 8, 1) & 0xe0) >> 5) * 8;
    case 0x16:
      return 16 + (config.read(at + 4, 1) & 0x1f) + 1;
    case 0x17: {
      const capability = config.read(at + 4, 4);
      return (capability & 0x600) === 0x200 ? 0xc + ((capability >> 16) & 0x7ff) * 2 + 2 : 0xc;
    }
    default:
      return 0;
  }
}

/** MSI is laid out by what its control register says. */
function msiFields(control: number): Field[] {
  const is64 = (control & 0x80) !== 0;
  const data = is64 ? 12 : 8;
  const list: Field[] = [NEXT, [2, 1, ALL, ALL], [4, 4, ALL, ALL], [data, 2, ALL, ALL]];
  if (is64) list.push([8, 4, ALL, ALL]);
  if (control & 0x100) list.push([data + 4, 4, 0, ALL], [data + 8, 4, 0, ALL]);
  return list;
}

class Builder implements ConfigLayout {
  readonly owner: Uint8Array;
  readonly start: Uint16Array;
  readonly virtual: Uint8Array;
  readonly writable: Uint8Array;
  readonly copy: Uint8Array;
  readonly config: ConfigSpace;

  constructor(config: ConfigSpace) {
    const { length } = config;
    this.config = config;
    this.owner = new Uint8Array(length).fill(OWNER_NONE);
    this.start = new Uint16Array(length).map((_, at) => at);
    this.virtual = new Uint8Array(length);
    this.writable = new Uint8Array(length);
    this.copy = new Uint8Array(length);
  }

  take(owner: number, at: number, length: number, list: readonly Field[]): void {
    const end = Math.min(at + length, at < 0x100 ? 0x100 : this.config.length);
    for (let i = at; i < end; i++) {
      this.owner[i] = owner;
      this.start[i] = at;
      this.virtual[i] = 0;
      this.writable[i] = 0;
      this.copy[i] = this.config.read(i, 1);
    }
    for (const [offset, size, virtual, writable] of list) {
      for (let i = 0; i < size && at + offset + i < end; i++) {
        this.virtual[at + offset + i] = virtual >>> (8 * i);
        this.writable[at + offset + i] = writable >>> (8 * i);
      }
    }
  }

  capabilities(): void {
    const { config, copy } = this;
    if (!(config.read(6, 2) & 0x10)) return;
    let previous = 0x34;
    let at = config.read(0x34, 1) & 0xfc;
    let found = 0;
    for (let loops = 48; at >= 0x40 && loops > 0; loops--) {
      const id = config.read(at, 1);
      const next = config.read(at + 1, 1);
      const known = lengths[id] ?? 0;
      const length = known === varies ? capabilityLength(config, id, at) : known;
      if (length === 0) copy[previous] = next;
      else {
        this.take(id, at, length, id === 0x05 ? msiFields(config.read(at + 2, 2)) : (fields.get(id) ?? [NEXT]));
        if (id === 0x01) {
          copy[at + 3]! &= 0x07;
          copy[at + 5]! &= 0x7e;
        }
        previous = at + 1;
        found++;
      }
      at = next & 0xfc;
    }
    if (found === 0) copy[6]! &= ~0x10;
  }

  extended(): void {
    const { config } = this;
    const hasExpress = this.owner.subarray(0x40, 0x100).some((id) => id === 0x10 || id === 0x07);
    if (config.length <= 0x100 || !hasExpress || config.read(0x100, 4) === 0) return;
    const copy = new DataView(this.copy.buffer);
    let previous = -1;
    let at = 0x100;
    let found = 0;
    for (let loops = 960; at >= 0x100 && loops > 0; loops--) {
      const header = config.read(at, 4);
      const id = header & 0xffff;
      const next = (header >>> 20) & 0xffc;
      const known = extendedLengths.get(id) ?? 0;
      const length = known === varies ? extendedLength(config, id, at) : known;
      if (length === 0 && previous >= 0) {
        copy.setUint32(previous, (copy.getUint32(previous, true) & 0x000f_ffff) | (next << 20), true);
      } else {
        // A hidden first one stays as an anchor for the list, without its id.
        this.take(id & 0xff, at, Math.max(length, 4), [[0, 4, ALL, 0], ...(extendedFields.get(id) ?? [])]);
        if (length === 0) copy.setUint32(at, header & 0xffc0_0000, true);
        else found++;
        previous = at;
      }
      at = next;
    }
    if (found === 0) copy.setUint32(0x100, 0, true);
  }
}

/** Reads the hardware's space and lays the user's view over it. */
export function layOut(config: ConfigSpace): ConfigLayout {
  const builder = new Builder(config);
  builder.take(OWNER_HEADER, 0, 0x40, headerFields);
  builder.capabilities();
  builder.extended();
  return builder;
}
