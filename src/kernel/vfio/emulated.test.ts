import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal } from '../core/test-task.ts';
import { TestProgram } from '../iommufd/test-iommu.ts';
import { bindEmulated } from './emulated.ts';
import { TestWorld } from './test-world.ts';

/** A mediated device that is bound to a program's iommufd and attached to an address space with four pages at 64 KiB. */
function bound(keeps = false) {
  const world = new TestWorld();
  const heard: string[] = [];
  const held = new Set<number>();
  const { device } = world.mediated('mdev', (iova, length) => {
    heard.push(`${iova.toString(16)}+${length.toString(16)}`);
    if (keeps) return;
    const first = Number(iova >> 12n);
    const gone = [...held].filter((page) => page >= first && BigInt(page - first) < length >> 12n);
    world.core.unpinPages(device, gone);
    for (const page of gone) held.delete(page);
  });
  const p = new TestProgram({ physical: world.physical });
  const ioas = p.ioas();
  const binding = bindEmulated(p.file.context, device);
  device.openCount = 1;
  binding.attach(ioas);
  const memory = p.task.memory.map(4 * 4096);
  p.map(ioas, 0x10000n, memory, 4 * 4096);
  const pin = (pages: number[], prot = 3): string =>
    refusal(() => {
      world.core.pinPages(device, pages, prot);
      for (const page of pages) held.add(page);
    });
  return { world, device, p, ioas, binding, memory, pin, heard, held };
}

test('a mediated device on an iommufd pins and copies through its access, and nothing is pinned before', () => {
  const { world, device, p, ioas, binding, memory, pin, heard } = bound();
  assert.equal(p.task.mm.pins, 0);
  assert.equal(pin([0x10, 0x12]), 'ok');
  assert.equal(p.task.mm.pins, 2);
  assert.equal(pin([0x11, 0x14]), 'ENOENT');
  assert.equal(p.task.mm.pins, 2, 'on failure nothing is pinned');
  assert.equal(pin([]), 'EINVAL');
  const [page] = world.core.pinPages(device, [0x11], 1);
  const byte = new Uint8Array(1);
  p.task.memory.write(memory + 4096, Uint8Array.of(42));
  assert.ok(world.physical.read(page!, 0, byte));
  assert.equal(byte[0], 42);
  world.core.unpinPages(device, [0x11]);
  world.core.dmaRw(device, 0x10ffen, Uint8Array.of(1, 2, 3, 4), true);
  const back = new Uint8Array(4);
  p.task.memory.read(memory + 0xffe, back);
  assert.deepEqual([...back], [1, 2, 3, 4]);
  assert.equal(
    refusal(() => world.core.dmaRw(device, 0x13ffen, new Uint8Array(4), false)),
    'ENOENT',
  );
  // Before an area vanishes the driver is told, and lets go.
  assert.equal(p.unmap(ioas, 0x10000n, 0x4000n), 0x4000n);
  assert.deepEqual(heard, ['10000+4000']);
  assert.equal(p.task.mm.pins, 0);
  binding.unbind();
  assert.equal(device.emulated, undefined);
  p.end();
});

test('a driver that does not let go makes UNMAP give up; its number is an access, not a device', () => {
  const { p, ioas, binding, pin, heard } = bound(true);
  pin([0x10]);
  assert.equal(
    refusal(() => p.unmap(ioas, 0x10000n, 0x4000n)),
    'EDEADLOCK',
  );
  assert.equal(heard.length, 101);
  assert.equal(
    refusal(() => p.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: binding.id })),
    'ENOENT',
  );
  assert.equal(
    refusal(() => p.hwpt(binding.id, ioas)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => p.destroy(binding.id)),
    'EBUSY',
  );
  binding.unpinPages([0x10]);
  binding.unbind();
  p.end();
});
