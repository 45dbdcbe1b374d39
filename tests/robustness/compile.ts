/** The C programs of this folder, compiled once for a test file. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { tree } from '../support/box.ts';

/** Compiles tests/robustness/<name>.c into `folder`; returns the program's path. */
export function compile(name: string, folder: string): string {
  const program = join(folder, name);
  const cc = process.env['CC'] ?? 'cc';
  const result = spawnSync(cc, ['-O1', '-w', '-pthread', '-o', program, join(tree, `tests/robustness/${name}.c`)], {
    encoding: 'utf8',
  });
  if (result.status !== 0) throw new Error(`${cc} ${name}.c: ${result.stderr || result.error}`);
  return program;
}
