/**
 * Bitmaps as the uAPI carries them: bit 0 is the lowest bit of byte 0 (little-endian words of any width). One bit is one page.
 * All of these work on whole bytes where they can; none checks bounds beyond what a typed array does.
 */

/** Bytes that `count` bits need, in whole 64-bit words. */
export function bitmapBytes(count: number): number {
  return Math.ceil(count / 64) * 8;
}

export function testBit(bits: Uint8Array, bit: number): boolean {
  return (bits[Math.floor(bit / 8)]! & (1 << (bit % 8))) !== 0;
}

/** Sets bits `[first, first + count)`. */
export function setBits(bits: Uint8Array, first: number, count: number): void {
  change(bits, first, count, true);
}

/** Clears bits `[first, first + count)`. */
export function clearBits(bits: Uint8Array, first: number, count: number): void {
  change(bits, first, count, false);
}

function change(bits: Uint8Array, first: number, count: number, isSet: boolean): void {
  if (count <= 0) return;
  const end = first + count;
  const firstByte = Math.floor(first / 8);
  const lastByte = Math.floor((end - 1) / 8);
  const head = (0xff << (first % 8)) & 0xff;
  const tail = 0xff >> (7 - ((end - 1) % 8));
  if (firstByte === lastByte) {
    put(bits, firstByte, head & tail, isSet);
    return;
  }
  put(bits, firstByte, head, isSet);
  bits.fill(isSet ? 0xff : 0, firstByte + 1, lastByte);
  put(bits, lastByte, tail, isSet);
}

function put(bits: Uint8Array, at: number, mask: number, isSet: boolean): void {
  bits[at] = isSet ? bits[at]! | mask : bits[at]! & ~mask;
}

/** How many of bits `[first, first + count)` are set. */
export function countBits(bits: Uint8Array, first = 0, count = bits.length * 8): number {
  let total = 0;
  const end = first + count;
  let bit = first;
  while (bit < end) {
    const within = bit % 8;
    const width = Math.min(8 - within, end - bit);
    let byte = (bits[Math.floor(bit / 8)]! >> within) & (0xff >> (8 - width));
    byte -= (byte >> 1) & 0x55;
    byte = (byte & 0x33) + ((byte >> 2) & 0x33);
    total += (byte + (byte >> 4)) & 0x0f;
    bit += width;
  }
  return total;
}

/** ORs bits `[fromBit, fromBit + count)` of `from` into `into` at `intoBit`. */
export function orBits(into: Uint8Array, intoBit: number, from: Uint8Array, fromBit: number, count: number): void {
  let done = 0;
  while (done < count) {
    const target = intoBit + done;
    const source = fromBit + done;
    const width = Math.min(8 - (target % 8), 8 - (source % 8), count - done);
    const part = (from[Math.floor(source / 8)]! >> (source % 8)) & (0xff >> (8 - width));
    const at = Math.floor(target / 8);
    into[at] = into[at]! | (part << (target % 8));
    done += width;
  }
}

/** Calls `visit` for each run of set bits in `[first, first + count)`. */
export function forEachRun(
  bits: Uint8Array,
  first: number,
  count: number,
  visit: (first: number, count: number) => void,
): void {
  const end = first + count;
  let start = -1;
  for (let bit = first; bit < end; ) {
    const byte = bits[Math.floor(bit / 8)]!;
    if (bit % 8 === 0 && bit + 8 <= end && (byte === 0 || byte === 0xff)) {
      if (byte === 0 && start >= 0) {
        visit(start, bit - start);
        start = -1;
      } else if (byte !== 0 && start < 0) start = bit;
      bit += 8;
      continue;
    }
    const isSet = (byte & (1 << (bit % 8))) !== 0;
    if (isSet && start < 0) start = bit;
    else if (!isSet && start >= 0) {
      visit(start, bit - start);
      start = -1;
    }
    bit++;
  }
  if (start >= 0) visit(start, end - start);
}
