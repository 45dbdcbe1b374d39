/** What a machine needs of the world around it: time, memory that others can map, and somebody to talk to. */
import type { AllocateShared } from '../hw/memory/backing.ts';
import type { Clock } from '../hw/pci/clock.ts';
import type { CharacterBackend, DeviceModel } from '../hw/pci/device-model.ts';
import type { DmaMiss } from './demand-upstream.ts';
import type { Ownership } from './permissions.ts';

export interface Platform {
  readonly clock: Clock;
  readonly allocateShared: AllocateShared;
  /** Text for people: what a device or a driver has to say, one line. */
  log(text: string): void;
  /** Seed of everything random in the machine; without one each run differs. */
  readonly seed?: number | undefined;
  /**
   * Whose a node or live file is, and its mode, as chown and chmod left it. Without it everybody may open everything.
   */
  readonly ownershipOf?: ((path: string) => Ownership | undefined) | undefined;
  /** Opens what a character device talks to; without it such a device talks to nobody. */
  readonly openCharacter?: (target: string) => CharacterBackend;
  /** Device models beside those of the catalog, by name. */
  readonly models?: ReadonlyMap<string, DeviceModel> | undefined;
  /** Told when a device reaches for a page that is not mapped; without it that is a fault. */
  readonly dmaMiss?: DmaMiss | undefined;
}
