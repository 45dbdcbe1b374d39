/**
 * A virtual machine, as far as VFIO meets it: processors that take interrupts, routes of interrupts, irqfds, the VFIO pseudo device,
 * and the count of those who do DMA past the caches.
 *
 * It lives while somebody holds it: its own file, the file of a device of it, a driver with an open device of it.
 */

import { BufferBacking } from '../../hw/memory/backing.ts';
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { KVM_IRQCHIP_IOAPIC } from '../../uapi/kvm.ts';
import type { VirtualMachine } from '../core/virtual-machine.ts';
import type { KvmHost } from './host.ts';
import { type GuestMessage, IrqRouting } from './irq-routing.ts';
import { Irqfds } from './irqfd.ts';
import { KvmVfio } from './kvm-vfio.ts';
import { PasidTranslation } from './pasid-translation.ts';
import { Vcpu } from './vcpu.ts';

const ALL = 0xff;
const DESCRIPTORS_EACH_PAGE = 64;

const traceInjected = new Tracepoint<{ vm: string; vector: number; vcpu: number }>('kvm:msi_set_irq');

export class Vm implements VirtualMachine {
  readonly name: string;
  readonly host: KvmHost;
  readonly vcpus: Vcpu[] = [];
  readonly routing = new IrqRouting();
  readonly irqfds: Irqfds;
  readonly pasids = new PasidTranslation();
  irqchip: 'none' | 'kernel' = 'none';
  /** How often the guest's mappings were dropped so that their memory types are made anew. */
  zaps = 0;
  /** Pins that are asserted. */
  readonly lines = new Set<number>();
  /** Message interrupts that went through KVM itself, not through posting. */
  injected = 0;
  /** Set while the VFIO pseudo device exists. */
  vfio: KvmVfio | undefined;
  #references = 1;
  #isReleased = false;
  #noncoherent = 0;
  readonly #memory: { readonly first: number; readonly count: number; readonly physical: number }[] = [];
  #descriptorPages: number[] = [];

  constructor(host: KvmHost, name = 'vm') {
    this.host = host;
    this.name = name;
    this.irqfds = new Irqfds(this);
    host.vms++;
  }

  // ---- references ----

  hold(): boolean {
    if (this.#references === 0) return false;
    this.#references++;
    return true;
  }

  drop(): void {
    if (this.#references === 0) throw new Error(`${this.name} is dropped more often than held`);
    if (--this.#references === 0) this.#destroy();
  }

  get isAlive(): boolean {
    return this.#references > 0;
  }

  /** The machine's own file is closed: no interrupt comes by an eventfd any more. Others may hold it on. */
  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    this.irqfds.release();
    this.drop();
  }

  // ---- the guest's memory ----

  /** The guest's pages `[first, first + count)` are the physical pages from `physical`. EEXIST: overlaps. */
  addMemory(first: number, count: number, physical: number): void {
    if (this.#memory.some((slot) => first < slot.first + slot.count && slot.first < first + count)) {
      throw new Errno('EEXIST', `${this.name} has memory in guest pages ${first} to ${first + count - 1} already`);
    }
    this.#memory.push({ first, count, physical });
  }

  /** -1: no memory. */
  physicalOf(guestPage: number): number {
    const slot = this.#memory.find(({ first, count }) => guestPage >= first && guestPage < first + count);
    return slot === undefined ? -1 : slot.physical + guestPage - slot.first;
  }

  // ---- processors ----

  addVcpu(): Vcpu {
    const id = this.vcpus.length;
    if (id % DESCRIPTORS_EACH_PAGE === 0) this.#descriptorPages.push(this.#newPage());
    const address = (BigInt(this.#descriptorPages.at(-1)!) << 12n) + BigInt((id % DESCRIPTORS_EACH_PAGE) * 64);
    const vcpu = new Vcpu(this, id, address);
    this.vcpus.push(vcpu);
    return vcpu;
  }

  /** An interrupt controller in the kernel (KVM_CREATE_IRQCHIP), with the usual routes. EEXIST; EINVAL: processors came first. */
  createIrqchip(): void {
    if (this.irqchip !== 'none') throw new Errno('EEXIST', `${this.name} has its interrupt controllers already`);
    if (this.vcpus.length > 0)
      throw new Errno('EINVAL', `${this.name} has processors; interrupt controllers come first`);
    this.irqchip = 'kernel';
    this.routing.setDefault();
  }

  /** Replaces the routes; irqfds follow. Errors as of `IrqRouting.set`. */
  setRouting(entries: Parameters<IrqRouting['set']>[0]): void {
    this.routing.set(entries);
    this.irqfds.update();
  }

  /** The processors that a message names; of a lowest-priority one, the candidates. */
  targets({ destination, isLogical }: GuestMessage): Vcpu[] {
    return this.vcpus.filter(({ id }) =>
      isLogical ? id < 8 && ((1 << id) & destination) !== 0 : destination === ALL || destination === id,
    );
  }

  // ---- interrupts ----

  /** An edge on a GSI: pins are pulsed, messages sent. */
  raise(gsi: number): void {
    for (const route of this.routing.of(gsi)) {
      if (route.kind === 'message') this.send(route.message);
      else if (route.chip === KVM_IRQCHIP_IOAPIC) this.#pulse(gsi);
    }
  }

  /** KVM_SIGNAL_MSI and the way of irqfds that are not posted. Returns how many processors got it. */
  send(message: GuestMessage): number {
    const targets = this.targets(message);
    // Of several candidates the one with the fewest pending interrupts is as good as any.
    const chosen = message.deliveryMode === 1 ? targets.slice(0, 1) : targets;
    for (const vcpu of chosen) {
      this.injected++;
      traceInjected.fire(() => ({ vm: this.name, vector: message.vector, vcpu: vcpu.id }));
      vcpu.inject(message.vector);
    }
    return chosen.length;
  }

  /** A level pin. */
  setLine(gsi: number, isAsserted: boolean): void {
    if (isAsserted) this.lines.add(gsi);
    else this.lines.delete(gsi);
  }

  /** The guest's end of interrupt for a level pin. */
  endOfInterrupt(gsi: number): void {
    this.irqfds.acknowledge(gsi);
  }

  // ---- coherency ----

  /** Somebody does DMA past the caches (or may). At the first one the guest's mappings are made anew, honouring its memory types. */
  registerNoncoherentDma(): void {
    if (++this.#noncoherent === 1) this.zaps++;
  }

  unregisterNoncoherentDma(): void {
    if (this.#noncoherent === 0) throw new Error(`${this.name}: nobody does non-coherent DMA`);
    if (--this.#noncoherent === 0) this.zaps++;
  }

  get noncoherentCount(): number {
    this.#refresh();
    return this.#noncoherent;
  }

  /** Whether the guest's WBINVD has to be carried out. */
  get hasNoncoherentDma(): boolean {
    return this.noncoherentCount > 0;
  }

  /** KVM_CREATE_DEVICE(KVM_DEV_TYPE_VFIO). EBUSY: there is one. */
  createVfio(): KvmVfio {
    if (this.vfio !== undefined) throw new Errno('EBUSY', `${this.name} has its VFIO device already`);
    this.vfio = new KvmVfio(this);
    return this.vfio;
  }

  releaseVfio(): void {
    this.vfio?.release();
    this.vfio = undefined;
  }

  /** What devices and domains do changes without telling, so they are looked at whenever it matters. */
  #refresh(): void {
    this.vfio?.refresh();
  }

  #pulse(gsi: number): void {
    this.setLine(gsi, true);
    this.setLine(gsi, false);
  }

  #newPage(): number {
    const { memory } = this.host;
    let page = 0x8000;
    while (!memory.isFree(page, 1)) page++;
    memory.addWindow(page, 1, new BufferBacking(4096));
    return page;
  }

  #destroy(): void {
    for (const vcpu of this.vcpus) vcpu.stop();
    this.releaseVfio();
    this.pasids.clear();
    this.lines.clear();
    for (const page of this.#descriptorPages) this.host.memory.removeWindow(page);
    this.#descriptorPages = [];
    this.host.vms--;
  }
}
