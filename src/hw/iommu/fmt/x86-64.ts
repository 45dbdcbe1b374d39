/**
 * The first-stage format of VT-d: x86-64 page tables (VT-d specification, "First-Stage Paging Entries").
 *
 * | bit | leaf | table |
 * |---|---|---|
 * | 0 P | present (and readable) | 1 |
 * | 1 RW, 2 US | writable, for users | both set; ANDed along the walk |
 * | 5 A, 6 D | hardware sets them | A |
 * | 7 PS | large leaf (level 1: 2 MiB, level 2: 1 GiB) | 0 |
 * | 10 EA | extended accessed | same |
 * | 12-51 | output address | address of the table |
 * | 63 XD | no execution; ORed along the walk | same |
 *
 * Addresses are sign-extended. Tables that the host makes have U and A everywhere, and D in leaves that can be written, so that
 * hardware need not write to them.
 */
import { type PageTableFormat, SAME_KIND } from './format.ts';

export const FS_P = 1 << 0;
export const FS_RW = 1 << 1;
export const FS_US = 1 << 2;
export const FS_A = 1 << 5;
export const FS_D = 1 << 6;
export const FS_PS = 1 << 7;
export const FS_EA = 1 << 10;
/** In the high half. */
export const FS_XD_HIGH = 0x8000_0000;

export const x86_64: PageTableFormat = {
  name: 'x86-64',
  widths: { 4: 48, 5: 57 },
  present: FS_P,
  kindMask: FS_PS,
  tableKind: SAME_KIND,
  table: FS_P | FS_RW | FS_US | FS_A,
  tableHigh: 0,
  accessed: FS_A,
  dirty: FS_D,
  snoop: 0,
  permissionsInHigh: undefined,
  leaf: (level, prot) => FS_P | FS_US | FS_A | ((prot & 2) !== 0 ? FS_RW | FS_D : 0) | (level > 0 ? FS_PS : 0),
  leafHigh: () => 0,
};
