/**
 * What a page-table format is, as data: where its bits are. The walker and mapper (page-table.ts) know the shape that all these
 * formats share (512 entries of 64 bits a table, 9 bits of the page number a level, output address in bits 12 to 51), a format says
 * the rest. Masks are of the low half where nothing else is said.
 *
 * A new format: one file here that exports a `PageTableFormat`, and a test file that runs `format.suite.ts` on it.
 */
export interface PageTableFormat {
  readonly name: string;
  /** Address bits by number of levels; a missing entry is not supported. */
  readonly widths: Readonly<Record<number, number>>;
  /** An entry is present when any of these bits is set. */
  readonly present: number;
  /** The bits that tell leaves above level 0 from tables, and what they are in a table at each level; anything else is a leaf. */
  readonly kindMask: number;
  readonly tableKind: readonly number[];
  /** Bits of each entry that points to a table, beside its kind, and those of the high half. */
  readonly table: number;
  readonly tableHigh: number;
  /** Set by hardware in a leaf that was used, and written through. */
  readonly accessed: number;
  readonly dirty: number;
  /** The leaf makes no-snoop requests coherent; 0 when the format has no such bit. */
  readonly snoop: number;
  /** Where READ|WRITE lie: from bit 0 of the low half, or from this bit of the high half. ANDed along the walk. */
  readonly permissionsInHigh: number | undefined;
  /** The bits of a leaf at `level` for READ|WRITE `prot`. */
  leaf(level: number, prot: number, isSnooped: boolean): number;
  leafHigh(prot: number): number;
}

/** Tables of every level look alike. */
export const SAME_KIND: readonly number[] = [0, 0, 0, 0, 0];

/** An entry of either half as software writes it, for tests and the inspector. */
export function entryValue(low: number, high: number): bigint {
  return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}
