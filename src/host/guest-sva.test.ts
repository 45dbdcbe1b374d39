/**
 * Shared virtual memory of a guest, from end to end: the guest's process submits to a device by ENQCMD, the device follows the process's
 * pointers by PASID, pages come in as they are asked for, and go. A whole machine, a VMM by its ioctls, a guest that is a few
 * functions: what it writes into its tables, its driver's answers. Each arrow leaves a line where it happens.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Atc, PENDING } from '../hw/pci/atc.ts';
import { pciExpress } from '../hw/pci/capabilities.ts';
import type { DeviceModel } from '../hw/pci/device-model.ts';
import { ats, pasid, pri } from '../hw/pci/extended-capabilities.ts';
import { IoasidSet, Ioasids } from '../kernel/iommu/ioasid.ts';
import { initVirtualCommands, VirtualCommandRegisters, VmPasids } from '../kernel/iommu/ioasid-virtual-command.ts';
import type { FaultQueueFile } from '../kernel/iommufd/eventq.ts';
import { guestMessage } from '../kernel/kvm/irq-routing.ts';
import type { Vm } from '../kernel/kvm/vm.ts';
import type { Struct } from '../lib/struct.ts';
import { subscribe } from '../lib/tracepoint.ts';
import * as iommufd from '../uapi/iommufd.ts';
import * as kvm from '../uapi/kvm.ts';
import * as reg from '../uapi/pci-regs.ts';
import * as vfio from '../uapi/vfio.ts';
import { TestHost } from './test-host.ts';

const AT = '0000:01:00.0';
const GUEST_PAGES = 64;
/** Guest-physical pages of the tables of the guest's process, from its top. */
const TOP = 8;
/** The process's page that the device is to write, and the page of the guest's memory that comes there. */
const VA_PAGE = 7;
const DATA_PAGE = 30;
/** The guest's vector for its IOMMU's page requests. */
const REQUEST_VECTOR = 0x71;

const accelerator: DeviceModel = {
  name: 'accelerator',
  description: 'An endpoint with ATS, page requests and PASIDs',
  options: {},
  create: () => ({
    vendor: 0x1234,
    device: 0x0dad,
    class24: 0x088000,
    capabilities: [pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }), ats(), pri(), pasid({ width: 20 })],
  }),
};

// biome-ignore lint/suspicious/noExplicitAny: any structure of an ioctl.
type AnyStruct = Struct<any>;

class World {
  readonly log: string[] = [];
  readonly host = new TestHost(
    [
      { at: '00:00.0', model: 'host-bridge' },
      { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
      { at: '01:00.0', model: 'accelerator', driver: 'vfio-pci' },
    ],
    { kvm: true },
    [{ name: 'dmar0', preset: 'nested-sm' }],
    [accelerator],
  );
  readonly task = this.host.task();
  readonly vm: Vm;
  readonly iommufd: number;
  readonly cdev: number;
  readonly deviceId: number;
  readonly parent: number;
  /** Where the guest's memory lies in the VMM. */
  readonly ram = this.task.memory.map(GUEST_PAGES * 4096);

  constructor() {
    const { file } = this.host.open(this.task, '/dev/kvm');
    const vmFd = this.task.ioctl(file, kvm.KVM_CREATE_VM, 0n);
    this.vm = (this.task.file(vmFd) as unknown as { vm: Vm }).vm;
    this.task.ioctl(this.task.file(vmFd), kvm.KVM_CREATE_IRQCHIP, 0n);
    this.iommufd = this.host.open(this.task, '/dev/iommu').descriptor;
    this.cdev = this.host.open(this.task, '/dev/vfio/devices/vfio0').descriptor;
    const bind = { argsz: 16, flags: 0, iommufd: this.iommufd, out_devid: 0, token_uuid_ptr: 0n };
    this.deviceId = this.call(this.cdev, vfio.VFIO_DEVICE_BIND_IOMMUFD, vfio.vfio_device_bind_iommufd, bind)[
      'out_devid'
    ]!;
    const ioas = this.call(this.iommufd, iommufd.IOMMU_IOAS_ALLOC, iommufd.iommu_ioas_alloc, {})['out_ioas_id']!;
    this.call(this.iommufd, iommufd.IOMMU_IOAS_MAP, iommufd.iommu_ioas_map, {
      flags: iommufd.IOMMU_IOAS_MAP_FIXED_IOVA | iommufd.IOMMU_IOAS_MAP_READABLE | iommufd.IOMMU_IOAS_MAP_WRITEABLE,
      ioas_id: ioas,
      user_va: BigInt(this.ram),
      length: BigInt(GUEST_PAGES * 4096),
      iova: 0n,
    });
    this.parent = this.hwpt(ioas, { flags: iommufd.IOMMU_HWPT_ALLOC_NEST_PARENT | iommufd.IOMMU_HWPT_ALLOC_PASID });
    this.attach(this.parent);
    const fn = this.host.fn(AT);
    fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) | reg.PCI_COMMAND_MASTER);
    for (let level = 0; level < 3; level++) this.store(TOP + level, 0, TOP + level + 1);
  }

  /** An ioctl with a structure; members that are not given are 0, `size` is its own. Returns what came back. */
  call(fd: number, request: number, table: AnyStruct, given: Record<string, unknown>): Record<string, number> {
    const zero = table.read(new Uint8Array(table.size)) as Record<string, unknown>;
    const size = 'size' in zero ? { size: table.size } : {};
    const bytes = table.write({ ...zero, ...size, ...given } as never);
    this.task.ioctl(this.task.file(fd), request, bytes);
    return table.read(bytes) as Record<string, number>;
  }

  hwpt(pt: number, given: Partial<iommufd.iommu_hwpt_alloc>): number {
    const all = { dev_id: this.deviceId, pt_id: pt, ...given };
    return this.call(this.iommufd, iommufd.IOMMU_HWPT_ALLOC, iommufd.iommu_hwpt_alloc, all)['out_hwpt_id']!;
  }

  attach(pt: number, number?: number): void {
    const flags = number === undefined ? 0 : vfio.VFIO_DEVICE_ATTACH_PASID;
    const all = { argsz: 16, flags, pt_id: pt, pasid: number ?? 0 };
    this.call(this.cdev, vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, vfio.vfio_device_attach_iommufd_pt, all);
  }

  /** The guest writes an entry of its tables: present, writable, user; `page` undefined: nothing. */
  store(table: number, index: number, page: number | undefined): void {
    const entry = new Uint8Array(8);
    new DataView(entry.buffer).setBigUint64(0, page === undefined ? 0n : (BigInt(page) << 12n) | 7n, true);
    this.task.memory.write(this.ram + table * 4096 + index * 8, entry);
  }

  byte(page: number): number {
    const byte = new Uint8Array(1);
    this.task.memory.read(this.ram + page * 4096, byte);
    return byte[0]!;
  }
}

test('K-60: a guest process’s memory by PASID: bind, fault, page request, answer, retry, unmap, unbind, each arrow in order', () => {
  const w = new World();
  const { log, task, vm } = w;
  const faults: string[] = [];
  const stop = subscribe('iommu:io_page_fault', ({ name, pasid: number }) => faults.push(`${name} of PASID ${number}`));

  // The device: a shared work queue. A descriptor names the PASID and where to write; without the page it waits and tries again.
  const fn = w.host.fn(AT);
  const atc = new Atc(fn.dma, { asksForPages: true });
  const { dma } = fn;
  const translate = dma.translate.bind(dma);
  dma.translate = (...request) => {
    const answer = translate(...request);
    if ('read' in answer && !answer.read && !answer.write) log.push('unit: first-stage miss');
    return answer;
  };
  const requestPage = dma.requestPage.bind(dma);
  dma.requestPage = (request) => {
    log.push('device: PRI');
    return requestPage(request);
  };
  const write = (number: number, address: bigint): string => {
    log.push('device: DMA with PASID');
    const result = atc.write(address, Uint8Array.of(0x5a), number);
    if (result === PENDING) return 'waits';
    return result === undefined ? 'ok' : result.reason;
  };
  let job: { number: number; address: bigint } | undefined;
  const portal = {
    enqueue: (descriptor: Uint8Array): boolean => {
      const view = new DataView(descriptor.buffer);
      job = { number: view.getUint32(0, true) & 0xfffff, address: view.getBigUint64(8, true) };
      log.push('device: descriptor with the host’s PASID');
      return true;
    },
  };
  atc.onAnswer = (_page, number, code) => {
    log.push(`device: the answer is ${code}`);
    assert.equal(number, job!.number);
    assert.equal(atc.write(job!.address, Uint8Array.of(0x5a), job!.number), undefined);
    log.push('device: retries, OK');
  };

  // The guest allocates a PASID by virtual command; its numbers are its own, so that they differ from the host's.
  const hostIds = new Ioasids();
  hostIds.alloc(null, 1, 40, null);
  const pasids = new VmPasids(hostIds, vm.name, { numbers: 'own' });
  const registers = new VirtualCommandRegisters(pasids);
  const guestIds = new Ioasids();
  initVirtualCommands(registers, guestIds);
  const processes = new IoasidSet<{ comm: string }>('sva');
  const guestPasid = guestIds.alloc(processes, 1, 0xfffff, { comm: 'guest process' });
  const hostPasid = pasids.hostOf(guestPasid);
  assert.deepEqual([registers.commands, guestPasid === hostPasid], [1, false]);
  log.push('guest: PASID by VCMD');

  // The guest binds its process's table: the VMM nests it and attaches the PASID.
  const queue = w.call(w.iommufd, iommufd.IOMMU_FAULT_QUEUE_ALLOC, iommufd.iommu_fault_alloc, {});
  const fault = task.file(queue['out_fault_fd']!) as FaultQueueFile;
  const data = iommufd.iommu_hwpt_vtd_s1.write({
    flags: 0n,
    pgtbl_addr: BigInt(TOP) << 12n,
    addr_width: 48,
    __reserved: 0,
  });
  const at = task.memory.map(4096);
  task.memory.write(at, data);
  const nested = w.hwpt(w.parent, {
    flags: iommufd.IOMMU_HWPT_FAULT_ID_VALID | iommufd.IOMMU_HWPT_ALLOC_PASID,
    fault_id: queue['out_fault_id']!,
    data_type: iommufd.IOMMU_HWPT_DATA_VTD_S1,
    data_len: data.length,
    data_uptr: BigInt(at),
  });
  log.push('VMM: HWPT_ALLOC nested');
  w.attach(nested, hostPasid);
  vm.pasids.map(guestPasid, hostPasid);
  log.push('VMM: ATTACH_PT with PASID');

  // The guest's driver answers page requests; the VMM carries them there and back.
  const vcpu = vm.addVcpu();
  vcpu.load(0);
  const guestQueue: iommufd.iommu_hwpt_pgfault[] = [];
  const respond = (cookie: number): void => {
    const response = iommufd.iommu_hwpt_page_response.write({ cookie, code: iommufd.IOMMUFD_PAGE_RESP_SUCCESS });
    log.push('VMM: write response');
    assert.equal(fault.write(task, response, 0), 8);
  };
  vcpu.onInterrupt = (vector) => {
    assert.equal(vector, REQUEST_VECTOR);
    const request = guestQueue.shift()!;
    assert.equal(Number(request.addr >> 12n), VA_PAGE);
    w.store(TOP + 3, VA_PAGE, DATA_PAGE);
    log.push('guest: maps, responds');
    respond(request.cookie);
  };
  fault.onReadable = () => {
    const bytes = new Uint8Array(iommufd.iommu_hwpt_pgfault.size);
    assert.equal(fault.read(task, bytes, 0), bytes.length);
    const request = iommufd.iommu_hwpt_pgfault.read(bytes);
    log.push('VMM: FAULT fd');
    assert.deepEqual([request.dev_id, request.pasid], [w.deviceId, hostPasid]);
    guestQueue.push({ ...request, pasid: guestPasid });
    log.push('VMM: injects into the guest’s queue');
    requests.push(() => vm.send(guestMessage(0xfee0_0000, REQUEST_VECTOR)));
  };
  const requests: (() => void)[] = [];

  // The process submits; the processor puts the host's PASID in place of the guest's.
  const descriptor = new Uint8Array(64);
  new DataView(descriptor.buffer).setBigUint64(8, BigInt(VA_PAGE) << 12n, true);
  vcpu.pasid = guestPasid;
  assert.deepEqual(vcpu.execute([{ op: 'enqcmd', portal, descriptor }]), [true]);
  assert.deepEqual([vcpu.exitCount, job!.number], [0, hostPasid]);
  assert.equal(write(job!.number, job!.address), 'waits');
  // The unit's interrupt reaches the host.
  w.host.clock.advance(10_000);
  assert.equal(requests.length, 1);
  for (const inject of requests) inject();
  assert.equal(w.byte(DATA_PAGE), 0x5a, 'it is in the guest’s memory');
  assert.deepEqual(faults, []);

  // The guest unmaps; until the VMM has invalidated, the old page is used.
  w.store(TOP + 3, VA_PAGE, undefined);
  log.push('guest: unmaps');
  assert.equal(atc.write(job!.address, Uint8Array.of(1), hostPasid), undefined);
  const entry = iommufd.iommu_hwpt_vtd_s1_invalidate.write({
    addr: BigInt(VA_PAGE) << 12n,
    npages: 1n,
    flags: 0,
    __reserved: 0,
  });
  task.memory.write(at, entry);
  const done = w.call(w.iommufd, iommufd.IOMMU_HWPT_INVALIDATE, iommufd.iommu_hwpt_invalidate, {
    hwpt_id: nested,
    data_uptr: BigInt(at),
    data_type: iommufd.IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
    entry_len: entry.length,
    entry_num: 1,
  });
  assert.equal(done['entry_num'], 1);
  assert.equal(atc.size, 0, 'the device TLB followed');
  log.push('VMM: INVALIDATE');
  const refused = fn.dma.write(job!.address, Uint8Array.of(2), hostPasid);
  assert.match(refused?.reason ?? '', /first stage|not present/);
  assert.equal(faults.length, 1);
  log.push('unit: the next access faults');

  // Unbind: the PASID reaches nothing any more, and goes back by virtual command.
  w.call(w.cdev, vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT, vfio.vfio_device_detach_iommufd_pt, {
    argsz: 12,
    flags: vfio.VFIO_DEVICE_DETACH_PASID,
    pasid: hostPasid,
  });
  vm.pasids.unmap(guestPasid);
  log.push('VMM: unbind');
  assert.deepEqual(vcpu.execute([{ op: 'enqcmd', portal, descriptor }]), [false]);
  guestIds.free(guestPasid);
  assert.deepEqual([registers.commands, pasids.count, hostIds.used], [2, 0, 1]);
  log.push('guest: PASID free');
  stop();

  assert.deepEqual(log, [
    'guest: PASID by VCMD',
    'VMM: HWPT_ALLOC nested',
    'VMM: ATTACH_PT with PASID',
    'device: descriptor with the host’s PASID',
    'device: DMA with PASID',
    'unit: first-stage miss',
    'device: PRI',
    'VMM: FAULT fd',
    'VMM: injects into the guest’s queue',
    'guest: maps, responds',
    'VMM: write response',
    'device: the answer is success',
    'device: retries, OK',
    'guest: unmaps',
    'VMM: INVALIDATE',
    'unit: the next access faults',
    'VMM: unbind',
    'guest: PASID free',
  ]);
  task.exit();
  const { counters } = w.host.machine;
  for (const [name, value] of Object.entries({ ...counters.now(), ...counters.interruptsNow() }))
    assert.equal(value, 0, name);
});
