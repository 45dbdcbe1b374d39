/**
 * A device as its author writes it: identity and capabilities as data, and a function that builds one card: its BARs with their
 * registers, and what happens at a reset. The result is a model like any other of the catalog.
 */
import { Errno } from '../../../lib/errno.ts';
import type { BarSpec, Doorbell, Registers } from '../bar.ts';
import {
  type DeviceEnvironment,
  type DeviceModel,
  type ModelOption,
  readOptions,
  type SharedMemory,
} from '../device-model.ts';
import type { CapabilitySpec, DeviceState, FunctionSpec, MigrationAbility, ResetKind } from '../function-spec.ts';
import { Card } from './card.ts';
import { type Register, RegisterTable } from './register.ts';

interface BarPlace {
  /** 0 to 5; a 64-bit BAR takes the next one as well. */
  readonly index: number;
  /** Bytes, a power of two: from 4 of I/O, from 16 of memory. */
  readonly size: number;
}

interface RegisterPart {
  /** Registers as data, or an object that answers each access itself. */
  readonly registers?: readonly Register[] | Registers;
  /** What bytes without a register read as: 0 unless said otherwise. */
  readonly hole?: 0 | 0xff;
}

export interface MemoryBarOptions extends BarPlace, RegisterPart {
  readonly is64?: boolean;
  readonly prefetchable?: boolean;
  /** Offered for mmap, and each access is forwarded to the registers all the same. */
  readonly trapped?: boolean;
  /** Registers that a VMM may ring by eventfd instead of a message (REGION_IO_FDS of vfio-user). */
  readonly doorbells?: readonly Doorbell[];
}

/** A BAR of registers in memory space. */
export function memoryBar(options: MemoryBarOptions): BarSpec {
  const { registers, hole, ...rest } = options;
  for (const { at, size } of options.doorbells ?? []) {
    if (at >= 0 && at % size === 0 && at + size <= options.size) continue;
    throw new Errno(
      'EINVAL',
      `BAR ${options.index} has no place for a doorbell of ${size} bytes at 0x${at.toString(16)}`,
    );
  }
  return { ...rest, kind: 'memory', ...withRegisters(options) };
}

/** A BAR of registers in I/O space. */
export function ioBar(options: BarPlace & RegisterPart): BarSpec {
  if (options.size > 0x10000) {
    throw new Errno('EINVAL', `BAR ${options.index} of 0x${options.size.toString(16)} bytes is larger than I/O space`);
  }
  return { index: options.index, size: options.size, kind: 'io', ...withRegisters(options) };
}

export interface MappedBarOptions extends Omit<BarPlace, 'size'> {
  /** From `card.share`. Programs map it; the device works on `memory.bytes()`. */
  readonly memory: SharedMemory;
  readonly is64?: boolean;
  readonly prefetchable?: boolean;
}

/** A BAR that is plain memory in a file, which programs map. */
export function mappedBar(options: MappedBarOptions): BarSpec {
  const { memory, ...rest } = options;
  return { ...rest, kind: 'memory', size: memory.length, shared: memory };
}

function withRegisters(options: BarPlace & RegisterPart): { registers?: Registers } {
  const { registers, hole, index, size } = options;
  if (registers === undefined) return {};
  if (!Array.isArray(registers)) return { registers: registers as Registers };
  const table = new RegisterTable(registers, hole === undefined ? {} : { hole });
  if (table.end > size) {
    const last = table.registers[table.registers.length - 1]!;
    throw new Errno('EINVAL', `register ${last.name} does not fit into BAR ${index} of 0x${size.toString(16)} bytes`);
  }
  return { registers: table };
}

/** Who the device is, as the first bytes of configuration space say it. */
export interface Identity {
  readonly vendor: number;
  readonly device: number;
  /** Base class, sub-class and programming interface. */
  readonly class24: number;
  readonly revision?: number;
  readonly subsystemVendor?: number;
  readonly subsystemDevice?: number;
  /** 0 none (unless said otherwise), 1 to 4 for INTA to INTD. */
  readonly interruptPin?: number;
}

/** What `build` gives: the parts of one card. */
export interface CardParts extends Partial<Identity> {
  readonly bars?: readonly BarSpec[];
  /** Instead of those of the device, when they depend on options. */
  readonly capabilities?: readonly CapabilitySpec[];
  /** Contents of the expansion ROM. */
  readonly rom?: Uint8Array;
  /** After registers went back to their reset values and timers were cancelled. */
  reset?(kind: ResetKind): void;
  /** The card sits in its slot: DMA and interrupts work from here on. */
  attached?(): void;
  /** The card is pulled. */
  removed?(): void;
  /** What the device holds beside its registers; fit for JSON. */
  save?(): unknown;
  restore?(state: unknown): void;
}

export interface DeviceDescription extends Identity {
  /** As host files say it. */
  readonly name: string;
  /** One sentence. */
  readonly description?: string;
  readonly options?: Readonly<Record<string, ModelOption>>;
  readonly capabilities?: readonly CapabilitySpec[];
  /**
   * Whether programs can carry the device's state to another machine: all that it holds is in registers, in memories of `card.share`, in
   * timers of `card.clock.timer`, or in what `save` gives. Its DMA is started by timers, which stand still while it is stopped.
   */
  readonly migration?: boolean | MigrationAbility;
  /** Makes one card. Called for each function of a machine that is this device. */
  build(card: Card): CardParts;
}

/** Makes a model of a description. */
export function device(description: DeviceDescription): DeviceModel {
  for (const [what, value, bits] of [
    ['vendor', description.vendor, 16],
    ['device', description.device, 16],
    ['class24', description.class24, 24],
  ] as const) {
    if (!Number.isInteger(value) || value < 0 || value >= 2 ** bits) {
      throw new Errno(
        'EINVAL',
        `${what} of device '${description.name}' must be a number of ${bits} bits, not ${value}`,
      );
    }
  }
  const options = description.options ?? {};
  return {
    name: description.name,
    description: description.description ?? description.name,
    options,
    create: (env, given) => create(description, env, readOptions({ name: description.name, options }, given)),
  };
}

const allAbilities: MigrationAbility = { p2p: true, preCopy: true };

function create(
  description: DeviceDescription,
  env: DeviceEnvironment,
  options: Readonly<Record<string, unknown>>,
): FunctionSpec {
  const card = new Card(env, options);
  const { name: _name, description: _text, options: _options, build: _build, migration, ...identity } = description;
  const { reset, attached, removed, save, restore, ...parts } = description.build(card);
  const tables = new Map<number, RegisterTable>();
  for (const bar of parts.bars ?? []) {
    if (bar.registers instanceof RegisterTable) tables.set(bar.index, bar.registers);
  }
  return {
    ...identity,
    ...parts,
    attach: (fn) => {
      card.fn = fn;
      attached?.();
    },
    reset: (kind) => {
      card.clock.cancelAll();
      card.interrupts.reset();
      for (const table of tables.values()) table.reset();
      reset?.(kind);
    },
    removed: () => {
      removed?.();
      card.close();
    },
    save: () => ({
      registers: Object.fromEntries([...tables].map(([index, table]) => [index, table.save()])),
      timers: card.clock.save(),
      device: save?.(),
    }),
    ...(migration !== undefined && migration !== false && { migration: migration === true ? allAbilities : migration }),
    memories: card.memories,
    stop: () => {
      const { nameless } = card.clock;
      if (nameless > 0) throw new Errno('EBUSY', `${nameless} actions of the device are pending that have no name`);
      card.clock.stop();
    },
    run: () => card.clock.run(),
    restore: (state) => {
      for (const [index, table] of tables) {
        const registers = state.registers[index];
        if (registers === undefined) throw new Errno('EINVAL', `the saved state has no registers of BAR ${index}`);
        table.restore(registers);
      }
      card.clock.restore(state.timers ?? {});
      restore?.(state.device);
    },
  };
}

export type { DeviceState };
