/** VFIO devices of a machine and the virtual machines that use them: the machine's own /dev/kvm. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BufferBacking } from '../hw/memory/backing.ts';
import { refusal } from '../kernel/core/test-task.ts';
import { Domain, IOMMU_GUEST_NO_SNOOP, IOMMU_READ, IOMMU_WRITE } from '../kernel/iommu/domain.ts';
import { routing } from '../kernel/kvm/test-machine.ts';
import * as kvm from '../uapi/kvm.ts';
import * as reg from '../uapi/pci-regs.ts';
import * as vfio from '../uapi/vfio.ts';
import { TestHost } from './test-host.ts';
import { board, closeInAnyOrder, EDU, GSI, KvmWorld, NOTHING, s32, TESTDEV } from './test-kvm.ts';

const CONFIG = 7 * 2 ** 40;

test('without the option the machine has no /dev/kvm: the call is the system’s', () => {
  const host = new TestHost(board);
  assert.equal(host.machine.open(host.task() as never, '/dev/kvm', 2), undefined);
  assert.equal(new KvmWorld().host.machine.stat('/dev/kvm', 0)?.minor, 232);
});

test('a device sees the machine of its group from the first open to the last close', () => {
  const w = new KvmWorld();
  const before = w.host.hold(TESTDEV, w.task);
  assert.equal(w.device(TESTDEV).vm, undefined, 'the group was not given yet');
  w.tell(before.group.descriptor);
  assert.equal(w.device(TESTDEV).vm, undefined, 'not while it is open');
  w.task.close(before.descriptor);
  const again = w.ioctl(
    before.group.descriptor,
    vfio.VFIO_GROUP_GET_DEVICE_FD,
    new TextEncoder().encode(`${TESTDEV}\0`),
  );
  assert.equal(w.device(TESTDEV).vm, w.vm);
  w.task.close(w.vmFd);
  w.task.close(w.vfioFd);
  assert.equal(w.vm.isAlive, true, 'the open device keeps the machine');
  assert.equal(w.host.machine.kvm!.vms, 1);
  w.task.close(again);
  assert.deepEqual([w.vm.isAlive, w.host.machine.kvm!.vms], [false, 0]);
  w.task.exit();
  assert.deepEqual(w.left, NOTHING);
});

test('a device’s own file hands the machine over when it is bound', () => {
  const w = new KvmWorld();
  const cdev = w.host.open(w.task, `/dev/vfio/devices/vfio${w.device(TESTDEV).index}`);
  w.tell(cdev.descriptor);
  assert.equal(w.device(TESTDEV).vm, undefined);
  const iommufd = w.host.open(w.task, '/dev/iommu');
  w.ioctl(cdev.descriptor, vfio.VFIO_DEVICE_BIND_IOMMUFD, s32(16, 0, iommufd.descriptor, 0));
  assert.equal(w.device(TESTDEV).vm, w.vm);
  w.task.close(cdev.descriptor);
  assert.equal(w.device(TESTDEV).vm, w.vm, 'KVM holds the file, so the device stays open');
  w.task.close(w.vfioFd);
  assert.equal(w.device(TESTDEV).vm, undefined);
  w.task.exit();
  assert.deepEqual(w.left, NOTHING);
});

for (const index of [vfio.VFIO_PCI_MSI_IRQ_INDEX, vfio.VFIO_PCI_MSIX_IRQ_INDEX]) {
  test(`K-30: ${index === 1 ? 'MSI' : 'MSI-X'} of a real device, vector by vector: to the eventfd, then posted to a processor`, () => {
    const w = new KvmWorld();
    const { descriptor } = w.host.hold(TESTDEV, w.task);
    const eventfds = w.trigger(descriptor, index, 3);
    const fn = w.host.fn(TESTDEV);
    const fire = (vector: number) => (index === 1 ? fn.msi!.fire(vector) : fn.msix!.fire(vector));
    assert.equal(w.left.irqs, 3);
    fire(2);
    assert.deepEqual(
      eventfds.map(({ file }) => file.take()),
      [0, 0, 1],
    );
    w.ioctl(w.vmFd, kvm.KVM_SET_GSI_ROUTING, routing([{ gsi: GSI, vcpu: 1, vector: 0x51 }]));
    w.irqfd(eventfds[2]!.descriptor, GSI);
    assert.equal(w.vm.irqfds.posted, 1);
    fire(2);
    assert.deepEqual([w.vcpus[1]!.taken, eventfds[2]!.file.counter, w.vm.injected], [[0x51], 0, 0]);
    fire(1);
    assert.equal(eventfds[1]!.file.take(), 1, 'the others are the program’s');
    const flags = vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_TRIGGER;
    w.ioctl(descriptor, vfio.VFIO_DEVICE_SET_IRQS, s32(20, flags, index, 0, 0));
    assert.deepEqual([w.vm.irqfds.posted, w.left.irqs], [0, 0]);
    fire(2);
    assert.equal(w.vcpus[1]!.taken.length, 1);
    w.task.exit();
    assert.deepEqual(w.left, NOTHING);
  });
}

test('K-41: what stands in the MSI-X table is checked: another device’s entry, an old message', () => {
  const w = new KvmWorld();
  const first = w.host.hold(TESTDEV, w.task);
  const [victim] = w.trigger(first.descriptor, vfio.VFIO_PCI_MSIX_IRQ_INDEX, 1);
  const second = w.host.hold(EDU, w.task);
  const [own] = w.trigger(second.descriptor, vfio.VFIO_PCI_MSI_IRQ_INDEX, 1);
  const unit = w.host.machine.iommu.units[0]!;
  // testdev's entry is 0, edu's is 1: testdev is made to send edu's message.
  const { bars, msix } = w.host.fn(TESTDEV);
  const write = (low: number, data: number) => {
    bars[5]!.write(0, s32(low));
    bars[5]!.write(8, s32(data));
    msix!.fire(0);
  };
  let record = 0;
  const fault = () => {
    const [, high, , last] = unit.faults.read(record++);
    return [last! & 0xff, high! >>> 16];
  };
  write(0xfee0_0018 + (1 << 5), 0);
  assert.deepEqual([victim!.file.counter, own!.file.counter, ...fault()], [0, 0, 0x26, 1]);
  write(0xfee0_0000, 0x30);
  assert.deepEqual([victim!.file.counter, own!.file.counter, fault()[0]], [0, 0, 0x25]);
  write(0xfee0_0018, 0);
  assert.equal(victim!.file.take(), 1, 'its own entry still works');
  w.task.exit();
  assert.deepEqual(w.left, NOTHING);
});

function setNoSnoop(w: KvmWorld, isOn: boolean): void {
  const { config } = w.host.fn(TESTDEV);
  const at = config.findCapability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_DEVCTL;
  const device = w.task.file(devices.get(w)!);
  const value = config.read(at, 2);
  const bytes = new Uint8Array(2);
  new DataView(bytes.buffer).setUint16(0, isOn ? value | 0x0800 : value & ~0x0800, true);
  device.write(w.task, bytes, CONFIG + at);
}
const devices = new WeakMap<KvmWorld, number>();
function hold(w: KvmWorld, name: string): { group: number; device: number } {
  const { group, descriptor } = w.host.hold(name, w.task);
  devices.set(w, descriptor);
  return { group: group.descriptor, device: descriptor };
}

test('F-50 F-51 F-57: WBINVD and DMA_CC_IOMMU follow the units of the devices', () => {
  for (const [preset, isCoherent] of [
    ['vtd-legacy-sc', true],
    ['nested-sm', true],
    ['legacy-nosc', false],
  ] as const) {
    const w = new KvmWorld({ preset });
    const container = w.host.open(w.task, '/dev/vfio/vfio');
    const group = w.host.open(w.task, `/dev/vfio/${w.host.groupId(TESTDEV)}`);
    w.ioctl(group.descriptor, vfio.VFIO_GROUP_SET_CONTAINER, s32(container.descriptor));
    w.ioctl(container.descriptor, vfio.VFIO_SET_IOMMU, 1n);
    const cc = w.ioctl(container.descriptor, vfio.VFIO_CHECK_EXTENSION, BigInt(vfio.VFIO_DMA_CC_IOMMU));
    w.tell(group.descriptor);
    assert.deepEqual([cc, w.wbinvd()], isCoherent ? [1, 0] : [0, 1], preset);
  }
  const mixed = new KvmWorld({
    units: [
      { name: 'dmar0', preset: 'legacy-nosc', functions: ['00:04.0'] },
      { name: 'dmar1', preset: 'vtd-legacy-sc' },
    ],
  });
  mixed.tell(hold(mixed, TESTDEV).group);
  assert.equal(mixed.wbinvd(), 0);
  const { group } = hold(mixed, EDU);
  mixed.tell(group);
  assert.equal(mixed.wbinvd(), 1, 'one device behind a unit without snoop control is enough');
  mixed.tell(group, kvm.KVM_DEV_VFIO_FILE_DEL);
  assert.equal(mixed.wbinvd(), 0);
});

test('F-52 F-53: strict: Enable No Snoop as the guest writes it, and what the platform does', () => {
  const w = new KvmWorld({ preset: 'legacy-nosc', kvm: { policy: 'strict' } });
  w.tell(hold(w, TESTDEV).group);
  assert.equal(w.wbinvd(), 1, 'the bit is on after reset');
  setNoSnoop(w, false);
  assert.equal(w.wbinvd(), 0);
  setNoSnoop(w, true);
  assert.equal(w.wbinvd(), 1);
  const conventional = new KvmWorld({ preset: 'legacy-nosc', kvm: { policy: 'strict' } });
  conventional.tell(hold(conventional, EDU).group);
  assert.equal(conventional.wbinvd(), 0, 'edu is conventional PCI and has no such bit');
  const deaf = new KvmWorld({ preset: 'legacy-nosc', kvm: { policy: 'strict', platformHonoursNoSnoop: false } });
  deaf.tell(hold(deaf, TESTDEV).group);
  assert.equal(deaf.wbinvd(), 0);
  const enforced = new KvmWorld({ preset: 'nested-sm', kvm: { policy: 'strict' } });
  enforced.tell(hold(enforced, TESTDEV).group);
  assert.equal(enforced.wbinvd(), 0);
});

test('F-55: a guest’s choice of pages without snooping is heard only where the option is on, and then its WBINVD is executed', () => {
  for (const policy of ['kernel', 'strict'] as const) {
    const w = new KvmWorld({ preset: 'nested-sm', kvm: { policy } });
    w.tell(hold(w, TESTDEV).group);
    const fn = w.host.fn(TESTDEV);
    fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) | reg.PCI_COMMAND_MASTER);
    const group = w.host.machine.iommu.groupOf(fn)!;
    const ram = w.host.machine.physical.addBlock(new BufferBacking(2 * 4096));
    const choice = IOMMU_READ | IOMMU_WRITE | IOMMU_GUEST_NO_SNOOP;
    const plain = new Domain(group.unit!, 'unmanaged');
    assert.equal(
      refusal(() => plain.map(0, ram, 1, choice)),
      'EINVAL',
      'not offered by default',
    );
    const domain = new Domain(group.unit!, 'unmanaged', { guestSnoopRelay: true });
    assert.equal(domain.enforceCacheCoherency(), true);
    domain.map(0, ram, 1, IOMMU_READ | IOMMU_WRITE);
    group.replace(domain);
    assert.equal(w.wbinvd(), 0, 'the option alone changes nothing');
    domain.map(1, ram + 1, 1, choice);
    const coherent = [0, 4096].map((address) => {
      assert.equal(fn.dma.write(address, Uint8Array.of(1), { noSnoop: true }), undefined);
      return fn.dma.isCoherent;
    });
    assert.deepEqual(coherent, [true, false]);
    assert.equal(w.wbinvd(), 1, policy);
  }
});

test('K-15: a device’s own no-snoop write: the guest reads stale without enforcement, fresh with it', () => {
  for (const [preset, expected] of [
    ['legacy-nosc', 0],
    ['vtd-legacy-sc', 7],
    ['nested-sm', 7],
  ] as const) {
    const w = new KvmWorld({ preset });
    const { container, group } = w.host.hold(TESTDEV, w.task);
    w.tell(group.descriptor);
    const vaddr = w.task.memory.map(4096);
    const map = { argsz: 32, flags: 3, vaddr: BigInt(vaddr), iova: 0x10000n, size: 4096n };
    w.task.ioctl(container.file, vfio.VFIO_IOMMU_MAP_DMA, vfio.vfio_iommu_type1_dma_map.write(map));
    const fn = w.host.fn(TESTDEV);
    fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) | reg.PCI_COMMAND_MASTER);
    const domain = w.host.machine.iommu.groupOf(fn)!.domain;
    w.vm.addMemory(0x10, 1, domain.physicalOf(0x10));
    const read = () => (w.vcpus[0]!.execute([{ op: 'read', page: 0x10, offset: 8, length: 1 }])[0] as Uint8Array)[0];
    assert.equal(read(), 0);
    assert.equal(fn.dma.write(0x10008, Uint8Array.of(7), { noSnoop: true }), undefined);
    assert.equal(fn.dma.isCoherent, expected === 7, preset);
    assert.equal(read(), expected, preset);
    w.vcpus[0]!.execute([{ op: 'wbinvd' }]);
    assert.equal(read(), 7, `${preset} after WBINVD`);
    fn.dma.write(0x10008, Uint8Array.of(9));
    assert.equal(read(), 9, 'an ordinary write is always seen');
  }
});

test('K-70: machine, VFIO device, files and eventfds closed in any order: nothing is left, every entry free', () => {
  closeInAnyOrder(20, 12345);
});
