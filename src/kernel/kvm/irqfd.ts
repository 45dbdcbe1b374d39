/**
 * irqfds: eventfds whose signals become interrupts of a virtual machine, without its program.
 *
 * The same eventfd is a token: when a device's driver signals it, the bypass manager brings both together, and if the route is a
 * message to one processor, the device's entry of the interrupt remapping table is pointed at that processor's descriptor. Then
 * neither the eventfd nor the host has anything to do with it.
 */
import { Errno } from '../../lib/errno.ts';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, type kvm_irqfd } from '../../uapi/kvm.ts';
import type { BypassConsumer, BypassProducer } from '../core/irq-bypass.ts';
import type { EventContext, Task } from '../core/task.ts';
import type { Vcpu } from './vcpu.ts';
import type { Vm } from './vm.ts';

const tracePosted = new Tracepoint<{ vm: string; gsi: number; irq: number; vcpu: number; vector: number }>(
  'kvm:pi_irte_update',
);

class Irqfd implements BypassConsumer {
  readonly vm: Vm;
  readonly gsi: number;
  readonly event: EventContext;
  readonly resample: EventContext | undefined;
  /** The eventfd itself; undefined where it cannot be told from others. */
  readonly token: unknown;
  /** Set while the manager has brought a device's interrupt here. */
  producer: BypassProducer | undefined;
  /** The processor that the device's interrupt is posted to. */
  vcpu: Vcpu | undefined;
  stopWatching: () => void = () => {};

  constructor(vm: Vm, gsi: number, event: EventContext, resample: EventContext | undefined) {
    this.vm = vm;
    this.gsi = gsi;
    this.event = event;
    this.resample = resample;
    this.token = event.identity;
  }

  addProducer(producer: BypassProducer): void {
    this.producer = producer;
    try {
      this.update();
    } catch (error) {
      this.producer = undefined;
      throw error;
    }
  }

  delProducer(_producer: BypassProducer): void {
    this.#point(undefined, 0);
    this.producer = undefined;
  }

  /** The route may have changed: points the device's interrupt where it goes now. */
  update(): void {
    if (this.producer === undefined) return;
    const message = this.vm.routing.messageOf(this.gsi);
    const targets = message === undefined ? [] : this.vm.targets(message);
    // Only fixed and lowest-priority interrupts with one destination can be posted.
    const isPostable = message !== undefined && message.deliveryMode <= 1 && targets.length === 1;
    this.#point(isPostable ? targets[0] : undefined, message?.vector ?? 0);
  }

  #point(vcpu: Vcpu | undefined, vector: number): void {
    const irq = this.producer?.irq;
    if (irq === undefined || (vcpu === undefined && this.vcpu === undefined)) return;
    irq.setVcpuAffinity(vcpu === undefined ? undefined : { descriptor: vcpu.descriptor.address, vector });
    this.vcpu = vcpu;
    tracePosted.fire(() => ({ vm: this.vm.name, gsi: this.gsi, irq: irq.number, vcpu: vcpu?.id ?? -1, vector }));
  }
}

export class Irqfds {
  readonly #vm: Vm;
  readonly #all = new Set<Irqfd>();

  constructor(vm: Vm) {
    this.#vm = vm;
  }

  get size(): number {
    return this.#all.size;
  }

  /** Those whose device interrupts go straight to a processor. */
  get posted(): number {
    return [...this.#all].filter(({ vcpu }) => vcpu !== undefined).length;
  }

  /**
   * KVM_IRQFD. EINVAL: unknown flags, no interrupt controller in the kernel (a full one for resampling), or no eventfd. EBADF.
   * EBUSY: the eventfd is an irqfd already, of any machine.
   */
  ioctl(task: Task, { fd, gsi, flags, resamplefd }: kvm_irqfd): void {
    if ((flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)) !== 0) {
      throw new Errno('EINVAL', `unknown flags 0x${flags.toString(16)}`);
    }
    if ((flags & KVM_IRQFD_FLAG_DEASSIGN) !== 0) this.#deassign(task, fd, gsi);
    else this.#assign(task, fd, gsi, (flags & KVM_IRQFD_FLAG_RESAMPLE) !== 0 ? resamplefd : undefined);
  }

  /** The routes have changed. */
  update(): void {
    for (const irqfd of this.#all) irqfd.update();
  }

  /** The guest is through with a level interrupt: the line goes down, and whoever holds it is asked whether it is still there. */
  acknowledge(gsi: number): void {
    const resamplers = [...this.#all].filter((irqfd) => irqfd.gsi === gsi && irqfd.resample !== undefined);
    if (resamplers.length === 0) return;
    this.#vm.setLine(gsi, false);
    for (const { resample } of resamplers) resample!.signal();
  }

  /** The machine's end. */
  release(): void {
    for (const irqfd of [...this.#all]) this.#remove(irqfd);
  }

  #assign(task: Task, fd: number, gsi: number, resamplefd: number | undefined): void {
    const { host, irqchip } = this.#vm;
    if (irqchip === 'none' || (resamplefd !== undefined && irqchip !== 'kernel')) {
      throw new Errno(
        'EINVAL',
        `${this.#vm.name} has no interrupt controller in the kernel: KVM_CREATE_IRQCHIP comes first`,
      );
    }
    const event = task.eventfd(fd | 0);
    let resample: EventContext | undefined;
    try {
      if (resamplefd !== undefined) resample = task.eventfd(resamplefd | 0);
      if (event.identity !== undefined && host.irqfdTokens.has(event.identity)) {
        throw new Errno('EBUSY', `descriptor ${fd} is an irqfd already`);
      }
    } catch (error) {
      event.close();
      resample?.close();
      throw error;
    }
    const irqfd = new Irqfd(this.#vm, gsi, event, resample);
    this.#all.add(irqfd);
    if (irqfd.token !== undefined) host.irqfdTokens.add(irqfd.token);
    // A signal that is there already is acted on at once.
    irqfd.stopWatching = event.watch(() => this.#signalled(irqfd));
    if (irqfd.token === undefined) return;
    try {
      host.bypass.registerConsumer(irqfd, irqfd.token);
    } catch (error) {
      // The short way is not there; the eventfd is.
      if (!(error instanceof Errno)) throw error;
    }
  }

  #deassign(task: Task, fd: number, gsi: number): void {
    const event = task.eventfd(fd | 0);
    const token = event.identity;
    event.close();
    for (const irqfd of [...this.#all]) {
      if (irqfd.gsi === gsi && token !== undefined && irqfd.token === token) this.#remove(irqfd);
    }
  }

  #signalled(irqfd: Irqfd): void {
    if (!this.#all.has(irqfd)) return;
    if (irqfd.resample !== undefined) this.#vm.setLine(irqfd.gsi, true);
    else this.#vm.raise(irqfd.gsi);
  }

  #remove(irqfd: Irqfd): void {
    if (!this.#all.delete(irqfd)) return;
    irqfd.stopWatching();
    this.#vm.host.bypass.unregisterConsumer(irqfd);
    if (irqfd.token !== undefined) this.#vm.host.irqfdTokens.delete(irqfd.token);
    if (irqfd.resample !== undefined && ![...this.#all].some((o) => o.gsi === irqfd.gsi && o.resample !== undefined)) {
      this.#vm.setLine(irqfd.gsi, false);
    }
    irqfd.event.close();
    irqfd.resample?.close();
  }
}
