/**
 * Interrupts of a PCI device towards a user: SET_IRQS, and the ways from the pin and the messages to his eventfds.
 *
 * Three kinds exclude each other: the pin, MSI, MSI-X. The pin is a level: when it is seen asserted it is masked at the function
 * (COMMAND.INTX_DISABLE) and signalled once; unmasking looks again. Error and request interrupts are only eventfds.
 *
 * Every eventfd of a call is resolved before anything is changed, and each is closed exactly once: at its replacement, its
 * removal, the disabling of its kind, or the last close of the device.
 */
import type { InterruptSink, PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import { Tracepoint } from '../../../lib/tracepoint.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import * as uapi from '../../../uapi/vfio.ts';
import type { BypassProducer } from '../../core/irq-bypass.ts';
import { copyFromUser, type EventContext, type Task } from '../../core/task.ts';
import { Virqfd } from '../virqfd.ts';
import type { VfioPciEnvironment } from './environment.ts';
import { closeContext, descriptorAt, type IrqRequest, resolveAll, SingleEvents } from './irq-events.ts';
import { MessageInterrupts, msiVectors, msixVectors, setIntx } from './msi-hardware.ts';

/** What of the host bears on interrupts. */
export interface InterruptHost {
  readonly fn: PciFunction;
  /** Vectors that the host can give to `fn` of the `wanted`. */
  availableVectors(wanted: number, isMsix: boolean): number;
  /** Whether the user sees an interrupt pin. */
  readonly hasIntx: boolean;
  readonly environment: Pick<VfioPciEnvironment, 'allocateIrqs' | 'bypass'>;
}

/** An interrupt of the function on its way to the program; `signalled` false: the program has no eventfd for it. */
const traceInterrupt = new Tracepoint<{ device: string; index: string; vector: number; signalled: boolean }>(
  'vfio:interrupt',
);

export class VfioPciIrqs implements InterruptSink {
  readonly #host: InterruptHost;
  readonly #fn: PciFunction;
  /** Index of the kind in use, `VFIO_PCI_NUM_IRQS` for none. */
  #type: number = uapi.VFIO_PCI_NUM_IRQS;
  #messages: MessageInterrupts | undefined;
  readonly #vectors = new Map<number, EventContext>();
  /** Vectors that are offered to virtual machines. */
  readonly #producers = new Map<number, BypassProducer>();
  #trigger: EventContext | undefined;
  #unmaskFd: Virqfd | undefined;
  #masked = false;
  /** COMMAND.INTX_DISABLE as the user set it. */
  #virqDisabled = false;
  /** Whether the pin can be masked at the function; set when the device is opened. */
  canMask = true;
  /** Binary logarithm of the MSI vectors that were last enabled. */
  msiQueueMax = 0;
  /** Error and request. */
  readonly singles = new SingleEvents();

  constructor(host: InterruptHost) {
    this.#host = host;
    this.#fn = host.fn;
  }

  /** The index in use, undefined for none. */
  get enabledIndex(): number | undefined {
    return this.#type === uapi.VFIO_PCI_NUM_IRQS ? undefined : this.#type;
  }

  get msiEnabled(): boolean {
    return this.#type === uapi.VFIO_PCI_MSI_IRQ_INDEX;
  }

  /** Eventfds that are held now. */
  get held(): number {
    return (
      this.#vectors.size +
      this.singles.size +
      (this.#trigger === undefined ? 0 : 1) +
      (this.#unmaskFd === undefined ? 0 : 1)
    );
  }

  /** Interrupts of an index that the device has. */
  count(index: number): number {
    switch (index) {
      case uapi.VFIO_PCI_INTX_IRQ_INDEX:
        return this.#host.hasIntx ? 1 : 0;
      case uapi.VFIO_PCI_MSI_IRQ_INDEX:
        return msiVectors(this.#fn);
      case uapi.VFIO_PCI_MSIX_IRQ_INDEX:
        return msixVectors(this.#fn);
      case uapi.VFIO_PCI_ERR_IRQ_INDEX:
        return this.#fn.portType === undefined ? 0 : 1;
      case uapi.VFIO_PCI_REQ_IRQ_INDEX:
        return 1;
      default:
        return 0;
    }
  }

  /** VFIO_DEVICE_SET_IRQS. The result is positive when the host has fewer vectors than wanted: that many, nothing is enabled. */
  setIrqs(task: Task, argument: bigint): number {
    const { size } = uapi.vfio_irq_set;
    const header = uapi.vfio_irq_set.read(copyFromUser(task, argument, size));
    const { argsz, flags, index, start, count } = header;
    const known = uapi.VFIO_IRQ_SET_DATA_TYPE_MASK | uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK;
    if (argsz < size) throw new Errno('EINVAL', `argsz ${argsz} is below ${size}`);
    if (index >= uapi.VFIO_PCI_NUM_IRQS) throw new Errno('EINVAL', `there is no interrupt index ${index}`);
    if (count >= 0xffff_ffff - start) throw new Errno('EINVAL', `${count} interrupts from ${start} wrap around`);
    if (flags & ~known) throw new Errno('EINVAL', `unknown flags 0x${(flags & ~known).toString(16)}`);
    const most = this.count(index);
    if (start >= most || start + count > most) {
      throw new Errno('EINVAL', `index ${index} has ${most} interrupts, not ${count} from ${start}`);
    }
    const kind = flags & uapi.VFIO_IRQ_SET_DATA_TYPE_MASK;
    const each = kind === uapi.VFIO_IRQ_SET_DATA_NONE ? 0 : kind === uapi.VFIO_IRQ_SET_DATA_BOOL ? 1 : 4;
    if (each === 4 && kind !== uapi.VFIO_IRQ_SET_DATA_EVENTFD) {
      throw new Errno(
        'EINVAL',
        `exactly one of the data types NONE, BOOL and EVENTFD is needed, flags are 0x${flags.toString(16)}`,
      );
    }
    if (argsz - size < count * each) throw new Errno('EINVAL', `argsz ${argsz} leaves no room for ${count} entries`);
    const data = copyFromUser(task, argument + BigInt(size), count * each);
    return this.act(task, flags & uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK, { index, start, count, kind, data });
  }

  /** Carries out a request that has passed the checks: an action of SET_IRQS. EINVAL, ENOTTY. */
  act(task: Task, action: number, request: IrqRequest): number {
    const { index } = request;
    const isTrigger = action === uapi.VFIO_IRQ_SET_ACTION_TRIGGER;
    if (index === uapi.VFIO_PCI_INTX_IRQ_INDEX) {
      if (action === uapi.VFIO_IRQ_SET_ACTION_MASK) return this.#intxMask(request);
      if (action === uapi.VFIO_IRQ_SET_ACTION_UNMASK) return this.#intxUnmask(task, request);
      if (isTrigger) return this.#intxTrigger(task, request);
    } else if (isTrigger) {
      if (index <= uapi.VFIO_PCI_MSIX_IRQ_INDEX) return this.#messageTrigger(task, request);
      if (index === uapi.VFIO_PCI_REQ_IRQ_INDEX || this.#fn.portType !== undefined)
        return this.singles.trigger(task, request);
    }
    throw new Errno('ENOTTY', `interrupt index ${index} has no action 0x${action.toString(16)}`);
  }

  // ---- the pin ----

  #intxRunning({ start, count }: IrqRequest): void {
    if (this.#type !== uapi.VFIO_PCI_INTX_IRQ_INDEX) throw new Errno('EINVAL', 'INTx is not enabled');
    if (start !== 0 || count !== 1) throw new Errno('EINVAL', `there is one INTx, not ${count} from ${start}`);
  }

  #intxMask(request: IrqRequest): number {
    this.#intxRunning(request);
    if (request.kind === uapi.VFIO_IRQ_SET_DATA_EVENTFD) {
      throw new Errno('ENOTTY', 'INTx cannot be masked by an eventfd');
    }
    if (request.kind === uapi.VFIO_IRQ_SET_DATA_NONE || request.data[0] !== 0) this.mask();
    return 0;
  }

  #intxUnmask(task: Task, request: IrqRequest): number {
    this.#intxRunning(request);
    if (request.kind !== uapi.VFIO_IRQ_SET_DATA_EVENTFD) {
      if (request.kind === uapi.VFIO_IRQ_SET_DATA_NONE || request.data[0] !== 0) this.unmask();
      return 0;
    }
    const fd = descriptorAt(request.data, 0);
    if (fd < 0) {
      this.#unmaskFd?.close();
      this.#unmaskFd = undefined;
      return 0;
    }
    const context = task.eventfd(fd);
    if (this.#unmaskFd !== undefined) {
      context.close();
      throw new Errno('EBUSY', 'INTx already has an eventfd that unmasks it');
    }
    this.#unmaskFd = new Virqfd(context, () => this.unmask());
    return 0;
  }

  #intxTrigger(task: Task, request: IrqRequest): number {
    const isRunning = this.#type === uapi.VFIO_PCI_INTX_IRQ_INDEX;
    const { start, count, kind } = request;
    if (isRunning && count === 0 && kind === uapi.VFIO_IRQ_SET_DATA_NONE) {
      this.#intxDisable();
      return 0;
    }
    if (!isRunning && this.#type !== uapi.VFIO_PCI_NUM_IRQS) {
      throw new Errno('EINVAL', `interrupt index ${this.#type} is enabled, it must be disabled first`);
    }
    if (start !== 0 || count !== 1) throw new Errno('EINVAL', `there is one INTx, not ${count} from ${start}`);
    if (kind === uapi.VFIO_IRQ_SET_DATA_EVENTFD) {
      const fd = descriptorAt(request.data, 0);
      const trigger = fd >= 0 ? task.eventfd(fd) : undefined;
      const old = this.#trigger;
      this.#trigger = trigger;
      if (isRunning) old?.close();
      else this.#intxEnable();
      return 0;
    }
    if (!isRunning) throw new Errno('EINVAL', 'INTx is not enabled');
    if (kind === uapi.VFIO_IRQ_SET_DATA_NONE || request.data[0] !== 0) this.#sendIntx();
    return 0;
  }

  #intxEnable(): void {
    this.#type = uapi.VFIO_PCI_INTX_IRQ_INDEX;
    this.#masked = this.#virqDisabled;
    if (this.canMask) setIntx(this.#fn, !this.#masked);
    this.#pinSeen();
  }

  #intxDisable(): void {
    this.#unmaskFd?.close();
    this.#unmaskFd = undefined;
    this.#trigger?.close();
    this.#trigger = undefined;
    this.#type = uapi.VFIO_PCI_NUM_IRQS;
  }

  #sendIntx(): void {
    if (this.#type !== uapi.VFIO_PCI_INTX_IRQ_INDEX || this.#virqDisabled) return;
    const trigger = this.#trigger;
    traceInterrupt.fire(() => ({ device: this.#fn.name, index: 'INTX', vector: 0, signalled: trigger !== undefined }));
    trigger?.signal();
  }

  /** Masks the pin. Returns whether it was not masked before. */
  mask(): boolean {
    if (this.#type !== uapi.VFIO_PCI_INTX_IRQ_INDEX) {
      // Nobody listens; the bit of the hardware follows that of the user all the same.
      if (this.canMask) setIntx(this.#fn, false);
      return false;
    }
    if (this.#masked) return false;
    if (this.canMask) setIntx(this.#fn, false);
    this.#masked = true;
    return true;
  }

  /** Unmasks the pin; when it is still asserted it stays masked and is signalled again. */
  unmask(): void {
    if (this.#type !== uapi.VFIO_PCI_INTX_IRQ_INDEX) {
      if (this.canMask) setIntx(this.#fn, true);
      return;
    }
    if (!this.#masked || this.#virqDisabled) return;
    if (!this.canMask) {
      this.#masked = false;
      this.#pinSeen();
    } else if (this.#isPending()) this.#sendIntx();
    else {
      this.#masked = false;
      setIntx(this.#fn, true);
    }
  }

  /** The user has toggled COMMAND.INTX_DISABLE. */
  setVirqDisabled(disabled: boolean): void {
    this.#virqDisabled = disabled;
    if (disabled) this.mask();
    else this.unmask();
  }

  #isPending(): boolean {
    return (this.#fn.config.read(reg.PCI_STATUS, 2) & reg.PCI_STATUS_INTERRUPT) !== 0;
  }

  #pinSeen(): void {
    if (this.#type !== uapi.VFIO_PCI_INTX_IRQ_INDEX || this.#masked || !this.#isPending()) return;
    if (this.canMask) setIntx(this.#fn, false);
    this.#masked = true;
    this.#sendIntx();
  }

  /** From the function: its pin has changed. */
  intx(asserted: boolean): void {
    if (asserted) this.#pinSeen();
  }

  // ---- messages ----

  #messageTrigger(task: Task, request: IrqRequest): number {
    const { index, start, count, kind } = request;
    const isRunning = this.#type === index;
    if (isRunning && count === 0 && kind === uapi.VFIO_IRQ_SET_DATA_NONE) {
      this.#messagesDisable();
      return 0;
    }
    if (!isRunning && this.#type !== uapi.VFIO_PCI_NUM_IRQS) {
      throw new Errno('EINVAL', `interrupt index ${this.#type} is enabled, it must be disabled first`);
    }
    if (kind === uapi.VFIO_IRQ_SET_DATA_EVENTFD) return this.#setVectors(task, request, isRunning);
    if (!isRunning) throw new Errno('EINVAL', `interrupt index ${index} is not enabled`);
    for (let i = 0; i < count; i++) {
      if (kind === uapi.VFIO_IRQ_SET_DATA_NONE || request.data[i] !== 0) this.#vectors.get(start + i)?.signal();
    }
    return 0;
  }

  #setVectors(task: Task, { index, start, count, data }: IrqRequest, isRunning: boolean): number {
    const wanted = start + count;
    const isMsix = index === uapi.VFIO_PCI_MSIX_IRQ_INDEX;
    if (!isRunning) {
      if (wanted === 0) throw new Errno('ERANGE', 'no vector is to be enabled');
      const available = this.#host.availableVectors(wanted, isMsix);
      if (available <= 0) throw new Errno('ENOSPC', 'the host has no vector left');
      if (available < wanted) return available;
    }
    const contexts = resolveAll(task, data, count);
    if (!isRunning) {
      try {
        this.#messages = new MessageInterrupts(this.#fn, isMsix, wanted, this.#host.environment.allocateIrqs);
      } catch (error) {
        for (const context of contexts) closeContext(context);
        throw error;
      }
      this.#type = index;
      if (!isMsix) this.msiQueueMax = Math.ceil(Math.log2(wanted));
    }
    for (let i = 0; i < count; i++) {
      const refused = this.#setVector(start + i, contexts[i]);
      if (refused === undefined) continue;
      for (let j = i + 1; j < count; j++) closeContext(contexts[j]);
      if (isRunning) for (let j = 0; j <= i; j++) this.#setVector(start + j, undefined);
      else this.#messagesDisable();
      throw refused;
    }
    return 0;
  }

  /** Gives a vector its eventfd, or takes it away. Takes the context over; returns why not. */
  #setVector(vector: number, context: EventContext | Errno | undefined): Errno | undefined {
    const messages = this.#messages!;
    const old = this.#vectors.get(vector);
    if (old !== undefined) {
      this.#vectors.delete(vector);
      this.#withdraw(vector);
      messages.setOpen(vector, false);
      old.close();
    }
    if (context === undefined) return undefined;
    if (!messages.isAllocated(vector)) {
      const isFull = messages.isMsix && this.#host.availableVectors(vector + 1, true) <= vector;
      if (!messages.isMsix || isFull) {
        closeContext(context);
        if (isFull) return new Errno('ENOSPC', `the host has no vector left for vector ${vector}`);
        return new Errno('EINVAL', `vector ${vector} is beyond the MSI vectors that were enabled`);
      }
      try {
        messages.allocate(vector);
      } catch (error) {
        closeContext(context);
        if (error instanceof Errno) return error;
        throw error;
      }
    }
    if (context instanceof Errno) return context;
    this.#vectors.set(vector, context);
    messages.setOpen(vector, true);
    this.#offer(vector, context);
    return undefined;
  }

  /** Offers a vector to the virtual machine that listens to its eventfd. A refusal changes nothing: the eventfd is signalled. */
  #offer(vector: number, { identity }: EventContext): void {
    const { bypass } = this.#host.environment;
    if (bypass === undefined || identity === undefined) return;
    const producer = { irq: this.#messages?.irqOf(vector) };
    try {
      bypass.registerProducer(producer, identity);
      this.#producers.set(vector, producer);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
    }
  }

  #withdraw(vector: number): void {
    const producer = this.#producers.get(vector);
    if (producer === undefined) return;
    this.#producers.delete(vector);
    this.#host.environment.bypass?.unregisterProducer(producer);
  }

  #messagesDisable(): void {
    for (const vector of [...this.#producers.keys()]) this.#withdraw(vector);
    for (const context of this.#vectors.values()) context.close();
    this.#vectors.clear();
    const messages = this.#messages;
    this.#messages = undefined;
    this.#type = uapi.VFIO_PCI_NUM_IRQS;
    messages?.disable();
  }

  /** From the function: it has sent a message. */
  message(vector: number): void {
    const context = this.#vectors.get(vector);
    traceInterrupt.fire(() => ({
      device: this.#fn.name,
      index: this.#type === uapi.VFIO_PCI_MSIX_IRQ_INDEX ? 'MSIX' : 'MSI',
      vector,
      signalled: context !== undefined,
    }));
    context?.signal();
  }

  // ---- the device's life ----

  /** The function was reset: its registers are as after power-on, or as restored. */
  afterReset(): void {
    this.#messages?.program();
    if (this.#type === uapi.VFIO_PCI_INTX_IRQ_INDEX && this.canMask) setIntx(this.#fn, !this.#masked);
  }

  /** The pin and the messages off: before the device is disabled. */
  disable(): void {
    if (this.#type === uapi.VFIO_PCI_INTX_IRQ_INDEX) this.#intxDisable();
    else if (this.#type !== uapi.VFIO_PCI_NUM_IRQS) this.#messagesDisable();
    this.#virqDisabled = false;
  }

  /** The last close. */
  close(): void {
    this.disable();
    this.singles.close();
  }
}
