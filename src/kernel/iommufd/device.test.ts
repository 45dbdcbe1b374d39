import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal } from '../core/test-task.ts';
import { HwptPaging } from './hw-pagetable.ts';
import { TestGroup, TestIommu, TestProgram } from './test-iommu.ts';

const PASID = { flags: uapi.IOMMU_HWPT_ALLOC_PASID };

test('a bound device is one object, held by whoever bound it, and its group has one owner', () => {
  const p = new TestProgram();
  const group = new TestGroup();
  const device = p.bind(new TestIommu({ group }));
  assert.equal(device.id, 1);
  assert.equal(
    refusal(() => p.destroy(device.id)),
    'EBUSY',
  );
  assert(p.file.context.hasGroup(group as never));
  const other = new TestProgram({ core: p.core });
  assert.equal(
    refusal(() => other.bind(new TestIommu({ group }))),
    'EPERM',
  );
  const second = p.bind(new TestIommu({ group }));
  device.unbind();
  assert.equal(
    refusal(() => other.bind(new TestIommu({ group }))),
    'EPERM',
  );
  second.unbind();
  assert(!p.file.context.hasGroup(group as never));
  other.bind(new TestIommu({ group })).unbind();
  assert.equal(
    refusal(() => p.bind(new TestIommu({ isCoherent: false }))),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.bind(new TestIommu({ hasIsolatedMsi: false }))),
    'EPERM',
  );
  other.end();
  p.end();
});

test('F-5: a page table that is used cannot be destroyed, nor its address space', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  const hwpt = p.hwpt(device.id, ioas);
  assert.equal(
    refusal(() => p.destroy(ioas)),
    'EBUSY',
  );
  assert.equal(device.attach(hwpt), hwpt);
  assert.equal(
    refusal(() => p.destroy(hwpt)),
    'EBUSY',
  );
  device.detach();
  p.destroy(hwpt);
  p.destroy(ioas);
  device.unbind();
  p.end();
});

test('an automatic page table is made at attach, shared by devices that it fits, and goes with the last', () => {
  const p = new TestProgram();
  const ioas = p.ioas();
  const [a, b] = [p.bind(new TestIommu()), p.bind(new TestIommu())];
  const hwpt = a.attach(ioas);
  assert.equal(hwpt, 4);
  assert.equal(
    refusal(() => a.attach(ioas)),
    'EBUSY',
  );
  assert.equal(a.replace(ioas), hwpt);
  assert.equal(b.attach(ioas), hwpt);
  a.detach();
  a.detach();
  assert(p.file.context.get(hwpt) instanceof HwptPaging);
  b.detach();
  assert.equal(
    refusal(() => p.file.context.get(hwpt)),
    'ENOENT',
  );
  for (const { iommu } of [a, b]) assert((iommu as TestIommu).domains.every(({ isFreed }) => isFreed));
  a.unbind();
  b.unbind();
  p.end();
});

test('attach takes page tables and address spaces only', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  assert.equal(
    refusal(() => device.attach(0)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => device.attach(99)),
    'ENOENT',
  );
  assert.equal(
    refusal(() => device.attach(device.id)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => device.replace(p.ioas())),
    'EINVAL',
    'not attached',
  );
  device.unbind();
  p.end();
});

test('F-19: a device whose reserved range is mapped or allowed cannot be attached, and nothing is changed', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  p.allow(ioas, [[0xfee0_0000n, 0xfee0_0fffn]]);
  assert.equal(
    refusal(() => device.attach(ioas)),
    'EADDRINUSE',
  );
  p.allow(ioas, []);
  p.map(ioas, 0xfee0_0000n, p.task.memory.map(4096), 4096);
  assert.equal(
    refusal(() => device.attach(ioas)),
    'EADDRINUSE',
  );
  assert.equal((device.iommu as TestIommu).domain, undefined);
  assert.equal(p.ranges(ioas).count, 1);
  // Beyond the table's width, found after the device was attached.
  p.unmap(ioas, 0n, 2n ** 64n - 1n);
  p.map(ioas, 2n ** 60n, p.task.memory.map(4096), 4096);
  assert.equal(
    refusal(() => device.attach(ioas)),
    'EADDRINUSE',
  );
  assert.equal((device.iommu as TestIommu).domain, undefined);
  assert.equal(p.file.context.objects.size, 2);
  device.unbind();
  p.end();
});

test('F-21: devices of one group share a page table', () => {
  const p = new TestProgram();
  const group = new TestGroup();
  const [a, b] = [p.bind(new TestIommu({ group })), p.bind(new TestIommu({ group }))];
  const ioas = p.ioas();
  const [one, two] = [p.hwpt(a.id, ioas), p.hwpt(a.id, ioas)];
  a.attach(one);
  assert.equal(
    refusal(() => b.attach(two)),
    'EINVAL',
  );
  b.attach(one);
  a.replace(two);
  const table = p.file.context.get(two) as HwptPaging;
  assert.equal(group.domain, table.domain, 'one replacement changes both');
  assert.equal(table.users, 2);
  p.destroy(one);
  a.detach();
  assert.equal(group.domain, table.domain);
  b.detach();
  assert.equal(group.domain, undefined);
  a.unbind();
  b.unbind();
  p.end();
});

test('F-22: a nested table cannot stand on an automatic one', () => {
  const p = new TestProgram();
  const iommu = new TestIommu();
  Object.assign(iommu, { allocateNested: () => ({ free() {} }) });
  const device = p.bind(iommu);
  const ioas = p.ioas();
  const auto = device.attach(ioas);
  const plain = p.hwpt(device.id, ioas);
  const data = { data_type: uapi.IOMMU_HWPT_DATA_VTD_S1, data_len: 24, data_uptr: 0n };
  const hwpt = (pt: number, given: Partial<uapi.iommu_hwpt_alloc> = {}): string =>
    refusal(() => p.hwpt(device.id, pt, given));
  assert.equal(hwpt(auto, data), 'EINVAL');
  assert.equal(hwpt(plain, data), 'EINVAL', 'not made as a parent');
  assert.equal(hwpt(plain), 'EOPNOTSUPP');
  assert.equal(hwpt(ioas, data), 'EOPNOTSUPP');
  assert.equal(hwpt(ioas, { data_len: 8 }), 'EINVAL');
  assert.equal(hwpt(ioas, { data_type: 1 }), 'EINVAL');
  assert.equal(hwpt(99), 'EINVAL');
  assert.equal(hwpt(device.id), 'EINVAL');
  assert.equal(hwpt(ioas, { flags: 16 }), 'EOPNOTSUPP');
  assert.equal(hwpt(ioas, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING }), 'EOPNOTSUPP');
  assert.equal(hwpt(ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT }), 'EOPNOTSUPP');
  assert.equal(hwpt(ioas, { flags: uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id: 0 }), 'ENOENT');
  assert.equal(
    refusal(() => p.hwpt(99, ioas)),
    'ENOENT',
  );
  device.unbind();
  p.end();
});

test('F-23 C-42: while page tables are replaced, what both translate alike is never missing', () => {
  const p = new TestProgram();
  const iommu = new TestIommu();
  const device = p.bind(iommu);
  const [a, b] = [p.ioas(), p.ioas()];
  const memory = p.task.memory.map(16 * 4096);
  p.map(a, 0x10_0000n, memory, 16 * 4096);
  p.copy(b, 0x10_0000n, a, 0x10_0000n, 16n * 4096n);
  device.attach(a);
  const before = iommu.domain!.physicalOf(0x105);
  // The device does DMA at every change of the attachment.
  const seen: number[] = [];
  const replace = iommu.replace.bind(iommu);
  iommu.replace = (domain) => {
    seen.push(iommu.domain!.physicalOf(0x105));
    replace(domain);
    seen.push(iommu.domain!.physicalOf(0x105));
  };
  device.replace(b);
  device.replace(a);
  assert.deepEqual(seen, [before, before, before, before]);
  assert.equal(p.task.mm.pins, 16, 'pinned once all the time');
  device.unbind();
  p.end();
});

test('a replacement that fails leaves everything as it was', () => {
  const p = new TestProgram();
  const iommu = new TestIommu();
  const device = p.bind(iommu);
  const [a, b] = [p.ioas(), p.ioas()];
  const hwpt = device.attach(a);
  p.map(b, 0x1000n, 0xdead_0000, 4096);
  assert.equal(
    refusal(() => device.replace(b)),
    'EFAULT',
  );
  p.unmap(b, 0x1000n, 0x1000n);
  p.map(b, 0xfee0_0000n, p.task.memory.map(4096), 4096);
  assert.equal(
    refusal(() => device.replace(b)),
    'EADDRINUSE',
  );
  assert.equal(p.ranges(b).count, 1);
  p.unmap(b, 0xfee0_0000n, 0x1000n);
  iommu.replace = () => assert.fail('not reached');
  const [x, y] = [p.hwpt(device.id, b, PASID), p.hwpt(device.id, b)];
  assert.equal(
    refusal(() => device.replace(99)),
    'ENOENT',
  );
  p.destroy(x);
  p.destroy(y);
  assert.equal(iommu.domain, (p.file.context.get(hwpt) as HwptPaging).domain);
  assert.equal(p.file.context.objects.size, 4);
  device.unbind();
  p.end();
});

test('a device without PASIDs takes any of them, when its own table and theirs are made for it', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  device.attach(ioas);
  assert.equal(
    refusal(() => device.attachPasid(1, ioas)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => device.attachPasid(0, ioas)),
    'EBUSY',
  );
  device.detachPasid(1);
  const hwpt = p.hwpt(device.id, ioas, PASID);
  assert.equal(
    refusal(() => device.attachPasid(1, hwpt)),
    'EINVAL',
    'its own table is not',
  );
  device.replace(hwpt);
  for (const pasid of [1, 1, 2 ** 20, 2 ** 32 - 1]) assert.equal(device.attachPasid(pasid, hwpt), hwpt);
  assert.equal(
    refusal(() => device.replace(ioas)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => p.destroy(hwpt)),
    'EBUSY',
  );
  for (const pasid of [1, 1, 5]) device.detachPasid(pasid);
  assert.equal(
    refusal(() => device.replace(ioas)),
    'EINVAL',
  );
  device.detachPasid(2 ** 20);
  device.detachPasid(2 ** 32 - 1);
  device.replace(ioas);
  device.unbind();
  p.end();
});

test('a device with PASIDs takes those it has', () => {
  const p = new TestProgram();
  const iommu = new TestIommu({ maxPasids: 16 });
  const device = p.bind(iommu);
  const ioas = p.ioas();
  const [one, two] = [p.hwpt(device.id, ioas, PASID), p.hwpt(device.id, ioas, PASID)];
  device.attachPasid(15, one);
  assert.equal(
    refusal(() => device.attachPasid(16, one)),
    'EINVAL',
  );
  device.attachPasid(15, two);
  assert.equal(iommu.pasids.get(15), (p.file.context.get(two) as HwptPaging).domain);
  p.destroy(one);
  device.unbind();
  assert.equal(iommu.pasids.size, 0);
  p.end();
});

test('closing the iommufd first leaves the device usable until it is unbound', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu());
  const ioas = p.ioas();
  p.map(ioas, 0x1000n, p.task.memory.map(4096), 4096);
  device.attach(ioas);
  p.task.close(p.descriptor);
  assert.equal((device.iommu as TestIommu).domain!.pages.size, 1);
  device.detach();
  device.attach(ioas);
  device.unbind();
  p.end();
});

test('coherency is enforced from the start where the IOMMU can', () => {
  const p = new TestProgram();
  const can = p.bind(new TestIommu({ canEnforceCoherency: true }));
  const cannot = p.bind(new TestIommu());
  const ioas = p.ioas();
  can.attach(ioas);
  assert((can.iommu as TestIommu).domain!.enforces);
  const hwpt = p.hwpt(cannot.id, ioas);
  assert(!(p.file.context.get(hwpt) as HwptPaging).enforcesCoherency);
  can.unbind();
  cannot.unbind();
  p.end();
});

test('hardware information is cut or filled with zeros to what the program has room for', () => {
  const p = new TestProgram();
  const device = p.bind(new TestIommu({ maxPasids: 1 << 20 }));
  const at = p.task.memory.map(4096);
  const info = (given: Partial<uapi.iommu_hw_info>): uapi.iommu_hw_info => {
    p.task.memory.write(at, new Uint8Array(16).fill(0xa5));
    return p.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: device.id, data_uptr: BigInt(at), ...given });
  };
  const bytes = (): string => {
    const data = new Uint8Array(16);
    p.task.memory.read(at, data);
    return Buffer.from(data).toString('hex');
  };
  const { data_len, out_data_type, out_max_pasid_log2, out_capabilities } = info({ data_len: 4 });
  assert.deepEqual([data_len, out_data_type, out_max_pasid_log2, out_capabilities], [8, 77, 20, 8n]);
  assert.equal(bytes(), '01020304a5a5a5a5a5a5a5a5a5a5a5a5');
  info({ data_len: 12 });
  assert.equal(bytes(), '010203040506070800000000a5a5a5a5');
  assert.equal(
    refusal(() => info({ data_len: 5000 })),
    'EFAULT',
  );
  assert.equal(
    refusal(() => info({ flags: 2 })),
    'EOPNOTSUPP',
  );
  assert.equal(
    refusal(() => info({ dev_id: 99 })),
    'ENOENT',
  );
  device.unbind();
  p.end();
});
