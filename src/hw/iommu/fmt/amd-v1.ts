/**
 * The host page tables of AMD's IOMMU, version 1 (AMD I/O Virtualization Technology Specification, "I/O Page Tables for Host
 * Translations").
 *
 * | bit | leaf | table |
 * |---|---|---|
 * | 0 PR | present | present |
 * | 5 A, 6 D | hardware sets them where it can | – |
 * | 9-11 next level | 0: of this level's size | level of the table it points to, counted from 1 |
 * | 12-51 | output address | address of the table |
 * | 60 FC | accesses snoop the caches | – |
 * | 61 IR, 62 IW | read and write allowed | both set; ANDed along the walk |
 *
 * Next level 7, a leaf whose size is encoded in its address, is not made here.
 */
import type { PageTableFormat } from './format.ts';

export const AMD_PR = 1 << 0;
export const AMD_A = 1 << 5;
export const AMD_D = 1 << 6;
const NEXT_LEVEL = 7 << 9;
/** In the high half. */
export const AMD_FC_HIGH = 1 << 28;
export const AMD_IR_HIGH = 1 << 29;
export const AMD_IW_HIGH = 1 << 30;

export const amdV1: PageTableFormat = {
  name: 'amd-v1',
  widths: { 3: 39, 4: 48, 5: 57 },
  present: AMD_PR,
  kindMask: NEXT_LEVEL,
  tableKind: [0, 1 << 9, 2 << 9, 3 << 9, 4 << 9],
  table: AMD_PR,
  tableHigh: AMD_IR_HIGH | AMD_IW_HIGH,
  accessed: AMD_A,
  dirty: AMD_D,
  snoop: 0,
  permissionsInHigh: 29,
  leaf: () => AMD_PR,
  // FC: the only thing that this format knows about snooping is that it is always done.
  leafHigh: (prot) => AMD_FC_HIGH | ((prot & 3) << 29),
};
