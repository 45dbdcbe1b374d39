/** CRC-32 as Ethernet and zlib compute it (polynomial 0x04c11db7, reflected). */
const table = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = (value & 1) === 0 ? value >>> 1 : (value >>> 1) ^ 0xedb8_8320;
  return value;
});

/** The sum of `bytes`, going on from `sum`. */
export function crc32(bytes: Uint8Array, sum = 0): number {
  let value = ~sum;
  for (let i = 0; i < bytes.length; i++) value = (value >>> 8) ^ table[(value ^ bytes[i]!) & 0xff]!;
  return ~value >>> 0;
}
