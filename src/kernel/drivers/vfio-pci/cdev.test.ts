/** A device's own node: binding, its rules against the group, its end. On the models of the recorded machine. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../../uapi/vfio.ts';
import { refusal } from '../../core/test-task.ts';
import { IommufdContext } from '../../iommufd/context.ts';
import { IommufdFile } from '../../iommufd/main.ts';
import { openCdev } from '../../vfio/cdev.ts';
import { Golden, hexString } from '../../vfio/test-golden.ts';
import { deviceFile } from '../../vfio/test-world.ts';
import type { DeviceFile } from '../../vfio/vfio-device.ts';
import { recordedMachine } from './test-machine.ts';

const CONFIG = 7 * 2 ** 40;

function words(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

function setup() {
  const machine = recordedMachine();
  const device = machine.bind(machine.edu);
  const { task } = machine;
  const node = (): { descriptor: number; file: DeviceFile } =>
    task.open(openCdev(machine.world.core, device, `/dev/vfio/devices/vfio${device.index}`));
  // Nothing here asks the machine's part of an iommufd.
  const iommufd = (): { descriptor: number; file: IommufdFile } =>
    task.open(new IommufdFile(new IommufdContext({ allowUnsafeInterrupts: false } as never)));
  const bind = (file: DeviceFile, fd: number): string =>
    refusal(() => task.ioctl(file, uapi.VFIO_DEVICE_BIND_IOMMUFD, words(16, 0, fd, 0)));
  return { machine, device, task, node, iommufd, bind, group: machine.group(machine.edu) };
}

test('C-40 C-41: every BIND of the recorded suite cdev is answered as the kernel answered', () => {
  const { machine, task, node, iommufd, group } = setup();
  const golden = new Golden('probe-edu.jsonl', 'cdev', /^(?!BIND|.*before bind)/);
  const d = node();
  const d2 = node();
  const call = (name: string, file: DeviceFile, request: number, argument: Uint8Array | bigint): void => {
    golden.call(name, () => task.ioctl(file, request, argument));
  };
  call('DEVICE_GET_INFO before bind', d.file, uapi.VFIO_DEVICE_GET_INFO, words(24, 0, 0, 0, 0, 0));
  golden.call('pread config before bind', () => d.file.read(task, new Uint8Array(4), CONFIG));
  golden.call('mmap before bind', () => void d.file.mmap(task, 4096, 1, 1, 0));
  call('RESET before bind', d.file, uapi.VFIO_DEVICE_RESET, 0n);
  call('ATTACH before bind', d.file, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, words(12, 0, 1));
  call('DETACH before bind', d.file, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, words(8, 0));
  call('FEATURE before bind', d.file, uapi.VFIO_DEVICE_FEATURE, words(8, (1 << 18) | 1));
  const f = iommufd().descriptor;
  const f2 = iommufd().descriptor;
  const nul = task.openForeign();
  const bind = (name: string, file: DeviceFile, argsz: number, flags: number, fd: number): void => {
    const bytes = words(argsz, flags, fd, 0, 0, 0);
    golden.call(
      `BIND ${name}`,
      () => task.ioctl(file, uapi.VFIO_DEVICE_BIND_IOMMUFD, bytes),
      () => {
        const now = uapi.vfio_device_bind_iommufd.read(bytes);
        const shown = (fd < 0 ? fd : 'fd') as string;
        return {
          out: { argsz: hexString(now.argsz), flags: hexString(now.flags), fd: shown, devid: hexString(now.out_devid) },
        };
      },
    );
  };
  bind('argsz=0', d.file, 0, 0, f);
  bind('argsz=12', d.file, 12, 0, f);
  bind('argsz=15', d.file, 15, 0, f);
  bind('flags=2', d.file, 16, 2, f);
  bind('TOKEN flag NULL token', d.file, 24, 1, f);
  bind('TOKEN flag argsz=16', d.file, 16, 1, f);
  bind('fd=-1', d.file, 16, 0, -1);
  bind('fd=999', d.file, 16, 0, 999);
  bind('fd=/dev/null', d.file, 16, 0, nul);
  bind('fd=cdev', d.file, 16, 0, d.descriptor);
  call('BIND NULL', d.file, uapi.VFIO_DEVICE_BIND_IOMMUFD, 0n);
  const token = task.memory.map(16);
  const withToken = uapi.vfio_device_bind_iommufd.write({
    argsz: 24,
    flags: 1,
    iommufd: f,
    out_devid: 0,
    token_uuid_ptr: BigInt(token),
  });
  call('BIND with token, device needs none', d.file, uapi.VFIO_DEVICE_BIND_IOMMUFD, withToken);
  const open = task.open(machine.world.core.openGroup(group.id, task));
  bind('while group open', d.file, 16, 0, f);
  task.close(open.descriptor);
  bind('ok', d.file, 16, 0, f);
  bind('again', d.file, 16, 0, f);
  bind('again other iommufd', d.file, 16, 0, f2);
  bind('second cdev fd', d2.file, 16, 0, f2);
  assert.equal(
    refusal(() => machine.world.core.openGroup(group.id, task)),
    'EBUSY',
  );
  task.close(d.descriptor);
  bind('second cdev fd after first closed', d2.file, 16, 0, f2);
  task.close(d2.descriptor);
  const container = machine.container(machine.edu);
  const byGroup = deviceFile(task, container.open(group, machine.edu.name));
  bind('BIND on group-opened device fd', byGroup, 16, 0, f);
  golden.finish();
  assert.equal(
    refusal(() => task.ioctl(byGroup, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, words(12, 0, 1))),
    'ENOTTY',
  );
});

test('C-43: the close of a bound node gives the group back and leaves no device open', () => {
  const { machine, device, task, node, iommufd, bind, group } = setup();
  const d = node();
  assert.equal(bind(d.file, iommufd().descriptor), 'ok');
  assert.equal(group.ownerCount, 1);
  assert.equal(device.cdevOpened, true);
  task.exit();
  assert.equal(group.ownerCount, 0);
  assert.equal(device.cdevOpened, false);
  assert.equal(device.openCount, 0);
  assert.equal(machine.edu.sink, undefined);
  assert.equal(
    refusal(() => machine.container(machine.edu)),
    'ok',
  );
});

test('the iommufd may be closed first: the device works until its own close', () => {
  const { task, node, iommufd, bind, group } = setup();
  const d = node();
  const f = iommufd();
  assert.equal(bind(d.file, f.descriptor), 'ok');
  task.close(f.descriptor);
  const bytes = new Uint8Array(4);
  assert.equal(d.file.read(task, bytes, CONFIG), 4);
  assert.equal(group.ownerCount, 1);
  assert.equal(
    refusal(() => task.ioctl(d.file, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, words(8, 0))),
    'ok',
  );
  task.close(d.descriptor);
  assert.equal(group.ownerCount, 0);
});

test('a BIND whose answer cannot be stored leaves nothing bound', () => {
  const { device, task, node, iommufd, bind, group } = setup();
  const d = node();
  const f = iommufd();
  const at = task.memory.map(4096);
  task.memory.write(at, words(16, 0, f.descriptor, 0));
  task.memory.protect(at, 4096, { readable: true, writable: false });
  assert.equal(
    refusal(() => task.ioctl(d.file, uapi.VFIO_DEVICE_BIND_IOMMUFD, BigInt(at))),
    'EFAULT',
  );
  assert.equal(device.openCount, 0);
  assert.equal(group.ownerCount, 0);
  assert.equal(bind(d.file, f.descriptor), 'ok');
});

test('bytes of BIND that a newer program knows must be zero', () => {
  const { task, node, iommufd } = setup();
  const d = node();
  const f = iommufd().descriptor;
  const call = (last: number): string =>
    refusal(() => task.ioctl(d.file, uapi.VFIO_DEVICE_BIND_IOMMUFD, words(32, 0, f, 0, 0, 0, 0, last)));
  assert.equal(call(1), 'E2BIG');
  assert.equal(call(0), 'ok');
});

test('hot reset through a node: members by their numbers, and only when one iommufd has them all', () => {
  const machine = recordedMachine();
  const { task } = machine;
  const first = machine.bind(machine.first);
  const second = machine.bind(machine.second);
  const { core } = machine.world;
  const a = task.open(openCdev(core, first, 'a'));
  const b = task.open(openCdev(core, second, 'b'));
  const make = (): number =>
    task.open(new IommufdFile(new IommufdContext({ allowUnsafeInterrupts: false } as never))).descriptor;
  const f = make();
  const bind = (file: DeviceFile, fd: number): string =>
    refusal(() => task.ioctl(file, uapi.VFIO_DEVICE_BIND_IOMMUFD, words(16, 0, fd, 0)));
  const info = (): { flags: number; ids: number[] } => {
    const bytes = new Uint8Array(64);
    bytes.set(words(64));
    task.ioctl(a.file, uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytes);
    const view = new DataView(bytes.buffer);
    return { flags: view.getUint32(4, true), ids: [view.getInt32(12, true), view.getInt32(20, true)] };
  };
  const reset = (): string => refusal(() => task.ioctl(a.file, uapi.VFIO_DEVICE_PCI_HOT_RESET, words(12, 0, 0)));
  bind(a.file, f);
  assert.deepEqual(info(), { flags: 3, ids: [1, 0] }, 'the second is owned through its group');
  assert.equal(reset(), 'ok');
  assert.equal(bind(b.file, make()), 'EPERM', 'another iommufd cannot have a member of the group');
  assert.equal(bind(b.file, f), 'ok');
  assert.deepEqual(info(), { flags: 3, ids: [1, 2] });
  task.close(b.descriptor);
  machine.bus.unbind('vfio-pci', machine.second.name);
  assert.deepEqual(info(), { flags: 1, ids: [1, -1] }, 'no VFIO driver');
  assert.equal(reset(), 'EINVAL');
});

test('C-51: a device that is being removed cannot be opened by its node', () => {
  const { machine, device, node, iommufd, bind } = setup();
  const d = node();
  bind(d.file, iommufd().descriptor);
  machine.bus.unbind('vfio-pci', machine.edu.name);
  assert.equal(
    refusal(() => openCdev(machine.world.core, device, 'x')),
    'ENODEV',
  );
  assert.equal(d.file.read(machine.task, new Uint8Array(4), CONFIG), 4, 'who holds it goes on');
});
