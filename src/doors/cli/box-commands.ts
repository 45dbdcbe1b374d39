/** `vfiobox host … --box`: commands for a box that is running. */
import { readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { HostFileError, isModelFile, parseText } from '../../host/index.ts';
import { BoxClient, BoxError, runningBoxes } from './box-client.ts';

export interface BoxOptions {
  /** Name, process number or path of the socket; undefined: the only box there is. */
  readonly box: string | undefined;
  /** Return when it has begun, also if it ends later. */
  readonly wait?: boolean;
  readonly json?: boolean;
}

export interface BoxStreams {
  out(text: string): void;
  err(text: string): void;
  /** Prints a message and gives the exit status of a failure. */
  fail(message: string): number;
}

/** Asks a running box for a command; the result is the exit status. `show` makes lines of what it answers. */
export async function askBox(
  command: string,
  given: object,
  options: BoxOptions,
  streams: BoxStreams,
  show: (result: never) => readonly string[] = () => [],
): Promise<number> {
  let client: BoxClient | undefined;
  try {
    client = await BoxClient.connect(options.box);
    let hasLeft = false;
    const result = await client.ask(command, given, (why) => {
      hasLeft = options.wait === false;
      streams.err(`vfiobox: ${hasLeft ? 'begun, not waiting' : 'waiting'}: ${why}\n`);
      return hasLeft ? 'leave' : 'wait';
    });
    if (hasLeft) return 0;
    if (options.json === true) streams.out(`${JSON.stringify(result)}\n`);
    else for (const line of show(result as never)) streams.out(`${line}\n`);
    return 0;
  } catch (error) {
    if (!(error instanceof BoxError)) throw error;
    return streams.fail(error.message);
  } finally {
    client?.close();
  }
}

export interface PlugFlags {
  model?: string;
  at?: string;
  driver?: string;
  option?: string[];
}

/**
 * The entries to plug: those of a file (one entry, a list, or a host file's `functions`; `-` for standard input), or the one that the
 * options describe. BoxError.
 */
export function plugEntries(file: string | undefined, flags: PlugFlags): object[] {
  if (file === undefined) {
    if (flags.model === undefined || flags.at === undefined) {
      throw new BoxError("nothing to plug: give a file with a function's entry, or --model NAME and --at ADDRESS");
    }
    const options = Object.fromEntries((flags.option ?? []).map(optionOf));
    const model = isModelFile(flags.model) ? resolve(flags.model) : flags.model;
    return [{ at: flags.at, model, ...(flags.driver !== undefined && { driver: flags.driver }), options }];
  }
  if (flags.model !== undefined || flags.at !== undefined) throw new BoxError('give either a file or --model and --at');
  let value: unknown;
  try {
    value = parseText(readFileSync(file === '-' ? 0 : file, 'utf8'), file);
  } catch (error) {
    if (error instanceof HostFileError) throw new BoxError(error.message);
    throw new BoxError(`cannot read '${file}': ${(error as NodeJS.ErrnoException).code}`);
  }
  const list = Array.isArray(value) ? value : ((value as { functions?: unknown } | null)?.functions ?? [value]);
  if (!Array.isArray(list) || list.some((entry) => typeof entry !== 'object' || entry === null)) {
    throw new BoxError(`'${file}' holds no entry of a function: { "at": …, "model": … }`);
  }
  for (const entry of list as { model?: unknown }[]) {
    // As in host files: seen from the file.
    if (typeof entry.model === 'string' && isModelFile(entry.model)) {
      entry.model = resolve(file === '-' ? '.' : dirname(file), entry.model);
    }
  }
  return list as object[];
}

function optionOf(text: string): [string, unknown] {
  const at = text.indexOf('=');
  if (at < 1) throw new BoxError(`'${text}' is no option of a model: NAME=VALUE`);
  const value = text.slice(at + 1);
  try {
    return [text.slice(0, at), JSON.parse(value)];
  } catch {
    return [text.slice(0, at), value];
  }
}

/** `host plug`. */
export async function plug(
  file: string | undefined,
  flags: PlugFlags,
  options: BoxOptions,
  streams: BoxStreams,
): Promise<number> {
  let entries: object[];
  try {
    entries = plugEntries(file, flags);
  } catch (error) {
    if (!(error instanceof BoxError)) throw error;
    return streams.fail(error.message);
  }
  for (const entry of entries) {
    const status = await askBox('plug', { entry }, options, streams, (it: Plugged) => [
      `${it.address}: ${it.driver ?? 'no driver'}, ${it.group === null ? 'no group' : `group ${it.group}`}`,
    ]);
    if (status !== 0) return status;
  }
  return 0;
}

interface Plugged {
  address: string;
  driver: string | null;
  group: number | null;
}

/** `host boxes`: which boxes run, and which machines they are. */
export async function listBoxes(streams: BoxStreams): Promise<number> {
  for (const box of runningBoxes()) {
    try {
      const client = await BoxClient.connect(box);
      const { host, pid } = client.greeting;
      client.close();
      streams.out(`${box}  pid ${pid}  ${host}\n`);
    } catch (error) {
      // One that has just ended.
      if (!(error instanceof BoxError)) throw error;
    }
  }
  return 0;
}
