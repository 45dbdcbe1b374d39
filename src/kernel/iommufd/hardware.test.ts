/** iommufd over real page tables: what a function's DMA meets, in a program's memory and in a file. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IommuUnit } from '../../hw/iommu/unit.ts';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { plainSpec } from '../../hw/pci/test-machine.ts';
import { PciTree } from '../../hw/pci/tree.ts';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal, TestMemoryFile } from '../core/test-task.ts';
import type { IommuGroup } from '../iommu/group.ts';
import { IommuCore } from '../iommu/iommu.ts';
import { bindDevice, type IommufdDevice } from './device.ts';
import { TestProgram } from './test-iommu.ts';

interface Machine {
  readonly p: TestProgram;
  add(slot: number): { fn: PciFunction; group: IommuGroup; bind(): IommufdDevice };
}

function machine(): Machine {
  const physical = new PhysicalMemory();
  const unit = new IommuUnit('dmar0');
  const iommu = new IommuCore();
  iommu.units.push(unit);
  const tree = new PciTree({ memory: physical, upstreamOf: () => unit });
  const bus = tree.addRoot();
  const p = new TestProgram({ physical });
  return {
    p,
    add(slot) {
      const fn = tree.add(plainSpec(), { bus, devfn: slot << 3 });
      fn.config.write(4, 2, 4);
      const group = iommu.probe(fn)!;
      return { fn, group, bind: () => bindDevice(p.file, { name: fn.name, iommuGroup: group }) };
    },
  };
}

test('DMA reaches what is mapped while the device is attached, and nothing before and after', () => {
  const { p, add } = machine();
  const { fn, group, bind } = add(4);
  const device = bind();
  const ioas = p.ioas();
  const memory = p.task.memory.map(0x4000);
  p.map(ioas, 0x10_0000n, memory, 0x4000);
  const bytes = Uint8Array.of(1, 2, 3, 4);
  assert.equal(fn.dma.write(0x10_0ffe, bytes)?.access, 'write', 'bound, not attached');
  device.attach(ioas);
  assert.equal(fn.dma.write(0x10_0ffe, bytes), undefined);
  const seen = new Uint8Array(4);
  p.task.memory.read(memory + 0xffe, seen);
  assert.deepEqual(seen, bytes);
  p.unmap(ioas, 0x10_0000n, 0x4000n);
  assert.equal(fn.dma.read(0x10_0ffe, seen)?.access, 'read', 'the IOTLB has forgotten it');
  p.map(ioas, 0x10_0000n, memory, 0x4000, uapi.IOMMU_IOAS_MAP_READABLE);
  assert.equal(fn.dma.read(0x10_0ffe, seen), undefined);
  assert.equal(fn.dma.write(0x10_0ffe, seen)?.access, 'write');
  device.detach();
  assert.equal(fn.dma.read(0x10_0ffe, seen)?.access, 'read');
  device.unbind();
  assert.equal(group.owner, undefined);
  assert.equal(group.domain, group.defaultDomain);
  p.end();
});

test('DMA into a mapped file lands in the file, also when the program has closed it', () => {
  const { p, add } = machine();
  const { fn, bind } = add(4);
  const device = bind();
  const ioas = p.ioas();
  device.attach(ioas);
  const { file, descriptor } = p.task.open(new TestMemoryFile(3 * 4096));
  p.mapFile(ioas, 0x8000n, descriptor, 0x1000n, 0x2000n);
  p.task.close(descriptor);
  assert.equal(fn.dma.write(0x8ffe, Uint8Array.of(7, 8, 9, 10)), undefined);
  assert.deepEqual([...file.bytes.subarray(0x1ffe, 0x2002)], [7, 8, 9, 10]);
  assert.equal(
    refusal(() => p.map(ioas, 0x9000n, p.task.memory.map(4096), 4096)),
    'EEXIST',
  );
  device.unbind();
  p.end();
});

test('F-23 C-42: a device that does DMA at any moment of a replacement never misses a page that both tables have', () => {
  const { p, add } = machine();
  const { fn, group, bind } = add(4);
  const device = bind();
  const [a, b] = [p.ioas(), p.ioas()];
  const memory = p.task.memory.map(0x10000);
  p.map(a, 0x10_0000n, memory, 0x10000);
  p.copy(b, 0x10_0000n, a, 0x10_0000n, 0x10000n);
  device.attach(a);
  let transfers = 0;
  const byte = new Uint8Array(1);
  const transfer = (): void => {
    for (let page = 0; page < 16; page++) assert.equal(fn.dma.read(0x10_0000 + page * 4096, byte), undefined);
    transfers++;
  };
  // The moments at which the kernel touches the hardware.
  const replace = group.replace.bind(group);
  group.replace = (domain) => {
    transfer();
    replace(domain);
    transfer();
  };
  for (const ioas of [b, a, b]) {
    device.replace(ioas);
    transfer();
  }
  assert.equal(transfers, 9);
  p.unmap(a, 0n, 2n ** 64n - 1n);
  transfer();
  device.unbind();
  p.end();
});

test('large maps have large leaves, unless they are switched off', () => {
  const { p, add } = machine();
  const { group, bind } = add(4);
  const device = bind();
  const ioas = p.ioas();
  device.attach(ioas);
  const memory = p.task.memory.map(2 ** 30, 2 ** 30, { bytes: new Uint8Array(4096) });
  p.map(ioas, 0x4000_0000n, memory, 2 ** 30);
  assert.equal(group.domain.leafAt(0x4_0000)?.level, 2);
  p.map(ioas, 0x8020_0000n, memory + 0x20_0000, 0x40_0000);
  assert.equal(group.domain.leafAt(0x8_0200)?.level, 1);
  assert.equal(p.unmap(ioas, 0n, 2n ** 64n - 1n), 2n ** 30n + 0x40_0000n);
  p.call(uapi.IOMMU_OPTION, uapi.iommu_option, { option_id: 1, object_id: ioas, val64: 0n });
  p.map(ioas, 0x8020_0000n, memory + 0x20_0000, 0x40_0000);
  assert.equal(group.domain.leafAt(0x8_0200)?.level, 0);
  device.unbind();
  p.end();
});

test("the unit's registers are what GET_HW_INFO tells, and coherency is enforced", () => {
  const { p, add } = machine();
  const { group, bind } = add(4);
  const device = bind();
  const at = p.task.memory.map(4096);
  const info = p.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, {
    dev_id: device.id,
    data_len: 24,
    data_uptr: BigInt(at),
  });
  assert.deepEqual([info.out_data_type, info.data_len, info.out_capabilities], [1, 24, 8n]);
  const data = new Uint8Array(24);
  p.task.memory.read(at, data);
  assert.equal(Buffer.from(data).toString('hex'), '010000000000000006062f228c00d280ce0ff00000000000');
  assert.equal(
    refusal(() =>
      p.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: device.id, flags: 1, out_data_type: 2 }),
    ),
    'EOPNOTSUPP',
  );
  const ioas = p.ioas();
  device.attach(ioas);
  assert(group.domain.enforcesCoherency);
  assert.equal(p.ranges(ioas).text, '0-fedfffff fef00000-ffffffffffff');
  device.unbind();
  p.end();
});

test('two functions of two groups share an automatic table of one address space', () => {
  const { p, add } = machine();
  const [a, b] = [add(4), add(5)];
  assert.notEqual(a.group, b.group);
  const [one, two] = [a.bind(), b.bind()];
  const ioas = p.ioas();
  p.map(ioas, 0x1000n, p.task.memory.map(4096), 4096);
  assert.equal(one.attach(ioas), two.attach(ioas));
  assert.equal(a.group.domain, b.group.domain);
  const byte = new Uint8Array(1);
  one.unbind();
  assert.equal(b.fn.dma.read(0x1000, byte), undefined);
  assert.notEqual(a.fn.dma.read(0x1000, byte), undefined, 'the default domain has nothing there');
  two.unbind();
  p.end();
});
