/** Pages of a device in an address space: mapped by MAP_FILE, gone when the device takes them back. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DmaBuf } from '../core/dma-buf.ts';
import { refusal } from '../core/test-task.ts';
import { type TestDomain, TestIommu, TestProgram } from './test-iommu.ts';

test('a dma-buf’s pages are the device’s own, none of the program’s, and are unmapped for good when they are taken back', () => {
  const p = new TestProgram({ memlockLimit: 0 });
  const iommu = new TestIommu();
  const device = p.bind(iommu);
  const ioas = p.ioas();
  device.attach(ioas);
  let released = false;
  const buffer = new DmaBuf([{ firstPage: 0xfe000, count: 2 }], () => {
    released = true;
  });
  const { descriptor } = p.task.open(buffer);
  p.mapFile(ioas, 0x10_0000n, descriptor, 0n, 8192n);
  const physical = (): unknown[] => [0x100, 0x101].map((page) => (iommu.domain as TestDomain).physicalOf(page));
  assert.deepEqual(physical(), [0xfe000, 0xfe001]);
  assert.equal(p.task.mm.pinnedPages, 0);
  buffer.revoke();
  assert.deepEqual(physical(), [-1, -1]);
  assert.equal(
    refusal(() => p.mapFile(ioas, 0x20_0000n, descriptor, 0n, 4096n)),
    'ENODEV',
  );
  p.task.close(descriptor);
  assert.equal(released, false, 'the map holds the dma-buf');
  assert.equal(p.unmap(ioas, 0x10_0000n, 8192n), 8192n);
  assert.equal(released, true);
  device.detach();
  device.unbind();
  p.end();
});
