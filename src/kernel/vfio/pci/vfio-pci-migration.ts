/**
 * A PCI function as migration sees it: what of it stands still in a state, and what of it travels.
 *
 * While it is stopped its interrupts wait: they are part of its state and come when it runs again, here or elsewhere.
 */
import type { InterruptSink, PciFunction } from '../../../hw/pci/function.ts';
import type { DeviceState } from '../../../hw/pci/function-spec.ts';
import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import type { MigrationHooks, Stillness } from '../migration/migration.ts';

/** Registers of the header that the user writes: [offset, length], in the order in which they are put back. */
const HEADER: readonly (readonly [number, number])[] = [
  [reg.PCI_CACHE_LINE_SIZE, 2],
  ...Array.from({ length: reg.PCI_STD_NUM_BARS }, (_, i) => [reg.PCI_BASE_ADDRESS_0 + 4 * i, 4] as const),
  [reg.PCI_ROM_ADDRESS, 4],
  [reg.PCI_INTERRUPT_LINE, 1],
  [reg.PCI_COMMAND, 2],
];

/** The user's configuration space. */
interface UserConfig {
  read(offset: number, into: Uint8Array): number;
  write(offset: number, from: Uint8Array): number;
}

interface SavedFunction {
  readonly config: readonly number[];
  readonly messages: readonly number[];
  readonly device: DeviceState;
}

/** Takes a stopped function's interrupts. */
class HeldInterrupts implements InterruptSink {
  readonly messages = new Set<number>();
  readonly #below: InterruptSink | undefined;

  constructor(below: InterruptSink | undefined) {
    this.#below = below;
  }

  intx(): void {
    // The pin is a level: whoever takes interrupts again looks at it.
  }

  message(vector: number): void {
    this.messages.add(vector);
  }

  error(fatal: boolean): void {
    this.#below?.error?.(fatal);
  }
}

export class MigratableFunction implements MigrationHooks {
  readonly kind: number;
  readonly #fn: PciFunction;
  readonly #config: () => UserConfig;
  #held: HeldInterrupts | undefined;
  #sink: InterruptSink | undefined;

  constructor(fn: PciFunction, config: () => UserConfig) {
    this.#fn = fn;
    this.#config = config;
    this.kind = fn.device;
  }

  get name(): string {
    return this.#fn.name;
  }

  setStillness(stillness: Stillness): void {
    const { dma, spec } = this.#fn;
    dma.isStopped = stillness !== 'runs';
    if (stillness === 'stopped') this.#hold();
    else this.#release();
    if (stillness === 'runs') spec.run?.();
    else spec.stop?.();
  }

  identity(): unknown {
    const { vendor, device, class24, revision, subsystemVendor, subsystemDevice, spec } = this.#fn;
    const memories = [...(spec.memories ?? [])].map(([name, { length }]) => ({ name, length }));
    return { vendor, device, class24, revision, subsystemVendor, subsystemDevice, memories };
  }

  memories(): readonly Uint8Array[] {
    return [...(this.#fn.spec.memories?.values() ?? [])].map((memory) => memory.bytes());
  }

  save(): unknown {
    const config = HEADER.flatMap(([offset, length]) => {
      const bytes = new Uint8Array(length);
      this.#config().read(offset, bytes);
      return [...bytes];
    });
    return { config, messages: [...(this.#held?.messages ?? [])], device: this.#fn.spec.save!() };
  }

  restore(state: unknown): void {
    const { config, messages, device } = checked(state);
    try {
      this.#fn.spec.restore!(device);
    } catch (error) {
      if (error instanceof Errno) throw error;
      // A model that trips over a state says that it is not its own.
      throw new Errno('EINVAL', `the state cannot be put in place: ${error instanceof Error ? error.message : error}`);
    }
    let at = 0;
    for (const [offset, length] of HEADER) {
      this.#config().write(offset, Uint8Array.from(config.slice(at, at + length)));
      at += length;
    }
    for (const vector of messages) this.#held?.messages.add(vector);
  }

  powerOn(): void {
    const { spec } = this.#fn;
    for (const memory of this.memories()) memory.fill(0);
    this.#held?.messages.clear();
    spec.reset?.('flr');
  }

  #hold(): void {
    if (this.#held !== undefined) return;
    const sink = this.#fn.sink;
    this.#sink = sink;
    this.#held = new HeldInterrupts(sink);
    this.#fn.sink = this.#held;
  }

  #release(): void {
    const held = this.#held;
    if (held === undefined) return;
    this.#held = undefined;
    if (this.#fn.sink !== held) return;
    // The setter looks at the pin.
    this.#fn.sink = this.#sink;
    for (const vector of held.messages) this.#sink?.message(vector);
  }
}

/** EINVAL: it is no state of a function. */
function checked(state: unknown): SavedFunction {
  const saved = state as Partial<SavedFunction> | null | undefined;
  const length = HEADER.reduce((sum, [, bytes]) => sum + bytes, 0);
  const areNumbers = (list: unknown, most: number): boolean =>
    Array.isArray(list) && list.length <= most && list.every((value) => Number.isInteger(value) && value >= 0);
  if (
    !areNumbers(saved?.config, length) ||
    saved?.config?.length !== length ||
    !areNumbers(saved.messages, 2048) ||
    typeof saved.device !== 'object' ||
    saved.device === null
  ) {
    throw new Errno('EINVAL', 'the stream holds no state of a PCI function');
  }
  return saved as SavedFunction;
}
