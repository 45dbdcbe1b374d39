/**
 * Bytes that look random and are the same for the same seed: everything random in a machine comes from here when `--seed` is given, so
 * that a run can be repeated. Not for secrets.
 */
export function seededBytes(seed: number): (length: number) => Uint8Array {
  let state = seed >>> 0;
  // mulberry32: one 32-bit state, full period.
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return (x ^ (x >>> 14)) >>> 0;
  };
  return (length) => Uint8Array.from({ length }, () => next() & 0xff);
}
