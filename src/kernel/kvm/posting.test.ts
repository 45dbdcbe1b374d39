/** Interrupts of devices on their way to virtual processors: by eventfd, by remapping entry, by descriptor. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PciFunction } from '../../hw/pci/function.ts';
import { MessageStore } from '../../hw/pci/message-store.ts';
import * as uapi from '../../uapi/kvm.ts';
import { POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR } from '../core/host-interrupts.ts';
import type { BypassProducer } from '../core/irq-bypass.ts';
import { refusal, type TestEventfd } from '../core/test-task.ts';
import { IrqRemapping, type RemappedIrq, sourceOf } from '../iommu/irq-remapping.ts';
import { bridge, conventional, endpoint, IommuMachine } from '../iommu/test-machine.ts';
import { TestKvm } from './test-machine.ts';

const GSI = 24;
const VECTOR = 0x31;

/** A machine with interrupt controllers and `vcpus` processors, and a device whose interrupt signals an eventfd. */
function world(options: { vcpus?: number; preset?: 'nested-sm' | 'vtd-legacy-sc' } = {}) {
  const kvm = new TestKvm();
  const iommu = new IommuMachine({ units: [{ preset: options.preset ?? 'nested-sm' }] });
  const fn = iommu.add(endpoint(true), '03.0');
  iommu.boot();
  const table = new IrqRemapping(iommu.unit, kvm.memory, kvm.interrupts);
  iommu.unit.interrupts = table.hardware;
  const vm = kvm.createVm();
  kvm.task.ioctl(vm.file, uapi.KVM_CREATE_IRQCHIP);
  const vcpus = Array.from({ length: options.vcpus ?? 2 }, () => vm.vm.addVcpu());
  vcpus.forEach((vcpu, i) => {
    vcpu.load(i);
  });
  const eventfd = kvm.task.openEventfd();
  /** Signals that the eventfd got: the host's handler ran. */
  let handled = 0;
  const [irq] = table.allocate(fn, [
    () => {
      handled++;
      eventfd.file.add();
    },
  ]) as [RemappedIrq];
  const producer: BypassProducer = { irq };
  return {
    kvm,
    fn,
    table,
    irq,
    vm,
    vcpus,
    eventfd,
    producer,
    handled: () => handled,
    offer: () => kvm.host.bypass.registerProducer(producer, eventfd.file),
    /** The device sends its message. */
    fire: (from: PciFunction = fn) => from.dma.message(irq.message.address, 0, irq.message.data),
    entry: () => [...table.read(irq.index)],
  };
}

test('irqfd: flags, descriptors and controllers that are wrong; one eventfd once, of any machine', () => {
  const { kvm, vm, eventfd } = world();
  const bare = kvm.createVm();
  const fd = eventfd.descriptor;
  assert.equal(
    refusal(() => kvm.irqfd(bare.file, fd, GSI)),
    'EINVAL',
    'no interrupt controller',
  );
  assert.equal(
    refusal(() => kvm.irqfd(vm.file, fd, GSI, 4)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => kvm.irqfd(vm.file, 99, GSI)),
    'EBADF',
  );
  assert.equal(
    refusal(() => kvm.irqfd(vm.file, kvm.task.openForeign(), GSI)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => kvm.irqfd(vm.file, fd, GSI, uapi.KVM_IRQFD_FLAG_RESAMPLE, 99)),
    'EBADF',
  );
  assert.equal(eventfd.file.contexts, 0);
  kvm.irqfd(vm.file, fd, GSI);
  kvm.task.ioctl(bare.file, uapi.KVM_CREATE_IRQCHIP);
  assert.equal(
    refusal(() => kvm.irqfd(vm.file, fd, GSI + 1)),
    'EBUSY',
  );
  assert.equal(
    refusal(() => kvm.irqfd(bare.file, kvm.task.dup(fd), GSI)),
    'EBUSY',
  );
  kvm.irqfd(vm.file, fd, GSI + 1, uapi.KVM_IRQFD_FLAG_DEASSIGN);
  assert.equal(vm.vm.irqfds.size, 1, 'another GSI: nothing');
  kvm.irqfd(vm.file, fd, GSI, uapi.KVM_IRQFD_FLAG_DEASSIGN);
  kvm.irqfd(vm.file, fd, GSI, uapi.KVM_IRQFD_FLAG_DEASSIGN);
  assert.deepEqual([vm.vm.irqfds.size, eventfd.file.contexts, kvm.host.irqfdTokens.size], [0, 0, 0]);
});

test('an eventfd that was signalled before is delivered at registration; each later signal too', () => {
  const { kvm, vm, vcpus, eventfd } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 1, vector: VECTOR }]);
  eventfd.file.add(3);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  assert.deepEqual([vcpus[1]!.taken, eventfd.file.counter], [[VECTOR], 0]);
  eventfd.file.add();
  assert.deepEqual(vcpus[1]!.taken, [VECTOR, VECTOR]);
  assert.deepEqual(vcpus[0]!.taken, []);
});

test('resampling: the line stays up until the guest is through, then the device is asked again', () => {
  const { kvm, vm, eventfd } = world();
  const resample = kvm.task.openEventfd() as { descriptor: number; file: TestEventfd };
  kvm.irqfd(vm.file, eventfd.descriptor, 10, uapi.KVM_IRQFD_FLAG_RESAMPLE, resample.descriptor);
  eventfd.file.add();
  assert.deepEqual([[...vm.vm.lines], resample.file.counter], [[10], 0]);
  vm.vm.endOfInterrupt(10);
  assert.deepEqual([[...vm.vm.lines], resample.file.take()], [[], 1]);
  eventfd.file.add();
  kvm.irqfd(vm.file, eventfd.descriptor, 10, uapi.KVM_IRQFD_FLAG_DEASSIGN);
  assert.deepEqual([[...vm.vm.lines], resample.file.contexts], [[], 0]);
});

test('routes: what collides or is none is EINVAL and changes nothing', () => {
  const { kvm, vm, vcpus, eventfd } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  const set = (...routes: { gsi: number; vcpu: number; vector: number }[]) => refusal(() => kvm.route(vm.file, routes));
  assert.equal(set({ gsi: GSI, vcpu: 0, vector: 1 }, { gsi: GSI, vcpu: 1, vector: 2 }), 'EINVAL');
  assert.equal(set({ gsi: 4096, vcpu: 0, vector: 1 }), 'EINVAL');
  const bare = kvm.createVm();
  assert.equal(
    refusal(() => kvm.route(bare.file, [])),
    'EINVAL',
  );
  eventfd.file.add();
  assert.deepEqual(vcpus[0]!.taken, [VECTOR]);
});

test('K-20 K-42: eventfd in common: the entry is posted, bit for bit, and restored bit for bit', () => {
  const { kvm, vm, vcpus, eventfd, offer, entry, irq } = world();
  const remapped = entry();
  assert.deepEqual(remapped, [...irq.entry]);
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 1, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  const address = vcpus[1]!.descriptor.address;
  assert.deepEqual(entry(), [0x0031_8001, Number(address & 0xffff_ffc0n), remapped[2], Number(address >> 32n)]);
  assert.deepEqual([irq.isPosted, vm.vm.irqfds.posted], [true, 1]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI, uapi.KVM_IRQFD_FLAG_DEASSIGN);
  assert.deepEqual(entry(), remapped);
  assert.deepEqual([irq.isPosted, kvm.host.bypass.connected], [false, 0]);
});

test('K-30: posted to a running processor: taken without an exit, without the host, without the eventfd', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire, handled } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  const [vcpu] = vcpus as [(typeof vcpus)[0]];
  const seen: [boolean, boolean][] = [];
  vcpu.onInterrupt = () => seen.push([vcpu.descriptor.on, vcpu.descriptor.isRequested(VECTOR)]);
  fire();
  assert.deepEqual(vcpu.taken, [VECTOR]);
  assert.deepEqual(seen, [[false, false]], 'ON and PIR were cleared by the hardware');
  assert.deepEqual([vcpu.exitCount, handled(), vm.vm.injected, eventfd.file.counter], [0, 0, 0, 0]);
  assert.equal(kvm.host.cpus[0]!.hostInterrupts, 0);
  vcpu.setInterruptsOff(true);
  fire();
  assert.deepEqual([vcpu.pending, vcpu.descriptor.on], [[VECTOR], false], 'in vIRR while the guest has them off');
  vcpu.setInterruptsOff(false);
  assert.deepEqual(vcpu.taken, [VECTOR, VECTOR]);
});

test('K-31: posted to a halted one: the wake-up vector of its processor wakes it, and it takes the interrupt', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 1, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  const vcpu = vcpus[1]!;
  vcpu.execute([{ op: 'hlt' }]);
  assert.deepEqual([vcpu.state, vcpu.descriptor.nv, vcpu.descriptor.sn], ['halted', POSTED_INTR_WAKEUP_VECTOR, false]);
  assert.equal(kvm.host.cpus[1]!.sleepers.size, 1);
  fire();
  assert.deepEqual([vcpu.state, vcpu.taken, vcpu.descriptor.nv], ['running', [VECTOR], POSTED_INTR_VECTOR]);
  assert.deepEqual([kvm.host.cpus[1]!.hostInterrupts, kvm.host.cpus[1]!.sleepers.size], [1, 0]);
  vcpu.setInterruptsOff(true);
  fire();
  vcpu.halt();
  assert.equal(vcpu.state, 'running', 'with an interrupt pending HLT does not sleep');
});

test('K-31: one that is woken where another runs waits for its turn', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 1, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  const [other, vcpu] = vcpus as [(typeof vcpus)[0], (typeof vcpus)[0]];
  vcpu.halt();
  other.load(1);
  fire();
  assert.deepEqual([vcpu.state, vcpu.taken, other.taken], ['preempted', [], []]);
  other.preempt();
  vcpu.load(1);
  assert.deepEqual(vcpu.taken, [VECTOR]);
});

test('K-32 K-33: while it is preempted nothing is notified; it finds all at its next turn', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  const vcpu = vcpus[0]!;
  vcpu.preempt();
  fire();
  fire();
  assert.deepEqual([vcpu.descriptor.sn, vcpu.descriptor.on, vcpu.descriptor.isRequested(VECTOR)], [true, false, true]);
  assert.deepEqual([kvm.host.cpus[0]!.hostInterrupts, kvm.interrupts.spurious], [0, 0]);
  vcpu.load(0);
  assert.deepEqual(vcpu.taken, [VECTOR], 'two posts of a vector are one interrupt');
});

test('K-34: moving to another processor keeps what was posted, and later ones go to the new place', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  const vcpu = vcpus[0]!;
  vcpu.preempt();
  fire();
  vcpu.load(3);
  assert.deepEqual([vcpu.taken, vcpu.descriptor.ndst], [[VECTOR], 3]);
  fire();
  assert.deepEqual(vcpu.taken, [VECTOR, VECTOR]);
  vcpu.halt();
  assert.equal(kvm.host.cpus[3]!.sleepers.has(vcpu), true);
  fire();
  assert.equal(vcpu.taken.length, 3);
});

test('K-22: another route, another entry, while connected; what cannot be posted goes by the eventfd', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire, entry, irq, handled } = world();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 1, vector: 0x55 }]);
  assert.equal((entry()[0]! >>> 16) & 0xff, 0x55);
  fire();
  assert.deepEqual([vcpus[0]!.taken, vcpus[1]!.taken, handled()], [[], [0x55], 0]);
  // To all processors: not postable, so the host's handler signals the eventfd, and KVM sends it to each.
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0xff, vector: 0x66 }]);
  assert.deepEqual(entry(), [...irq.entry]);
  fire();
  assert.deepEqual([vcpus[0]!.taken, vcpus[1]!.taken, handled()], [[0x66], [0x55, 0x66], 1]);
  // An NMI is none either.
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: 2, mode: 4 }]);
  assert.equal(irq.isPosted, false);
  // The lowest priority of one candidate is.
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: 0x77, mode: 1 }]);
  assert.equal(irq.isPosted, true);
  kvm.route(vm.file, []);
  assert.equal(irq.isPosted, false);
  fire();
  assert.deepEqual([handled(), vcpus[0]!.taken], [2, [0x66]], 'no route: nobody gets it');
});

test('K-21: a unit that cannot post: the connection fails, the eventfd works', () => {
  const { kvm, vm, vcpus, eventfd, offer, fire, handled, irq } = world({ preset: 'vtd-legacy-sc' });
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  assert.equal(refusal(offer), 'ENODEV');
  assert.deepEqual([irq.isPosted, kvm.host.bypass.connected, kvm.host.bypass.registered], [false, 0, 1]);
  fire();
  assert.deepEqual([handled(), vcpus[0]!.taken], [1, [VECTOR]]);
});

for (const first of ['machine', 'device'] as const) {
  test(`K-23: the ${first} may end first; nothing is left, and no interrupt comes afterwards`, () => {
    const { kvm, vm, vcpus, eventfd, offer, fire, producer, irq, table } = world();
    kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
    kvm.irqfd(vm.file, eventfd.descriptor, GSI);
    offer();
    const endDevice = () => {
      kvm.host.bypass.unregisterProducer(producer);
      assert.deepEqual([...table.read(irq.index)], [...irq.entry], 'remapped again');
      irq.free();
      fire();
    };
    if (first === 'device') endDevice();
    kvm.task.close(vm.descriptor);
    assert.equal(vm.vm.isAlive, false);
    if (first === 'machine') {
      fire();
      endDevice();
    }
    assert.deepEqual(vcpus[0]!.taken, []);
    assert.deepEqual([table.used, kvm.host.bypass.registered, kvm.host.vms, kvm.interrupts.used], [0, 0, 0, 0]);
    assert.deepEqual([...table.read(irq.index)], [0, 0, 0, 0]);
    assert.deepEqual([eventfd.file.contexts, kvm.host.irqfdTokens.size], [0, 0]);
  });
}

test('K-41: another device that sends the same message is blocked, whether the entry is posted or not', () => {
  const { kvm, vm, vcpus, eventfd, offer, irq, table, handled, fn } = world();
  const send = (rid: number) => table.hardware.request(rid, irq.message.address, irq.message.data).kind;
  assert.equal(send(fn.rid + 8), 'blocked');
  kvm.route(vm.file, [{ gsi: GSI, vcpu: 0, vector: VECTOR }]);
  kvm.irqfd(vm.file, eventfd.descriptor, GSI);
  offer();
  assert.equal(send(fn.rid + 8), 'blocked');
  assert.deepEqual([handled(), vcpus[0]!.taken], [0, []]);
  assert.equal(send(fn.rid), 'posted');
  const [, , rid, f] = table.unit.faults.read(0);
  assert.deepEqual([rid, f! & 0xff], [fn.rid + 8, 0x26]);
});

test('K-43: a message of the device’s own store has its own entry, and is sent for its PASID only', () => {
  const { kvm, vm, vcpus, fn, table } = world();
  const store = new MessageStore(8);
  let handled = 0;
  const [own] = table.allocate(fn, [() => handled++]) as [RemappedIrq];
  assert.equal(own.index, 1, 'beside the MSI-X vector’s');
  assert.equal(store.fire(fn, 3, 0x77), true, 'masked after reset: it waits');
  assert.deepEqual([store.isPending(3), handled], [true, 0]);
  store.set(3, own.message, 0x77);
  assert.equal(store.fire(fn, 3, 0x78), false);
  assert.equal(store.fire(fn, 3), false);
  assert.equal(store.fire(fn, 8, 0x77), false);
  assert.equal(handled, 0);
  assert.equal(store.fire(fn, 3, 0x77), true);
  assert.equal(handled, 1);
  const { address } = vcpus[0]!.descriptor;
  own.setVcpuAffinity({ descriptor: address, vector: 0x61 });
  store.fire(fn, 3, 0x77);
  assert.deepEqual([vcpus[0]!.taken, handled], [[0x61], 1]);
  store.setMask(fn, 3, true);
  store.fire(fn, 3, 0x77);
  assert.equal(vcpus[0]!.taken.length, 1);
  store.setMask(fn, 3, false);
  assert.equal(vcpus[0]!.taken.length, 2);
  own.free();
  kvm.task.close(vm.descriptor);
});

test('entries come in blocks for functions with several MSI vectors, and go one by one', () => {
  const { table, fn, irq } = world();
  assert.equal(irq.index, 0);
  const block = table.allocate(fn, [() => {}, () => {}, () => {}]);
  assert.deepEqual(
    block.map(({ index }) => index),
    [4, 5, 6],
  );
  assert.deepEqual(
    block.map(({ message }) => message.data),
    [0, 1, 2],
  );
  assert.equal(new Set(block.map(({ message }) => message.address)).size, 1);
  for (const one of block) one.free();
  assert.equal(table.used, 1);
  assert.throws(() => block[0]!.free(), /not in use/);
});

test('the source of an entry: the function, the bridge that speaks for it, all of a bus', () => {
  const machine = new IommuMachine();
  const root = machine.add(endpoint(true), '03.0');
  const converter = machine.add(bridge(7), '04.0', { secondary: 5 });
  machine.tree.enumerate();
  const behind = machine.add(conventional(), '01.0', { bus: converter.secondary! });
  const aliased = machine.add(endpoint(true), '06.0', { dmaAliases: [0x31] });
  assert.deepEqual(sourceOf(root), { svt: 1, sq: 0, sid: root.rid });
  const buses = sourceOf(behind);
  assert.deepEqual([buses.svt, buses.sid >>> 8, buses.sid & 0xff], [2, converter.secondary!.number, behind.bus.number]);
  assert.deepEqual(sourceOf(aliased), { svt: 2, sq: 0, sid: 0 });
});
