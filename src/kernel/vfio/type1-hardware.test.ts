/** Type1 over real page tables: what a function's DMA meets, and how fast it gets there. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { IommuUnit } from '../../hw/iommu/unit.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { plainSpec } from '../../hw/pci/test-machine.ts';
import { PciTree } from '../../hw/pci/tree.ts';
import { failNth } from '../../lib/failpoint.ts';
import { VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_UNMAP_FLAG_ALL } from '../../uapi/vfio.ts';
import { refusal } from '../core/test-task.ts';
import { Domain } from '../iommu/domain.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { IommuCore } from '../iommu/iommu.ts';
import { type TestContainer, TestDevice, type TestGroup, TestWorld } from './test-world.ts';
import type { VfioOptions } from './vfio.ts';

const GIB = 2 ** 30;

interface Machine {
  readonly world: TestWorld;
  add(slot: number): { fn: PciFunction; group: IommuGroup & TestGroup; name: string };
  container(version?: 1 | 3): TestContainer;
}

function machine(options: Partial<VfioOptions> = {}): Machine {
  const world = new TestWorld({ allocateDomain: (unit) => new Domain(unit, 'unmanaged'), ...options });
  const unit = new IommuUnit('dmar0');
  const iommu = new IommuCore();
  iommu.units.push(unit);
  const tree = new PciTree({ memory: world.physical, upstreamOf: () => unit });
  const bus = tree.addRoot();
  const groups: TestGroup[] = [];
  return {
    world,
    add(slot) {
      const fn = tree.add(plainSpec(), { bus, devfn: slot << 3 });
      fn.config.write(4, 2, 4);
      const group = iommu.probe(fn)! as IommuGroup & TestGroup;
      const device = new TestDevice(fn.name, group);
      world.core.register(device);
      groups.push(group);
      return { fn, group, name: fn.name };
    },
    container: (version = 3) => world.container(world.task(), groups.splice(0), version),
  };
}

test("Y-1 Y-7 G-14: DMA goes to the program's memory, as far as it is mapped and allowed", () => {
  const made = machine();
  const { fn, group } = made.add(4);
  const container = made.container();
  const { task } = container;
  const address = task.memory.map(0x10000);
  task.memory.write(address + 0x1ffe, Uint8Array.of(1, 2, 3, 4));
  assert.equal(fn.dma.read(0x21ffe, new Uint8Array(4))?.access, 'read', 'nothing is mapped yet');
  container.map(0x20000, address, 0x8000);
  container.map(0x30000, address + 0x8000, 0x8000, VFIO_DMA_MAP_FLAG_READ);
  const bytes = new Uint8Array(4);
  assert.equal(fn.dma.read(0x21ffe, bytes), undefined);
  assert.deepEqual(bytes, Uint8Array.of(1, 2, 3, 4));
  assert.equal(fn.dma.write(0x27ffc, bytes), undefined);
  assert.equal(fn.dma.read(0x30000, bytes), undefined);
  assert.equal(fn.dma.write(0x30000, bytes)?.reason, 'no write permission');
  container.unmap(0x20000, 0x8000);
  assert.equal(fn.dma.read(0x21ffe, bytes)?.access, 'read');
  container.remove(group);
  assert.equal(task.mm.pins, 0);
});

test('Y-16: the translation of a mapping follows its new address', () => {
  const made = machine();
  const { fn } = made.add(4);
  const container = made.container();
  const { memory } = container.task;
  const [old, fresh] = [memory.map(4096), memory.map(4096)];
  memory.write(fresh, Uint8Array.of(9));
  container.map(0, old, 4096);
  const byte = new Uint8Array(1);
  fn.dma.read(0, byte);
  container.unmap(0, 4096, 4);
  memory.unmap(old, 4096);
  container.map(0, fresh, 4096, 4);
  assert.equal(fn.dma.read(0, byte), undefined);
  assert.equal(byte[0], 9);
});

test('Y-18: contiguous memory that is aligned alike gets large leaves, and 4 KiB leaves when these are off', () => {
  for (const [disableHugePages, level] of [
    [false, 1],
    [true, 0],
  ] as const) {
    const made = machine({ disableHugePages });
    const { group } = made.add(4);
    const container = made.container();
    const address = container.task.memory.map(4 << 20, 0x7f00_0000_0000);
    container.map(0x4000_0000, address, 2 << 20);
    assert.equal(group.domain.leafAt(0x40000)?.level, level);
    container.map(0x5000_0000, address, 2 << 20);
    container.map(0x6000_1000, address, 2 << 20);
    assert.equal(group.domain.leafAt(0x60001)?.level, 0, 'addresses that are not aligned alike cannot have them');
  }
  const made = machine();
  const { group } = made.add(4);
  const container = made.container();
  container.map(GIB, container.task.memory.map(GIB, 0x7f00_0000_0000, { bytes: new Uint8Array(0) }), GIB);
  assert.equal(group.domain.leafAt(GIB / 4096)?.level, 2);
});

test('C-33 Y-19: two groups see the same memory through one domain', () => {
  const made = machine();
  const [a, b] = [made.add(4), made.add(5)];
  const container = made.container();
  container.map(0, container.task.memory.map(4096), 4096);
  assert.equal(a.group.domain, b.group.domain);
  a.fn.dma.write(0, Uint8Array.of(7));
  const byte = new Uint8Array(1);
  b.fn.dma.read(0, byte);
  assert.equal(byte[0], 7);
  container.remove(a.group);
  assert.notEqual(a.fn.dma.read(0, byte), undefined);
  assert.equal(b.fn.dma.read(0, byte), undefined);
});

test('C-34 C-54: a device keeps its DMA when the program closes container and group, and loses it with its own file', () => {
  const made = machine();
  const { fn, group, name } = made.add(4);
  const container = made.container();
  const { task } = container;
  container.map(0, task.memory.map(4096), 4096);
  const device = container.open(group, name);
  task.close(container.groups.get(group)!.descriptor);
  task.close(container.descriptor);
  assert.equal(fn.dma.write(0, Uint8Array.of(1)), undefined);
  task.close(device);
  assert.notEqual(fn.dma.write(0, Uint8Array.of(1)), undefined);
  assert.deepEqual([task.mm.pins, task.mm.lockedPages], [0, 0]);
});

test('every failing way out of a MAP over real tables leaves nothing', () => {
  const made = machine();
  const { group } = made.add(4);
  const container = made.container();
  const { task } = container;
  const address = task.memory.map(0x800000, 0x7eff_ffc0_0000);
  for (let step = 1; ; step++) {
    using order = failNth(step);
    const result = refusal(() => container.map(0x10000, address, 0x800000));
    if (order.failed.length === 0) {
      assert.ok(step > 3);
      break;
    }
    assert.equal(result, 'ENOMEM');
    assert.deepEqual([task.mm.pins, task.mm.lockedPages], [0, 0], order.failed[0]);
    for (const page of [0x10, 0x400, 0x80f]) assert.equal(group.domain.physicalOf(page), -1, order.failed[0]);
  }
});

/** What the model remembers of a mapping: where, how long, and which page of the program. */
interface Mapped {
  first: number;
  count: number;
  page: number;
}

for (const version of [1, 3] as const) {
  test(`any order of MAP and UNMAP does to version ${version === 1 ? 1 : 2} what it does to a plain list, and leaves nothing`, () => {
    const step = fc.oneof(
      {
        weight: 3,
        arbitrary: fc.record({
          kind: fc.constant('map' as const),
          first: fc.nat(40),
          count: fc.integer({ min: 1, max: 12 }),
          page: fc.nat(60),
        }),
      },
      {
        weight: 2,
        arbitrary: fc.record({
          kind: fc.constant('unmap' as const),
          first: fc.nat(40),
          count: fc.integer({ min: 1, max: 30 }),
          page: fc.constant(0),
        }),
      },
      {
        weight: 1,
        arbitrary: fc.record({
          kind: fc.constant('all' as const),
          first: fc.constant(0),
          count: fc.constant(0),
          page: fc.constant(0),
        }),
      },
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const made = machine();
        const { group } = made.add(4);
        const container = made.container(version);
        const { task } = container;
        const base = task.memory.map(64 * 4096) / 4096;
        let list: Mapped[] = [];
        for (const { kind, first, count, page } of steps) {
          const last = first + count - 1;
          const within = list.filter((m) => m.first <= last && first <= m.first + m.count - 1);
          if (kind === 'map') {
            const expected = within.length > 0 ? 'EEXIST' : page + count > 64 ? 'EFAULT' : 'ok';
            assert.equal(
              refusal(() => container.map(first * 4096, (base + page) * 4096, count * 4096)),
              expected,
            );
            if (expected === 'ok') list.push({ first, count, page });
          } else if (kind === 'all') {
            const sum = list.reduce((pages, m) => pages + m.count, 0);
            assert.equal(container.unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), BigInt(sum * 4096));
            list = [];
          } else if (version === 3) {
            const cut = within.some((m) => m.first < first || m.first + m.count - 1 > last);
            if (cut)
              assert.equal(
                refusal(() => container.unmap(first * 4096, count * 4096)),
                'EINVAL',
              );
            else {
              const sum = within.reduce((pages, m) => pages + m.count, 0);
              assert.equal(container.unmap(first * 4096, count * 4096), BigInt(sum * 4096));
              list = list.filter((m) => !within.includes(m));
            }
          } else {
            const gone = within.some((m) => m.first < first) ? [] : within;
            const sum = gone.reduce((pages, m) => pages + m.count, 0);
            assert.equal(container.unmap(first * 4096, count * 4096), BigInt(sum * 4096));
            list = list.filter((m) => !gone.includes(m));
          }
          const pages = list.reduce((sum, m) => sum + m.count, 0);
          assert.deepEqual([task.mm.pins, task.mm.lockedPages, container.type1.dmas.size], [pages, pages, list.length]);
        }
        for (let page = 0; page < 60; page++) {
          const m = list.find((other) => other.first <= page && page < other.first + other.count);
          const expected = m === undefined ? -1 : task.mm.physicalOf(base + m.page + (page - m.first));
          assert.equal(group.domain.physicalOf(page), expected, `page ${page}`);
        }
        task.exit();
        assert.deepEqual([task.mm.pins, task.mm.lockedPages, made.world.physical.blocks], [0, 0, 0]);
      }),
      { numRuns: 80 },
    );
  });
}
