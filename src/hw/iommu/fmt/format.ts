/**
 * What a page-table format is, as data: where its bits are. The walker and mapper (page-table.ts) know the shape that all these
 * formats share (512 entries of 64 bits a table, 9 bits of the page number a level, output address in bits 12 to 51), a format says
 * the rest. All the masks are of the low half; what lies above bit 51 belongs to software. In all of them bit 0 set means that reading
 * is allowed and bit 1 that writing is, in tables and leaves: the walker ANDs these two along the way.
 *
 * A new format: one file here that exports a `PageTableFormat`, and a test file that runs `format.suite.ts` on it.
 */
export interface PageTableFormat {
  readonly name: string;
  /** Address bits by number of levels; a missing entry is not supported. */
  readonly widths: Readonly<Record<number, number>>;
  /** An entry is present when any of these bits is set. */
  readonly present: number;
  /** A leaf above level 0. */
  readonly large: number;
  /** Bits of each entry that points to a table. */
  readonly table: number;
  /** Set by hardware in a leaf that was used, and written through. */
  readonly accessed: number;
  readonly dirty: number;
  /** The leaf makes no-snoop requests coherent; 0 when the format has no such bit. */
  readonly snoop: number;
  /** The attribute bits of a leaf at `level` for READ|WRITE `prot`. */
  leaf(level: number, prot: number, isSnooped: boolean): number;
}

/** An entry of either half as software writes it, for tests and the inspector. */
export function entryValue(low: number, high: number): bigint {
  return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}
