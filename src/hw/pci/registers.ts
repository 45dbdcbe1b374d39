/**
 * Registers in byte arrays, little-endian, without allocation: the form in which a register access travels. `value` and results
 * are unsigned.
 */

/** The unsigned number in the first 1, 2 or 4 bytes of `bytes`; of 8 bytes the low 4. */
export function low32(bytes: Uint8Array): number {
  switch (bytes.length) {
    case 1:
      return bytes[0]!;
    case 2:
      return bytes[0]! | (bytes[1]! << 8);
    default:
      return get32(bytes, 0);
  }
}

/** The upper 4 of 8 bytes, 0 of a shorter access. */
export function high32(bytes: Uint8Array): number {
  return bytes.length >= 8 ? get32(bytes, 4) : 0;
}

/** Fills `into` (1 to 8 bytes) with a value of two halves. */
export function putHalves(into: Uint8Array, low: number, high: number): void {
  for (let i = 0; i < into.length; i++) into[i] = i < 4 ? low >>> (8 * i) : i < 8 ? high >>> (8 * (i - 4)) : 0;
}

export function get16(bytes: Uint8Array, offset: number): number {
  return bytes[offset]! | (bytes[offset + 1]! << 8);
}

export function get32(bytes: Uint8Array, offset: number): number {
  return (bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24)) >>> 0;
}

export function put16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
}

export function put32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
  bytes[offset + 2] = value >>> 16;
  bytes[offset + 3] = value >>> 24;
}
