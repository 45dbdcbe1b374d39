/**
 * The ranges that one invalidation can name (VT-d specification, "IOTLB Invalidate"): a power of two of pages, naturally aligned.
 */

export interface InvalidationBlock {
  readonly firstPage: number;
  /** The block has 2^order pages. */
  readonly order: number;
}

/** The smallest block that covers `[first, last]`: `[5, 7]` is covered by the four pages from 4. */
export function coveringBlock(first: number, last: number): InvalidationBlock {
  let order = 0;
  let low = first;
  let high = last;
  while (low !== high) {
    low = Math.floor(low / 2);
    high = Math.floor(high / 2);
    order++;
  }
  return { firstPage: low * 2 ** order, order };
}
