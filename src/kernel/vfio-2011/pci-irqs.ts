/**
 * Interrupts of a PCI device as the December revision sets them: one call gives an index all of its eventfds or takes them away, another
 * unmasks the pin.
 */
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
} from '../../uapi/vfio.ts';
import {
  VFIO_PCI_INTX_IRQ_INDEX,
  VFIO_PCI_NUM_IRQS,
  vfio_irq_eventfds,
  vfio_unmask_irq,
} from '../../uapi/vfio-2011.ts';
import { copyFromUser, type Task } from '../core/task.ts';
import { descriptorAt } from '../vfio/pci/irq-events.ts';
import type { VfioPciIrqs } from '../vfio/pci/vfio-pci-intrs.ts';
import { needArgsz } from './iommu-object.ts';

const NO_DATA = new Uint8Array(0);

interface Eventfds {
  readonly index: number;
  readonly count: number;
  /** `count` descriptors, s32 each. */
  readonly data: Uint8Array;
}

/** EFAULT. EINVAL: argsz, flags, no such index, more than the device has, no room for the descriptors. */
function eventfdsAt(irqs: VfioPciIrqs, task: Task, argument: bigint): Eventfds {
  const { size } = vfio_irq_eventfds;
  const { argsz, flags, index, count } = vfio_irq_eventfds.read(copyFromUser(task, argument, size));
  needArgsz(argsz, size);
  if (flags !== 0) throw new Errno('EINVAL', `flags 0x${flags.toString(16)} has bits that are not known`);
  if (index >= VFIO_PCI_NUM_IRQS) throw new Errno('EINVAL', `there is no interrupt index ${index}`);
  if (count > irqs.count(index)) {
    throw new Errno('EINVAL', `index ${index} has ${irqs.count(index)} interrupts, not ${count}`);
  }
  if (argsz - size < 4 * count) throw new Errno('EINVAL', `argsz ${argsz} leaves no room for ${count} descriptors`);
  return { index, count, data: copyFromUser(task, argument + BigInt(size), 4 * count) };
}

/**
 * SET_IRQ_EVENTFDS. The pin's eventfd replaces the one before, which is gone also when the new one is refused; messages have to be disabled
 * (count 0) before they are enabled anew. EINVAL: another index is enabled, enabled or disabled twice, no eventfd.
 */
export function setIrqEventfds(irqs: VfioPciIrqs, task: Task, argument: bigint): number {
  const { index, count, data } = eventfdsAt(irqs, task, argument);
  const enabled = irqs.enabledIndex;
  const disable = (): number => irqs.act(task, VFIO_IRQ_SET_ACTION_TRIGGER, request(index, 0, NO_DATA));
  const enable = (): number => irqs.act(task, VFIO_IRQ_SET_ACTION_TRIGGER, request(index, count, data));
  if (index === VFIO_PCI_INTX_IRQ_INDEX) {
    // Resolved before anything is dropped: a door may have to fetch the descriptor and begin again.
    const refused = count === 0 ? undefined : notAnEventfd(task, descriptorAt(data, 0));
    if (enabled === index) disable();
    if (count === 0) return 0;
    if (enabled !== undefined && enabled !== index) throw new Errno('EINVAL', `interrupt index ${enabled} is enabled`);
    if (refused !== undefined) throw new Errno('EINVAL', refused.why);
    return enable();
  }
  if (enabled !== undefined && enabled !== index) throw new Errno('EINVAL', `interrupt index ${enabled} is enabled`);
  if (count === 0) {
    if (enabled === undefined) throw new Errno('EINVAL', `interrupt index ${index} is not enabled`);
    return disable();
  }
  if (enabled === index) throw new Errno('EINVAL', `interrupt index ${index} is enabled: count 0 disables it first`);
  return enable();
}

/** UNMASK_IRQ. EINVAL: anything but the pin. */
export function unmaskIrq(irqs: VfioPciIrqs, task: Task, argument: bigint): number {
  const { size } = vfio_unmask_irq;
  const { argsz, flags, index, subindex } = vfio_unmask_irq.read(copyFromUser(task, argument, size));
  needArgsz(argsz, size);
  if (flags !== 0 || index !== VFIO_PCI_INTX_IRQ_INDEX || subindex !== 0) {
    throw new Errno('EINVAL', `only INTx can be unmasked, not interrupt ${subindex} of index ${index}`);
  }
  irqs.unmask();
  return 0;
}

/** SET_UNMASK_IRQ_EVENTFDS. EINVAL: anything but one eventfd for the pin, while it is enabled. EBUSY: it has one. */
export function setUnmaskIrqEventfds(irqs: VfioPciIrqs, task: Task, argument: bigint): number {
  const { index, count, data } = eventfdsAt(irqs, task, argument);
  if (index !== VFIO_PCI_INTX_IRQ_INDEX) throw new Errno('EINVAL', `only INTx can be unmasked, not index ${index}`);
  if (count === 0 && irqs.enabledIndex !== index) return 0;
  const eventfd = count === 0 ? new Uint8Array(Int32Array.of(-1).buffer) : data;
  return irqs.act(task, VFIO_IRQ_SET_ACTION_UNMASK, request(index, 1, eventfd));
}

function request(index: number, count: number, data: Uint8Array) {
  const kind = data.length === 0 ? VFIO_IRQ_SET_DATA_NONE : VFIO_IRQ_SET_DATA_EVENTFD;
  return { index, start: 0, count, kind, data };
}

function notAnEventfd(task: Task, descriptor: number): Errno | undefined {
  if (descriptor < 0) return new Errno('EINVAL', `descriptor ${descriptor} is not an eventfd`);
  try {
    task.eventfd(descriptor).close();
    return undefined;
  } catch (error) {
    if (error instanceof Errno) return error;
    throw error;
  }
}
