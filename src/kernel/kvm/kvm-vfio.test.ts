import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/kvm.ts';
import { refusal } from '../core/test-task.ts';
import type { WbinvdPolicy } from './host.ts';
import { COHERENT, NOT_ENFORCED, TestKvm, TestVfioFile } from './test-machine.ts';

const ADD = uapi.KVM_DEV_VFIO_FILE_ADD;
const DEL = uapi.KVM_DEV_VFIO_FILE_DEL;

function machine(policy: WbinvdPolicy = 'kernel', options: ConstructorParameters<typeof TestKvm>[0] = {}) {
  const kvm = new TestKvm({ policy, ...options });
  const vm = kvm.createVm();
  const vfio = kvm.createVfio(vm.file);
  const vcpu = vm.vm.addVcpu();
  vcpu.load(0);
  const give = (file: TestVfioFile) => {
    const { descriptor } = kvm.task.open(file);
    kvm.add(vfio.file, descriptor);
    return descriptor;
  };
  /** Flushes of the host that one WBINVD costs. */
  const wbinvd = (): number => {
    const before = kvm.host.hostFlushes;
    vcpu.execute([{ op: 'wbinvd' }]);
    return kvm.host.hostFlushes - before;
  };
  return { kvm, vm, vfio, vcpu, give, wbinvd };
}

test('K-1: a file that was added is EEXIST, by any descriptor of it', () => {
  const { kvm, vfio, give } = machine();
  const fd = give(new TestVfioFile('3', COHERENT));
  assert.equal(
    refusal(() => kvm.add(vfio.file, fd)),
    'EEXIST',
  );
  assert.equal(
    refusal(() => kvm.add(vfio.file, kvm.task.dup(fd))),
    'EEXIST',
  );
});

test('K-2: a file that was not added is ENOENT, one that is not open EBADF, one that is not VFIO EINVAL at ADD', () => {
  const { kvm, vfio, give } = machine();
  const fd = give(new TestVfioFile('3', COHERENT));
  const other = kvm.task.open(new TestVfioFile('4', COHERENT)).descriptor;
  const foreign = kvm.task.openForeign();
  assert.equal(
    refusal(() => kvm.del(vfio.file, other)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => kvm.del(vfio.file, foreign)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => kvm.del(vfio.file, 99)),
    'EBADF',
  );
  assert.equal(
    refusal(() => kvm.add(vfio.file, 99)),
    'EBADF',
  );
  assert.equal(
    refusal(() => kvm.add(vfio.file, foreign)),
    'EINVAL',
  );
  kvm.del(vfio.file, fd);
  assert.equal(
    refusal(() => kvm.del(vfio.file, fd)),
    'ENOENT',
  );
});

test('K-3: other attributes and groups are ENXIO, also to HAS; there is nothing to get; a bad pointer is EFAULT', () => {
  const { kvm, vfio } = machine();
  for (const [attr, group] of [
    [3, 1],
    [0, 1],
    [ADD, 0],
    [ADD, 2],
  ] as const) {
    assert.equal(
      refusal(() => kvm.attribute(vfio.file, attr, 0, group)),
      'ENXIO',
      `${group}/${attr}`,
    );
    assert.equal(
      refusal(() => kvm.attribute(vfio.file, attr, 0, group, true)),
      'ENXIO',
      `has ${group}/${attr}`,
    );
  }
  for (const attr of [ADD, DEL]) kvm.attribute(vfio.file, attr, 0, 1, true);
  const bad = uapi.kvm_device_attr.write({ flags: 0, group: 1, attr: 1n, addr: 0x1000n });
  assert.equal(
    refusal(() => kvm.task.ioctl(vfio.file, uapi.KVM_SET_DEVICE_ATTR, bad)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => kvm.task.ioctl(vfio.file, uapi.KVM_SET_DEVICE_ATTR, 0x1000)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => kvm.task.ioctl(vfio.file, uapi.KVM_GET_DEVICE_ATTR, bad)),
    'EPERM',
  );
  assert.equal(
    refusal(() => kvm.task.ioctl(vfio.file, 0xae99, bad)),
    'ENOTTY',
  );
});

test('K-4: a machine has one VFIO device; the test flag makes none; other types are ENODEV', () => {
  const { kvm, vm, vfio } = machine();
  assert.equal(
    refusal(() => kvm.createVfio(vm.file)),
    'EBUSY',
  );
  const device = (type: number, flags: number) =>
    refusal(() =>
      kvm.task.ioctl(vm.file, uapi.KVM_CREATE_DEVICE, uapi.kvm_create_device.write({ type, fd: 0, flags })),
    );
  assert.equal(device(uapi.KVM_DEV_TYPE_VFIO, uapi.KVM_CREATE_DEVICE_TEST), 'ok');
  assert.equal(device(3, 0), 'ENODEV');
  assert.equal(device(1000, 0), 'ENODEV');
  kvm.task.close(vfio.descriptor);
  assert.notEqual(kvm.createVfio(vm.file).descriptor, 0, 'after its end there can be another one');
});

test('K-5: the machine may end first, the file lives on; the file may be closed first, the machine keeps it', () => {
  const { kvm, vm, vfio, give } = machine();
  const first = new TestVfioFile('3', COHERENT);
  const second = new TestVfioFile('4', NOT_ENFORCED);
  const fd = give(first);
  kvm.task.close(give(second));
  assert.deepEqual([first.vm, second.vm], [vm.vm, vm.vm]);
  assert.equal(second.isReleased, false, 'KVM holds it');
  kvm.task.close(vm.descriptor);
  assert.equal(vm.vm.isAlive, true, 'the device keeps the machine');
  kvm.task.close(vfio.descriptor);
  assert.deepEqual([vm.vm.isAlive, kvm.host.vms], [false, 0]);
  assert.deepEqual([first.vm, second.vm], [undefined, undefined]);
  assert.deepEqual([first.isReleased, second.isReleased], [false, true]);
  assert.equal(kvm.task.file(fd), first);
  kvm.task.exit();
  assert.equal(first.isReleased, true);
});

test('a machine belongs to its program: EIO for others; and there are no processors to be had', () => {
  const { kvm, vm, vfio } = machine();
  const other = new TestKvm().task;
  assert.equal(
    refusal(() => other.ioctl(vm.file, uapi.KVM_CHECK_EXTENSION, 0)),
    'EIO',
  );
  assert.equal(
    refusal(() => other.ioctl(vfio.file, uapi.KVM_HAS_DEVICE_ATTR, 0)),
    'EIO',
  );
  assert.equal(
    refusal(() => kvm.task.ioctl(vm.file, uapi.KVM_CREATE_VCPU, 0)),
    'ENOTTY',
  );
  assert.equal(
    refusal(() => kvm.task.ioctl(kvm.kvm.file, uapi.KVM_CREATE_VM, 1)),
    'EINVAL',
  );
  assert.equal(kvm.task.ioctl(kvm.kvm.file, uapi.KVM_GET_API_VERSION), 12);
  assert.equal(
    refusal(() => kvm.task.ioctl(kvm.kvm.file, uapi.KVM_GET_API_VERSION, 1)),
    'EINVAL',
  );
  assert.equal(kvm.task.ioctl(kvm.kvm.file, uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_IRQFD), 1);
  assert.equal(kvm.task.ioctl(kvm.kvm.file, uapi.KVM_CHECK_EXTENSION, 4242), 0);
});

test('K-10 F-56: without VFIO devices 10,000 WBINVDs flush nothing and cost their exits', () => {
  const { kvm, vcpu } = machine();
  vcpu.execute(Array.from({ length: 10_000 }, () => ({ op: 'wbinvd' }) as const));
  assert.equal(kvm.host.hostFlushes, 0);
  assert.equal(vcpu.exits.get('wbinvd'), 10_000);
});

test('K-11 K-12: with a device that cannot be enforced every processor that was used is flushed; after its removal none', () => {
  const { kvm, vm, vfio, vcpu, give, wbinvd } = machine();
  const fd = give(new TestVfioFile('3', NOT_ENFORCED));
  assert.deepEqual([vm.vm.noncoherentCount, vm.vm.zaps], [1, 1]);
  assert.equal(wbinvd(), 1);
  vcpu.preempt();
  vcpu.load(1);
  vcpu.preempt();
  vcpu.load(2);
  assert.equal(wbinvd(), 2, 'since the last flush it was on 1 and 2');
  assert.deepEqual(
    kvm.host.cpus.map(({ flushes }) => flushes),
    [1, 1, 1, 0],
  );
  assert.equal(wbinvd(), 1);
  kvm.del(vfio.file, fd);
  assert.deepEqual([vm.vm.noncoherentCount, vm.vm.zaps], [0, 2]);
  assert.equal(wbinvd(), 0);
});

test('K-11: processors that cannot exit on WBINVD are flushed when the virtual one moves away', () => {
  const { kvm, vcpu, give, wbinvd } = machine('kernel', { hasWbinvdExiting: false });
  give(new TestVfioFile('3', NOT_ENFORCED));
  vcpu.preempt();
  vcpu.load(2);
  assert.deepEqual(
    kvm.host.cpus.map(({ flushes }) => flushes),
    [1, 0, 0, 0],
  );
  assert.equal(wbinvd(), 1);
});

test('K-13: coherent devices and a second non-coherent one do not change the count', () => {
  const { kvm, vm, vfio, give } = machine();
  const coherent = give(new TestVfioFile('3', COHERENT));
  assert.equal(vm.vm.noncoherentCount, 0);
  const first = give(new TestVfioFile('4', NOT_ENFORCED));
  const second = give(new TestVfioFile('5', COHERENT, NOT_ENFORCED));
  assert.deepEqual([vm.vm.noncoherentCount, vm.vm.zaps], [1, 1]);
  kvm.del(vfio.file, coherent);
  kvm.del(vfio.file, first);
  assert.equal(vm.vm.noncoherentCount, 1, 'one device of the group is enough');
  kvm.del(vfio.file, second);
  assert.deepEqual([vm.vm.noncoherentCount, vm.vm.zaps], [0, 2]);
});

test('K-14: no request of any file of KVM turns WBINVD on', () => {
  const { kvm, vm, vfio, vcpu } = machine();
  const argument = new Uint8Array(256).fill(0xff);
  let refused = 0;
  for (const file of [kvm.kvm.file, vm.file, vfio.file]) {
    for (let n = 0; n < 256; n++) {
      for (const [direction, size] of [
        [0, 0],
        [1, 8],
        [1, 24],
        [1, 32],
        [3, 12],
        [3, 104],
      ] as const) {
        const request = ((direction << 30) | (size << 16) | (uapi.KVMIO << 8) | n) >>> 0;
        if (refusal(() => kvm.task.ioctl(file, request, argument.slice())) !== 'ok') refused++;
      }
    }
  }
  assert.ok(refused > 4500, `${refused}`);
  vcpu.execute([{ op: 'wbinvd' }]);
  assert.deepEqual([vm.vm.noncoherentCount, kvm.host.hostFlushes], [0, 0]);
});

const rows: [string, WbinvdPolicy, ConstructorParameters<typeof TestVfioFile>[1][], boolean, boolean][] = [
  ['F-50: a unit with snoop control: WBINVD is nothing', 'kernel', [COHERENT], true, false],
  ['F-51: one unit without: it is executed', 'kernel', [COHERENT, NOT_ENFORCED], true, true],
  [
    'F-52: strict, a device that cannot ask for no-snoop',
    'strict',
    [{ ...NOT_ENFORCED, mayIssueNoSnoop: false }],
    true,
    false,
  ],
  ['F-52: strict, a device that can', 'strict', [NOT_ENFORCED], true, true],
  ['F-53: strict, a platform that ignores no-snoop', 'strict', [NOT_ENFORCED], false, false],
  ['F-53: the kernel does not ask the platform', 'kernel', [NOT_ENFORCED], false, true],
  [
    'F-58: an emulated device under the policy of the kernel',
    'kernel',
    [{ canEnforce: false, pathEnforces: true, mayIssueNoSnoop: false }],
    true,
    true,
  ],
  [
    'F-58: an accelerator that declares that it never does, strict',
    'strict',
    [{ canEnforce: false, pathEnforces: false, mayIssueNoSnoop: false }],
    true,
    false,
  ],
  [
    'F-58: a graphics device with a parent that does not enforce, strict',
    'strict',
    [{ canEnforce: false, pathEnforces: false, mayIssueNoSnoop: true }],
    true,
    true,
  ],
  ['F-54: nested on a unit with snoop control, enforced by the PASID entry, strict', 'strict', [COHERENT], true, false],
];
for (const [title, policy, devices, platformHonoursNoSnoop, isExecuted] of rows) {
  test(title, () => {
    const { give, wbinvd } = machine(policy, { platformHonoursNoSnoop });
    for (const device of devices) give(new TestVfioFile('3', device!));
    assert.equal(wbinvd(), isExecuted ? 1 : 0);
  });
}

test('F-52: the strict policy follows what devices and domains do meanwhile', () => {
  const { vm, give, wbinvd } = machine('strict');
  const file = new TestVfioFile('3', { ...NOT_ENFORCED, mayIssueNoSnoop: false });
  give(file);
  assert.equal(wbinvd(), 0);
  file.devices = [{ ...file.devices[0]!, mayIssueNoSnoop: true }];
  assert.equal(wbinvd(), 1, 'Enable No Snoop was set');
  file.devices = [{ ...file.devices[0]!, pathEnforces: true }];
  assert.equal(wbinvd(), 0, 'another domain was attached');
  assert.equal(vm.vm.zaps, 2);
});

test('K-15: a guest reads stale data after a no-snoop write until it flushes; a snooped write it sees at once', () => {
  const { kvm, vcpu, give } = machine();
  give(new TestVfioFile('3', NOT_ENFORCED));
  const read = (): number => (vcpu.execute([{ op: 'read', page: 1, offset: 128, length: 4 }])[0] as Uint8Array)[0]!;
  const device = (value: number, isSnooped: boolean) => {
    if (isSnooped) kvm.memory.snoop!(0x101, 128, 4);
    kvm.memory.write(0x101, 128, new Uint8Array(4).fill(value));
  };
  assert.equal(read(), 0);
  device(1, false);
  assert.equal(read(), 0, 'stale');
  vcpu.execute([{ op: 'wbinvd' }]);
  assert.equal(read(), 1);
  device(2, false);
  vcpu.execute([{ op: 'clflush', page: 1, offset: 128 }]);
  assert.equal(read(), 2);
  device(3, true);
  assert.equal(read(), 3);
});

test('what the guest has written reaches memory when its line is put out; uncached writes at once, where they are heard', () => {
  const { kvm, vcpu, vfio, give } = machine();
  const fd = give(new TestVfioFile('3', NOT_ENFORCED));
  const write = (value: number, isUncached = false) =>
    vcpu.execute([{ op: 'write', page: 2, offset: 60, bytes: new Uint8Array(8).fill(value), isUncached }]);
  const at = (): number[] => [kvm.ram.bytes[2 * 4096 + 60]!, kvm.ram.bytes[2 * 4096 + 67]!];
  write(5);
  assert.deepEqual(at(), [0, 0]);
  vcpu.execute([{ op: 'wbinvd' }]);
  assert.deepEqual(at(), [5, 5]);
  write(6, true);
  assert.deepEqual(at(), [6, 6]);
  kvm.del(vfio.file, fd);
  write(7, true);
  assert.deepEqual(at(), [6, 6], 'write-back is forced while all DMA is coherent');
});

test('a script stops where the guest has no memory, and nothing runs off its processor', () => {
  const { vcpu } = machine();
  assert.equal(
    refusal(() => vcpu.execute([{ op: 'read', page: 99, offset: 0, length: 1 }])),
    'EFAULT',
  );
  assert.equal(
    refusal(() => vcpu.execute([{ op: 'write', page: 99, offset: 0, bytes: new Uint8Array(1) }])),
    'EFAULT',
  );
  vcpu.preempt();
  assert.equal(
    refusal(() => vcpu.execute([{ op: 'wbinvd' }])),
    'EINVAL',
  );
});

test('K-50: a submission with an unmapped guest PASID exits; with a mapped one the descriptor carries the host PASID', () => {
  const { vm, vcpu } = machine();
  const arrived: number[] = [];
  const portal = {
    enqueue: (descriptor: Uint8Array) => {
      arrived.push(new DataView(descriptor.buffer).getUint32(0, true));
      return arrived.length < 2;
    },
  };
  const descriptor = new Uint8Array(64);
  new DataView(descriptor.buffer).setUint32(0, 0x8000_0007, true);
  const submit = () => vcpu.execute([{ op: 'enqcmd', portal, descriptor }])[0];
  assert.equal(submit(), false, 'no PASID at all');
  vcpu.pasid = 7;
  assert.equal(submit(), false);
  assert.deepEqual([vcpu.exits.get('enqcmd pasid'), arrived], [2, []]);
  vm.vm.pasids.map(7, 0x12345);
  assert.equal(submit(), true);
  assert.equal(submit(), false, 'the queue is full: to be tried again');
  assert.deepEqual(arrived, [0x8001_2345, 0x8001_2345]);
  assert.equal(vcpu.exits.get('enqcmd pasid'), 2);
  assert.equal(
    refusal(() => vm.vm.pasids.map(7, 1)),
    'EEXIST',
  );
  assert.equal(
    refusal(() => vm.vm.pasids.map(8, 2 ** 20)),
    'EINVAL',
  );
  vm.vm.pasids.unmap(7);
  assert.equal(
    refusal(() => vm.vm.pasids.unmap(7)),
    'ENOENT',
  );
  assert.equal(submit(), false);
});
