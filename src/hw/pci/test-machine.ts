/**
 * A small machine for tests: a tree with one root bus, RAM of plain bytes, a clock turned by hand, and an upstream whose answers
 * the test writes down.
 */
import { BufferBacking, privateShared } from '../memory/backing.ts';
import { PhysicalMemory } from '../memory/physical-memory.ts';
import { pciExpress } from './capabilities.ts';
import { ManualClock } from './clock.ts';
import type { DeviceEnvironment, DeviceModel } from './device-model.ts';
import { type Access, READ, type Upstream, WRITE } from './dma.ts';
import { acs } from './extended-capabilities.ts';
import type { InterruptSink, PciFunction, Place } from './function.ts';
import type { FunctionSpec } from './function-spec.ts';
import { type Bus, PciTree } from './tree.ts';

/** Translates only what was mapped, for any requester, and notes who asked. */
export class ScriptedUpstream implements Upstream {
  why = '';
  /** `rid:page` of each question. */
  readonly asked: string[] = [];
  /** PASID of the last question. */
  lastPasid = -1;
  readonly #pages = new Map<number, { physical: number; access: number }>();

  map(page: number, physical: number, access: number = READ | WRITE): void {
    this.#pages.set(page, { physical, access });
  }

  unmap(page: number): void {
    this.#pages.delete(page);
  }

  translate(rid: number, pasid: number, page: number, access: Access): number {
    this.asked.push(`${rid.toString(16)}:${page.toString(16)}`);
    this.lastPasid = pasid;
    const entry = this.#pages.get(page);
    if (entry === undefined) this.why = 'not present';
    else if ((entry.access & access) === 0) this.why = access === READ ? 'no read permission' : 'no write permission';
    else return entry.physical;
    return -1;
  }
}

/** Writes down what arrives: `intx 1`, `intx 0`, `message 3`, `error fatal`. */
export class RecordingSink implements InterruptSink {
  readonly events: string[] = [];

  intx(asserted: boolean): void {
    this.events.push(`intx ${asserted ? 1 : 0}`);
  }

  message(vector: number): void {
    this.events.push(`message ${vector}`);
  }

  error(fatal: boolean): void {
    this.events.push(fatal ? 'error fatal' : 'error');
  }

  /** What arrived since the last call. */
  take(): string[] {
    return this.events.splice(0);
  }
}

const RAM_PAGES = 64;

export class TestMachine {
  readonly memory = new PhysicalMemory();
  readonly ram = new Uint8Array(RAM_PAGES * 4096);
  /** First physical page of `ram`. */
  readonly ramPage = this.memory.addBlock(new BufferBacking(this.ram));
  readonly clock = new ManualClock();
  readonly upstream = new ScriptedUpstream();
  readonly log: string[] = [];
  readonly env: DeviceEnvironment = {
    clock: this.clock,
    allocateShared: privateShared,
    log: (text) => this.log.push(text),
  };
  readonly tree = new PciTree({
    memory: this.memory,
    upstreamOf: () => this.upstream,
    log: (text) => this.log.push(text),
  });
  readonly root: Bus = this.tree.addRoot();

  /** Maps `count` pages of RAM from its page `ramIndex` at `page` of the devices' address space. */
  mapRam(page: number, ramIndex: number, count: number, access: number = READ | WRITE): void {
    for (let i = 0; i < count; i++) this.upstream.map(page + i, this.ramPage + ramIndex + i, access);
  }

  /** Places a function; `at` is `slot.function` on `bus`, the root bus unless given. */
  add(spec: FunctionSpec, at: string, place: Partial<Place> = {}): PciFunction {
    const [slot, fn] = at.split('.');
    const devfn = (Number.parseInt(slot!, 16) << 3) | Number.parseInt(fn!, 16);
    return this.tree.add(spec, { bus: this.root, ...place, devfn });
  }

  addModel(
    model: DeviceModel,
    at: string,
    options: Readonly<Record<string, unknown>> = {},
    place: Partial<Place> = {},
  ): PciFunction {
    return this.add(model.create(this.env, options), at, place);
  }
}

/** A bridge of one PCI Express port type (`PCI_EXP_TYPE_…`), of conventional PCI without one; `services`: its ACS. */
export function bridgeSpec(type?: number, services?: { capability: number; control?: number }): FunctionSpec {
  return {
    vendor: 0x1b36,
    device: 0x000c,
    class24: 0x060400,
    bridge: {},
    capabilities: [
      ...(type === undefined ? [] : [pciExpress({ type })]),
      ...(services === undefined ? [] : [acs(services)]),
    ],
  };
}

/** A function with no more than its kind: of a PCI Express port type, or conventional. */
export function plainSpec(type?: number, services?: { capability: number; control?: number }): FunctionSpec {
  const { bridge: _bridge, ...spec } = bridgeSpec(type, services);
  return { ...spec, vendor: 0x1234, device: 0x0001, class24: 0xff0000 };
}

/** Drives a BAR as a program does. */
export function read32(fn: PciFunction, bar: number, offset: number): number {
  const bytes = new Uint8Array(4);
  fn.bars[bar]!.read(offset, bytes);
  return new DataView(bytes.buffer).getUint32(0, true);
}

export function read64(fn: PciFunction, bar: number, offset: number): bigint {
  const bytes = new Uint8Array(8);
  fn.bars[bar]!.read(offset, bytes);
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

export function write32(fn: PciFunction, bar: number, offset: number, value: number): void {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  fn.bars[bar]!.write(offset, bytes);
}

export function write64(fn: PciFunction, bar: number, offset: number, value: bigint): void {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  fn.bars[bar]!.write(offset, bytes);
}
