/** Virtual functions by sysfs: sriov_numvfs and what follows from it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Blocked } from '../kernel/core/blocked.ts';
import { refusal } from '../kernel/core/test-task.ts';
import type { DeviceFile } from '../kernel/vfio/vfio-device.ts';
import * as uapi from '../uapi/vfio.ts';
import { TestHost } from './test-host.ts';

const PCI = '/sys/bus/pci/devices';
const PF = '0000:01:00.0';
const VF0 = '0000:01:01.0';
const VF1 = '0000:01:01.1';
const NUMVFS = `${PCI}/${PF}/sriov_numvfs`;
const UUID_1 = '52ac9bff-3a88-4fbd-901a-0d767c3b6c97';
const UUID_2 = '88594674-90a0-47a9-aea8-9d9b352ac08a';

function bytesOf(uuid: string): Uint8Array {
  return Uint8Array.from(Buffer.from(uuid.replaceAll('-', ''), 'hex'));
}

test('sriov_numvfs: ERANGE, EINVAL, EBUSY; ENOENT without a driver, with one that cannot, and with enable_sriov off', () => {
  const host = new TestHost('sriov');
  assert.equal(host.read(`${PCI}/${PF}/sriov_totalvfs`), '8\n');
  assert.equal(host.read(NUMVFS), '0\n');
  assert.equal(host.write(NUMVFS, '9'), 'ERANGE');
  assert.equal(host.write(NUMVFS, '-1'), 'EINVAL');
  assert.equal(host.write(NUMVFS, '65536'), 'EINVAL');
  assert.equal(host.write(NUMVFS, '0'), 2);
  host.write('/sys/module/vfio_pci/parameters/enable_sriov', 'N');
  assert.equal(host.write(NUMVFS, '1'), 'ENOENT');
  assert.equal(host.write('/sys/module/vfio_pci/parameters/enable_sriov', 'maybe'), 'EINVAL');
  assert.equal(host.write('/sys/module/vfio_pci/parameters/enable_sriov', '1'), 2);
  assert.equal(host.write(NUMVFS, '2'), 2);
  assert.equal(host.write(NUMVFS, '2'), 2, 'as many as there are');
  assert.equal(host.write(NUMVFS, '3'), 'EBUSY');
  assert.equal(host.read(NUMVFS), '2\n');
  assert.equal(host.write(`${PCI}/0000:03:00.0/sriov_numvfs`, '1'), 'ENOENT');
  host.write(`${PCI}/0000:03:00.0/driver_override`, 'pci-stub');
  host.write('/sys/bus/pci/drivers_probe', '0000:03:00.0');
  assert.equal(host.write(`${PCI}/0000:03:00.0/sriov_numvfs`, '1'), 'ENOENT', 'pci-stub cannot');
  assert.equal(host.has(`${PCI}/0000:00:01.0/sriov_numvfs`), false);
});

test('G-5 T-22: virtual functions have RIDs by offset and stride, groups of their own, links both ways, the driver of vfio-pci', () => {
  const host = new TestHost('sriov');
  const { machine } = host;
  const groups = machine.iommu.groups().length;
  assert.equal(host.write(NUMVFS, '2'), 2);
  assert.equal(machine.iommu.groups().length, groups + 2);
  for (const [i, name] of [VF0, VF1].entries()) {
    assert.match(machine.tree.readlink(`${PCI}/${PF}/virtfn${i}`) ?? '', new RegExp(`${name}$`));
    assert.match(machine.tree.readlink(`${PCI}/${name}/physfn`) ?? '', new RegExp(`${PF}$`));
    assert.equal(machine.drivers.driverOf(host.fn(name)), 'vfio-pci');
    assert.equal(host.read(`${PCI}/${name}/driver_override`), 'vfio-pci\n');
    assert.equal(host.has(`${PCI}/${name}/sriov_numvfs`), false);
    assert.ok(host.has(`${PCI}/${name}/vfio-dev`));
    assert.notEqual(Number(host.read(`${PCI}/${name}/resource`).split(' ')[0]), 0, 'it has addresses');
  }
  assert.equal(host.write(NUMVFS, '0'), 2);
  assert.equal(machine.iommu.groups().length, groups);
  assert.equal(host.has(`${PCI}/${PF}/virtfn0`), false);
  assert.equal(host.has(`${PCI}/${VF0}`), false);
  assert.equal(host.read(NUMVFS), '0\n');
});

test('T-22: 256 virtual functions reach the next bus number, in the folder of the physical function', () => {
  const host = new TestHost('sriov');
  const pf = `${PCI}/0000:03:00.0`;
  host.write(`${pf}/driver_override`, 'pci-pf-stub');
  host.write('/sys/bus/pci/drivers_probe', '0000:03:00.0');
  host.write(`${pf}/sriov_drivers_autoprobe`, '0');
  assert.equal(host.write(`${pf}/sriov_numvfs`, '256'), 4);
  const last = host.fn('0000:04:00.7');
  assert.equal(last.rid, host.fn('0000:03:00.0').rid + 8 + 255);
  assert.equal(last.bus.self, undefined);
  const { tree } = host.machine;
  assert.equal(tree.resolve(`${pf}/virtfn255`)?.path, tree.resolve(`${PCI}/0000:04:00.7`)?.path);
  assert.equal(tree.resolve(`${pf}/virtfn255`)?.path, '/sys/devices/pci0000:00/0000:00:02.0/0000:04:00.7');
  assert.equal(host.write('/sys/bus/pci/drivers/vfio-pci/new_id', '1234 11ea'), 10);
  assert.equal(host.machine.drivers.driverOf(last), undefined, 'sriov_drivers_autoprobe is 0');
  assert.equal(host.write('/sys/bus/pci/drivers/vfio-pci/bind', last.name), 'ENODEV');
  assert.equal(host.write(`${PCI}/${last.name}/driver_override`, 'vfio-pci'), 9);
  assert.equal(host.write('/sys/bus/pci/drivers/vfio-pci/bind', last.name), last.name.length + 1);
  // The driver goes, and its virtual functions with it.
  assert.equal(host.write('/sys/bus/pci/drivers/pci-pf-stub/unbind', '0000:03:00.0'), 13);
  assert.equal(host.machine.pci.find('0000:04:00.7'), undefined);
});

test('D-19: the token of GET_DEVICE_FD and of the feature, before, while and after the physical function is open', () => {
  const host = new TestHost('sriov');
  host.write(NUMVFS, '1');
  const open = (name: string, text: string): string | { task: ReturnType<TestHost['task']>; file: DeviceFile } => {
    const task = host.task();
    let file: unknown;
    const code = refusal(() => {
      const container = host.open(task, '/dev/vfio/vfio');
      const group = host.open(task, `/dev/vfio/${host.groupId(name)}`);
      const fd = new Uint8Array(Int32Array.of(container.descriptor).buffer);
      task.ioctl(group.file, uapi.VFIO_GROUP_SET_CONTAINER, fd);
      task.ioctl(container.file, uapi.VFIO_SET_IOMMU, 1n);
      file = task.file(task.ioctl(group.file, uapi.VFIO_GROUP_GET_DEVICE_FD, new TextEncoder().encode(`${text}\0`)));
    });
    if (code === 'ok') return { task, file: file as DeviceFile };
    task.exit();
    return code;
  };
  const pf = open(PF, `${PF} vf_token=${UUID_1}`);
  assert.ok(typeof pf === 'object');
  assert.equal(open(VF0, VF0), 'EACCES');
  assert.equal(open(VF0, `${VF0} vf_token=${UUID_2}`), 'EACCES');
  assert.equal(open(VF0, `${VF0} vf_token=nonsense`), 'EINVAL');
  const vf = open(VF0, `${VF0} vf_token=${UUID_1}`);
  assert.ok(typeof vf === 'object');
  // While a virtual function is in use, the physical one needs the token, too.
  pf.task.exit();
  assert.equal(open(PF, PF), 'EACCES');
  const again = open(PF, `${PF} vf_token=${UUID_1}`);
  assert.ok(typeof again === 'object');
  const set = new Uint8Array(24);
  set.set(new Uint8Array(Uint32Array.of(24, uapi.VFIO_DEVICE_FEATURE_SET | 0).buffer));
  set.set(bytesOf(UUID_2), 8);
  assert.equal(again.task.ioctl(again.file, uapi.VFIO_DEVICE_FEATURE, set), 0);
  vf.task.exit();
  again.task.exit();
  assert.equal(open(VF0, `${VF0} vf_token=${UUID_1}`), 'EACCES');
  const last = open(VF0, `${VF0} vf_token=${UUID_2}`);
  assert.ok(typeof last === 'object');
  last.task.exit();
  assert.equal(
    refusal(() => host.hold('0000:01:01.0').task.exit()),
    'EACCES',
  );
});

test('taking virtual functions away waits for the one in use; the others, a second writer and the driver follow in order', () => {
  const host = new TestHost('sriov');
  host.write(NUMVFS, '2');
  const task = host.task();
  const cdev = host.open(task, `/dev/vfio/devices/vfio1`);
  const iommufd = host.open(task, '/dev/iommu');
  const uuid = task.memory.map(4096);
  task.memory.write(uuid, bytesOf(UUID_1));
  // The token of the physical function is not known to us: without it BIND says EACCES; then it is set through the device itself.
  const pf = host.hold(PF);
  const set = new Uint8Array(24);
  set.set(new Uint8Array(Uint32Array.of(24, uapi.VFIO_DEVICE_FEATURE_SET).buffer));
  set.set(bytesOf(UUID_1), 8);
  pf.task.ioctl(pf.file, uapi.VFIO_DEVICE_FEATURE, set);
  pf.task.exit();
  const bind = (flags: number): string => {
    const bytes = new DataView(new ArrayBuffer(24));
    bytes.setUint32(0, 24, true);
    bytes.setUint32(4, flags, true);
    bytes.setInt32(8, iommufd.descriptor, true);
    bytes.setBigUint64(16, BigInt(uuid), true);
    return refusal(() => task.ioctl(cdev.file, uapi.VFIO_DEVICE_BIND_IOMMUFD, new Uint8Array(bytes.buffer)));
  };
  assert.equal(bind(0), 'EACCES');
  assert.equal(bind(uapi.VFIO_DEVICE_BIND_FLAG_TOKEN), 'ok');
  const first = host.write(NUMVFS, '0');
  const second = host.write(NUMVFS, '1');
  const unbind = host.write('/sys/bus/pci/drivers/vfio-pci/unbind', PF);
  assert.ok(first instanceof Blocked && second instanceof Blocked && unbind instanceof Blocked);
  const ends: string[] = [];
  for (const [name, call] of Object.entries({ first, second, unbind }))
    call.onEnd((error) => ends.push(`${name} ${error?.code ?? 'ok'}`));
  assert.equal(host.has(`${PCI}/${VF1}`), true, 'they go one after the other');
  assert.equal(host.has(`${PCI}/${VF0}/driver`), false);
  task.exit();
  assert.equal(host.has(`${PCI}/${VF1}`), false);
  assert.deepEqual(ends.toSorted(), ['first ok', 'second ENOENT', 'unbind ok']);
  assert.equal(host.machine.drivers.driverOf(host.fn(PF)), undefined);
  assert.deepEqual(host.machine.invariants(), { pins: 0, maps: 0, objects: 0, files: 0, blocks: 0 });
});

test('virtual functions that were made or taken away while the physical one was open stay so when it is reset and closed', () => {
  const host = new TestHost('sriov');
  const first = host.hold(PF);
  host.write(NUMVFS, '2');
  const reset = (): number => first.task.ioctl(first.file, uapi.VFIO_DEVICE_RESET);
  assert.equal(reset(), 0);
  assert.equal(host.read(NUMVFS), '2\n');
  first.task.exit();
  assert.equal(host.read(NUMVFS), '2\n');
  assert.ok(host.fn(VF1).memoryEnabled);
  const second = host.hold(PF);
  assert.equal(host.write(NUMVFS, '0'), 2);
  second.task.exit();
  assert.equal(host.read(NUMVFS), '0\n');
  assert.equal(host.machine.pci.find(VF0), undefined);
});

test('a virtual function that would stand where something else is: EBUSY, and none is made', () => {
  const host = new TestHost('sriov');
  host.machine.hotplug.plug({ at: '01:01.1', model: 'edu' });
  assert.equal(host.write(NUMVFS, '1'), 2);
  assert.equal(host.write(NUMVFS, '0'), 2);
  assert.equal(host.write(NUMVFS, '2'), 'EBUSY');
  assert.equal(host.read(NUMVFS), '0\n');
});
