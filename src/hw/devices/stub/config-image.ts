/**
 * The bytes of a function's configuration space as a dump has them, and the two lists of capabilities in it.
 */
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';

export interface ImageCapability {
  readonly id: number;
  /** Of extended capabilities; 0 otherwise. */
  readonly version: number;
  readonly offset: number;
  /** Bytes from here to the next capability, or to the end of the space. */
  readonly room: number;
}

const LENGTHS = [64, 128, 256, 4096];
const ROW = 16;

export class ConfigImage {
  /** Bytes of the dump; what is behind them was not seen. */
  readonly length: number;
  /** 4096; zero behind `length`. */
  readonly bytes = new Uint8Array(4096);

  /** EINVAL: no configuration space has this length. */
  constructor(dump: Uint8Array) {
    if (!LENGTHS.includes(dump.length)) {
      throw new Errno('EINVAL', `configuration space has ${LENGTHS.join(', ')} bytes, not ${dump.length}`);
    }
    this.length = dump.length;
    this.bytes.set(dump);
  }

  /** From rows of 16 bytes by offset, both in hexadecimal. EINVAL. */
  static ofRows(rows: Record<string, unknown>, length: number): ConfigImage {
    const bytes = new Uint8Array(LENGTHS.includes(length) ? length : 0);
    for (const [offset, row] of Object.entries(rows)) {
      const at = /^[0-9a-f]{1,3}$/.test(offset) ? Number.parseInt(offset, 16) : -1;
      if (at < 0 || at % ROW !== 0 || at + ROW > length) {
        throw new Errno('EINVAL', `config: '${offset}' is not the offset of a row of ${ROW} bytes below ${length}`);
      }
      if (typeof row !== 'string' || !/^(?:[0-9a-f]{2}){16}$/.test(row)) {
        throw new Errno('EINVAL', `config: row ${offset} must be ${ROW} bytes in hexadecimal`);
      }
      for (let i = 0; i < ROW; i++) bytes[at + i] = Number.parseInt(row.slice(2 * i, 2 * i + 2), 16);
    }
    return new ConfigImage(bytes);
  }

  /** As `ofRows` takes them; rows of zeros are left out. */
  rows(): Record<string, string> {
    const rows: Record<string, string> = {};
    for (let at = 0; at < this.length; at += ROW) {
      const row = this.bytes.subarray(at, at + ROW);
      if (row.some((byte) => byte !== 0)) rows[at.toString(16).padStart(3, '0')] = Buffer.from(row).toString('hex');
    }
    return rows;
  }

  get(offset: number, size: 1 | 2 | 4): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + this.bytes[offset + i]!;
    return value;
  }

  /** Offset of the first capability with this id, 0 for none that the dump shows. */
  find(id: number): number {
    return this.capabilities().find((one) => one.id === id)?.offset ?? 0;
  }

  findExtended(id: number): number {
    return this.extended().find((one) => one.id === id)?.offset ?? 0;
  }

  /** In the order of the list; it ends where it leaves the dump or runs in a circle. */
  capabilities(): ImageCapability[] {
    if ((this.get(reg.PCI_STATUS, 2) & reg.PCI_STATUS_CAP_LIST) === 0) return [];
    const found: { id: number; offset: number }[] = [];
    let at = this.get(reg.PCI_CAPABILITY_LIST, 1) & ~3;
    const end = Math.min(this.length, 256);
    while (at >= 0x40 && at + 4 <= end && !found.some((one) => one.offset === at)) {
      found.push({ id: this.get(at, 1), offset: at });
      at = this.get(at + reg.PCI_CAP_LIST_NEXT, 1) & ~3;
    }
    return withRoom(found, 256);
  }

  extended(): ImageCapability[] {
    if (this.length < 4096) return [];
    const found: { id: number; version: number; offset: number }[] = [];
    for (let at = 256; at >= 256 && at + 4 <= 4096 && !found.some((one) => one.offset === at); ) {
      const header = this.get(at, 4);
      if (header === 0 || header === 0xffffffff) break;
      found.push({ id: header & 0xffff, version: (header >>> 16) & 0xf, offset: at });
      at = (header >>> 20) & ~3;
    }
    return withRoom(found, 4096);
  }
}

function withRoom(found: readonly { id: number; version?: number; offset: number }[], end: number): ImageCapability[] {
  return found.map(({ id, version, offset }) => {
    const next = found.reduce((least, one) => (one.offset > offset ? Math.min(least, one.offset) : least), end);
    return { id, version: version ?? 0, offset, room: next - offset };
  });
}
