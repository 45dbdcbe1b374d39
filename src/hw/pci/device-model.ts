/**
 * What a device model is to the catalog: a name, options with defaults, and a maker of `FunctionSpec`s. Models import everything
 * they need from this folder.
 */
import { Errno } from '../../lib/errno.ts';
import type { AllocateShared } from '../memory/backing.ts';
import type { Clock } from './clock.ts';
import type { FunctionSpec } from './function-spec.ts';

export type { AllocateShared, SharedMemory } from '../memory/backing.ts';

/** The other end of a character device: a file, a socket, a terminal. */
export interface CharacterBackend {
  /** Takes bytes of the device. Never waits: what cannot be delivered is dropped. */
  write(bytes: Uint8Array): void;
  /** Who takes the bytes that arrive from there; they are only valid within the call. */
  onInput(receive: (bytes: Uint8Array) => void): void;
  close(): void;
}

/** What a model gets from the machine it is put into. */
export interface DeviceEnvironment {
  readonly clock: Clock;
  readonly allocateShared: AllocateShared;
  /** Text for people: what a program did wrong. */
  readonly log?: (text: string) => void;
  /**
   * Opens what a character device talks to: `file:PATH` (output is appended), `socket:PATH` (a UNIX stream socket, connected to),
   * `stdio`. Absent: this machine reaches nothing outside. EINVAL: the text says none of these.
   */
  readonly openCharacter?: (target: string) => CharacterBackend;
}

/**
 * One option. `integer`: a number or a text such as `0x1000` or `16M`, at most 2^53; `u64`: the same, up to 64 bits, given to the model as
 * bigint; `list` and `object`: the model checks what is inside.
 */
export interface ModelOption {
  readonly type: 'integer' | 'u64' | 'boolean' | 'text' | 'list' | 'object';
  readonly default: unknown;
  readonly description: string;
  /** Texts that are allowed. */
  readonly choices?: readonly string[];
}

export interface DeviceModel {
  /** As the host file says it. */
  readonly name: string;
  /** One sentence. */
  readonly description: string;
  readonly options: Readonly<Record<string, ModelOption>>;
  /** EINVAL: an option that does not exist or has a value that cannot be. */
  create(env: DeviceEnvironment, options: Readonly<Record<string, unknown>>): FunctionSpec;
}

/** The values of all options of a model: those given, checked, and the defaults of the others. EINVAL. */
export function readOptions(
  model: Pick<DeviceModel, 'name' | 'options'>,
  given: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  for (const name of Object.keys(given)) {
    if (!Object.hasOwn(model.options, name)) {
      const known = Object.keys(model.options);
      throw new Errno(
        'EINVAL',
        `model '${model.name}' has no option '${name}'${known.length === 0 ? '' : `; it has ${known.join(', ')}`}`,
      );
    }
  }
  const values: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(model.options)) {
    const value = given[name];
    values[name] = value === undefined ? option.default : checked(`option '${name}' of '${model.name}'`, option, value);
  }
  return values;
}

function checked(what: string, option: ModelOption, value: unknown): unknown {
  const refuse = (expected: string): never => {
    throw new Errno('EINVAL', `${what} must be ${expected}, not ${JSON.stringify(value)}`);
  };
  switch (option.type) {
    case 'integer':
      return parseInteger(value) ?? refuse('a whole number or a text such as "0x1000"');
    case 'u64':
      return parseU64(value) ?? refuse('a number of 64 bits or a text such as "0xfffffff"');
    case 'boolean':
      return typeof value === 'boolean' ? value : refuse('true or false');
    case 'text':
      if (typeof value !== 'string') return refuse('a text');
      if (option.choices !== undefined && !option.choices.includes(value)) {
        return refuse(`one of ${option.choices.join(', ')}`);
      }
      return value;
    case 'list':
      return Array.isArray(value) ? value : refuse('a list');
    case 'object':
      return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : refuse('an object');
  }
}

/** A whole number from 0 to 2^53 - 1, as number or text in C's notation, K, M or G behind it; undefined for anything else. */
export function parseInteger(value: unknown): number | undefined {
  const wide = parseU64(value);
  return wide === undefined || wide > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(wide);
}

const UNITS: Readonly<Record<string, bigint>> = { '': 1n, K: 1n << 10n, M: 1n << 20n, G: 1n << 30n };

function parseU64(value: unknown): bigint | undefined {
  if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0 ? BigInt(value) : undefined;
  if (typeof value === 'bigint') return value >= 0n && value < 1n << 64n ? value : undefined;
  if (typeof value !== 'string') return undefined;
  const match = /^(0x[0-9a-f]{1,16}|[0-9]{1,20})([KMG]?)$/i.exec(value);
  if (match === null) return undefined;
  const parsed = BigInt(match[1]!.toLowerCase()) * UNITS[match[2]!.toUpperCase()]!;
  return parsed < 1n << 64n ? parsed : undefined;
}
