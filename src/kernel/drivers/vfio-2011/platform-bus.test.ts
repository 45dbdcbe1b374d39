/** A bus that is not PCI: the same core, the same groups, its own devices. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { privateShared } from '../../../hw/memory/backing.ts';
import * as uapi from '../../../uapi/vfio-2011.ts';
import { refusal, World } from '../../vfio-2011/test-world.ts';
import { platformDevice, VfioPlatform2011 } from './platform-bus.ts';

function machine() {
  const world = new World();
  const driver = new VfioPlatform2011(world.core);
  // Firmware gave the device the requester ID of a function that is on no bus.
  const hardware = world.place('8.0');
  const registers = privateShared('serial', 8192);
  const serial = platformDevice('fff51000.serial', hardware.iommuGroup, [registers]);
  driver.add(serial);
  return { world, driver, hardware, serial, registers, name: `platform:${hardware.iommuGroup!.id}` };
}

test('G-43: a bus without hotplug needs no claim; its group is bound, opened, mapped and let go as PCI’s', () => {
  const { world, driver, hardware, serial, registers, name } = machine();
  const user = world.user();
  const group = user.group(name);
  assert.equal(user.info(group), 0);
  driver.bind(serial);
  assert.equal(user.info(group), 1);
  const iommu = user.iommu(group);
  const address = user.map(iommu, 3);
  assert.equal(world.machine.dma(hardware.fn, 3, 0x42), 'ok');
  assert.equal(user.byte(address), 0x42);

  const device = user.device(group, 'fff51000.serial');
  const info = uapi.vfio_device_info.write({ argsz: 16, flags: 9, num_regions: 0, num_irqs: 9 });
  user.call(device, uapi.VFIO_DEVICE_GET_INFO, info);
  assert.deepEqual(uapi.vfio_device_info.read(info), { argsz: 16, flags: 0, num_regions: 1, num_irqs: 0 });
  const region = uapi.vfio_region_info.write({ argsz: 32, flags: 0, index: 0, resv: 0, size: 0n, offset: 9n });
  user.call(device, uapi.VFIO_DEVICE_GET_REGION_INFO, region);
  assert.deepEqual(uapi.vfio_region_info.read(region), {
    argsz: 32,
    flags: 1,
    index: 0,
    resv: 0,
    size: 8192n,
    offset: 0n,
  });
  region[8] = 1;
  assert.equal(
    refusal(() => user.call(device, uapi.VFIO_DEVICE_GET_REGION_INFO, region)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => user.call(device, uapi.VFIO_DEVICE_RESET)),
    'EINVAL',
  );
  const file = user.file(device);
  assert.equal(file.write(user, Uint8Array.of(1, 2, 3), 8190), 2, 'clipped at the end');
  assert.deepEqual([...registers.bytes().subarray(8190)], [1, 2]);
  assert.equal(
    refusal(() => file.read(user, new Uint8Array(1), 8192)),
    'EINVAL',
  );
  assert.equal(file.mmap(user, 4096, 3, 1, 4096).offset, 4096);
  assert.equal(
    refusal(() => file.mmap(user, 8192, 3, 1, 4096)),
    'EINVAL',
  );

  let ended = 0;
  assert.equal(
    driver.unbind(serial, () => ended++),
    'waiting',
  );
  user.exit();
  assert.equal(ended, 1);
  assert.deepEqual(world.held(), { pins: 0, locked: 0, entries: 0, files: 0, owners: 0 });
});

test('groups of two buses are not merged, neither way', () => {
  const { world, driver, serial, name } = machine();
  driver.bind(serial);
  const other = world.add('1.0');
  const user = world.user();
  const [platform, toy] = [user.group(name), user.group(other.group)];
  assert.equal(
    refusal(() => user.merge(platform, toy)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => user.merge(toy, platform)),
    'EINVAL',
  );
  assert.equal(user.info(platform) & user.info(toy), 1);
});
