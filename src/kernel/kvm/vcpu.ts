/**
 * A virtual processor, as far as devices meet it: it takes interrupts and executes scripts of accesses. No instructions are decoded.
 *
 * It is on a physical processor (`running`), sleeps until an interrupt (`halted`), or waits for its turn (`preempted`, `out`). Its
 * posted-interrupt descriptor lies in memory and says at each of these steps where notifications go.
 */
import { PostedDescriptor } from '../../hw/iommu/posted-interrupt.ts';
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR } from '../core/host-interrupts.ts';
import type { Vm } from './vm.ts';

export type VcpuState = 'out' | 'running' | 'halted' | 'preempted';

/** One access of a script. Addresses are of the guest, pages and bytes. */
export type GuestAccess =
  | { readonly op: 'read'; readonly page: number; readonly offset: number; readonly length: number }
  | {
      readonly op: 'write';
      readonly page: number;
      readonly offset: number;
      readonly bytes: Uint8Array;
      /** The guest's page attribute says uncached; heard only while devices do non-coherent DMA. */
      readonly isUncached?: boolean;
    }
  | { readonly op: 'clflush'; readonly page: number; readonly offset: number }
  | { readonly op: 'wbinvd' }
  | { readonly op: 'invd' }
  | { readonly op: 'hlt' }
  | { readonly op: 'enqcmd'; readonly portal: Portal; readonly descriptor: Uint8Array };

/** Where ENQCMD stores to: a shared work queue's portal. True: accepted. */
export interface Portal {
  enqueue(descriptor: Uint8Array): boolean;
}

/** What an access gave: bytes of a read, whether ENQCMD was accepted; undefined for the others. */
export type AccessResult = Uint8Array | boolean | undefined;

export type ExitReason = 'wbinvd' | 'hlt' | 'enqcmd pasid' | 'interrupt';

const traceWbinvd = new Tracepoint<{ vm: string; vcpu: number; flushed: number }>('kvm:wbinvd');
const traceExit = new Tracepoint<{ vm: string; vcpu: number; reason: string }>('kvm:exit');

export class Vcpu {
  readonly vm: Vm;
  /** Also its APIC ID in the guest. */
  readonly id: number;
  readonly descriptor: PostedDescriptor;
  state: VcpuState = 'out';
  /** The physical processor that it is on, or was on last; -1 before the first time. */
  cpu = -1;
  /** Returns to the host's software, by reason. */
  readonly exits = new Map<ExitReason, number>();
  /** Vectors that the guest's handlers have taken, in order. */
  readonly taken: number[] = [];
  /** Told of each vector that the guest takes. */
  onInterrupt: ((vector: number) => void) | undefined;
  /** PASID of the thread that runs (IA32_PASID), undefined for none. */
  pasid: number | undefined;
  /** Guest has interrupts disabled: vectors stay in vIRR. */
  #areInterruptsOff = false;
  readonly #irr = new Set<number>();
  /** Physical processors whose caches this one may have filled since the last flush. */
  readonly #wbinvdDirty = new Set<number>();

  constructor(vm: Vm, id: number, descriptorAddress: bigint) {
    this.vm = vm;
    this.id = id;
    this.descriptor = new PostedDescriptor(vm.host.memory, descriptorAddress);
    this.descriptor.nv = POSTED_INTR_VECTOR;
    this.descriptor.sn = true;
  }

  get exitCount(): number {
    let sum = 0;
    for (const count of this.exits.values()) sum += count;
    return sum;
  }

  /** Vectors that are in vIRR and not yet taken, highest first. */
  get pending(): number[] {
    return [...this.#irr].sort((a, b) => b - a);
  }

  // ---- where it runs ----

  /** Puts it on a physical processor, in guest mode. EBUSY: another one runs there. */
  load(cpu: number): void {
    const { host } = this.vm;
    const target = host.cpus[cpu];
    if (target === undefined) throw new Errno('EINVAL', `there is no processor ${cpu}`);
    if (target.running !== undefined && target.running !== this) {
      throw new Errno('EBUSY', `vcpu ${target.running.id} of ${target.running.vm.name} runs on processor ${cpu}`);
    }
    if (this.state === 'running') host.cpus[this.cpu]!.running = undefined;
    if (this.vm.hasNoncoherentDma) {
      if (host.hasWbinvdExiting) this.#wbinvdDirty.add(cpu);
      else if (this.cpu >= 0 && this.cpu !== cpu) host.flush(this.cpu);
    }
    if (this.cpu >= 0) host.cpus[this.cpu]!.sleepers.delete(this);
    this.descriptor.ndst = host.isX2apic ? cpu : (cpu << 8) & 0xff00;
    this.descriptor.nv = POSTED_INTR_VECTOR;
    this.descriptor.sn = false;
    this.cpu = cpu;
    this.state = 'running';
    target.running = this;
    if (!this.descriptor.isEmpty) {
      this.descriptor.on = true;
      this.takePosted();
    }
    this.#deliver();
  }

  /** Takes it off its processor: another thread's turn. Notifications are suppressed meanwhile. */
  preempt(): void {
    this.#leave('preempted');
    this.descriptor.sn = true;
  }

  /** HLT: sleeps until an interrupt, unless one is there already. */
  halt(): void {
    this.#exit('hlt');
    if (this.#irr.size > 0 || this.descriptor.on) {
      this.takePosted();
      return;
    }
    const { cpu } = this;
    this.#leave('halted');
    this.vm.host.cpus[cpu]!.sleepers.add(this);
    this.descriptor.nv = POSTED_INTR_WAKEUP_VECTOR;
  }

  /** Something happened for a sleeping one: it runs again on the processor where it slept, or waits there for its turn. */
  wake(): void {
    if (this.state !== 'halted') return;
    const { running, sleepers } = this.vm.host.cpus[this.cpu]!;
    if (running === undefined) {
      this.load(this.cpu);
      return;
    }
    sleepers.delete(this);
    this.descriptor.nv = POSTED_INTR_VECTOR;
    this.descriptor.sn = true;
    this.state = 'preempted';
  }

  /** Its machine is at an end, or the program stops it. */
  stop(): void {
    if (this.cpu >= 0) this.vm.host.cpus[this.cpu]!.sleepers.delete(this);
    if (this.state !== 'out') this.#leave('out');
    this.descriptor.sn = true;
  }

  // ---- interrupts ----

  /** CLI and STI. */
  setInterruptsOff(areOff: boolean): void {
    this.#areInterruptsOff = areOff;
    this.#deliver();
  }

  /** What a processor in guest mode does at a notification, without any exit: ON off, PIR into vIRR, delivery. */
  takePosted(): void {
    for (const vector of this.descriptor.take()) this.#irr.add(vector);
    this.#deliver();
  }

  /** KVM itself has an interrupt for it (irqfd, SIGNAL_MSI): posted by software, the same way. */
  inject(vector: number): void {
    this.descriptor.post(vector);
    // Who injects notifies the processor himself; the guest is not left for it. Off its processor it finds the vector at the next load.
    if (this.state === 'running') this.takePosted();
    else this.wake();
  }

  // ---- scripts ----

  /** Executes accesses one by one and returns what each gave. EINVAL: it does not run. EFAULT: no memory at a guest address. */
  execute(script: readonly GuestAccess[]): AccessResult[] {
    return script.map((access) => {
      if (this.state !== 'running') throw new Errno('EINVAL', `vcpu ${this.id} is ${this.state} and executes nothing`);
      return this.#step(access);
    });
  }

  #step(access: GuestAccess): AccessResult {
    const { host } = this.vm;
    switch (access.op) {
      case 'read': {
        const into = new Uint8Array(access.length);
        if (!host.cache.read(this.cpu, this.#page(access.page), access.offset, into)) throw this.#noMemory(access.page);
        return into;
      }
      case 'write': {
        const page = this.#page(access.page);
        const isUncached = access.isUncached === true && this.vm.hasNoncoherentDma;
        if (isUncached) host.cache.snoop(page, access.offset, access.bytes.length);
        const isDone = isUncached
          ? host.memory.write(page, access.offset, access.bytes)
          : host.cache.write(this.cpu, page, access.offset, access.bytes);
        if (!isDone) throw this.#noMemory(access.page);
        return undefined;
      }
      case 'clflush':
        host.cache.flushLine(this.#page(access.page), access.offset);
        return undefined;
      case 'wbinvd':
      case 'invd':
        this.#wbinvd();
        return undefined;
      case 'hlt':
        this.halt();
        return undefined;
      case 'enqcmd':
        return this.#enqcmd(access.portal, access.descriptor);
    }
  }

  /** WBINVD and INVD: the guest is left, and the caches are flushed only when devices may have gone past them. */
  #wbinvd(): void {
    const { host } = this.vm;
    this.#exit('wbinvd');
    let flushed = 0;
    if (this.vm.hasNoncoherentDma) {
      if (host.hasWbinvdExiting) this.#wbinvdDirty.add(this.cpu);
      const cpus = host.hasWbinvdExiting ? this.#wbinvdDirty : [this.cpu];
      for (const cpu of cpus) {
        host.flush(cpu);
        flushed++;
      }
      this.#wbinvdDirty.clear();
    }
    traceWbinvd.fire(() => ({ vm: this.vm.name, vcpu: this.id, flushed }));
  }

  /** The PASID in the descriptor's first 20 bits is put there by the processor: the host's in place of the guest's. */
  #enqcmd(portal: Portal, descriptor: Uint8Array): boolean {
    const host = this.pasid === undefined ? undefined : this.vm.pasids.translate(this.pasid);
    if (host === undefined) {
      this.#exit('enqcmd pasid');
      return false;
    }
    const sent = descriptor.slice();
    const view = new DataView(sent.buffer, sent.byteOffset);
    view.setUint32(0, ((view.getUint32(0, true) & 0xfff0_0000) | host) >>> 0, true);
    return portal.enqueue(sent);
  }

  #deliver(): void {
    if (this.state !== 'running' || this.#areInterruptsOff) return;
    while (this.#irr.size > 0) {
      const vector = Math.max(...this.#irr);
      this.#irr.delete(vector);
      this.taken.push(vector);
      this.onInterrupt?.(vector);
      if (this.#areInterruptsOff || (this.state as VcpuState) !== 'running') return;
    }
  }

  #leave(state: VcpuState): void {
    const cpu = this.cpu >= 0 ? this.vm.host.cpus[this.cpu]! : undefined;
    if (cpu?.running === this) cpu.running = undefined;
    this.state = state;
  }

  #exit(reason: ExitReason): void {
    this.exits.set(reason, (this.exits.get(reason) ?? 0) + 1);
    traceExit.fire(() => ({ vm: this.vm.name, vcpu: this.id, reason }));
  }

  #page(guestPage: number): number {
    const page = this.vm.physicalOf(guestPage);
    if (page < 0) throw this.#noMemory(guestPage);
    return page;
  }

  #noMemory(guestPage: number): Errno {
    return new Errno('EFAULT', `${this.vm.name} has no memory at guest page 0x${guestPage.toString(16)}`);
  }
}
