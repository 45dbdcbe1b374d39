/**
 * /dev/kvm and the files that come of it, as far as VFIO programs use them: machines without processors, their interrupt routes and
 * irqfds, and the VFIO pseudo device. Everything else is refused as a kernel refuses what it does not know.
 */
import { Errno } from '../../lib/errno.ts';
import { hex } from '../../lib/pages.ts';
import * as uapi from '../../uapi/kvm.ts';
import { File, type IoctlResult, type NewDescriptor } from '../core/file.ts';
import { copyFromUser, type Task } from '../core/task.ts';
import type { KvmHost } from './host.ts';
import { guestMessage, KVM_MAX_IRQ_ROUTES } from './irq-routing.ts';
import type { KvmVfio } from './kvm-vfio.ts';
import { Vm } from './vm.ts';

const NO_PROCESSORS = 'this KVM has no processors: it is the part of KVM that VFIO meets';

/** What KVM_CHECK_EXTENSION says of a machine; 0 for all that is not here. */
const extensions: ReadonlyMap<bigint, number> = new Map([
  [BigInt(uapi.KVM_CAP_IRQCHIP), 1],
  [BigInt(uapi.KVM_CAP_IRQ_ROUTING), KVM_MAX_IRQ_ROUTES],
  [BigInt(uapi.KVM_CAP_IRQFD), 1],
  [BigInt(uapi.KVM_CAP_IRQFD_RESAMPLE), 1],
  [BigInt(uapi.KVM_CAP_SIGNAL_MSI), 1],
  [BigInt(uapi.KVM_CAP_DEVICE_CTRL), 1],
  [BigInt(uapi.KVM_CAP_CHECK_EXTENSION_VM), 1],
]);

function checkExtension(argument: bigint): number {
  return extensions.get(argument) ?? 0;
}

/** /dev/kvm, opened. */
export class KvmFile extends File {
  readonly kind = 'kvm';
  readonly path = '/dev/kvm';
  readonly #host: KvmHost;

  constructor(host: KvmHost) {
    super();
    this.#host = host;
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    switch (request) {
      case uapi.KVM_GET_API_VERSION:
        needZero(argument);
        return uapi.KVM_API_VERSION;
      case uapi.KVM_CHECK_EXTENSION:
        return checkExtension(argument);
      case uapi.KVM_GET_VCPU_MMAP_SIZE:
        throw new Errno('EINVAL', NO_PROCESSORS);
      case uapi.KVM_CREATE_VM:
        return this.#createVm(task, argument);
      default:
        throw new Errno('EINVAL', `/dev/kvm of the box has no request ${hex(request)}`);
    }
  }

  #createVm(task: Task, type: bigint): NewDescriptor {
    if (type !== 0n) throw new Errno('EINVAL', `there is no machine of type ${type}`);
    return { file: new VmFile(new Vm(this.#host, `vm of ${task.name}`), task), closeOnExec: true };
  }
}

/** A machine's file: `anon_inode:kvm-vm`. */
export class VmFile extends File {
  readonly kind = 'kvmvm';
  readonly path = 'anon_inode:kvm-vm';
  readonly vm: Vm;
  /** Only the program that made the machine may use it. */
  readonly #mm: object;

  constructor(vm: Vm, task: Task) {
    super();
    this.vm = vm;
    this.#mm = task.mm;
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    needSameProgram(task, this.#mm);
    switch (request) {
      case uapi.KVM_CHECK_EXTENSION:
        return checkExtension(argument);
      case uapi.KVM_CREATE_IRQCHIP:
        this.vm.createIrqchip();
        return 0;
      case uapi.KVM_IRQFD:
        this.vm.irqfds.ioctl(task, uapi.kvm_irqfd.read(copyFromUser(task, argument, uapi.kvm_irqfd.size)));
        return 0;
      case uapi.KVM_SET_GSI_ROUTING:
        return this.#setRouting(task, argument);
      case uapi.KVM_SIGNAL_MSI:
        return this.#signalMsi(task, argument);
      case uapi.KVM_CREATE_DEVICE:
        return this.#createDevice(task, argument);
      case uapi.KVM_CREATE_VCPU:
        throw new Errno('ENOTTY', NO_PROCESSORS);
      default:
        throw new Errno('ENOTTY', `a machine of the box's KVM has no request ${hex(request)}`);
    }
  }

  override release(): void {
    this.vm.release();
  }

  #setRouting(task: Task, argument: bigint): number {
    const { nr, flags } = uapi.kvm_irq_routing.read(copyFromUser(task, argument, uapi.kvm_irq_routing.size));
    if (this.vm.irqchip === 'none') throw new Errno('EINVAL', 'routes need interrupt controllers: KVM_CREATE_IRQCHIP');
    if (nr > KVM_MAX_IRQ_ROUTES) throw new Errno('EINVAL', `${nr} routes are more than ${KVM_MAX_IRQ_ROUTES}`);
    if (flags !== 0) throw new Errno('EINVAL', `unknown flags 0x${flags.toString(16)}`);
    const { size } = uapi.kvm_irq_routing_entry;
    const bytes = copyFromUser(task, argument + BigInt(uapi.kvm_irq_routing.size), nr * size);
    const entries = Array.from({ length: nr }, (_, i) => uapi.kvm_irq_routing_entry.read(bytes.subarray(i * size)));
    this.vm.setRouting(entries);
    return 0;
  }

  /** EPERM: no processor takes it, which is what the kernel says too. */
  #signalMsi(task: Task, argument: bigint): number {
    const { address_lo, data, flags } = uapi.kvm_msi.read(copyFromUser(task, argument, uapi.kvm_msi.size));
    if (this.vm.irqchip === 'none' || (flags & ~uapi.KVM_MSI_VALID_DEVID) !== 0) {
      throw new Errno('EINVAL', 'SIGNAL_MSI needs interrupt controllers (KVM_CREATE_IRQCHIP) and known flags');
    }
    const taken = this.vm.send(guestMessage(address_lo, data));
    if (taken === 0) throw new Errno('EPERM', 'no processor of the machine takes the message');
    return taken;
  }

  #createDevice(task: Task, argument: bigint): IoctlResult {
    const table = uapi.kvm_create_device;
    const { type, flags } = table.read(copyFromUser(task, argument, table.size));
    if (type !== uapi.KVM_DEV_TYPE_VFIO) throw new Errno('ENODEV', `there is no device of type ${type}`);
    if ((flags & uapi.KVM_CREATE_DEVICE_TEST) !== 0) return 0;
    const vfio = this.vm.createVfio();
    return { file: new KvmVfioFile(this.vm, vfio, this.#mm), closeOnExec: true, offset: table.offsets.fd };
  }
}

/** The VFIO pseudo device's file: `anon_inode:kvm-vfio`. It keeps the machine. */
export class KvmVfioFile extends File {
  readonly kind = 'kvmdevice';
  readonly path = 'anon_inode:kvm-vfio';
  readonly #vm: Vm;
  readonly #vfio: KvmVfio;
  readonly #mm: object;

  constructor(vm: Vm, vfio: KvmVfio, mm: object) {
    super();
    this.#vm = vm;
    this.#vfio = vfio;
    this.#mm = mm;
    vm.hold();
  }

  override ioctl(task: Task, request: number, argument: bigint): number {
    if (task.mm !== this.#mm) throw new Errno('EIO', 'the device belongs to a machine of another program');
    switch (request) {
      case uapi.KVM_SET_DEVICE_ATTR:
        return this.#set(task, argument);
      case uapi.KVM_HAS_DEVICE_ATTR:
        checkAttribute(attribute(task, argument));
        return 0;
      case uapi.KVM_GET_DEVICE_ATTR:
        throw new Errno('EPERM', 'the VFIO device has nothing to be read');
      default:
        throw new Errno('ENOTTY', `the VFIO device of a machine has no request ${hex(request)}`);
    }
  }

  override release(): void {
    this.#vm.releaseVfio();
    this.#vm.drop();
  }

  #set(task: Task, argument: bigint): number {
    const wanted = attribute(task, argument);
    checkAttribute(wanted);
    const fd = new DataView(copyFromUser(task, wanted.addr, 4).buffer).getInt32(0, true);
    const file = task.file(fd);
    if (wanted.attr === BigInt(uapi.KVM_DEV_VFIO_FILE_ADD)) this.#vfio.add(file);
    else this.#vfio.remove(file);
    return 0;
  }
}

function attribute(task: Task, argument: bigint): uapi.kvm_device_attr {
  return uapi.kvm_device_attr.read(copyFromUser(task, argument, uapi.kvm_device_attr.size));
}

function checkAttribute({ group, attr }: uapi.kvm_device_attr): void {
  const isKnown = attr === BigInt(uapi.KVM_DEV_VFIO_FILE_ADD) || attr === BigInt(uapi.KVM_DEV_VFIO_FILE_DEL);
  if (group !== uapi.KVM_DEV_VFIO_FILE || !isKnown) {
    throw new Errno('ENXIO', `the VFIO device has no attribute ${attr} in group ${group}`);
  }
}

function needZero(argument: bigint): void {
  if (argument !== 0n) throw new Errno('EINVAL', `the argument is ${argument}, not 0`);
}

function needSameProgram(task: Task, mm: object): void {
  if (task.mm !== mm) throw new Errno('EIO', 'the machine belongs to another program');
}
