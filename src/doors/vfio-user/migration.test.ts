/** Migration and DMA logging over the wire: from one server to another, and what is refused. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import * as uapi from '../../uapi/vfio.ts';
import * as wire from '../../uapi/vfio-user.ts';
import type { Message } from './codec.ts';
import { TestPeer } from './test-peer.ts';

const [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P] = [1, 2, 3, 4, 5, 6, 7];
const GET = uapi.VFIO_DEVICE_FEATURE_GET;
const SET = uapi.VFIO_DEVICE_FEATURE_SET;
const PROBE = uapi.VFIO_DEVICE_FEATURE_PROBE;
const EINVAL = 22;
const ENOTSUP = 95;
const REGISTERS = 4;
const SCRATCH = 8;

const u32 = (...values: number[]): Uint8Array => new Uint8Array(Uint32Array.from(values).buffer);
const u64 = (...values: (number | bigint)[]): Uint8Array =>
  new Uint8Array(BigUint64Array.from(values.map(BigInt)).buffer);

class Peer {
  readonly client: TestPeer;
  readonly memory = new Uint8Array(0x4_0000);

  constructor(t: TestContext, migration = 'all') {
    this.client = new TestPeer({ options: { migration } });
    t.after(() => this.client.close());
    this.client.negotiate();
    this.client.onCommand = ({ command, payload, view }) => {
      const at = Number(view.getBigUint64(0, true));
      const count = Number(view.getBigUint64(8, true));
      if (command === wire.VFIO_USER_DMA_READ) return Buffer.concat([payload, this.memory.subarray(at, at + count)]);
      this.memory.set(payload.subarray(16, 16 + count), at);
      return payload.slice(0, 16);
    };
  }

  write(region: number, offset: number, data: Uint8Array): void {
    const header = wire.vfio_user_region_access.write({ offset: BigInt(offset), region, count: data.length });
    assert.equal(this.client.call(wire.VFIO_USER_REGION_WRITE, Buffer.concat([header, data])).error, 0);
  }

  read(region: number, offset: number): number {
    const header = wire.vfio_user_region_access.write({ offset: BigInt(offset), region, count: 4 });
    const { payload } = this.client.call(wire.VFIO_USER_REGION_READ, header);
    return new DataView(payload.buffer, payload.byteOffset).getUint32(16, true);
  }

  feature(flags: number, data: Uint8Array = new Uint8Array(0), room = data.length): Message {
    const header = wire.vfio_user_device_feature.write({ argsz: 8 + room, flags });
    return this.client.call(wire.VFIO_USER_DEVICE_FEATURE, Buffer.concat([header, data]));
  }

  /** 0, or the errno. */
  set(state: number): number {
    return this.feature(SET | 2, u32(state, 0)).error;
  }

  get state(): number {
    const { error, payload } = this.feature(GET | 2, new Uint8Array(0), 8);
    assert.equal(error, 0);
    return new DataView(payload.buffer, payload.byteOffset).getUint32(8, true);
  }

  /** All that there is for now. */
  data(piece = 0x1_0000): Uint8Array {
    const parts: Uint8Array[] = [];
    for (;;) {
      const { error, payload } = this.client.call(wire.VFIO_USER_MIG_DATA_READ, u32(8 + piece, piece));
      assert.equal(error, 0);
      const { size } = wire.vfio_user_mig_data.read(payload);
      assert.equal(payload.length, 8 + size);
      parts.push(payload.slice(8));
      if (size < piece) return Buffer.concat(parts);
    }
  }

  put(bytes: Uint8Array, piece = 0x1_0000): void {
    for (let at = 0; at < bytes.length; at += piece) {
      const part = bytes.subarray(at, at + piece);
      const payload = Buffer.concat([u32(8 + part.length, part.length), part]);
      const { error, payload: answer } = this.client.call(wire.VFIO_USER_MIG_DATA_WRITE, payload);
      assert.deepEqual([error, answer.length], [0, 0]);
    }
  }

  /** Fills memory by DMA. */
  fill(address: number, length: number): void {
    this.write(REGISTERS, 0x48, u64(address));
    this.write(REGISTERS, 0x50, u32(length, 0x0101_0101, 2));
    for (let i = 0; i < 100 && (this.read(REGISTERS, 0x5c) & 1) !== 0; i++) this.client.serve();
    assert.equal(this.read(REGISTERS, 0x5c), 2);
  }

  /** Numbers of the bits of a report. */
  report(iova: number, length: number, page: number): number[] {
    const { error, payload } = this.feature(GET | 8, u64(iova, length, page), 4096);
    assert.equal(error, 0);
    const bytes = Math.ceil(length / page / 64) * 8;
    assert.equal(payload.length, 8 + 24 + bytes);
    const bits = payload.subarray(32);
    return Array.from({ length: bytes * 8 }, (_, i) => i).filter((i) => (bits[i >> 3]! >> (i & 7)) & 1);
  }
}

test('U-40: a device goes from one server to another, read while it still runs', (t) => {
  const source = new Peer(t);
  source.write(REGISTERS, SCRATCH, u32(0xcafe_f00d));
  source.write(0, 0x4321, Buffer.from('in a mapped BAR'));
  assert.equal(source.set(PRE_COPY), 0);
  const early = source.data();
  source.write(0, 0x4321, Buffer.from('IN A MAPPED'));
  assert.equal(source.set(STOP_COPY), 0);
  const late = source.data(5000);
  assert.ok(early.length > 0x11_0000 && late.length < 0x1_0000, `${early.length} and ${late.length} bytes`);
  const target = new Peer(t);
  assert.equal(target.set(RESUMING), 0);
  target.put(Buffer.concat([early, late]), 0x1234);
  assert.equal(target.set(RUNNING), 0);
  assert.equal(target.state, RUNNING);
  assert.equal(target.read(REGISTERS, SCRATCH), 0xcafe_f00d);
  const header = wire.vfio_user_region_access.write({ offset: 0x4321n, region: 0, count: 15 });
  const { payload } = target.client.call(wire.VFIO_USER_REGION_READ, header);
  assert.equal(Buffer.from(payload.subarray(16)).toString(), 'IN A MAPPED BAR');
  assert.equal(source.set(RUNNING), 0, 'and the source could go on');
});

test('U-41: what does not lead from state to state is refused, and so are the states for peer-to-peer DMA', (t) => {
  const peer = new Peer(t);
  const { payload } = peer.feature(GET | 1, new Uint8Array(0), 8);
  assert.equal(payload[8], 5, 'no P2P on the wire');
  for (const state of [RUNNING_P2P, PRE_COPY_P2P, 0, 8]) assert.equal(peer.set(state), EINVAL);
  assert.equal(peer.state, RUNNING);
  assert.equal(peer.set(STOP_COPY), 0);
  assert.equal(peer.set(PRE_COPY), EINVAL);
  assert.equal(peer.state, STOP_COPY);
  assert.equal(peer.set(RUNNING), 0);
  const read = (): number => peer.client.call(wire.VFIO_USER_MIG_DATA_READ, u32(16, 8)).error;
  const write = (): number => peer.client.call(wire.VFIO_USER_MIG_DATA_WRITE, u32(12, 4, 0)).error;
  assert.deepEqual([read(), write()], [EINVAL, EINVAL], 'no data while it runs');
  peer.set(RESUMING);
  assert.deepEqual([read(), write()], [EINVAL, 0]);
  peer.client.call(wire.VFIO_USER_DEVICE_RESET);
  assert.deepEqual([peer.state, read(), write()], [RUNNING, EINVAL, EINVAL]);
});

test('a device that cannot migrate has none of these features; on the wire that is ENOTSUP', (t) => {
  const peer = new Peer(t, 'none');
  for (const index of [1, 2, 6, 7, 8]) {
    assert.equal(peer.feature(PROBE | GET | index).error, ENOTSUP, `feature ${index}`);
    assert.equal(peer.feature(GET | index, u64(0, 4096, 4096)).error, ENOTSUP, `feature ${index}`);
  }
  assert.equal(new Peer(t).feature(PROBE | GET | 1).error, 0);
});

test('U-42: pages that were written are reported once, in larger and in smaller pages than are logged', (t) => {
  const peer = new Peer(t);
  assert.equal(peer.client.call(wire.VFIO_USER_DMA_MAP, map(0, 0x4_0000)).error, 0);
  const { error, payload } = peer.feature(SET | 6, Buffer.concat([u64(0x1_0000), u32(0, 0)]));
  assert.equal(error, 0);
  assert.equal(new DataView(payload.buffer, payload.byteOffset).getBigUint64(8, true), 0x1_0000n);
  assert.equal(peer.feature(SET | 6, Buffer.concat([u64(0x1000), u32(0, 0)])).error, EINVAL, 'it runs already');
  peer.fill(0x1_2340, 16);
  const sixteen = Array.from({ length: 16 }, (_, i) => 16 + i);
  assert.deepEqual(peer.report(0, 0x4_0000, 4096), sixteen, 'one page of 64 KiB is sixteen of 4 KiB');
  assert.deepEqual(peer.report(0, 0x4_0000, 4096), []);
  assert.equal(peer.feature(SET | 7).error, 0);
  assert.equal(peer.feature(GET | 8, u64(0, 4096, 4096), 4096).error, EINVAL, 'it does not run');
  const ranges = Buffer.concat([u64(0x1000), u32(2, 0), u64(0, 0x2_0000), u64(0x3_0000, 0x1_0000)]);
  assert.equal(peer.feature(SET | 6, ranges).error, 0);
  for (const at of [0x5000, 0x2_5000, 0x3_1000]) peer.fill(at, 4);
  assert.deepEqual(peer.report(0, 0x4_0000, 0x2_0000), [0, 1], 'two of 128 KiB');
  peer.fill(0x5000, 4);
  assert.deepEqual(peer.report(0x4000, 0x2000, 2048), [2, 3], 'and smaller ones than the kernel takes');
  assert.equal(peer.feature(GET | 8, u64(0, 4096, 4095), 4096).error, EINVAL);
  assert.equal(peer.feature(GET | 8, u64(0, 2n ** 48n, 4096), 4096).error, EINVAL, 'more than fits a message');
});

test('U-43: a stream that is cut fails at the state after it, the device is in ERROR, and a reset clears that', (t) => {
  const source = new Peer(t);
  source.set(STOP_COPY);
  const bytes = source.data();
  const target = new Peer(t);
  target.set(RESUMING);
  target.put(bytes.subarray(0, bytes.length - 100));
  assert.equal(target.set(STOP), EINVAL);
  assert.equal(target.state, 0);
  assert.equal(target.set(RUNNING), EINVAL);
  assert.equal(target.client.call(wire.VFIO_USER_DEVICE_RESET).error, 0);
  assert.equal(target.state, RUNNING);
});

test('a client that goes in the middle of it leaves a device that runs', (t) => {
  const peer = new Peer(t);
  peer.set(STOP_COPY);
  peer.client.disconnect();
  peer.client.connect();
  peer.client.negotiate();
  assert.equal(peer.state, RUNNING);
});

function map(address: number, size: number): Uint8Array {
  const { size: argsz } = wire.vfio_user_dma_map;
  return wire.vfio_user_dma_map.write({ argsz, flags: 3, offset: 0n, addr: BigInt(address), size: BigInt(size) });
}
