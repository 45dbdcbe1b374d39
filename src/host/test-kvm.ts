/** A machine with /dev/kvm, a program and its virtual machine, for tests of what VFIO and KVM have to do with each other. */
import assert from 'node:assert/strict';
import type { TestEventfd, TestTask } from '../kernel/core/test-task.ts';
import { routing } from '../kernel/kvm/test-machine.ts';
import type { Vcpu } from '../kernel/kvm/vcpu.ts';
import type { Vm } from '../kernel/kvm/vm.ts';
import type { VfioDevice } from '../kernel/vfio/vfio-device.ts';
import * as kvm from '../uapi/kvm.ts';
import * as vfio from '../uapi/vfio.ts';
import type { FunctionConfig, HostConfig } from './host-file.ts';
import { TestHost } from './test-host.ts';

export const TESTDEV = '0000:01:00.0';
export const EDU = '0000:00:04.0';
/** The first GSI that is no pin. */
export const GSI = 24;

export const board: readonly FunctionConfig[] = [
  { at: '00:00.0', model: 'host-bridge' },
  { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
  { at: '00:04.0', model: 'edu', driver: 'vfio-pci' },
  { at: '01:00.0', model: 'testdev', driver: 'vfio-pci' },
];

export function s32(...values: number[]): Uint8Array {
  return new Uint8Array(Int32Array.from(values).buffer);
}

export interface KvmWorldOptions {
  preset?: string;
  kvm?: NonNullable<HostConfig['options']>['kvm'];
  units?: HostConfig['iommu']['units'];
}

/** A machine with /dev/kvm, a program, its virtual machine with controllers and two processors, and its VFIO device. */
export class KvmWorld {
  readonly host: TestHost;
  readonly task: TestTask;
  readonly vm: Vm;
  readonly vmFd: number;
  readonly vfioFd: number;
  readonly vcpus: Vcpu[];

  constructor({ preset = 'nested-sm', kvm: option = true, units }: KvmWorldOptions = {}) {
    this.host = new TestHost(board, { kvm: option }, units ?? [{ name: 'dmar0', preset }]);
    this.task = this.host.task();
    const { file } = this.host.open(this.task, '/dev/kvm');
    this.vmFd = this.task.ioctl(file, kvm.KVM_CREATE_VM, 0n);
    this.vm = (this.task.file(this.vmFd) as unknown as { vm: Vm }).vm;
    this.ioctl(this.vmFd, kvm.KVM_CREATE_IRQCHIP, 0n);
    const device = kvm.kvm_create_device.write({ type: kvm.KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 });
    this.ioctl(this.vmFd, kvm.KVM_CREATE_DEVICE, device);
    this.vfioFd = kvm.kvm_create_device.read(device).fd;
    this.vcpus = [this.vm.addVcpu(), this.vm.addVcpu()];
    this.vcpus.forEach((vcpu, i) => {
      vcpu.load(i);
    });
  }

  ioctl(fd: number, request: number, argument: Uint8Array | bigint | number): number {
    return this.task.ioctl(this.task.file(fd), request, argument);
  }

  /** FILE_ADD or FILE_DEL. */
  tell(fd: number, attr: number = kvm.KVM_DEV_VFIO_FILE_ADD): void {
    const address = this.task.memory.map(4096);
    this.task.memory.write(address, s32(fd));
    const argument = { flags: 0, group: kvm.KVM_DEV_VFIO_FILE, attr: BigInt(attr), addr: BigInt(address) };
    this.ioctl(this.vfioFd, kvm.KVM_SET_DEVICE_ATTR, kvm.kvm_device_attr.write(argument));
  }

  /** Flushes of the host that a WBINVD costs. */
  wbinvd(): number {
    const before = this.host.machine.kvm!.hostFlushes;
    this.vcpus[0]!.execute([{ op: 'wbinvd' }]);
    return this.host.machine.kvm!.hostFlushes - before;
  }

  device(name: string): VfioDevice {
    return this.host.machine.vfio.devices().find((device) => device.name === name)!;
  }

  /** An eventfd for MSI or MSI-X vectors from 0. */
  trigger(device: number, index: number, count: number): { descriptor: number; file: TestEventfd }[] {
    const eventfds = Array.from({ length: count }, () => this.task.openEventfd());
    const flags = vfio.VFIO_IRQ_SET_DATA_EVENTFD | vfio.VFIO_IRQ_SET_ACTION_TRIGGER;
    const fds = eventfds.map(({ descriptor }) => descriptor);
    this.ioctl(device, vfio.VFIO_DEVICE_SET_IRQS, s32(20 + 4 * count, flags, index, 0, count, ...fds));
    return eventfds;
  }

  irqfd(fd: number, gsi: number, flags = 0): void {
    const argument = kvm.kvm_irqfd.write({ fd, gsi, flags, resamplefd: 0, pad: new Uint8Array(16) });
    this.ioctl(this.vmFd, kvm.KVM_IRQFD, argument);
  }

  get left() {
    const { counters } = this.host.machine;
    return { ...counters.now(), ...counters.interruptsNow(), tokens: this.host.machine.kvm!.irqfdTokens.size };
  }
}

/** `left` of a machine whose programs have ended. */
export const NOTHING = { pins: 0, maps: 0, objects: 0, files: 0, blocks: 0, irqs: 0, bypasses: 0, vms: 0, tokens: 0 };

/**
 * Builds machines with a device, four eventfds that are (or are not) irqfds, and closes everything in random order while interrupts come.
 * Nothing may be left, no interrupt come afterwards, and every entry be empty.
 */
export function closeInAnyOrder(rounds: number, seed: number): void {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % below;
  };
  for (let round = 0; round < rounds; round++) {
    const w = new KvmWorld({ preset: round % 3 === 0 ? 'vtd-legacy-sc' : 'nested-sm' });
    const held = w.host.hold(TESTDEV, w.task);
    const eventfds = w.trigger(held.descriptor, vfio.VFIO_PCI_MSIX_IRQ_INDEX, 4);
    w.tell(held.group.descriptor);
    const routes = eventfds.map((_, i) => ({ gsi: GSI + i, vcpu: i % 2, vector: 0x40 + i }));
    w.ioctl(w.vmFd, kvm.KVM_SET_GSI_ROUTING, routing(routes));
    eventfds.forEach(({ descriptor }, i) => {
      if (random(3) > 0) w.irqfd(descriptor, GSI + i);
    });
    const fn = w.host.fn(TESTDEV);
    const open = [
      w.vmFd,
      w.vfioFd,
      held.group.descriptor,
      held.container.descriptor,
      held.descriptor,
      ...eventfds.map(({ descriptor }) => descriptor),
    ];
    while (open.length > 0) {
      for (let vector = 0; vector < 4; vector++) fn.msix!.fire(vector);
      if (random(4) === 0 && w.vcpus[0]!.state === 'running') w.vcpus[0]!.preempt();
      w.task.close(open.splice(random(open.length), 1)[0]!);
    }
    w.task.exit();
    const taken = w.vcpus.map((vcpu) => vcpu.taken.length);
    for (let vector = 0; vector < 4; vector++) fn.msix!.fire(vector);
    assert.deepEqual(
      w.vcpus.map((vcpu) => vcpu.taken.length),
      taken,
      'no interrupt afterwards',
    );
    assert.deepEqual(w.left, NOTHING, `round ${round} of seed ${seed}`);
    const table = w.host.machine.interrupts.tableOf(w.host.machine.iommu.units[0]!)!;
    for (let i = 0; i < 8; i++) assert.deepEqual([...table.read(i)], [0, 0, 0, 0]);
    assert.deepEqual(
      eventfds.map(({ file }) => file.contexts),
      [0, 0, 0, 0],
    );
  }
}
