import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MSI_FIRST_PAGE, MSI_LAST_PAGE } from '../../hw/iommu/unit.ts';
import { ManualClock } from '../../hw/pci/clock.ts';
import type { PciFunction } from '../../hw/pci/function.ts';
import { DMA_MAPPING_ERROR, DmaApi, type DmaApiOptions, type DmaDevice } from './dma-api.ts';
import { FlushQueue } from './dma-api-flush-queue.ts';
import { endpoint, IommuMachine, type MachineOptions, refuses } from './test-machine.ts';
import { svmWorld } from './test-svm.ts';

const BOUNCE = { firstPage: 0x100, count: 64 };

interface Setup {
  readonly machine: IommuMachine;
  readonly api: DmaApi;
  readonly fn: PciFunction;
  readonly device: DmaDevice;
}

function setup(options: DmaApiOptions = {}, machineOptions: MachineOptions = {}, isUntrusted = false): Setup {
  const machine = new IommuMachine(machineOptions);
  const fn = machine.add(endpoint(true), '4.0', { untrusted: isUntrusted });
  machine.boot();
  const api = new DmaApi(machine.memory, options);
  return { machine, api, fn, device: api.device(fn, machine.core.groupOf(fn)) };
}

/** Where a DMA write of one byte ended up: the byte's place in RAM. */
function landed({ machine, fn }: Setup, address: number): number | string {
  machine.ram.fill(0);
  const fault = fn.dma.write(address, Uint8Array.of(0xa5));
  return fault?.reason ?? machine.ram.indexOf(0xa5);
}

test('with a DMA domain a buffer has an IOVA while it is mapped, and the same page twice has two', () => {
  const here = setup();
  const { machine, device } = here;
  const one = device.mapPage(machine.ramPage + 3, 0x10, 100, 'bidirectional');
  const two = device.mapPage(machine.ramPage + 3, 0x10, 100, 'bidirectional');
  assert.equal(one, 0xffff_f010);
  assert.equal(two, 0xffff_e010);
  assert.equal(landed(here, one), 3 * 4096 + 0x10);
  assert.equal(landed(here, two), 3 * 4096 + 0x10);
  device.unmapPage(one, 100, 'bidirectional');
  assert.equal(landed(here, one), 'not present');
  assert.equal(landed(here, two), 3 * 4096 + 0x10);
  device.unmapPage(one, 100, 'bidirectional');
  assert.equal(here.api.spaceOf(machine.core.groupOf(here.fn))!.warnings, 1, 'unmapped twice');
  const wide = device.mapPage(machine.ramPage, 4096 * 5 + 4000, 200, 'bidirectional');
  assert.equal(landed(here, wide + 199), 4096 * 5 + 4199);
});

test('an identity domain and a machine without an IOMMU give physical addresses, and bounce what is beyond the mask', () => {
  const identity = setup({ bounce: BOUNCE }, { defaultKind: 'identity' });
  const { machine, device, fn, api } = identity;
  device.setMask(2 ** 52);
  const physical = (machine.ramPage + 1) * 4096 + 8;
  assert.equal(device.mapPage(machine.ramPage + 1, 8, 16, 'to-device'), physical);
  assert.equal(landed(identity, physical), 4096 + 8);
  const bare = api.device(fn, undefined);
  assert.equal(bare.mask, 2 ** 32 - 1);
  machine.ram.set([1, 2, 3, 4], 4096 + 8);
  const bounced = bare.mapPage(machine.ramPage + 1, 8, 4, 'bidirectional');
  assert.ok(bounced >= 0x10_0000 && bounced < 0x14_0000);
  const seen = new Uint8Array(4);
  assert.equal(fn.dma.read(bounced, seen), undefined);
  assert.deepEqual([...seen], [1, 2, 3, 4]);
  fn.dma.write(bounced + 1, Uint8Array.of(9));
  assert.equal(machine.ram[4096 + 9], 2);
  bare.syncForCpu(bounced);
  assert.equal(machine.ram[4096 + 9], 9);
  machine.ram[4096 + 8] = 7;
  bare.syncForDevice(bounced);
  fn.dma.read(bounced, seen);
  assert.deepEqual([...seen], [7, 9, 3, 4]);
  bare.unmapPage(bounced, 4, 'bidirectional');
  assert.equal(api.bounce!.used, 0);
  const poor = setup({}, { defaultKind: 'identity' });
  assert.equal(poor.device.mapPage(machine.ramPage, 0, 4, 'to-device'), DMA_MAPPING_ERROR);
  assert.match(poor.device.why, /beyond the device's mask/);
});

test('I-70: two virtual machines behind one device map the same guest page at different IOVAs of its one space', () => {
  const here = setup();
  const { machine, device } = here;
  const guestPage = 5;
  const homes = [machine.ramPage + 100, machine.ramPage + 200];
  const addresses = homes.map((home) => device.mapPage(home + guestPage, 0, 4096, 'bidirectional'));
  assert.notEqual(addresses[0], addresses[1]);
  assert.deepEqual(
    addresses.map((address) => landed(here, address)),
    [105 * 4096, 205 * 4096],
  );
});

test('I-71: a raw map in a DMA domain is refused; with the shortcut a collision with what was given is told', () => {
  const { machine, api, device, fn } = setup();
  const group = machine.core.groupOf(fn);
  refuses('EINVAL', () => api.spaceOf(group)!.mapRaw(5, 5, 1, 3), /given by its allocator/);
  const shortcut = setup({ identityShortcut: true });
  const space = shortcut.api.spaceOf(shortcut.machine.core.groupOf(shortcut.fn))!;
  const address = shortcut.device.mapPage(machine.ramPage, 0, 4096, 'to-device');
  // A host page whose number happens to be the IOVA that somebody got.
  refuses('EADDRINUSE', () => space.mapRaw(address / 4096, address / 4096, 1, 3), /given to somebody/);
  space.mapRaw(address / 4096 - 1, machine.ramPage, 1, 3);
  assert.notEqual(shortcut.device.mapPage(machine.ramPage, 0, 4096, 'to-device'), address - 4096);
  void device;
});

test('I-72 I-73: while a host driver has the device nobody claims its group; while a user has it nothing is mapped', () => {
  const { machine, device, fn } = setup();
  const group = machine.core.groupOf(fn)!;
  group.useDefaultDomain(fn);
  refuses('EPERM', () => group.claim({}));
  const address = device.mapPage(machine.ramPage, 0, 64, 'to-device');
  device.unmapPage(address, 64, 'to-device');
  group.unuseDefaultDomain(fn);
  group.claim({});
  assert.equal(device.mapPage(machine.ramPage, 0, 64, 'to-device'), DMA_MAPPING_ERROR);
  assert.match(device.why, /a user holds group 0/);
  assert.deepEqual(device.mapSg([{ page: machine.ramPage, offset: 0, length: 8 }], 'to-device'), []);
  refuses('EBUSY', () => device.allocCoherent(64));
  group.release();
  assert.equal(device.mapPage(machine.ramPage, 0, 64, 'to-device'), address);
});

test('I-74: addresses stay within the mask; below 4 GiB as long as there is room, above only for those who can', () => {
  const here = setup();
  const { machine, device, api, fn } = here;
  const space = api.spaceOf(machine.core.groupOf(fn))!;
  const wide = api.device(fn, machine.core.groupOf(fn));
  wide.setMask(2 ** 48 - 1);
  assert.ok(wide.mapPage(machine.ramPage, 0, 4096, 'to-device') < 2 ** 32);
  const narrow = api.device(fn, machine.core.groupOf(fn));
  narrow.setMask(0xff_ffff);
  assert.equal(narrow.mapPage(machine.ramPage, 0, 4096, 'to-device'), 0xff_f000);
  // All that 32 bits reach is taken: the space below 4 GiB is full.
  space.iova.reserve(1, 0xf_ffff);
  assert.equal(device.mapPage(machine.ramPage, 0, 4096, 'to-device'), DMA_MAPPING_ERROR);
  assert.match(device.why, /within the mask 0xffffffff/);
  const above = wide.mapPage(machine.ramPage, 0, 4096, 'bidirectional');
  assert.ok(above >= 2 ** 32);
  assert.equal(landed(here, above), 0);
  refuses('EIO', () => device.setMask(0xfe));
});

test('I-75: a device does with a buffer what its direction says, and nothing else', () => {
  const here = setup();
  const { machine, device, fn } = here;
  const answer = (address: number): string[] => [
    fn.dma.read(address, new Uint8Array(4))?.reason ?? 'ok',
    fn.dma.write(address, new Uint8Array(4))?.reason ?? 'ok',
  ];
  assert.deepEqual(answer(device.mapPage(machine.ramPage, 0, 64, 'to-device')), ['ok', 'no write permission']);
  assert.deepEqual(answer(device.mapPage(machine.ramPage, 0, 64, 'from-device')), ['no read permission', 'ok']);
  assert.deepEqual(answer(device.mapPage(machine.ramPage, 0, 64, 'bidirectional')), ['ok', 'ok']);
});

test('I-65 I-74: reserved regions and the windows of the host bridge have no IOVAs', () => {
  const { machine, device } = setup({ hostWindows: [{ firstPage: 0xc_0000, lastPage: 0xf_dfff }] });
  for (let i = 0; i < 0x2000; i += 32) {
    const address = device.mapPage(machine.ramPage, 0, 32 * 4096, 'to-device');
    const first = address / 4096;
    assert.ok(
      first >= 0xf_e000 ? first > MSI_LAST_PAGE || first + 31 < MSI_FIRST_PAGE : first < 0xc_0000,
      `0x${first.toString(16)}`,
    );
  }
});

test('I-42: with a flush queue a device reaches an unmapped buffer until the queue is drained, 10 ms later at most', () => {
  const clock = new ManualClock();
  const here = setup({ clock, flushQueue: 'perCpu' });
  const { machine, device, api, fn } = here;
  const address = device.mapPage(machine.ramPage + 7, 0, 4096, 'bidirectional');
  const other = device.mapPage(machine.ramPage + 8, 0, 4096, 'bidirectional');
  assert.equal(landed(here, address), 7 * 4096);
  device.unmapPage(address, 4096, 'bidirectional');
  device.unmapPage(other, 4096, 'bidirectional');
  assert.equal(landed(here, address), 7 * 4096, 'the IOTLB has it still');
  assert.equal(landed(here, other), 'not present', 'this one was never used');
  assert.notEqual(device.mapPage(machine.ramPage, 0, 4096, 'to-device'), address, "its IOVA is nobody else's yet");
  clock.advance(9_999_999);
  assert.equal(landed(here, address), 7 * 4096);
  clock.advance(1);
  assert.equal(landed(here, address), 'not present');
  assert.equal(api.spaceOf(machine.core.groupOf(fn))!.flushQueue!.waiting, 0);
  assert.equal(clock.next, undefined);
  assert.equal(device.mapPage(machine.ramPage, 0, 4096, 'to-device'), other, 'the IOVAs are free again');
});

test('I-42: a full queue is drained at once: 255 entries for each CPU, or 32,767 in one that waits a second', () => {
  const clock = new ManualClock();
  const { machine, device, api, fn } = setup({ clock, flushQueue: 'perCpu', cpus: 2 });
  const { waiting } = api.spaceOf(machine.core.groupOf(fn))!.flushQueue!;
  assert.equal(waiting, 0);
  for (const cpu of [0, 0, 1]) {
    device.cpu = cpu;
    device.unmapPage(device.mapPage(machine.ramPage, 0, 4096, 'to-device'), 4096, 'to-device');
  }
  assert.equal(api.spaceOf(machine.core.groupOf(fn))!.flushQueue!.waiting, 3);
  for (const [kind, room, timeout] of [
    ['perCpu', 255, 10_000_000],
    ['single', 32767, 1_000_000_000],
  ] as const) {
    let flushes = 0;
    const freed: number[] = [];
    const queue = new FlushQueue(
      kind,
      2,
      clock,
      () => flushes++,
      (page) => freed.push(page),
    );
    for (let page = 0; page < room; page++) queue.add(page, 1, 0);
    assert.deepEqual([queue.waiting, flushes], [room, 0]);
    queue.add(room, 1, 0);
    assert.deepEqual([queue.waiting, flushes, freed.length], [1, 1, room]);
    clock.advance(timeout - 1);
    assert.equal(queue.waiting, 1);
    clock.advance(1);
    assert.deepEqual([queue.waiting, flushes, freed.length], [0, 2, room + 1]);
  }
});

test('a list of buffers is one segment where they meet at page borders, up to the largest segment', () => {
  const here = setup();
  const { machine, device } = here;
  const ram = machine.ramPage;
  const segments = device.mapSg(
    [
      { page: ram + 10, offset: 0x800, length: 0x800 },
      { page: ram + 50, offset: 0, length: 4096 },
      { page: ram + 30, offset: 0, length: 100 },
      { page: ram + 20, offset: 8, length: 8 },
      { page: ram + 60, offset: 0, length: 0x1_0000 },
    ],
    'bidirectional',
  );
  assert.deepEqual(
    segments.map(({ length }) => length),
    [0x800 + 4096 + 100, 8, 0x1_0000],
  );
  const [first, second, third] = segments.map(({ address }) => address);
  assert.equal(landed(here, first!), 10 * 4096 + 0x800);
  assert.equal(landed(here, first! + 0x800), 50 * 4096);
  assert.equal(landed(here, first! + 0x1800 + 99), 30 * 4096 + 99);
  assert.equal(landed(here, second!), 20 * 4096 + 8);
  assert.equal(landed(here, third! + 0xffff), 75 * 4096 + 4095);
  device.unmapSg(segments, 'bidirectional');
  for (const { address } of segments) assert.equal(landed(here, address), 'not present');
  const refused = device.mapSg(
    [
      { page: ram, offset: 0, length: 8 },
      { page: 2 ** 41, offset: 0, length: 8 },
    ],
    'to-device',
  );
  assert.deepEqual(refused, []);
  assert.match(device.why, /52 bits/);
});

test('a device that is not trusted sees its buffer and nothing else of the page', () => {
  const here = setup({ bounce: BOUNCE }, {}, true);
  const { machine, device, fn, api } = here;
  machine.ram.fill(0x77, 0, 4096);
  machine.ram.set([1, 2, 3], 0x100);
  const address = device.mapPage(machine.ramPage, 0x100, 3, 'bidirectional');
  const page = new Uint8Array(4096);
  assert.equal(fn.dma.read(address - 0x100, page), undefined);
  assert.deepEqual([...page.subarray(0x100, 0x103)], [1, 2, 3]);
  assert.equal(page.includes(0x77), false);
  fn.dma.write(address, Uint8Array.of(8, 9));
  device.unmapPage(address, 3, 'bidirectional');
  assert.deepEqual([...machine.ram.subarray(0x100, 0x104)], [8, 9, 3, 0x77]);
  assert.equal(api.bounce!.used, 0);
  const whole = device.mapPage(machine.ramPage + 1, 0, 4096, 'to-device');
  assert.equal(api.bounce!.used, 0, 'whole pages need no bouncing');
  device.unmapPage(whole, 4096, 'to-device');
});

test('coherent memory: zeroed, written by both, gone when it is freed', () => {
  for (const defaultKind of ['dma', 'identity'] as const) {
    const { device, fn, machine, api } = setup({ bounce: BOUNCE }, { defaultKind });
    const before = machine.memory.blocks;
    const ring = device.allocCoherent(5000);
    assert.ok(ring.address + 5000 <= 2 ** 32);
    assert.deepEqual([...ring.bytes(4096, 4)], [0, 0, 0, 0]);
    fn.dma.write(ring.address + 4096, Uint8Array.of(5, 6));
    ring.write(4098, Uint8Array.of(7));
    const seen = new Uint8Array(3);
    fn.dma.read(ring.address + 4096, seen);
    assert.deepEqual([...seen], [5, 6, 7]);
    device.freeCoherent(ring);
    assert.equal(machine.memory.blocks, before);
    assert.equal(api.bounce!.used, 0);
    if (defaultKind === 'dma') assert.notEqual(fn.dma.read(ring.address, seen), undefined);
  }
});

test('the reader of addresses is not misled: what cannot be mapped leaves nothing behind', () => {
  const { device, api, machine, fn } = setup();
  assert.equal(device.mapPage(machine.ramPage, 0, 0, 'to-device'), DMA_MAPPING_ERROR);
  assert.equal(device.mapPage(2 ** 41, 0, 4096, 'to-device'), DMA_MAPPING_ERROR);
  const { iova } = api.spaceOf(machine.core.groupOf(fn))!;
  assert.equal(iova.cached, 1, 'the IOVA went back');
});

test('I-76: physical, by IOVA, or by IOVA once translated (ATS): the same data; after the unmap the device was told to forget', () => {
  const { machine, devices } = svmWorld();
  const [{ fn, group, asker } = assert.fail()] = devices;
  const device = new DmaApi(machine.memory).device(fn, group);
  machine.ram.set([4, 5, 6], 9 * 4096 + 100);
  const physical = new Uint8Array(3);
  machine.memory.read(machine.ramPage + 9, 100, physical);
  const address = device.mapPage(machine.ramPage + 9, 100, 3, 'bidirectional');
  const plain = new Uint8Array(3);
  assert.equal(fn.dma.read(address, plain), undefined);
  const translated = asker.read(address, 3, -1);
  assert.deepEqual([physical, plain, translated], Array(3).fill(Uint8Array.of(4, 5, 6)));
  const forgotten: number[] = [];
  fn.dma.onAtcInvalidate = ({ firstPage }) => forgotten.push(firstPage) > 0;
  device.unmapPage(address, 3, 'bidirectional');
  assert.deepEqual(forgotten, [Math.floor(address / 4096)]);
  assert.equal(asker.read(address, 3, -1), 'invalid');
});
