/** Migration and DMA logging of real models, as a user of the device's file sees them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rootPort } from '../../../hw/devices/bridge/model.ts';
import { BufferBacking } from '../../../hw/memory/backing.ts';
import type { PciFunction } from '../../../hw/pci/function.ts';
import { Errno } from '../../../lib/errno.ts';
import * as uapi from '../../../uapi/vfio.ts';
import { refusal, type TestTask } from '../../core/test-task.ts';
import { combineRanges } from '../../vfio/dma-logging.ts';
import type { DeviceFile } from '../../vfio/vfio-device.ts';
import { TestMachine } from './test-machine.ts';

const [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] = [1, 2, 3, 4, 5, 6, 7];
const GET = uapi.VFIO_DEVICE_FEATURE_GET;
const SET = uapi.VFIO_DEVICE_FEATURE_SET;
const PROBE = uapi.VFIO_DEVICE_FEATURE_PROBE;
const REGION = 2 ** 40;
const CONFIG = 7 * REGION;
const REGISTERS = 4 * REGION;
const SCRATCH = REGISTERS + 8;
const PAGES = 64;

/** One machine with one open testdev (or edu), and memory that all its addresses below 256 KiB lead to. */
class World {
  readonly machine = new TestMachine();
  readonly fn: PciFunction;
  readonly task: TestTask;
  readonly file: DeviceFile;
  readonly ram = new Uint8Array(PAGES * 4096);

  constructor(migration = 'all', model: 'testdev' | 'edu' = 'testdev') {
    const { machine } = this;
    const port = machine.add(rootPort, 1, { secondary: 1 });
    this.fn = machine.add(machine.models[model], 0, { bus: port.secondary! }, { migration });
    machine.tree.enumerate();
    machine.bind(this.fn);
    this.task = machine.task;
    this.file = machine.open(this.fn).file;
    const first = machine.world.physical.addBlock(new BufferBacking(this.ram));
    this.fn.dma.upstream = {
      translate: (_rid, _pasid, page) => (page < PAGES ? first + page : -1),
      why: 'nothing there',
    };
    this.put(CONFIG + 4, 7, 2);
  }

  put(position: number, value: number, length = 4): void {
    this.file.write(this.task, new Uint8Array(BigUint64Array.of(BigInt(value)).buffer, 0, length), position);
  }

  get(position: number): number {
    const bytes = new Uint8Array(4);
    this.file.read(this.task, bytes, position);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  /** The data behind the header of a feature. */
  feature(flags: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
    const bytes = new Uint8Array(8 + data.length);
    bytes.set(uapi.vfio_device_feature.write({ argsz: bytes.length, flags }));
    bytes.set(data, 8);
    this.task.ioctl(this.file, uapi.VFIO_DEVICE_FEATURE, bytes);
    return bytes.subarray(8);
  }

  /** The descriptor of the stream, -1 for none. */
  set(state: number): number {
    const table = uapi.vfio_device_feature_mig_state;
    return table.read(this.feature(SET | 2, table.write({ device_state: state, data_fd: 77 }))).data_fd;
  }

  trySet(state: number): string {
    return refusal(() => this.set(state));
  }

  get state(): number {
    const table = uapi.vfio_device_feature_mig_state;
    const { device_state, data_fd } = table.read(this.feature(GET | 2, new Uint8Array(8).fill(9)));
    assert.equal(data_fd, -1);
    return device_state;
  }

  /** All that can be read now. */
  drain(fd: number, piece = 100_000): Uint8Array {
    const parts: Uint8Array[] = [];
    for (;;) {
      const part = new Uint8Array(piece);
      let length = 0;
      const why = refusal(() => {
        length = this.task.file(fd).read(this.task, part, 0);
      });
      if (why !== 'ok') assert.equal(why, 'ENOMSG');
      if (length === 0) return Buffer.concat(parts);
      parts.push(part.slice(0, length));
    }
  }

  fill(fd: number, bytes: Uint8Array, piece = 7000): void {
    for (let at = 0; at < bytes.length; at += piece) {
      this.task.file(fd).write(this.task, bytes.subarray(at, at + piece), 0);
    }
  }

  precopy(fd: number): { flags: number; initial: number; dirty: number } {
    const table = uapi.vfio_precopy_info;
    const bytes = table.write({ argsz: 24, flags: 0xff, initial_bytes: 0n, dirty_bytes: 0n });
    this.task.ioctl(this.task.file(fd), uapi.VFIO_MIG_GET_PRECOPY_INFO, bytes);
    const { flags, initial_bytes, dirty_bytes } = table.read(bytes);
    return { flags, initial: Number(initial_bytes), dirty: Number(dirty_bytes) };
  }

  /** Fills memory by the device's DMA, a moment later. */
  fillByDma(address: number, length: number, pattern: number): void {
    this.put(REGISTERS + 0x48, address, 8);
    this.put(REGISTERS + 0x50, length);
    this.put(REGISTERS + 0x54, pattern);
    this.put(REGISTERS + 0x58, 2);
  }

  /** The state of a device that was stopped. */
  save(): Uint8Array {
    return this.drain(this.set(STOP_COPY));
  }

  startLogging(...ranges: [number, number][]): bigint {
    const at = this.task.memory.map(8192);
    const bytes = new Uint8Array(BigUint64Array.from(ranges.flat().map(BigInt)).buffer);
    this.task.memory.write(at, bytes);
    const table = uapi.vfio_device_feature_dma_logging_control;
    const data = { page_size: this.hint, num_ranges: ranges.length, __reserved: 0, ranges: BigInt(at) };
    return table.read(this.feature(SET | 6, table.write(data))).page_size;
  }

  hint = 4096n;

  /** Numbers of the bits of a report; `before`: the bitmap's bytes until then. */
  report(iova: number, length: number, page = 4096, before = 0): number[] {
    const at = this.task.memory.map(8192);
    const bytes = Math.ceil(length / page / 64) * 8;
    this.task.memory.write(at, new Uint8Array(bytes).fill(before));
    const table = uapi.vfio_device_feature_dma_logging_report;
    const data = { iova: BigInt(iova), length: BigInt(length), page_size: BigInt(page), bitmap: BigInt(at) };
    this.feature(GET | 8, table.write(data));
    const bits = new Uint8Array(bytes);
    this.task.memory.read(at, bits);
    return Array.from({ length: bytes * 8 }, (_, i) => i).filter((i) => (bits[i >> 3]! >> (i & 7)) & 1);
  }
}

test('R-10: a device that cannot migrate says ENOTTY, one that can what it can', () => {
  for (const [migration, flags] of [
    ['stop-copy', 1],
    ['p2p', 3],
    ['pre-copy', 5],
    ['all', 7],
  ] as const) {
    const world = new World(migration);
    assert.equal(new DataView(world.feature(GET | 1, new Uint8Array(8)).slice().buffer).getUint32(0, true), flags);
    assert.equal(
      refusal(() => world.feature(PROBE | GET | 1)),
      'ok',
    );
    assert.equal(
      refusal(() => world.feature(SET | 1, new Uint8Array(8))),
      'EINVAL',
    );
  }
  const none = new World('none');
  for (const index of [1, 2, 6, 7, 8, 9]) {
    assert.equal(
      refusal(() => none.feature(PROBE | GET | index, new Uint8Array(32))),
      'ENOTTY',
      `feature ${index}`,
    );
  }
});

test('R-5 R-6 R-9 R-23: impossible targets change nothing, the present one does nothing, and each state can be read', () => {
  const world = new World();
  assert.equal(world.state, RUNNING);
  for (const target of [0, 8, 1000]) assert.equal(world.trySet(target), 'EINVAL');
  assert.equal(world.state, RUNNING);
  for (const target of [PRE_COPY, PRE_COPY_P2P, STOP_COPY, STOP, RESUMING]) {
    const fd = world.set(target);
    assert.equal(fd >= 0, target !== PRE_COPY_P2P && target !== STOP_COPY && target !== STOP, `${target}`);
    assert.equal(world.state, target);
    assert.equal(world.set(target), -1);
    assert.equal(world.get(CONFIG), 0x11e91234, 'configuration space answers');
  }
});

test('R-8: from resuming to stop-copy there is a new file to read, and the one to write is dead', () => {
  const world = new World();
  const bytes = world.save();
  const writing = world.set(RESUMING);
  world.fill(writing, bytes);
  const reading = world.set(STOP_COPY);
  assert.notEqual(reading, writing);
  assert.equal(
    refusal(() => world.fill(writing, bytes)),
    'ENODEV',
  );
  assert.deepEqual(world.drain(reading), bytes, 'the same state, saved again');
});

test('R-11 R-12 R-15 R-16: pre-copy is read while the device goes on, and the same file ends in stop-copy', () => {
  const world = new World();
  const fd = world.set(PRE_COPY);
  const begin = world.precopy(fd);
  assert.ok(begin.initial > 0x11_0000, 'both memories');
  world.task.file(fd).read(world.task, new Uint8Array(1000), 0);
  assert.equal(world.precopy(fd).initial, begin.initial - 1000);
  world.drain(fd);
  assert.deepEqual(world.precopy(fd), { flags: 0xff, initial: 0, dirty: 0 });
  assert.equal(world.task.file(fd).poll() & 1, 0);
  world.put(0 * REGION + 0x3000, 1);
  world.put(2 * REGION + 0x8000, 2);
  assert.ok(world.precopy(fd).dirty >= 8192);
  assert.equal(world.task.file(fd).poll() & 1, 1);
  assert.equal(world.set(PRE_COPY_P2P), -1);
  assert.ok(world.precopy(fd).dirty >= 8192);
  assert.equal(world.set(STOP_COPY), -1, 'the file stays');
  assert.equal(
    refusal(() => world.precopy(fd)),
    'EINVAL',
  );
  assert.ok(world.drain(fd).length > 8192);
  assert.equal(world.task.file(fd).read(world.task, new Uint8Array(8), 0), 0, 'the end, and no ENOMSG');
  assert.equal(world.task.file(fd).poll() & 1, 1);
  world.set(STOP);
  assert.equal(
    refusal(() => world.task.file(fd).read(world.task, new Uint8Array(8), 0)),
    'ENODEV',
  );
});

test('R-19: new initial data is told to who asked for the second version', () => {
  for (const isNew of [false, true]) {
    const world = new World();
    if (isNew) world.feature(SET | 12);
    const fd = world.set(PRE_COPY);
    world.drain(fd);
    for (const bar of world.fn.spec.memories!.values()) bar.bytes().fill(7);
    const info = world.precopy(fd);
    assert.equal(info.flags, isNew ? uapi.VFIO_PRECOPY_INFO_REINIT : 0xff);
    assert.deepEqual([info.initial > 0x11_0000, info.dirty], [true, 0]);
    assert.equal(world.precopy(fd).flags, isNew ? 0 : 0xff);
  }
  assert.equal(
    refusal(() => new World('p2p').feature(SET | 12)),
    'EINVAL',
  );
});

test('a device goes on in another machine: registers, memories, ports, interrupts that wait, a command under way', () => {
  const source = new World();
  source.put(SCRATCH, 0xcafe_f00d);
  source.put(0 * REGION + 0x1234, 0x1111);
  source.put(2 * REGION + 0xf_fffc, 0x2222);
  source.put(1 * REGION + 0x40, 0x33, 1);
  source.put(CONFIG + 0x3c, 9, 1);
  source.fillByDma(0x2000, 8, 0x5555_5555);
  source.machine.clock.advance(400);
  assert.equal(source.get(REGISTERS + 0x5c), 1, 'it is busy');
  const fd = source.set(PRE_COPY);
  const early = source.drain(fd);
  source.put(0 * REGION + 0x1234, 0x9999);
  source.set(STOP_COPY);
  source.machine.clock.advance(1_000_000);
  assert.equal(source.get(REGISTERS + 0x5c), 1, 'time stands still for it');
  assert.equal(source.ram[0x2000], 0);
  const bytes = Buffer.concat([early, source.drain(fd)]);

  const target = new World();
  target.put(2 * REGION + 0x500, 0xdead);
  target.put(CONFIG + 4, 0, 2);
  target.fill(target.set(RESUMING), bytes, 333);
  assert.equal(target.set(RUNNING), -1);
  assert.equal(target.get(SCRATCH), 0xcafe_f00d);
  assert.equal(target.get(0 * REGION + 0x1234), 0x9999);
  assert.equal(target.get(2 * REGION + 0xf_fffc), 0x2222);
  assert.equal(target.get(2 * REGION + 0x500), 0, 'what was there before is gone');
  assert.equal(target.get(1 * REGION + 0x40) & 0xff, 0x33);
  assert.equal(target.get(CONFIG + 0x3c) & 0xff, 9);
  assert.equal(target.get(REGISTERS + 0x5c), 1);
  target.machine.clock.advance(599);
  assert.equal(target.ram[0x2000], 0);
  target.machine.clock.advance(1);
  assert.equal(target.ram[0x2000], 0x55, 'exactly when it would have been');
  assert.equal(target.get(REGISTERS + 0x5c), 2);
});

test('edu goes on in another machine as well: a factorial under way, its buffer', () => {
  const source = new World('stop-copy', 'edu');
  source.put(8, 5);
  const bytes = source.save();
  const target = new World('stop-copy', 'edu');
  target.fill(target.set(RESUMING), bytes);
  target.set(RUNNING);
  assert.equal(target.get(0x20) & 1, 1, 'it computes');
  target.machine.clock.advance(1000);
  assert.equal(target.get(8), 120);
});

test('an interrupt that comes while the device is stopped comes when it runs again', () => {
  const world = new World();
  const event = world.task.openEventfd();
  const set = new Uint8Array(Uint32Array.of(24, 0x24, 2, 0, 1, event.descriptor).buffer);
  world.task.ioctl(world.file, uapi.VFIO_DEVICE_SET_IRQS, set);
  world.set(STOP);
  world.put(REGISTERS + 0x20, 0);
  assert.equal(event.file.take(), 0);
  world.set(RUNNING);
  assert.equal(event.file.take(), 1);
});

test('R-17 R-18 R-20 U-43: a stream that is cut, changed or of another device ends in ERROR, which only a reset leaves', () => {
  const bytes = new World().save();
  const changed = bytes.slice();
  changed[bytes.length >> 1]! ^= 1;
  const other = new World('stop-copy', 'edu').save();
  const small = Buffer.concat([bytes, Uint8Array.of(0)]);
  const bad: [string, Uint8Array][] = [
    ['nothing', new Uint8Array(0)],
    ['cut', bytes.subarray(0, bytes.length - 1)],
    ['half', bytes.subarray(0, bytes.length >> 1)],
    ['changed', changed],
    ['another device', other],
    ['more', small],
    ['noise', new Uint8Array(5000).fill(0x5a)],
  ];
  for (const [what, stream] of bad) {
    const world = new World();
    world.put(SCRATCH, 5);
    world.fill(world.set(RESUMING), stream);
    assert.equal(world.trySet(STOP), 'EINVAL', what);
    assert.equal(world.state, 0, what);
    assert.equal(world.get(SCRATCH), 0, 'as after power-on');
    assert.equal(world.trySet(RUNNING), 'EINVAL');
    world.task.ioctl(world.file, uapi.VFIO_DEVICE_RESET);
    assert.equal(world.state, RUNNING);
    assert.equal(world.trySet(STOP), 'ok');
  }
});

test('R-21: an arc that fails leaves the state before it, which can be read', () => {
  const world = new World();
  const { spec } = world.fn;
  const { save } = spec;
  Object.assign(spec, {
    save: () => {
      throw new Errno('EBUSY', 'not now');
    },
  });
  assert.equal(world.trySet(STOP_COPY), 'EBUSY');
  Object.assign(spec, { save });
  assert.equal(world.state, STOP);
  assert.ok(world.set(STOP_COPY) >= 0);
});

test('R-22: a stopped device does no DMA, and one that tries is counted', () => {
  for (const state of [STOP, RUNNING_P2P, STOP_COPY, RESUMING]) {
    const world = new World();
    world.fillByDma(0x1000, 4096, 0x1111_1111);
    world.set(state);
    world.machine.clock.advance(1e9);
    assert.equal(world.ram[0x1000], 0);
    assert.equal(world.fn.dma.triedWhileStopped, 0, 'the device did not even try');
    assert.match(world.fn.dma.write(0x1000, Uint8Array.of(1))?.reason ?? '', /stopped/);
    assert.equal(world.fn.dma.triedWhileStopped, 1);
  }
});

test('R-32: the source goes on after an abort in any state', () => {
  for (const states of [[PRE_COPY], [PRE_COPY, PRE_COPY_P2P], [PRE_COPY, STOP_COPY], [RUNNING_P2P, STOP, STOP_COPY]]) {
    const world = new World();
    world.fillByDma(0x1000, 4096, 0x1111_1111);
    for (const state of states) world.set(state);
    assert.equal(world.set(RUNNING), -1);
    world.machine.clock.advance(1_000);
    assert.equal(world.ram[0x1000], 0x11);
    assert.equal(world.get(REGISTERS + 0x5c), 2);
  }
});

test('the size of the state is told in each state', () => {
  const world = new World();
  const size = (): number =>
    Number(new DataView(world.feature(GET | 9, new Uint8Array(8)).slice().buffer).getBigUint64(0, true));
  const running = size();
  const fd = world.set(STOP_COPY);
  const stopped = size();
  assert.equal(world.drain(fd).length, stopped);
  assert.ok(Math.abs(running - stopped) < 100);
});

test('closing the device ends it all: the next user finds it running', () => {
  const world = new World();
  world.set(RESUMING);
  world.startLogging([0, 0x1_0000]);
  const { task, fn } = world;
  task.exit();
  assert.equal(fn.dma.isStopped, false);
  assert.equal(fn.dma.onWrite, undefined);
});

test('R-24: what ranges logging takes', () => {
  const world = new World();
  const start = (...ranges: [number, number][]): string => refusal(() => world.startLogging(...ranges));
  assert.equal(start(), 'EINVAL');
  assert.equal(start(...Array.from({ length: 257 }, (_, i): [number, number] => [i * 4096, 4096])), 'E2BIG');
  assert.equal(start([0, 100]), 'EINVAL');
  assert.equal(start([100, 4096]), 'EINVAL');
  assert.equal(start([0, 0x2000], [0x1000, 0x1000]), 'EINVAL');
  const table = uapi.vfio_device_feature_dma_logging_control;
  const at = world.task.memory.map(4096);
  world.task.memory.write(at, new Uint8Array(BigUint64Array.of((1n << 64n) - 4096n, 8192n).buffer));
  const beyond = table.write({ page_size: 4096n, num_ranges: 1, __reserved: 0, ranges: BigInt(at) });
  assert.equal(
    refusal(() => world.feature(SET | 6, beyond)),
    'EOVERFLOW',
  );
  assert.equal(
    refusal(() => world.report(0, 4096)),
    'EINVAL',
    'it does not run',
  );
  assert.equal(
    refusal(() => world.feature(SET | 7)),
    'EINVAL',
  );
  assert.equal(start([0, 0x4_0000]), 'ok');
  assert.equal(start([0, 0x4_0000]), 'EINVAL');
  assert.equal(
    refusal(() => world.report(0, 4096, 2048)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => world.report(0, 4096 * 3, 4096 * 3)),
    'EINVAL',
  );
  assert.equal(
    refusal(() => world.feature(SET | 7)),
    'ok',
  );
});

test('R-25 R-26: written pages are reported once, and bits that were set stay', () => {
  const world = new World();
  world.startLogging([0, 0x2_0000], [0x3_0000, 0x1_0000]);
  world.fillByDma(0x3ffe, 4, 1);
  world.machine.clock.advance(1000);
  world.fillByDma(0x2_5000, 4, 1);
  world.machine.clock.advance(1000);
  world.fillByDma(0x3_0000, 4096, 1);
  world.machine.clock.advance(1000);
  assert.deepEqual(world.report(0, 0x2000, 4096, 0x80), [7, 15, 23, 31, 39, 47, 55, 63], 'nothing below, bits stay');
  assert.deepEqual(world.report(0x3000, 0x2_d000 + 0x1000), [0, 1, 0x2d], 'what was not asked for is not there');
  assert.deepEqual(world.report(0, 0x4_0000), []);
});

test('R-27 U-42: larger pages of the report take the smaller ones together, smaller ones repeat the larger', () => {
  const world = new World();
  world.startLogging([0, 0x4_0000]);
  for (const at of [0x1000, 0x1_1000]) {
    world.fillByDma(at, 4, 1);
    world.machine.clock.advance(1000);
  }
  assert.deepEqual(world.report(0, 0x4_0000, 0x1_0000), [0, 1]);
  world.feature(SET | 7);
  world.hint = 0x1_0000n;
  assert.equal(world.startLogging([0, 0x4_0000]), 0x1_0000n);
  world.fillByDma(0x1_1000, 4, 1);
  world.machine.clock.advance(1000);
  assert.deepEqual(
    world.report(0, 0x4_0000),
    Array.from({ length: 16 }, (_, i) => 16 + i),
  );
});

test('R-28: ranges are combined at the smallest gaps until they fit', () => {
  const pages = (...pairs: [number, number][]) =>
    pairs.map(([first, last]) => ({ first: BigInt(first), last: BigInt(last) }));
  assert.deepEqual(combineRanges(pages([0, 1], [4, 5], [100, 101]), 2), pages([0, 5], [100, 101]));
  assert.deepEqual(combineRanges(pages([100, 101], [0, 1], [4, 5]), 1), pages([0, 101]));
  assert.deepEqual(combineRanges(pages([0, 1], [4, 5]), 2), pages([0, 1], [4, 5]));
});

test('R-29: whatever DMA and reports come in what order, their union with the final report is what was written', () => {
  let seed = 3;
  const random = (most: number): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * most);
  };
  const world = new World();
  world.startLogging([0, PAGES * 4096]);
  const truth = new Set<number>();
  const reported = new Set<number>();
  const collect = (): void => {
    for (const page of world.report(0, PAGES * 4096)) reported.add(page);
  };
  for (let i = 0; i < 300; i++) {
    if (random(4) === 0) collect();
    else {
      const at = random(PAGES * 4096 - 8192);
      const length = 1 + random(8192);
      world.fillByDma(at, length, i);
      world.machine.clock.advance(1000);
      for (let page = at >> 12; page <= (at + length - 1) >> 12; page++) truth.add(page);
    }
    if (random(40) === 0) {
      assert.deepEqual(
        [...reported].filter((page) => !truth.has(page)),
        [],
      );
      world.set(STOP_COPY);
      collect();
      assert.deepEqual(
        [...reported].sort((a, b) => a - b),
        [...truth].sort((a, b) => a - b),
      );
      world.set(RUNNING);
      truth.clear();
      reported.clear();
    }
  }
});

test('R-34: no region is of the migration type of 2019', () => {
  const world = new World();
  for (let index = 0; index < 9; index++) {
    const bytes = new Uint8Array(256);
    bytes.set(uapi.vfio_region_info.write({ argsz: 256, flags: 0, index, cap_offset: 0, size: 0n, offset: 0n }));
    if (refusal(() => world.task.ioctl(world.file, uapi.VFIO_DEVICE_GET_REGION_INFO, bytes)) !== 'ok') continue;
    const { flags, cap_offset } = uapi.vfio_region_info.read(bytes);
    if ((flags & uapi.VFIO_REGION_INFO_FLAG_CAPS) === 0 || cap_offset === 0) continue;
    assert.notEqual(uapi.vfio_info_cap_header.read(bytes.subarray(cap_offset)).id, uapi.VFIO_REGION_INFO_CAP_TYPE);
  }
});
