/**
 * A virtual machine monitor with a guest that has an IOMMU of its own: the program maps the guest's memory, nests the guest's page table on
 * it, passes on what the guest invalidates, and carries page requests in and answers out. The device, its unit and all tables are the
 * model's; DMA really lands in the guest's memory.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ats, pasid, pri } from '../../hw/pci/extended-capabilities.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal } from '../core/test-task.ts';
import { endpoint, IommuMachine, rootPort } from '../iommu/test-machine.ts';
import { bindDevice, type IommufdDevice } from './device.ts';
import type { FaultQueueFile } from './eventq.ts';
import { TestProgram } from './test-iommu.ts';

const GUEST_PAGES = 64;
/** Guest-physical page of the guest's top table; the ones below follow. */
const TOP = 8;
const PRESENT_WRITABLE_USER = 0x7n;

/** A machine with a scalable unit, a device that does everything, and a program that has bound it. */
class Vmm {
  readonly machine = new IommuMachine({ units: [{ preset: 'nested-sm' }] });
  readonly fn: PciFunction;
  readonly program: TestProgram;
  readonly device: IommufdDevice;
  readonly ioas: number;
  /** Where the guest's memory lies in the program. */
  readonly ram: number;

  constructor() {
    const { machine } = this;
    const port = machine.add(rootPort(), '1c.0');
    const plain = endpoint(true);
    const capabilities = [...plain.capabilities!, ats(), pri(), pasid({ width: 20 })];
    this.fn = machine.add({ ...plain, capabilities }, '0.0', { bus: port.secondary! });
    machine.boot();
    this.program = new TestProgram({ physical: machine.memory });
    const iommuGroup = machine.core.groupOf(this.fn)!;
    this.device = bindDevice(this.program.file, { name: this.fn.name, iommuGroup });
    this.ioas = this.program.ioas();
    this.ram = this.program.task.memory.map(GUEST_PAGES * 4096);
    this.program.map(this.ioas, 0n, this.ram, GUEST_PAGES * 4096);
    for (let level = 0; level < 3; level++) this.store(TOP + level, 0, BigInt(TOP + level + 1));
  }

  /** The guest stores an entry: `index` of the table in guest-physical page `table` leads to `page`; undefined: nothing. */
  store(table: number, index: number, page: bigint | undefined): void {
    const entry = new Uint8Array(8);
    const value = page === undefined ? 0n : (page << 12n) | PRESENT_WRITABLE_USER;
    new DataView(entry.buffer).setBigUint64(0, value, true);
    this.program.task.memory.write(this.ram + table * 4096 + index * 8, entry);
  }

  /** The guest maps IOVA page `iova` (below 512) to its physical page. */
  guestMap(iova: number, page: number | undefined): void {
    this.store(TOP + 3, iova, page === undefined ? undefined : BigInt(page));
  }

  nest(parent: number, given: Partial<uapi.iommu_hwpt_alloc> = {}): number {
    const data = uapi.iommu_hwpt_vtd_s1.write({
      flags: 0n,
      pgtbl_addr: BigInt(TOP) << 12n,
      addr_width: 48,
      __reserved: 0,
    });
    const at = this.program.task.memory.map(4096);
    this.program.task.memory.write(at, data);
    const id = this.program.hwpt(this.device.id, parent, {
      data_type: uapi.IOMMU_HWPT_DATA_VTD_S1,
      data_len: data.length,
      data_uptr: BigInt(at),
      ...given,
    });
    this.program.task.memory.unmap(at, 4096);
    return id;
  }

  parent(flags = 0): number {
    return this.program.hwpt(this.device.id, this.ioas, { flags: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT | flags });
  }

  /** Passes on what the guest invalidates, and returns how it ended and how many entries were done. */
  invalidate(hwpt: number, entries: readonly Partial<uapi.iommu_hwpt_vtd_s1_invalidate>[], type = 0): [string, number] {
    const { size } = uapi.iommu_hwpt_vtd_s1_invalidate;
    const at = this.program.task.memory.map(4096);
    entries.forEach((entry, i) => {
      const full = { addr: 0n, npages: 1n, flags: 0, __reserved: 0, ...entry };
      this.program.task.memory.write(at + i * size, uapi.iommu_hwpt_vtd_s1_invalidate.write(full));
    });
    const bytes = uapi.iommu_hwpt_invalidate.write({
      size: uapi.iommu_hwpt_invalidate.size,
      hwpt_id: hwpt,
      data_uptr: BigInt(at),
      data_type: type,
      entry_len: size,
      entry_num: entries.length,
      __reserved: 0,
    });
    const answer = refusal(() => this.program.task.ioctl(this.program.file, uapi.IOMMU_HWPT_INVALIDATE, bytes));
    this.program.task.memory.unmap(at, 4096);
    return [answer, uapi.iommu_hwpt_invalidate.read(bytes).entry_num];
  }

  /** The device writes a byte; `ok` or why not. */
  dma(iova: number, value: number, pasidNumber = -1): string {
    return this.fn.dma.write(iova * 4096, Uint8Array.of(value), pasidNumber)?.reason ?? 'ok';
  }

  /** First byte of a page of the guest's memory. */
  byte(page: number): number {
    const byte = new Uint8Array(1);
    this.program.task.memory.read(this.ram + page * 4096, byte);
    return byte[0]!;
  }

  end(): void {
    this.device.unbind();
    this.program.task.exit();
    assert.equal(this.program.task.mm.pins, 0);
    assert.equal(this.program.file.context.objects.size, 0);
  }
}

test('F-25: what a guest changed in its table may be used as it was until the program invalidates it', () => {
  const vmm = new Vmm();
  const parent = vmm.parent();
  const nested = vmm.nest(parent);
  vmm.device.attach(nested);
  vmm.guestMap(5, 20);
  assert.equal(vmm.dma(5, 0x11), 'ok');
  assert.equal(vmm.byte(20), 0x11);
  vmm.guestMap(5, 21);
  assert.equal(vmm.dma(5, 0x22), 'ok');
  assert.deepEqual([vmm.byte(20), vmm.byte(21)], [0x22, 0], 'the old entry is still used');
  assert.deepEqual(vmm.invalidate(nested, [{ addr: 5n << 12n }]), ['ok', 1]);
  assert.equal(vmm.dma(5, 0x33), 'ok');
  assert.deepEqual([vmm.byte(20), vmm.byte(21)], [0x22, 0x33]);
  vmm.guestMap(5, undefined);
  assert.deepEqual(vmm.invalidate(nested, [{ npages: 2n ** 64n - 1n }]), ['ok', 1]);
  assert.notEqual(vmm.dma(5, 0x44), 'ok');
  // A guest's entry that leads out of the guest's memory is a fault of the second stage, never another's memory.
  vmm.guestMap(6, GUEST_PAGES + 3);
  assert.notEqual(vmm.dma(6, 0x55), 'ok');
  vmm.end();
});

test('F-26: an invalidation stops at its first bad entry and tells how many were done', () => {
  const vmm = new Vmm();
  const nested = vmm.nest(vmm.parent());
  const good = { addr: 0x1000n };
  assert.deepEqual(vmm.invalidate(nested, [good, good, { addr: 0x1800n }, good, good]), ['EINVAL', 2]);
  assert.deepEqual(vmm.invalidate(nested, [good, { ...good, flags: 2 }]), ['EOPNOTSUPP', 1]);
  assert.deepEqual(vmm.invalidate(nested, [{ ...good, __reserved: 1 }]), ['EOPNOTSUPP', 0]);
  assert.deepEqual(vmm.invalidate(nested, [good, { ...good, npages: 2n ** 64n - 1n }]), ['EINVAL', 1]);
  assert.deepEqual(vmm.invalidate(nested, [good], 7), ['EINVAL', 0]);
  assert.deepEqual(vmm.invalidate(nested, [], 7), ['EINVAL', 0]);
  assert.deepEqual(vmm.invalidate(nested, []), ['ok', 0]);
  assert.deepEqual(vmm.invalidate(vmm.ioas, [good]), ['EINVAL', 0]);
  vmm.end();
});

test('F-33: a page request goes from the device through the program to the guest, and the answer back; then the device goes on', () => {
  const vmm = new Vmm();
  const { program, fn } = vmm;
  const queue = program.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, {});
  const file = program.task.file(queue.out_fault_fd) as FaultQueueFile;
  let wakes = 0;
  file.onReadable = () => wakes++;
  const nested = vmm.nest(vmm.parent(), {
    flags: uapi.IOMMU_HWPT_FAULT_ID_VALID,
    fault_id: queue.out_fault_id,
  });
  vmm.device.attach(nested);
  const responses: string[] = [];
  fn.dma.onPageResponse = ({ group, code }) => responses.push(`${group}: ${code}`);
  const look = fn.dma.translate(7 * 4096, { write: true });
  assert.ok('read' in look && !look.read && !look.write, 'the page is not there');
  const ask = (address: number, last: boolean): unknown =>
    fn.dma.requestPage({ address, read: true, write: true, last, group: 3 });
  ask(7 * 4096, false);
  assert.equal(file.poll() & 1, 0, 'the group is not complete');
  ask(8 * 4096, true);
  assert.deepEqual([file.poll() & 1, wakes], [1, 1]);
  const read = new Uint8Array(400);
  assert.equal(file.read(program.task, read, 0), 80);
  const [first, second] = [0, 40].map((at) => uapi.iommu_hwpt_pgfault.read(read.subarray(at)));
  assert.deepEqual([first!.addr, first!.flags, second!.addr, second!.flags], [0x7000n, 0, 0x8000n, 2]);
  assert.deepEqual([first!.dev_id, first!.grpid, first!.perm, first!.cookie], [vmm.device.id, 3, 3, second!.cookie]);
  // The guest's driver maps the pages, and its answer goes back.
  vmm.guestMap(7, 30);
  vmm.guestMap(8, 31);
  const answer = uapi.iommu_hwpt_page_response.write({ cookie: first!.cookie, code: 0 });
  assert.equal(file.write(program.task, answer, 0), 8);
  assert.deepEqual(responses, ['3: success']);
  const again = fn.dma.translate(7 * 4096, { write: true });
  assert.ok('read' in again && again.write);
  assert.equal(vmm.dma(7, 0x77), 'ok');
  assert.equal(vmm.byte(30), 0x77);
  // A group that nobody answers is answered when the table goes.
  ask(9 * 4096, true);
  vmm.device.detach();
  assert.deepEqual(responses, ['3: success', '3: invalid']);
  assert.equal(file.poll() & 1, 0);
  vmm.end();
});

test('a device that cannot ask for pages gets no table with a fault queue, and requests that nobody takes are invalid', () => {
  const vmm = new Vmm();
  const responses: string[] = [];
  vmm.fn.dma.onPageResponse = ({ code }) => responses.push(code);
  vmm.device.attach(vmm.nest(vmm.parent()));
  vmm.fn.dma.requestPage({ address: 0x7000, read: true, write: false, last: true, group: 1 });
  assert.deepEqual(responses, ['invalid']);
  vmm.end();
});

test('a guest of VT-d has no PASID table of its own: requests with a PASID that is not attached reach no fault queue', () => {
  const vmm = new Vmm();
  const queue = vmm.program.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, {});
  const file = vmm.program.task.file(queue.out_fault_fd) as FaultQueueFile;
  const responses: string[] = [];
  vmm.fn.dma.onPageResponse = ({ code, pasid: of }) => responses.push(`${of}: ${code}`);
  vmm.device.attach(vmm.nest(vmm.parent(), { flags: uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id: queue.out_fault_id }));
  const request = { address: 0x7000, read: true, write: false, last: true, group: 1 };
  vmm.fn.dma.requestPage({ ...request, pasid: 9 });
  assert.deepEqual([responses, file.poll() & 1], [['9: invalid'], 0]);
  vmm.fn.dma.requestPage(request);
  assert.deepEqual([responses, file.poll() & 1], [['9: invalid'], 1]);
  vmm.end();
});

test('F-32: what a device asked for before it lost its table is answered, and does not reach the next one, however late the host is', () => {
  const vmm = new Vmm();
  const queue = vmm.program.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, uapi.iommu_fault_alloc, {});
  const file = vmm.program.task.file(queue.out_fault_fd) as FaultQueueFile;
  const responses: string[] = [];
  vmm.fn.dma.onPageResponse = ({ code, group }) => responses.push(`${group}: ${code}`);
  const parent = vmm.parent();
  const how = { flags: uapi.IOMMU_HWPT_FAULT_ID_VALID, fault_id: queue.out_fault_id };
  const [first, second] = [vmm.nest(parent, how), vmm.nest(parent, how)];
  vmm.device.attach(first);
  // The event of the unit comes later than all that follows.
  vmm.machine.units[0]!.pageRequestEvent = () => {};
  const ask = (group: number): unknown =>
    vmm.fn.dma.requestPage({ address: 0x7000, read: true, write: false, last: true, group });
  ask(1);
  vmm.device.replace(second);
  assert.deepEqual([responses, file.poll() & 1], [['1: invalid'], 0]);
  ask(2);
  vmm.device.detach();
  assert.deepEqual([responses, file.poll() & 1], [['1: invalid', '2: invalid'], 0]);
  vmm.end();
});

test('PASIDs of a real device: each its own table, replaced without a fault, gone with the device', () => {
  const vmm = new Vmm();
  const { program, device } = vmm;
  const flags = uapi.IOMMU_HWPT_ALLOC_PASID;
  const own = program.hwpt(device.id, vmm.ioas, { flags });
  const other = program.ioas();
  program.map(other, 0n, vmm.ram + 16 * 4096, 4096);
  const second = program.hwpt(device.id, other, { flags });
  device.attach(own);
  assert.equal(device.attachPasid(100, second), second);
  assert.deepEqual([vmm.dma(0, 1), vmm.dma(0, 2, 100)], ['ok', 'ok']);
  assert.deepEqual([vmm.byte(0), vmm.byte(16)], [1, 2]);
  device.attachPasid(100, own);
  assert.equal(vmm.dma(3, 3, 100), 'ok');
  assert.equal(vmm.byte(3), 3);
  assert.equal(
    refusal(() => device.attachPasid(2 ** 20, own)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => device.attachPasid(5, vmm.ioas)),
    'EINVAL',
  );
  device.detachPasid(100);
  assert.notEqual(vmm.dma(3, 4, 100), 'ok');
  const info = program.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: device.id });
  assert.equal(info.out_max_pasid_log2, 20);
  vmm.end();
});

test('dirty bits of a real unit: what the device wrote shows in the program’s bitmap', () => {
  const vmm = new Vmm();
  const { program, device } = vmm;
  const info = program.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: device.id });
  assert.equal(info.out_capabilities & 1n, 1n);
  // Small leaves, so that each page has a bit of its own.
  const small = {
    option_id: uapi.IOMMU_OPTION_HUGE_PAGES,
    op: uapi.IOMMU_OPTION_OP_SET,
    object_id: vmm.ioas,
    val64: 0n,
  };
  program.call(uapi.IOMMU_OPTION, uapi.iommu_option, small);
  const hwpt_id = program.hwpt(device.id, vmm.ioas, { flags: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING });
  device.attach(hwpt_id);
  vmm.dma(1, 9);
  const enable = uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
  program.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.iommu_hwpt_set_dirty_tracking, { hwpt_id, flags: enable });
  vmm.dma(3, 9);
  vmm.dma(60, 9);
  const bitmap = program.task.memory.map(4096);
  const bits = (): string => {
    program.task.memory.write(bitmap, new Uint8Array(8));
    program.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.iommu_hwpt_get_dirty_bitmap, {
      hwpt_id,
      iova: 0n,
      length: BigInt(GUEST_PAGES) * 4096n,
      page_size: 4096n,
      data: BigInt(bitmap),
    });
    const bytes = new Uint8Array(8);
    program.task.memory.read(bitmap, bytes);
    return Buffer.from(bytes).toString('hex');
  };
  assert.equal(bits(), '0800000000000010');
  assert.equal(bits(), '0000000000000000');
  vmm.dma(3, 9);
  assert.equal(bits(), '0800000000000000');
  vmm.end();
});
