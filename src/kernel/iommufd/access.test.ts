import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal } from '../core/test-task.ts';
import { createAccess, type IommufdAccess } from './access.ts';
import { TestIommu, TestProgram } from './test-iommu.ts';

/** An access that lets go of what it is told, as drivers do. */
function driver(p: TestProgram, isObedient = true): { access: IommufdAccess; told: string[] } {
  const told: string[] = [];
  const pins: [bigint, bigint][] = [];
  const access = createAccess(p.file.context, {
    needsPinPages: true,
    unmap(iova, length) {
      told.push(`${iova.toString(16)}+${length.toString(16)}`);
      if (!isObedient) return;
      for (const pin of pins.splice(0)) access.unpin(...pin);
    },
  });
  const pin = access.pin.bind(access);
  access.pin = (iova, length, isWrite) => {
    const pages = pin(iova, length, isWrite);
    pins.push([iova, length]);
    return pages;
  };
  return { access, told };
}

test('an access pins pages once with the page tables, and unmap asks it to let go', () => {
  const p = new TestProgram({ memlockLimit: 4 * 4096 });
  const ioas = p.ioas();
  const memory = p.task.memory.map(4 * 4096);
  p.map(ioas, 0x10000n, memory, 4 * 4096);
  const { access, told } = driver(p);
  assert.equal(
    refusal(() => access.pin(0x10000n, 4096n, true)),
    'ENOENT',
  );
  assert.equal(access.attach(ioas), ioas);
  assert.equal(
    refusal(() => access.attach(ioas)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.destroy(ioas)),
    'EBUSY',
  );
  const pages = access.pin(0x11000n, 0x2000n, true);
  assert.equal(pages.length, 2);
  assert.equal(p.task.mm.pins, 2);
  const device = p.bind(new TestIommu());
  device.attach(ioas);
  assert.equal((device.iommu as TestIommu).domain!.physicalOf(0x11), pages[0]);
  assert.equal(p.task.mm.pins, 4);
  assert.equal(p.core.userLocked.pages, 4);
  device.unbind();
  assert.equal(p.task.mm.pins, 2);
  assert.equal(p.unmap(ioas, 0x10000n, 0x4000n), 0x4000n);
  assert.deepEqual(told, ['10000+4000']);
  assert.equal(p.task.mm.pins, 0);
  access.unbind();
  p.end();
});

test('an access that does not let go stops UNMAP with EDEADLOCK, and the area is closed to it', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  p.map(ioas, 0x10000n, p.task.memory.map(4096), 4096);
  const { access, told } = driver(p, false);
  access.attach(ioas);
  access.pin(0x10000n, 4096n, false);
  assert.equal(
    refusal(() => p.unmap(ioas, 0x10000n, 0x1000n)),
    'EDEADLOCK',
  );
  assert.equal(told.length, 101);
  assert.equal(
    refusal(() => access.pin(0x10000n, 4096n, false)),
    'EINVAL',
  );
  access.unpin(0x10000n, 4096n);
  assert.equal(p.unmap(ioas, 0x10000n, 0x1000n), 0x1000n);
  access.unbind();
  p.end();
});

test('pins are of whole pages, within the rights of the map', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const { access } = driver(p);
  p.map(ioas, 0x20800n, 0x10800, 0x800);
  assert.equal(
    refusal(() => access.attach(ioas)),
    'EADDRINUSE',
  );
  p.unmap(ioas, 0x20800n, 0x800n);
  access.attach(ioas);
  assert.equal(p.ranges(ioas).alignment, 4096n);
  const memory = p.task.memory.map(3 * 4096);
  p.map(ioas, 0x10000n, memory, 4096, uapi.IOMMU_IOAS_MAP_READABLE);
  p.map(ioas, 0x11000n, memory, 4096, uapi.IOMMU_IOAS_MAP_WRITEABLE);
  p.map(ioas, 0x12000n, 0xdead_0000, 4096);
  assert.equal(
    refusal(() => access.pin(0x10000n, 4096n, true)),
    'EPERM',
  );
  assert.equal(
    refusal(() => access.pin(0x11000n, 4096n, false)),
    'EPERM',
  );
  assert.equal(
    refusal(() => access.pin(0x12000n, 4096n, true)),
    'EFAULT',
  );
  assert.equal(
    refusal(() => access.pin(0x13000n, 4096n, true)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => access.pin(0x11000n, 0x3000n, true)),
    'EFAULT',
    'and what was pinned before is let go',
  );
  assert.equal(
    refusal(() => access.pin(0x10800n, 4096n, false)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => access.pin(0x10000n, 0n, false)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => access.pin(2n ** 64n - 1n, 2n, false)),
    'EOVERFLOW',
  );
  assert.equal(p.task.mm.pins, 0);
  access.unbind();
  p.end();
});

test('reading and writing needs no pins and crosses areas', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const access = createAccess(p.file.context, { needsPinPages: false, unmap() {} });
  access.attach(ioas);
  const memory = p.task.memory.map(0x4000);
  p.map(ioas, 0x10003n, memory + 3, 0x1000);
  p.map(ioas, 0x11003n, memory + 0x2003, 0x1000);
  const data = Uint8Array.from({ length: 0x1800 }, (_, i) => i % 251);
  access.transfer(0x10010n, data, true);
  const back = new Uint8Array(0x1800);
  access.transfer(0x10010n, back, false);
  assert.deepEqual(back, data);
  const bytes = new Uint8Array(16);
  p.task.memory.read(memory + 0x2003, bytes);
  assert.deepEqual(bytes, data.subarray(0xff3, 0x1003));
  assert.equal(
    refusal(() => access.transfer(0x11ff0n, new Uint8Array(64), false)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => access.transfer(0x10010n, new Uint8Array(0), false)),
    'EINVAL',
  );
  p.task.memory.unmap(memory, 0x1000);
  assert.equal(
    refusal(() => access.transfer(0x10010n, back, false)),
    'EFAULT',
  );
  assert.equal(p.task.mm.pins, 0);
  access.unbind();
  p.end();
});

test('moving to another address space lets go of everything in the old one', () => {
  const p = new TestProgram();
  const [a, b] = [p.ioas(), p.ioas()];
  const { access, told } = driver(p);
  assert.equal(
    refusal(() => access.replace(a)),
    'ENOENT',
  );
  access.attach(a);
  p.map(a, 0x10000n, p.task.memory.map(4096), 4096);
  access.pin(0x10000n, 4096n, true);
  assert.equal(
    refusal(() => access.replace(99)),
    'ENOENT',
  );
  access.replace(b);
  assert.deepEqual(told, ['0+ffffffffffffffff']);
  assert.equal(p.task.mm.pins, 0);
  p.destroy(a);
  access.unbind();
  p.destroy(b);
  p.end();
});
