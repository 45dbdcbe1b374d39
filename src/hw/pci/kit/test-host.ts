/**
 * A host for unit tests: one device in one slot, memory, a clock turned by hand and a driver that the test scripts. No facility of
 * an operating system is used, so the same script gives the same run everywhere.
 */
import * as reg from '../../../uapi/pci-regs.ts';
import { BufferBacking, privateShared } from '../../memory/backing.ts';
import { PhysicalMemory } from '../../memory/physical-memory.ts';
import { ManualClock } from '../clock.ts';
import type { CharacterBackend, DeviceModel } from '../device-model.ts';
import { type Access, READ, type Upstream, WRITE } from '../dma.ts';
import type { PciFunction } from '../function.ts';
import type { DeviceState } from '../function-spec.ts';
import { PciTree } from '../tree.ts';

export interface TestHostOptions {
  /** Options of the model. */
  readonly options?: Readonly<Record<string, unknown>>;
  /** Pages of memory; 64 unless said otherwise. */
  readonly pages?: number;
  /** Bus address of the first byte of memory; 0x100000 unless said otherwise. */
  readonly base?: number;
  /** What the driver switches on first: memory, I/O and bus master unless said otherwise (`PCI_COMMAND_…`). */
  readonly command?: number;
  /** What a character device talks to; without it there is nothing. */
  readonly character?: (target: string) => CharacterBackend;
}

/** One step of a scripted driver. */
export type Step =
  | { readonly write: readonly [bar: number, offset: number, value: number | bigint]; readonly size?: AccessSize }
  | {
      readonly read: readonly [bar: number, offset: number];
      readonly size?: AccessSize;
      /** What must come, in the bits of `mask` (all of them unless given). */
      readonly expect?: number | bigint;
      readonly mask?: number | bigint;
      /** Reads again until that comes, at most so many nanoseconds of the device's clock. */
      readonly within?: number;
    }
  | { readonly config: readonly [offset: number, value: number]; readonly size?: 1 | 2 | 4 }
  | { readonly wait: number }
  /** Exactly these must have arrived since the last look: `message 0`, `intx 1`, `intx 0`. */
  | { readonly interrupts: readonly string[] };

export type AccessSize = 1 | 2 | 4 | 8;

/** Bus addresses that the test mapped, page by page. */
class TestMap implements Upstream {
  why = '';
  readonly pages = new Map<number, { readonly physical: number; readonly access: number }>();

  translate(_rid: number, _pasid: number, page: number, access: Access): number {
    const entry = this.pages.get(page);
    if (entry === undefined) this.why = 'not present';
    else if ((entry.access & access) === 0) this.why = access === READ ? 'no read permission' : 'no write permission';
    else return entry.physical;
    return -1;
  }
}

export class TestHost {
  /** The device in its slot, 0000:00:01.0. */
  readonly fn: PciFunction;
  readonly clock = new ManualClock();
  /** All memory there is; byte 0 is at bus address `base`. */
  readonly memory: Uint8Array;
  readonly base: number;
  /** What the device had to say. */
  readonly log: string[] = [];
  readonly #map = new TestMap();
  readonly #interrupts: string[] = [];
  #free = 0;

  constructor(model: DeviceModel, options: TestHostOptions = {}) {
    const pages = options.pages ?? 64;
    this.base = options.base ?? 0x10_0000;
    this.memory = new Uint8Array(pages * 4096);
    const physical = new PhysicalMemory();
    const first = physical.addBlock(new BufferBacking(this.memory));
    for (let i = 0; i < pages; i++) {
      this.#map.pages.set(Math.floor(this.base / 4096) + i, { physical: first + i, access: READ | WRITE });
    }
    const log = (text: string): void => {
      this.log.push(text);
    };
    const tree = new PciTree({ memory: physical, upstreamOf: () => this.#map, log });
    const spec = model.create(
      {
        clock: this.clock,
        allocateShared: privateShared,
        log,
        ...(options.character !== undefined && { openCharacter: options.character }),
      },
      options.options ?? {},
    );
    this.fn = tree.add(spec, { bus: tree.addRoot(), devfn: 8 });
    tree.enumerate();
    this.fn.sink = {
      intx: (asserted) => this.#interrupts.push(`intx ${asserted ? 1 : 0}`),
      message: (vector) => this.#interrupts.push(`message ${vector}`),
      error: (fatal) => this.#interrupts.push(fatal ? 'error fatal' : 'error'),
    };
    const command = options.command ?? reg.PCI_COMMAND_IO | reg.PCI_COMMAND_MEMORY | reg.PCI_COMMAND_MASTER;
    this.fn.config.write(reg.PCI_COMMAND, 2, command);
  }

  /** Memory for the driver: its bus address, and the bytes, which the device sees. Starts on a multiple of `align`. */
  allocate(length: number, align = 64): { readonly address: number; readonly bytes: Uint8Array } {
    const start = Math.ceil(this.#free / align) * align;
    if (start + length > this.memory.length) throw new Error(`the test host has no ${length} bytes left`);
    this.#free = start + length;
    return { address: this.base + start, bytes: this.memory.subarray(start, start + length) };
  }

  /** Takes the pages of `[address, address + length)` from the device: DMA there faults. */
  unmap(address: number, length = 1): void {
    for (let page = Math.floor(address / 4096); page * 4096 < address + length; page++) this.#map.pages.delete(page);
  }

  /** Leaves the device only reads of these pages. */
  protect(address: number, length = 1): void {
    for (let page = Math.floor(address / 4096); page * 4096 < address + length; page++) {
      const entry = this.#map.pages.get(page);
      if (entry !== undefined) this.#map.pages.set(page, { physical: entry.physical, access: READ });
    }
  }

  /** One access of a program to a BAR. */
  read(bar: number, offset: number, size: 1 | 2 | 4 = 4): number {
    return Number(this.readWide(bar, offset, size));
  }

  readWide(bar: number, offset: number, size: AccessSize = 8): bigint {
    const bytes = new Uint8Array(8);
    this.#bar(bar).read(offset, bytes.subarray(0, size));
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }

  write(bar: number, offset: number, value: number | bigint, size: AccessSize = 4): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, BigInt(value)), true);
    this.#bar(bar).write(offset, bytes.subarray(0, size));
  }

  /** Switches MSI-X on with all vectors unmasked, or MSI with all it has. */
  enableMessages(): void {
    const { msix, msi, config } = this.fn;
    if (msix !== undefined) {
      const at = msix.offset + reg.PCI_MSIX_FLAGS;
      config.write(at, 2, config.read(at, 2) | reg.PCI_MSIX_FLAGS_ENABLE);
      for (let vector = 0; vector < msix.vectors; vector++) msix.setMask(vector, false);
    } else if (msi !== undefined) {
      const at = msi.offset + reg.PCI_MSI_FLAGS;
      const granted = Math.log2(msi.vectors) << 4;
      config.write(at, 2, config.read(at, 2) | reg.PCI_MSI_FLAGS_ENABLE | granted);
    } else throw new Error('the device has neither MSI-X nor MSI');
  }

  /** Interrupts that arrived since the last call. */
  interrupts(): string[] {
    return this.#interrupts.splice(0);
  }

  /** Lets the device's time pass. */
  advance(nanoseconds: number): void {
    this.clock.advance(nanoseconds);
  }

  /** A reset of the bus; configuration space is restored as software does it. */
  reset(): void {
    const command = this.fn.config.read(reg.PCI_COMMAND, 2);
    this.fn.resetHardware('bus');
    this.fn.config.write(reg.PCI_COMMAND, 2, command);
  }

  save(): DeviceState {
    if (this.fn.spec.save === undefined) throw new Error('the device cannot save its state');
    const memories = [...(this.fn.spec.memories ?? [])];
    return {
      ...this.fn.spec.save(),
      ...(memories.length > 0 && {
        memories: Object.fromEntries(
          memories.map(([name, memory]) => [name, Buffer.from(memory.bytes()).toString('base64')]),
        ),
      }),
    };
  }

  restore(state: DeviceState): void {
    if (this.fn.spec.restore === undefined) throw new Error('the device cannot restore a state');
    this.fn.spec.restore(state);
    for (const [name, memory] of this.fn.spec.memories ?? []) {
      const saved = state.memories?.[name];
      if (saved === undefined) throw new Error(`the saved state has no memory '${name}'`);
      memory.bytes().set(Buffer.from(saved, 'base64').subarray(0, memory.length));
    }
  }

  /** Runs a scripted driver. Gives what its reads read; throws at the first step that does not come out, with its number. */
  drive(script: readonly Step[]): bigint[] {
    const results: bigint[] = [];
    script.forEach((step, i) => {
      const fail = (what: string): never => {
        throw new Error(`step ${i} of the script: ${what}`);
      };
      if ('write' in step) this.write(...step.write, step.size ?? 4);
      else if ('config' in step) this.fn.config.write(step.config[0], step.size ?? 4, step.config[1]);
      else if ('wait' in step) this.advance(step.wait);
      else if ('interrupts' in step) {
        const seen = this.interrupts();
        if (seen.join() !== step.interrupts.join()) {
          fail(`expected interrupts [${step.interrupts.join(', ')}], but there were [${seen.join(', ')}]`);
        }
      } else results.push(this.#readStep(step, fail));
    });
    return results;
  }

  #readStep(step: Extract<Step, { read: unknown }>, fail: (what: string) => never): bigint {
    const [bar, offset] = step.read;
    const size = step.size ?? 4;
    const mask = BigInt.asUintN(8 * size, BigInt(step.mask ?? -1n));
    const end = this.clock.now() + (step.within ?? 0);
    for (;;) {
      const value = this.readWide(bar, offset, size);
      if (step.expect === undefined || (value & mask) === (BigInt.asUintN(8 * size, BigInt(step.expect)) & mask)) {
        return value;
      }
      const next = this.clock.next;
      if (next === undefined || next > end) {
        fail(
          `BAR ${bar} at 0x${offset.toString(16)}: expected 0x${step.expect.toString(16)}, not 0x${value.toString(16)}`,
        );
      } else this.advance(next - this.clock.now());
    }
  }

  #bar(index: number) {
    const bar = this.fn.bars[index];
    if (bar === undefined) throw new Error(`the device has no BAR ${index}`);
    return bar;
  }
}
