/**
 * A second opinion for tests: what tables in memory translate to, read as bytes and thought about with BigInts. Shares nothing with
 * the walkers but the memory.
 */
export type ReadQword = (address: bigint) => bigint | undefined;

export interface NaiveResult {
  readonly address: bigint;
  readonly read: boolean;
  readonly write: boolean;
}

const ADDRESS = 0x000f_ffff_ffff_f000n;

/** VT-d second stage. */
export function naiveSecond(read: ReadQword, top: bigint, levels: number, address: bigint): NaiveResult | undefined {
  if (address >> BigInt(12 + 9 * levels) !== 0n) return undefined;
  let table = top;
  let mask = 3n;
  for (let level = levels - 1; ; level--) {
    const shift = BigInt(12 + 9 * level);
    const entry = read(table + ((address >> shift) & 511n) * 8n);
    if (entry === undefined || (entry & 3n) === 0n) return undefined;
    mask &= entry;
    if (level === 0 || (entry & 0x80n) !== 0n) {
      if (level > 2) return undefined;
      const within = address & ((1n << shift) - 1n);
      return { address: (entry & ADDRESS) + within, read: (mask & 1n) !== 0n, write: (mask & 2n) !== 0n };
    }
    table = entry & ADDRESS;
  }
}

/** x86-64 first stage, for users' requests; `through`: what each of its addresses goes through. */
export function naiveFirst(
  read: ReadQword,
  top: bigint,
  levels: number,
  address: bigint,
  through: (address: bigint) => NaiveResult | undefined = (same) => ({ address: same, read: true, write: true }),
): NaiveResult | undefined {
  const width = BigInt(12 + 9 * levels);
  if (BigInt.asUintN(64, BigInt.asIntN(Number(width), address)) !== address) return undefined;
  let table = top;
  let mask = 6n;
  for (let level = levels - 1; ; level--) {
    const shift = BigInt(12 + 9 * level);
    const place = through(table + ((address >> shift) & 511n) * 8n);
    if (place?.read !== true) return undefined;
    const entry = read(place.address);
    if (entry === undefined || (entry & 1n) === 0n) return undefined;
    mask &= entry;
    if (level === 0 || (entry & 0x80n) !== 0n) {
      if (level > 2 || (mask & 4n) === 0n) return undefined;
      const within = address & ((1n << shift) - 1n);
      const result = through((entry & ADDRESS) + within);
      return result && { address: result.address, read: result.read, write: result.write && (mask & 2n) !== 0n };
    }
    table = entry & ADDRESS;
  }
}

/** AMD's version 1 host tables. */
export function naiveAmd(read: ReadQword, top: bigint, levels: number, address: bigint): NaiveResult | undefined {
  if (address >> BigInt(12 + 9 * levels) !== 0n) return undefined;
  let table = top;
  let mask = 3n;
  for (let level = levels; ; ) {
    const shift = BigInt(12 + 9 * (level - 1));
    const entry = read(table + ((address >> shift) & 511n) * 8n);
    if (entry === undefined || (entry & 1n) === 0n) return undefined;
    mask &= entry >> 61n;
    const next = Number((entry >> 9n) & 7n);
    if (next === 0) {
      const within = address & ((1n << shift) - 1n);
      return { address: (entry & ADDRESS) + within, read: (mask & 1n) !== 0n, write: (mask & 2n) !== 0n };
    }
    if (next !== level - 1) return undefined;
    level = next;
    table = entry & ADDRESS;
  }
}
