/** A short life; tests/robustness has long ones. A failure prints the seed; SEED and STEPS repeat it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hotplugLife, numbersFrom } from './test-hotplug.ts';

test('cards, drivers and programs come and go at random: what is shown is so, and nobody waits for nothing', (t) => {
  const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
  try {
    const counts = hotplugLife(numbersFrom(seed), Number(process.env['STEPS'] ?? 500));
    assert.ok(counts.plugged > 0 && counts.opened > 0, JSON.stringify(counts));
    t.diagnostic(JSON.stringify(counts));
  } catch (error) {
    throw new Error(`SEED=${seed}: ${(error as Error).message}`, { cause: error });
  }
});
