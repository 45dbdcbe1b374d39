/** Numbers as the kernel reads them from what is written to its files. */
import { Errno } from '../../lib/errno.ts';

const decoder = new TextDecoder();

/**
 * An unsigned number: decimal, octal after 0, hexadecimal after 0x, one newline at the end allowed. EINVAL: anything else, or more
 * than `limit`.
 */
export function unsigned(bytes: Uint8Array, what: string, limit: number): number {
  const text = decoder.decode(bytes).replace(/\n$/, '');
  const digits = /^\+?(?:0x([0-9a-f]+)|(0[0-7]*)|([1-9][0-9]*))$/i.exec(text);
  const value =
    digits === null
      ? Number.NaN
      : digits[1] !== undefined
        ? Number.parseInt(digits[1], 16)
        : digits[2] !== undefined
          ? Number.parseInt(digits[2], 8)
          : Number(digits[3]);
  if (!(value <= limit)) throw new Errno('EINVAL', `${what} takes a number from 0 to ${limit}, not '${text}'`);
  return value;
}

/**
 * A switch as `kstrtobool` reads it: by its first letters (1 y t on, 0 n f of). EINVAL: anything else.
 */
export function onOrOff(bytes: Uint8Array, what: string): boolean {
  const text = decoder.decode(bytes.subarray(0, 2)).toLowerCase();
  if (/^(?:[y1t]|on)/.test(text)) return true;
  if (/^(?:[n0f]|of)/.test(text)) return false;
  throw new Errno('EINVAL', `${what} takes Y or N`);
}
