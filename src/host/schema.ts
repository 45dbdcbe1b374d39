/** The library that checks data from outside. It is loaded when something is checked: most runs check nothing. */
import { createRequire } from 'node:module';
import type { z } from 'zod';

export type Zod = typeof z;
export type Schema<T = unknown> = z.ZodType<T>;

const load = createRequire(import.meta.url);

export function loadZod(): Zod {
  return (load('zod') as typeof import('zod')).z;
}
