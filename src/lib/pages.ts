/**
 * Addresses as page numbers. Outside, an address is a 64-bit `bigint`; inside it is a page number (at most 2^52, exact in a
 * `number`) and an offset below 4096.
 */
export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;
export const PAGE_MASK = 0xfffn;
/** The largest page number of a 64-bit address space. */
export const LAST_PAGE = 2 ** 52 - 1;
export const U64_MAX = 0xffff_ffff_ffff_ffffn;

/** The page that contains a 64-bit address. */
export function pageOf(address: bigint): number {
  return Number(address >> 12n);
}

/** The address of a page's first byte. */
export function addressOf(page: number): bigint {
  return BigInt(page) << 12n;
}

/** `0x…` */
export function hex(value: bigint | number): string {
  return `0x${value.toString(16)}`;
}

/** Math.max for addresses. */
export function largest(...values: bigint[]): bigint {
  return values.reduce((a, b) => (a > b ? a : b));
}

/** Math.min for addresses. */
export function smallest(...values: bigint[]): bigint {
  return values.reduce((a, b) => (a < b ? a : b));
}
