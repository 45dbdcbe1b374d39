/**
 * The host under the virtual machines: its processors, their caches, and what the administrator has chosen. One for a machine.
 */
import type { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { type HostInterrupts, POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR } from '../core/host-interrupts.ts';
import { IrqBypass } from '../core/irq-bypass.ts';
import { CpuCache } from './cpu-cache.ts';
import type { Vcpu } from './vcpu.ts';

/**
 * When a guest's WBINVD is carried out. `kernel`: as Linux decides, by what the IOMMUs of the assigned devices can. `strict`: only
 * while a device may send no-snoop requests, nothing on its way makes them coherent, and the platform honours them.
 */
export type WbinvdPolicy = 'kernel' | 'strict';

export interface KvmHostOptions {
  readonly memory: PhysicalMemory;
  /** Where notifications arrive. Without it there are no posted interrupts. */
  readonly interrupts?: HostInterrupts;
  readonly bypass?: IrqBypass;
  /** Physical processors; 4 unless given. */
  readonly cpus?: number;
  readonly policy?: WbinvdPolicy;
  /** Host bridge: a no-snoop request really goes past the caches. True unless given. */
  readonly platformHonoursNoSnoop?: boolean;
  /** The processors can exit on WBINVD. True unless given. */
  readonly hasWbinvdExiting?: boolean;
  /** APIC IDs are 32 bits wide; else they stand shifted in descriptors. True unless given. */
  readonly isX2apic?: boolean;
}

/** One physical processor. Its APIC ID is its number. */
export class HostCpu {
  readonly id: number;
  /** WBINVDs that it has executed: what a guest has cost all of its neighbours. */
  flushes = 0;
  /** Interrupts that the host's own software had to take for virtual machines. */
  hostInterrupts = 0;
  /** The virtual processor that runs here now, in guest mode. */
  running: Vcpu | undefined;
  /** Virtual processors that sleep here and are to be woken by an interrupt. */
  readonly sleepers = new Set<Vcpu>();

  constructor(id: number) {
    this.id = id;
  }
}

export class KvmHost {
  readonly memory: PhysicalMemory;
  readonly cpus: readonly HostCpu[];
  readonly cache: CpuCache;
  readonly bypass: IrqBypass;
  readonly hasWbinvdExiting: boolean;
  readonly isX2apic: boolean;
  readonly platformHonoursNoSnoop: boolean;
  policy: WbinvdPolicy;
  /** Machines that live. */
  vms = 0;
  /** Eventfds that are an irqfd of some machine: each can be one only once. */
  readonly irqfdTokens = new Set<unknown>();

  constructor(options: KvmHostOptions) {
    this.memory = options.memory;
    this.cpus = Array.from({ length: options.cpus ?? 4 }, (_, id) => new HostCpu(id));
    this.cache = new CpuCache(options.memory);
    this.bypass = options.bypass ?? new IrqBypass();
    this.policy = options.policy ?? 'kernel';
    this.platformHonoursNoSnoop = options.platformHonoursNoSnoop ?? true;
    this.hasWbinvdExiting = options.hasWbinvdExiting ?? true;
    this.isX2apic = options.isX2apic ?? true;
    options.interrupts?.setSystemHandler(POSTED_INTR_VECTOR, (id) => this.#posted(id));
    options.interrupts?.setSystemHandler(POSTED_INTR_WAKEUP_VECTOR, (id) => this.#wakeUp(id));
  }

  /** WBINVDs of all processors. */
  get hostFlushes(): number {
    return this.cpus.reduce((sum, cpu) => sum + cpu.flushes, 0);
  }

  /** WBINVD on one processor. */
  flush(cpu: number): void {
    this.cpus[cpu]!.flushes++;
    this.cache.flush(cpu);
  }

  /** A notification reaches a processor: in guest mode the hardware takes it, else it does nothing. */
  notify(id: number, vector: number): void {
    if (vector === POSTED_INTR_VECTOR) this.#posted(id);
    else if (vector === POSTED_INTR_WAKEUP_VECTOR) this.#wakeUp(id);
  }

  #posted(id: number): void {
    const cpu = this.cpus[id];
    if (cpu === undefined) return;
    if (cpu.running === undefined) cpu.hostInterrupts++;
    else cpu.running.takePosted();
  }

  #wakeUp(id: number): void {
    const cpu = this.cpus[id];
    if (cpu === undefined) return;
    cpu.hostInterrupts++;
    for (const vcpu of [...cpu.sleepers]) if (vcpu.descriptor.on) vcpu.wake();
  }
}
