/**
 * Starts the box's thread. It takes its options by message, so it can be started before they are known.
 *
 * The build joins the thread's modules into one compiled file (scripts/join-thread.mjs), which loads several times faster. While the
 * package is being worked on, the joined file is used only when it is newer than everything it was made of.
 */
import { readFileSync, statSync } from 'node:fs';
import { SHARE_ENV, Worker } from 'node:worker_threads';

const modules = new URL('./box-thread.js', import.meta.url);
const dist = new URL('../../../', import.meta.url);
const joined = new URL('box-thread.cjs', dist);
/** Only in a working copy. */
const sources = new URL('../src/', dist);

export function startThread(): Worker {
  // Calls leave short-lived objects behind; the default of a thread collects them four times as often.
  return new Worker(isFresh() ? joined : modules, {
    resourceLimits: { maxYoungGenerationSizeMb: 64 },
    env: SHARE_ENV,
    trackUnmanagedFds: false,
  });
}

function isFresh(): boolean {
  const made = statSync(joined, { throwIfNoEntry: false })?.mtimeMs;
  if (made === undefined) return false;
  if (statSync(sources, { throwIfNoEntry: false }) === undefined) return true;
  const list = JSON.parse(readFileSync(new URL('box-thread.json', dist), 'utf8')) as string[];
  return list.every((file) => (statSync(new URL(file, dist), { throwIfNoEntry: false })?.mtimeMs ?? made + 1) <= made);
}
