/**
 * The recorded kernel's answers, call by call, for tests that make the same calls in this process. The probe program makes them
 * again through the whole box; here a difference shows in a second and names its call.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Errno } from '../../lib/errno.ts';

interface Line {
  s: string;
  c: string;
  rc: number | 'fd';
  e: string;
  out?: Record<string, string>;
  caps?: { off: number; id: number; ver: number; next: number; data: string }[];
  bm?: string;
}

export interface Answer {
  out?: Record<string, string>;
  caps?: Line['caps'];
  bm?: string;
  /** Any other field of the line, by its name there. */
  [field: string]: unknown;
}

const folder = new URL('../../../../tests/conformance/probe/golden/', import.meta.url);

export class Golden {
  readonly #suite: string;
  readonly #lines: Line[];
  readonly #differences: string[] = [];
  compared = 0;

  /** The suite's calls; `without` those that this process cannot make. */
  constructor(file: string, suite: string, without: RegExp) {
    this.#suite = suite;
    this.#lines = readFileSync(new URL(file, folder), 'utf8')
      .split('\n')
      .filter((text) => text !== '')
      .map((text) => JSON.parse(text) as Line)
      .filter((line) => line.s === suite && !without.test(line.c));
  }

  /** Makes a call and compares its answer with the next recorded one. `isDescriptor`: the result is a descriptor. */
  call<T>(name: string, make: () => T, answer: (result: T | undefined) => Answer = () => ({})): T | undefined {
    const line = this.#lines.shift();
    assert.equal(name, line?.c, `${this.#suite}: calls go in another order than recorded`);
    let result: T | undefined;
    let e = '';
    try {
      result = make();
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      e = error.code;
    }
    const got = { e, ...answer(result) };
    // The recording has bytes after the last capability: whatever followed in the buffer.
    const caps = line!.caps?.map((cap, i) => ({ ...cap, data: cap.data.slice(0, got.caps?.[i]?.data.length) }));
    if (caps !== undefined) line!.caps = caps;
    const expected: Record<string, unknown> = { e: line!.e };
    for (const key of Object.keys(got))
      expected[key] = (line as unknown as Record<string, unknown>)[key] ?? (key === 'e' ? '' : undefined);
    if (typeof result === 'number' && line!.rc !== 'fd' && line!.rc !== result)
      this.#differences.push(`${name}: ${result}, not ${line!.rc}`);
    this.compared++;
    try {
      assert.deepEqual(got, expected);
    } catch {
      this.#differences.push(`${name}: ${JSON.stringify(got)}, not ${JSON.stringify(expected)}`);
    }
    return result;
  }

  /** All calls were made, and every answer was the recorded one. */
  finish(): void {
    assert.deepEqual(
      this.#differences,
      [],
      `${this.#suite}: ${this.#differences.length} of ${this.compared} calls differ`,
    );
    assert.deepEqual(
      this.#lines.map((line) => line.c),
      [],
      `${this.#suite}: recorded calls were not made`,
    );
  }
}

export function hexString(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

export function bytesString(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
