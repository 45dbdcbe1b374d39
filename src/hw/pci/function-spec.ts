/**
 * What a device model hands to the bus: identity, BARs, capabilities as data, and a few hooks. `PciFunction` is built from it.
 */
import type { SharedMemory } from '../memory/backing.ts';
import type { BarSpec } from './bar.ts';
import type { ConfigSpace } from './config-space.ts';
import type { PciFunction } from './function.ts';
import type { IsolationMarks } from './topology.ts';

/** How a function came to be reset. */
export type ResetKind = 'flr' | 'af_flr' | 'pm' | 'bus';

/** A capability: where it goes and what it installs there. Made by the functions of `capabilities/`. */
export interface CapabilitySpec {
  readonly id: number;
  readonly extended: boolean;
  /** Of extended capabilities; 1 where the specification says nothing else. */
  readonly version?: number;
  readonly length: number;
  /** A fixed offset, as some well-known devices have; otherwise the first free place. */
  readonly at?: number;
  /** Fills the body at `offset` and connects registers with behaviour. The header is already there. */
  install(fn: PciFunction, config: ConfigSpace, offset: number): void;
}

/** What a device holds at one moment, fit for JSON: registers by BAR and offset, and what its model adds. */
export interface DeviceState {
  readonly registers: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** Nanoseconds left to the timers that run. */
  readonly timers?: Readonly<Record<string, number>>;
  /** Contents of memories, in base64: only where a whole state is one value, as in tests. */
  readonly memories?: Readonly<Record<string, string>>;
  readonly device: unknown;
}

/** What a device can do beyond being stopped, saved and restored. */
export interface MigrationAbility {
  /** It can go on while its DMA stands still. */
  readonly p2p?: boolean;
  /** Its state can be read while it runs. */
  readonly preCopy?: boolean;
}

/** Bus behind a bridge. */
export interface BridgeSpec {
  /** Also resets what is below, as every bridge does. Called after that. */
  busReset?(): void;
}

export interface FunctionSpec {
  readonly vendor: number;
  readonly device: number;
  /** Base class, sub-class and programming interface. */
  readonly class24: number;
  readonly revision?: number;
  readonly subsystemVendor?: number;
  readonly subsystemDevice?: number;
  /** 0 none, 1 to 4 for INTA to INTD. */
  readonly interruptPin?: number;
  readonly bars?: readonly BarSpec[];
  /** Contents of the expansion ROM; its BAR is the next power of two. */
  readonly rom?: Uint8Array;
  readonly capabilities?: readonly CapabilitySpec[];
  /** Present: header type 1, with a bus behind it. */
  readonly bridge?: BridgeSpec;
  /** Called once, when the function sits in its slot and everything on it works. */
  attach?(fn: PciFunction): void;
  /** Device state back to power-on; configuration space, interrupts and messages are already reset. */
  reset?(kind: ResetKind): void;
  /** The function was pulled: stop all that is under way. */
  removed?(): void;
  /** Present: its state can be carried to another machine; `save`, `restore`, `stop` and `run` are there. */
  readonly migration?: MigrationAbility;
  /** Memories behind its BARs, by name: part of its state beside `save`. */
  readonly memories?: ReadonlyMap<string, SharedMemory>;
  /** Nothing happens any more by itself: no DMA, no interrupt, no change. Registers still answer. */
  stop?(): void;
  /** Goes on where it was stopped. */
  run?(): void;
  /** Registers, timers and inner state; configuration space is not the model's. EBUSY: not now. */
  save?(): DeviceState;
  /** Takes a state that `save` gave. EINVAL: it is of another device. */
  restore?(state: DeviceState): void;
}

/** Marks of a function of a machine; what they mean is at `IsolationMarks`. */
export interface Quirks extends IsolationMarks {
  realDmaDevice?: PciFunction;
}
