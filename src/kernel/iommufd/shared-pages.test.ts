/** Pages of a memfd are the same ones whoever maps them, and outlive the program that did. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TestMemoryFile } from '../core/test-task.ts';
import { type TestDomain, TestIommu, TestProgram } from './test-iommu.ts';

const LENGTH = 4 * 4096;

test('a shared mapping, another program’s mapping of it and MAP_FILE give the same physical pages', () => {
  const first = new TestProgram({ pid: 1 });
  const second = new TestProgram({ pid: 2, core: first.core });
  const file = new TestMemoryFile(LENGTH);
  const [a, b] = [new TestIommu(), new TestIommu()];
  const [mine, others] = [first.ioas(), second.ioas()];
  const devices = [first.bind(a), second.bind(b)] as const;
  devices[0].attach(mine);
  devices[1].attach(others);
  const here = first.task.memory.map(LENGTH, undefined, { file: { file, offset: 0 } });
  const there = second.task.memory.map(2 * 4096, undefined, { file: { file, offset: 4096 } });
  first.map(mine, 0x10_0000n, here, LENGTH);
  second.map(others, 0x20_0000n, there, 2 * 4096);
  first.mapFile(mine, 0x30_0000n, first.task.open(file).descriptor, 0n, BigInt(LENGTH));
  const domain = a.domain as TestDomain;
  for (const page of [0, 1, 2, 3]) assert.equal(domain.physicalOf(0x300 + page), domain.physicalOf(0x100 + page));
  for (const page of [0, 1]) {
    assert.equal((b.domain as TestDomain).physicalOf(0x200 + page), domain.physicalOf(0x101 + page));
  }
  assert.equal(file.references, 1, 'one reference is kept for all');
  devices[0].detach();
  devices[0].unbind();
  first.task.exit();
  assert.equal(first.task.mm.pinnedPages, 0);
  assert.equal(file.references, 1, 'the other program has its pages');
  devices[1].detach();
  devices[1].unbind();
  second.end();
  assert.equal(file.references, 0);
});

test('pages of a shared mapping stay while they are pinned, also without the mapping', () => {
  const p = new TestProgram();
  const file = new TestMemoryFile(LENGTH);
  const iommu = new TestIommu();
  const ioas = p.ioas();
  const device = p.bind(iommu);
  device.attach(ioas);
  const memory = p.task.memory.map(LENGTH, undefined, { file: { file, offset: 0 } });
  p.map(ioas, 0x10_0000n, memory, LENGTH);
  const before = (iommu.domain as TestDomain).physicalOf(0x102);
  p.task.memory.unmap(memory, LENGTH);
  file.bytes[0x2004] = 77;
  const into = new Uint8Array(1);
  assert.equal((iommu.domain as TestDomain).physicalOf(0x102), before);
  assert.equal(p.physical.read(before!, 4, into), true);
  assert.equal(into[0], 77, 'DMA reads the file');
  p.unmap(ioas, 0x10_0000n, BigInt(LENGTH));
  assert.equal(file.references, 0);
  device.detach();
  device.unbind();
  p.end();
});

test('an area of private and shared memory side by side', () => {
  const p = new TestProgram();
  const file = new TestMemoryFile(LENGTH);
  const iommu = new TestIommu();
  const ioas = p.ioas();
  const device = p.bind(iommu);
  device.attach(ioas);
  const start = p.task.memory.map(3 * LENGTH, 0x4000_0000);
  p.task.memory.map(LENGTH, start + LENGTH, { file: { file, offset: 0 } });
  p.map(ioas, 0x10_0000n, start, 3 * LENGTH);
  assert.equal(p.task.mm.pins, 8, 'private pages alone are the program’s');
  const domain = iommu.domain as TestDomain;
  p.mapFile(ioas, 0x30_0000n, p.task.open(file).descriptor, 0n, BigInt(LENGTH));
  assert.equal(domain.physicalOf(0x104), domain.physicalOf(0x300));
  assert.equal(domain.physicalOf(0x107), domain.physicalOf(0x303));
  assert.ok(domain.physicalOf(0x108) > 0);
  device.detach();
  device.unbind();
  p.end();
  assert.equal(file.references, 0);
});
