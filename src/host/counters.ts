/**
 * What a machine holds at this moment. All zero when no program holds anything: shown under /sys/module/vfiobox/counters, where
 * programs may look too, and checked by the tests after every death.
 */
import type { PhysicalMemory } from '../hw/memory/physical-memory.ts';
import type { File } from '../kernel/core/file.ts';
import type { Mm } from '../kernel/core/mm.ts';
import type { IommufdContext } from '../kernel/iommufd/context.ts';
import { Type1 } from '../kernel/vfio/type1.ts';
import type { VfioCore } from '../kernel/vfio/vfio.ts';
import type { Vfio2011 } from '../kernel/vfio-2011/vfio-2011.ts';
import { type SysfsTree, text } from './sysfs/tree.ts';

export interface Invariants {
  /** Pages pinned in programs' memory, each pin counted. */
  pins: number;
  /** Mappings of containers, and entries of the address spaces of 2011. */
  maps: number;
  /** Objects of iommufd contexts. */
  objects: number;
  /** Open nodes and devices. */
  files: number;
  /** Gigabytes of physical address space that stand for programs' memory. */
  blocks: number;
}

export interface InterruptInvariants {
  /** Entries of interrupt remapping tables. */
  irqs: number;
  /** Interrupts that are offered to virtual machines, or awaited by them. */
  bypasses: number;
  /** Machines of the box's own KVM. */
  vms: number;
}

/** What of the machine's interrupts is counted. */
interface Watched {
  readonly used: number;
  readonly bypass: { readonly registered: number } | undefined;
}

export interface SharedInvariants {
  /** Processes whose addresses devices use, each device counted. */
  readonly bonds: number;
  /** Page requests of devices that were taken and not answered. */
  readonly faults: number;
}

export class Counters {
  readonly #physical: PhysicalMemory;
  readonly #mms = new Set<Mm>();
  readonly #ended = new WeakSet<Mm>();
  readonly #contexts = new Set<IommufdContext>();
  #files = 0;
  #vfio: VfioCore | undefined;
  #vfio2011: Vfio2011 | undefined;
  #interrupts: Watched | undefined;
  #kvm: { readonly vms: number } | undefined;
  #shared: SharedInvariants | undefined;

  constructor(physical: PhysicalMemory) {
    this.#physical = physical;
  }

  watchInterrupts(interrupts: Watched): void {
    this.#interrupts = interrupts;
  }

  watchShared(shared: SharedInvariants): void {
    this.#shared = shared;
  }

  watchKvm(kvm: { readonly vms: number }): void {
    this.#kvm = kvm;
  }

  watchVfio(vfio: VfioCore, vfio2011?: Vfio2011): void {
    this.#vfio = vfio;
    this.#vfio2011 = vfio2011;
  }

  /** Counts the pins of a program until it has ended and nothing of it is pinned. */
  watch(mm: Mm): void {
    for (const other of this.#mms) if (this.#ended.has(other) && other.pins === 0) this.#mms.delete(other);
    this.#mms.add(mm);
  }

  ended(mm: Mm): void {
    this.#ended.add(mm);
    if (mm.pins === 0) this.#mms.delete(mm);
  }

  watchContext(context: IommufdContext): void {
    for (const other of this.#contexts) if (other.isEmpty) this.#contexts.delete(other);
    this.#contexts.add(context);
  }

  /** Counts an open file until its release. */
  opened<F extends File>(file: F): F {
    this.#files++;
    const release = file.release.bind(file);
    file.release = () => {
      this.#files--;
      release();
    };
    return file;
  }

  now(): Invariants {
    let pins = 0;
    for (const mm of this.#mms) pins += mm.pins;
    let objects = 0;
    for (const context of this.#contexts) objects += context.objects.size;
    const drivers = new Set(this.#vfio?.groups().map((group) => group.container?.driver));
    let maps = 0;
    for (const driver of drivers) if (driver instanceof Type1) maps += driver.dmas.size;
    for (const object of this.#vfio2011?.objects() ?? []) maps += object.maps.entries.size;
    let files = this.#files + (this.#vfio2011?.openFiles ?? 0);
    for (const device of this.#vfio?.devices() ?? []) files += device.openCount;
    return { pins, maps, objects, files, blocks: this.#physical.blocks };
  }

  /** The same for interrupts. */
  interruptsNow(): InterruptInvariants {
    return {
      irqs: this.#interrupts?.used ?? 0,
      bypasses: this.#interrupts?.bypass?.registered ?? 0,
      vms: this.#kvm?.vms ?? 0,
    };
  }

  /** The same for shared addressing. */
  sharedNow(): SharedInvariants {
    return { bonds: this.#shared?.bonds ?? 0, faults: this.#shared?.faults ?? 0 };
  }

  publish(tree: SysfsTree): void {
    tree.file('/sys/module/vfiobox/version', '1\n');
    const add = (name: string, value: () => number): void =>
      tree.attribute(`/sys/module/vfiobox/counters/${name}`, { mode: 0o444, show: () => text(`${value()}\n`) });
    for (const name of Object.keys(this.now()) as (keyof Invariants)[]) add(name, () => this.now()[name]);
    for (const name of Object.keys(this.interruptsNow()) as (keyof InterruptInvariants)[]) {
      add(name, () => this.interruptsNow()[name]);
    }
    for (const name of Object.keys(this.sharedNow()) as (keyof SharedInvariants)[])
      add(name, () => this.sharedNow()[name]);
  }
}
