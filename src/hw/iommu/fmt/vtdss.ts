/**
 * The second-stage format of VT-d ("SS"; VT-d specification, "Second-Stage Paging Entries"): what legacy-mode units walk, and what
 * nests below a guest's tables.
 *
 * | bit | leaf | table |
 * |---|---|---|
 * | 0 R, 1 W | allowed | both set; the effective permission is the AND along the walk |
 * | 7 PS | large leaf (level 1: 2 MiB, level 2: 1 GiB) | 0 |
 * | 8 A, 9 D | hardware sets them when second-stage A/D is on | ignored |
 * | 11 SNP | no-snoop requests are made coherent | 0 |
 * | 12-51 | output address | address of the table |
 *
 * R = W = 0 is not present. Bits 10 and 52 to 63 are software's.
 */
import { type PageTableFormat, SAME_KIND } from './format.ts';

export const SS_R = 1 << 0;
export const SS_W = 1 << 1;
export const SS_PS = 1 << 7;
export const SS_A = 1 << 8;
export const SS_D = 1 << 9;
export const SS_SNP = 1 << 11;

export const vtdss: PageTableFormat = {
  name: 'vtdss',
  widths: { 3: 39, 4: 48, 5: 57 },
  present: SS_R | SS_W,
  kindMask: SS_PS,
  tableKind: SAME_KIND,
  table: SS_R | SS_W,
  tableHigh: 0,
  accessed: SS_A,
  dirty: SS_D,
  snoop: SS_SNP,
  permissionsInHigh: undefined,
  leaf: (level, prot, isSnooped) => (prot & (SS_R | SS_W)) | (level > 0 ? SS_PS : 0) | (isSnooped ? SS_SNP : 0),
  leafHigh: () => 0,
};
