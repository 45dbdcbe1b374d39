/** `vfiobox host import`: a dump of a real machine becomes a host file. Nothing is written unless all of it is good. */
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { HostFileError, type ImportOptions, importHost } from '../../host/index.ts';

export interface ImportRequest extends ImportOptions {
  readonly source: string;
  /** Undefined: the host file is printed. */
  readonly output?: string | undefined;
}

/** The result is the exit status. What was guessed or left out is told on `err`. */
export function hostImport(
  { source, output, name, acs }: ImportRequest,
  streams: { out(text: string): void; err(text: string): void },
  fail: (message: string) => number,
): number {
  let text: string;
  let notes: readonly string[];
  try {
    const imported = importHost(source, { name, acs });
    text = `${JSON.stringify(imported.host, undefined, 2)}\n`;
    notes = [...imported.notes, `${imported.host.functions.length} functions imported`];
  } catch (error) {
    if (!(error instanceof HostFileError)) throw error;
    return fail(error.message);
  }
  if (output === undefined) streams.out(text);
  else {
    const draft = `${output}.${process.pid}.tmp`;
    try {
      writeFileSync(draft, text, { flag: 'wx' });
      renameSync(draft, output);
    } catch (error) {
      if (existsSync(draft)) rmSync(draft); // also where the folder may not even be looked into
      return fail(`cannot write '${output}': ${(error as NodeJS.ErrnoException).code}`);
    }
  }
  for (const note of notes) streams.err(`vfiobox: ${source}: ${note}\n`);
  return 0;
}
