/** A host with virtual machines for tests: memory, processors, files of VFIO that answer as a test says, and the calls of a program. */
import { BufferBacking } from '../../hw/memory/backing.ts';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import * as uapi from '../../uapi/kvm.ts';
import { File } from '../core/file.ts';
import { HostInterrupts } from '../core/host-interrupts.ts';
import { TestTask } from '../core/test-task.ts';
import type { AssignableFile, DmaCoherence, VirtualMachine } from '../core/virtual-machine.ts';
import { KvmHost, type KvmHostOptions } from './host.ts';
import { KvmFile, type KvmVfioFile, type VmFile } from './kvm-files.ts';

/** A group or device of VFIO with devices that are what the test wants. */
export class TestVfioFile extends File implements AssignableFile {
  readonly kind = 'group';
  readonly path: string;
  devices: DmaCoherence[];
  vm: VirtualMachine | undefined;
  isReleased = false;

  constructor(name: string, ...devices: Partial<DmaCoherence>[]) {
    super();
    this.path = `/dev/vfio/${name}`;
    this.devices = devices.map((device, i) => ({
      device: `${name}.${i}`,
      canEnforce: true,
      mayIssueNoSnoop: true,
      pathEnforces: true,
      ...device,
    }));
  }

  setVirtualMachine(vm: VirtualMachine | undefined): void {
    this.vm = vm;
  }

  dmaCoherence(): DmaCoherence[] {
    return this.devices;
  }

  override release(): void {
    this.isReleased = true;
  }
}

export const COHERENT = { canEnforce: true, pathEnforces: true };
export const NOT_ENFORCED = { canEnforce: false, pathEnforces: false };

/** Physical page of the guest's RAM, and its pages. */
export const RAM_PAGE = 0x100;
export const RAM_PAGES = 16;

export class TestKvm {
  readonly memory = new PhysicalMemory();
  readonly ram = new BufferBacking(RAM_PAGES * 4096);
  readonly interrupts = new HostInterrupts();
  readonly host: KvmHost;
  readonly task: TestTask;
  readonly kvm: { descriptor: number; file: KvmFile };

  constructor(options: Partial<KvmHostOptions> = {}) {
    this.memory.addWindow(RAM_PAGE, RAM_PAGES, this.ram);
    this.host = new KvmHost({ memory: this.memory, interrupts: this.interrupts, ...options });
    this.memory.snoop = (page, offset, length) => this.host.cache.snoop(page, offset, length);
    this.task = new TestTask({ physical: this.memory });
    this.kvm = this.task.open(new KvmFile(this.host));
  }

  createVm(): { descriptor: number; file: VmFile; vm: VmFile['vm'] } {
    const descriptor = this.task.ioctl(this.kvm.file, uapi.KVM_CREATE_VM, 0n);
    const file = this.task.file(descriptor) as VmFile;
    file.vm.addMemory(0, RAM_PAGES, RAM_PAGE);
    return { descriptor, file, vm: file.vm };
  }

  createVfio(vm: VmFile): { descriptor: number; file: KvmVfioFile } {
    const argument = uapi.kvm_create_device.write({ type: uapi.KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 });
    this.task.ioctl(vm, uapi.KVM_CREATE_DEVICE, argument);
    const descriptor = uapi.kvm_create_device.read(argument).fd;
    return { descriptor, file: this.task.file(descriptor) as KvmVfioFile };
  }

  /** SET_DEVICE_ATTR (or HAS) with a descriptor as its data. */
  attribute(vfio: KvmVfioFile, attr: number, descriptor: number, group = uapi.KVM_DEV_VFIO_FILE, isHas = false): void {
    const address = this.task.memory.map(4096);
    this.task.memory.write(address, new Uint8Array(Int32Array.of(descriptor).buffer));
    const argument = uapi.kvm_device_attr.write({ flags: 0, group, attr: BigInt(attr), addr: BigInt(address) });
    this.task.ioctl(vfio, isHas ? uapi.KVM_HAS_DEVICE_ATTR : uapi.KVM_SET_DEVICE_ATTR, argument);
    this.task.memory.unmap(address, 4096);
  }

  add(vfio: KvmVfioFile, descriptor: number): void {
    this.attribute(vfio, uapi.KVM_DEV_VFIO_FILE_ADD, descriptor);
  }

  del(vfio: KvmVfioFile, descriptor: number): void {
    this.attribute(vfio, uapi.KVM_DEV_VFIO_FILE_DEL, descriptor);
  }

  irqfd(vm: VmFile, fd: number, gsi: number, flags = 0, resamplefd = 0): void {
    this.task.ioctl(vm, uapi.KVM_IRQFD, uapi.kvm_irqfd.write({ fd, gsi, flags, resamplefd, pad: new Uint8Array(16) }));
  }

  /** Routes of messages: GSI → processor and vector. */
  route(vm: VmFile, routes: readonly { gsi: number; vcpu: number; vector: number; mode?: number }[]): void {
    this.task.ioctl(vm, uapi.KVM_SET_GSI_ROUTING, routing(routes));
  }
}

/** The argument of KVM_SET_GSI_ROUTING. */
export function routing(routes: readonly { gsi: number; vcpu: number; vector: number; mode?: number }[]): Uint8Array {
  const { size } = uapi.kvm_irq_routing_entry;
  const argument = new Uint8Array(uapi.kvm_irq_routing.size + routes.length * size);
  argument.set(uapi.kvm_irq_routing.write({ nr: routes.length, flags: 0 }));
  routes.forEach(({ gsi, vcpu, vector, mode }, i) => {
    const u = [(0xfee0_0000 | (vcpu << 12)) >>> 0, 0, vector | ((mode ?? 0) << 8), 0, 0, 0, 0, 0];
    const entry = { gsi, type: uapi.KVM_IRQ_ROUTING_MSI, flags: 0, pad: 0, u };
    argument.set(uapi.kvm_irq_routing_entry.write(entry), uapi.kvm_irq_routing.size + i * size);
  });
  return argument;
}
