/** Long random lives of a machine: cards, virtual functions, drivers and programs that come and go. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hotplugLife, numbersFrom } from '../../src/host/test-hotplug.ts';

const LIVES = 10;
const STEPS = 2_000;

test(`${LIVES} lives of ${STEPS} steps: plug, unplug, pull, remove, rescan, bind, unbind, virtual functions, open, map, end`, {
  timeout: 120_000,
}, (t) => {
  const first = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
  const total = { steps: 0, plugged: 0, waited: 0, opened: 0, virtual: 0 };
  for (let seed = first; seed < first + LIVES; seed++) {
    try {
      const counts = hotplugLife(numbersFrom(seed), STEPS);
      for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += counts[key];
    } catch (error) {
      throw new Error(`SEED=${seed}: ${(error as Error).message}`, { cause: error });
    }
  }
  t.diagnostic(JSON.stringify(total));
  assert.ok(
    total.plugged > 100 && total.waited > 100 && total.opened > 100 && total.virtual > 10,
    JSON.stringify(total),
  );
});
