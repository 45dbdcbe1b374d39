/**
 * Copies of bytes that do not fall into the slow case of the processor.
 *
 * Where the destination lies up to a cache line behind the source within the page, each store seems to touch what is loaded next, and a copy
 * is four to fifteen times slower. Large buffers of V8 lie 16 bytes into a page and mapped files at its start, so that is the usual
 * case, not a rare one. Such copies go through a buffer that lies elsewhere in its page.
 */
import { addressOfBytes } from './libc.ts';
import { Region } from './memory.ts';

/** Bytes that take the detour at a time: they stay in the cache on the way. */
export const DETOUR = 65536;
const DETOUR_AT = 2048;
const region = new Region(DETOUR + 4096);
export const detourAddress = region.address + DETOUR_AT;
export const detourBytes = region.bytes.subarray(DETOUR_AT, DETOUR_AT + DETOUR);

/** Shorter copies are not worth the look; longer ones bypass the cache and are not slow. */
const LONG = 4096;
const VERY_LONG = 524_288;

/** Whether a copy between these addresses is one of the slow ones. */
export function isSlowCopy(to: number, from: number): boolean {
  const ahead = ((to % 4096) - (from % 4096) + 4096) % 4096;
  return ahead > 0 && ahead < 64;
}

/** `into.set(from)`; both are of the same length. */
export function copyBytes(into: Uint8Array, from: Uint8Array): void {
  const { length } = from;
  if (length < LONG || length > VERY_LONG || !isSlowCopy(addressOfBytes(into), addressOfBytes(from))) {
    into.set(from);
    return;
  }
  for (let at = 0; at < length; at += DETOUR) {
    const part = detourBytes.subarray(0, Math.min(DETOUR, length - at));
    part.set(from.subarray(at, at + part.length));
    into.set(part, at);
  }
}
