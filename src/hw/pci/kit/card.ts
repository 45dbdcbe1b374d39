/**
 * What a device written with the kit holds in its hand: memory by DMA, interrupts, time, options. All of it works from the moment
 * the function sits in its slot; before that DMA faults and interrupts go nowhere.
 */
import { Errno } from '../../../lib/errno.ts';
import type { DmaAttributes } from '../ats.ts';
import { DeviceClock } from '../device-clock.ts';
import type { CharacterBackend, DeviceEnvironment, SharedMemory } from '../device-model.ts';
import type { DmaFault, DmaPort } from '../dma.ts';
import type { PciFunction } from '../function.ts';

/** A length often comes from a guest: more than this is a fault, not an allocation. */
const LONGEST_VIEW = 64 << 20;

/** Bytes of memory as they were when they were read; `store` writes them back. */
export class DmaView {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  readonly data: DataView;
  readonly #dma: CardDma;

  constructor(dma: CardDma, address: bigint, bytes: Uint8Array) {
    this.#dma = dma;
    this.address = address;
    this.bytes = bytes;
    this.data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  u8(offset: number): number {
    return this.data.getUint8(offset);
  }

  u16(offset: number): number {
    return this.data.getUint16(offset, true);
  }

  u32(offset: number): number {
    return this.data.getUint32(offset, true);
  }

  u64(offset: number): bigint {
    return this.data.getBigUint64(offset, true);
  }

  /** Writes the bytes `[first, end)` back to memory. Undefined: done. */
  store(first = 0, end = this.bytes.length): DmaFault | undefined {
    return this.#dma.write(this.address + BigInt(first), this.bytes.subarray(first, end));
  }
}

/**
 * Memory as the device reaches it. A fault is a value: the device decides what it does to its registers. `how`: a PASID (-1: none), or
 * all attributes of the requests.
 */
export class CardDma {
  readonly #function: () => PciFunction | undefined;

  constructor(fn: () => PciFunction | undefined) {
    this.#function = fn;
  }

  /** Fills `into` from memory. Undefined: done. */
  read(address: bigint | number, into: Uint8Array, how: number | DmaAttributes = -1): DmaFault | undefined {
    const fn = this.#function();
    return fn === undefined ? notPlugged(address, 'read') : fn.dma.read(address, into, how);
  }

  /** Writes `from` to memory. Undefined: done; after a fault the bytes before it are written. */
  write(address: bigint | number, from: Uint8Array, how: number | DmaAttributes = -1): DmaFault | undefined {
    const fn = this.#function();
    return fn === undefined ? notPlugged(address, 'write') : fn.dma.write(address, from, how);
  }

  /** The port itself, for translation and page requests (`new Atc(port)`); undefined while the device is in no slot. */
  get port(): DmaPort | undefined {
    return this.#function()?.dma;
  }

  /** The bytes at `address`, for descriptors and the like; 64 MiB at most. Tell a fault by `isFault`. */
  view(address: bigint | number, length: number): DmaView | DmaFault {
    if (!(length >= 0 && length <= LONGEST_VIEW)) {
      return { address: BigInt.asUintN(64, BigInt(address)), access: 'read', reason: `${length} bytes are too many` };
    }
    const bytes = new Uint8Array(length);
    return this.read(address, bytes) ?? new DmaView(this, BigInt.asUintN(64, BigInt(address)), bytes);
  }
}

function notPlugged(address: bigint | number, access: 'read' | 'write'): DmaFault {
  return { address: BigInt.asUintN(64, BigInt(address)), access, reason: 'the device is in no slot' };
}

/** Whether a result of `dma.view` is a fault. */
export function isFault(result: DmaView | DmaFault): result is DmaFault {
  return !(result instanceof DmaView);
}

/** A device's interrupts: MSI-X or MSI if software enabled it, else the pin. */
export class CardInterrupts {
  readonly #function: () => PciFunction | undefined;
  #level = false;

  constructor(fn: () => PciFunction | undefined) {
    this.#function = fn;
  }

  /** Sends the message of `vector`; without messages it asserts the pin, until `lower`. */
  raise(vector = 0): void {
    const fn = this.#function();
    if (fn === undefined) return;
    if (fn.msix?.enabled) fn.msix.fire(vector);
    else if (fn.msi?.enabled) fn.msi.fire(vector);
    else fn.intx.assert();
  }

  /** Releases the pin. Messages that were sent stay sent. */
  lower(): void {
    this.#function()?.intx.deassert();
  }

  /** For devices that think in levels: a message at each rise, or the pin as it is. */
  set(asserted: boolean, vector = 0): void {
    const rises = asserted && !this.#level;
    this.#level = asserted;
    if (!asserted) this.lower();
    else if (rises || !this.usesMessages) this.raise(vector);
  }

  /** Whether software enabled MSI-X or MSI. */
  get usesMessages(): boolean {
    const fn = this.#function();
    return (fn?.msix?.enabled ?? false) || (fn?.msi?.enabled ?? false);
  }

  reset(): void {
    this.#level = false;
  }
}

/** The hand of one device. */
export class Card {
  /** Values of all options of the model, checked. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly dma: CardDma;
  readonly interrupts: CardInterrupts;
  /** Time. What a device has started ends with it: a reset or the removal of the card cancels all that is pending. */
  readonly clock: DeviceClock;
  /** The function in its slot; undefined until it sits there. */
  fn: PciFunction | undefined;
  readonly #env: DeviceEnvironment;
  /** What `share` gave, by name: part of the device's state. */
  readonly memories = new Map<string, SharedMemory>();

  constructor(env: DeviceEnvironment, options: Readonly<Record<string, unknown>>) {
    this.#env = env;
    this.options = options;
    const fn = (): PciFunction | undefined => this.fn;
    this.dma = new CardDma(fn);
    this.interrupts = new CardInterrupts(fn);
    this.clock = new DeviceClock(env.clock);
  }

  /** Memory that programs may map, for a BAR: zeroed, a file that the machine keeps. EINVAL: the name is used already. */
  share(name: string, length: number): SharedMemory {
    if (this.memories.has(name)) throw new Errno('EINVAL', `the device has a memory '${name}' already`);
    const memory = this.#env.allocateShared(name, length);
    this.memories.set(name, memory);
    return memory;
  }

  /** The other end of a character device; undefined when this machine has none, as in a test. */
  openCharacter(target: string): CharacterBackend | undefined {
    return this.#env.openCharacter?.(target);
  }

  /** One line for people, with the device's address before it. */
  log(text: string): void {
    this.#env.log?.(`${this.fn?.name ?? 'device'}: ${text}`);
  }

  /** The card is pulled. */
  close(): void {
    this.clock.cancelAll();
    for (const memory of this.memories.values()) memory.close();
    this.memories.clear();
  }
}
