import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { createEventfd, readEventfd } from '../../sys/index.ts';
import * as uapi from '../../uapi/vfio.ts';
import * as wire from '../../uapi/vfio-user.ts';
import { encodeMessage, fixedPartOf, type Message } from './codec.ts';
import type { DmaMode } from './dma.ts';
import { TestPeer, versionPayload } from './test-peer.ts';

const RW = wire.VFIO_USER_F_DMA_REGION_READ | wire.VFIO_USER_F_DMA_REGION_WRITE;
const EINVAL = 22;
const REGISTERS = 4;

function peer(t: TestContext, options: { mode?: DmaMode; strictUnmap?: boolean; model?: string } = {}): TestPeer {
  const made = new TestPeer(options);
  t.after(() => made.close());
  made.negotiate();
  return made;
}

function access(offset: number, region: number, count: number, data?: Uint8Array): Uint8Array {
  const header = wire.vfio_user_region_access.write({ offset: BigInt(offset), region, count });
  return data === undefined ? header : Buffer.concat([header, data]);
}

const u32 = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);
const u64 = (value: number | bigint): Uint8Array => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);

function read(client: TestPeer, region: number, offset: number, count: number): Uint8Array {
  const reply = client.call(wire.VFIO_USER_REGION_READ, access(offset, region, count));
  assert.equal(reply.error, 0);
  return reply.payload.subarray(16);
}

function read32(client: TestPeer, region: number, offset: number): number {
  return new DataView(read(client, region, offset, 4).slice().buffer).getUint32(0, true);
}

function write(client: TestPeer, region: number, offset: number, data: Uint8Array): void {
  assert.equal(client.call(wire.VFIO_USER_REGION_WRITE, access(offset, region, data.length, data)).error, 0);
}

function map(address: number | bigint, size: number | bigint, flags = RW, offset = 0): Uint8Array {
  const argsz = wire.vfio_user_dma_map.size;
  return wire.vfio_user_dma_map.write({
    argsz,
    flags,
    offset: BigInt(offset),
    addr: BigInt(address),
    size: BigInt(size),
  });
}

function unmap(address: number | bigint, size: number | bigint, flags = 0): Uint8Array {
  const argsz = wire.vfio_user_dma_unmap.size;
  return wire.vfio_user_dma_unmap.write({ argsz, flags, addr: BigInt(address), size: BigInt(size) });
}

function file(t: TestContext, length: number): number {
  const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
  const fd = openSync(join(folder, 'memory'), 'w+');
  rmSync(folder, { recursive: true });
  ftruncateSync(fd, length);
  t.after(() => closeSync(fd));
  return fd;
}

/** Copies `length` bytes by the device's DMA. The device's STATUS at the end. */
function copy(client: TestPeer, from: number, to: number, length: number): number {
  write(client, REGISTERS, 0x40, u64(from));
  write(client, REGISTERS, 0x48, u64(to));
  write(client, REGISTERS, 0x50, u32(length));
  write(client, REGISTERS, 0x58, u32(1));
  for (let i = 0; i < 100; i++) {
    client.serve();
    const status = read32(client, REGISTERS, 0x5c);
    if ((status & 1) === 0) return status;
  }
  throw new Error('The transfer does not end');
}

const openDescriptors = (): number => readdirSync('/proc/self/fd').length;

test('U-2: a first message that is no VERSION closes the connection', (t) => {
  const client = new TestPeer();
  t.after(() => client.close());
  client.send(wire.VFIO_USER_DEVICE_GET_INFO, new Uint8Array(16));
  client.serve();
  assert.equal(client.session.isOpen, false);
  assert.deepEqual(client.closed, ['the first message is DEVICE_GET_INFO, not VERSION']);
  assert.equal(client.reply()?.error, EINVAL, 'and it is told');
});

test('a VERSION that cannot be agreed on is answered with EINVAL and closes; a second one is refused only', (t) => {
  const client = new TestPeer();
  t.after(() => client.close());
  assert.equal(client.call(wire.VFIO_USER_VERSION, versionPayload(1, 0, undefined)).error, EINVAL);
  assert.equal(client.session.isOpen, false);
  client.connect();
  assert.equal(client.negotiate().error, 0);
  assert.equal(client.negotiate().error, EINVAL);
  assert.equal(client.session.isOpen, true);
});

test('U-6: with a twin socket the DMA of the device goes there', (t) => {
  const client = new TestPeer({ mode: 'message' });
  t.after(() => client.close());
  const reply = client.negotiate({ twin_socket: { supported: true } });
  const { capabilities } = JSON.parse(Buffer.from(reply.payload.subarray(4, -1)).toString());
  assert.deepEqual(capabilities.twin_socket, { supported: true, fd_index: 0 });
  assert.equal(reply.descriptors.length, 1);
  client.twin = reply.descriptors[0]!;
  t.after(() => closeSync(client.twin));
  const asked: number[] = [];
  client.onCommand = ({ command, payload, view, offset }) => {
    asked.push(command);
    const count = Number(view.getBigUint64(offset + 8, true));
    return command === wire.VFIO_USER_DMA_READ ? Buffer.concat([payload, new Uint8Array(count)]) : payload.slice(0, 16);
  };
  client.call(wire.VFIO_USER_DMA_MAP, map(0, 0x1000));
  assert.equal(copy(client, 0, 0x800, 16), 2);
  assert.deepEqual(asked, [wire.VFIO_USER_DMA_READ, wire.VFIO_USER_DMA_WRITE]);
});

test('U-20: each command with a payload one byte short is EINVAL, and the next one is understood', (t) => {
  const client = peer(t);
  for (let command = 2; command <= 20; command++) {
    const length = fixedPartOf(command) ?? 4;
    if (length === 0) continue;
    assert.equal(client.call(command, new Uint8Array(length - 1)).error, EINVAL, `command ${command}`);
    assert.equal(read32(client, REGISTERS, 0), 0x76656474);
  }
});

test('U-21: GET_INFO with argsz 15 is EINVAL, with 16 it tells of a PCI device that can be reset', (t) => {
  const client = peer(t);
  const info = (argsz: number): Message =>
    client.call(
      wire.VFIO_USER_DEVICE_GET_INFO,
      wire.vfio_user_device_info.write({ argsz, flags: 0, num_regions: 0, num_irqs: 0 }),
    );
  assert.equal(info(15).error, EINVAL);
  assert.deepEqual(wire.vfio_user_device_info.read(info(16).payload), {
    argsz: 16,
    flags: uapi.VFIO_DEVICE_FLAGS_PCI | uapi.VFIO_DEVICE_FLAGS_RESET,
    num_regions: 9,
    num_irqs: 5,
  });
});

test('U-22 U-23: regions with their memory; an index too far is EINVAL', (t) => {
  const client = peer(t);
  const region = (index: number, argsz = 32): Message =>
    client.call(
      wire.VFIO_USER_DEVICE_GET_REGION_INFO,
      uapi.vfio_region_info.write({ argsz, flags: 0, index, cap_offset: 0, size: 0n, offset: 0n }),
    );
  const memory = region(0);
  const { flags, size, argsz } = uapi.vfio_region_info.read(memory.payload);
  assert.deepEqual([flags & 7, size, argsz], [7, 0x10000n, 32]);
  assert.equal(memory.descriptors.length, 1);
  write(client, 0, 0x100, u32(0x11223344));
  const bytes = new Uint8Array(4);
  readSync(memory.descriptors[0]!, bytes, 0, 4, 0x100);
  assert.deepEqual(bytes, u32(0x11223344));
  closeSync(memory.descriptors[0]!);
  const registers = region(4);
  assert.equal(uapi.vfio_region_info.read(registers.payload).flags, 3);
  assert.equal(registers.descriptors.length, 0);
  assert.equal(region(9).error, EINVAL);
  assert.equal(region(0, 31).error, EINVAL);
  const irq = (index: number): Message =>
    client.call(wire.VFIO_USER_DEVICE_GET_IRQ_INFO, uapi.vfio_irq_info.write({ argsz: 16, flags: 0, index, count: 0 }));
  assert.equal(uapi.vfio_irq_info.read(irq(2).payload).count, 8);
  assert.equal(irq(5).error, EINVAL);
});

test('U-24: as many bytes as were agreed on, not one more, not none', (t) => {
  const client = new TestPeer();
  t.after(() => client.close());
  client.negotiate({ max_data_xfer_size: 4096 });
  const count = (wanted: number): number => client.call(wire.VFIO_USER_REGION_READ, access(0, 0, wanted)).error;
  assert.deepEqual([count(4096), count(4097), count(0)], [0, EINVAL, EINVAL]);
  assert.equal(client.call(wire.VFIO_USER_REGION_READ, access(0xfff1, 0, 16)).error, EINVAL, 'beyond the end');
  assert.equal(client.call(wire.VFIO_USER_REGION_READ, access(2 ** 50, 0, 16)).error, EINVAL);
  assert.equal(client.call(wire.VFIO_USER_REGION_WRITE, access(0, 0, 8, u32(0))).error, EINVAL, 'too little data');
});

test('U-25: posted writes are never answered, and the read after them sees all', (t) => {
  const client = peer(t);
  for (let i = 0; i < 10; i++) {
    client.send(wire.VFIO_USER_REGION_WRITE, access(8, REGISTERS, 4, u32(i)), [], wire.VFIO_USER_F_NO_REPLY);
  }
  client.send(wire.VFIO_USER_REGION_WRITE, access(0, 99, 4, u32(0)), [], wire.VFIO_USER_F_NO_REPLY);
  assert.equal(read32(client, REGISTERS, 8), 9);
  assert.equal(client.reply(), undefined);
});

test('U-26: 64 reads at once are answered in their order', (t) => {
  const client = peer(t);
  const ids = Array.from({ length: 64 }, () => client.send(wire.VFIO_USER_REGION_READ, access(0, REGISTERS, 4)));
  client.serve();
  assert.deepEqual(
    ids.map(() => client.reply()?.id),
    ids,
  );
});

for (const mode of ['auto', 'file', 'message'] as const) {
  test(`U-11 U-12: the device copies the same bytes in mode ${mode}`, (t) => {
    const client = peer(t, { mode });
    const fd = file(t, 0x4000);
    const text = Buffer.from('memory of the client');
    writeSync(fd, text, 0, text.length, 0x1010);
    client.onCommand = ({ command, payload, view }) => {
      const address = Number(view.getBigUint64(0, true)) - 0x10_0000 + 0x1000;
      const count = Number(view.getBigUint64(8, true));
      if (command === wire.VFIO_USER_DMA_WRITE) {
        writeSync(fd, payload, 16, count, address);
        return payload.subarray(0, 16);
      }
      const reply = new Uint8Array(16 + count);
      reply.set(payload.subarray(0, 16));
      readSync(fd, reply, 16, count, address);
      return reply;
    };
    assert.equal(client.call(wire.VFIO_USER_DMA_MAP, map(0x10_0000, 0x2000, RW, 0x1000), [fd]).error, 0);
    assert.equal(copy(client, 0x10_0010, 0x10_1800, text.length), 2);
    const bytes = Buffer.alloc(text.length);
    readSync(fd, bytes, 0, text.length, 0x2800);
    assert.equal(bytes.toString(), text.toString());
    assert.equal(client.call(wire.VFIO_USER_DMA_UNMAP, unmap(0x10_0000, 0x2000)).error, 0);
  });
}

test('an address that was never mapped is asked for by message; an error is the fault', (t) => {
  const client = peer(t);
  const asked: string[] = [];
  client.onCommand = ({ command, payload, view }) => {
    const address = view.getBigUint64(0, true);
    asked.push(`${wire.vfioUserCommandNames[command]} 0x${address.toString(16)} ${view.getBigUint64(8, true)}`);
    if (address >= 0x2_0000n) return 19;
    return command === wire.VFIO_USER_DMA_READ
      ? Buffer.concat([payload, Buffer.from('abcd')])
      : payload.subarray(0, 16);
  };
  assert.equal(copy(client, 0x1_0ffe, 0x1_0000, 4), 2);
  assert.deepEqual(asked.slice(0, 1), ['DMA_READ 0x10ffe 4']);
  assert.equal(copy(client, 0x1_0000, 0x5_0000, 4), 0x506);
});

test('U-53: commands that come while the server waits for memory are kept and follow in order', (t) => {
  const client = peer(t, { mode: 'message' });
  assert.equal(client.call(wire.VFIO_USER_DMA_MAP, map(0, 0x1000)).error, 0);
  const sent: number[] = [];
  client.onCommand = ({ command, payload, view }) => {
    sent.push(client.send(wire.VFIO_USER_REGION_READ, access(0, REGISTERS, 4)));
    const count = Number(view.getBigUint64(8, true));
    return command === wire.VFIO_USER_DMA_READ
      ? Buffer.concat([payload, new Uint8Array(count)])
      : payload.subarray(0, 16);
  };
  write(client, REGISTERS, 0x40, u64(0));
  write(client, REGISTERS, 0x48, u64(0x800));
  write(client, REGISTERS, 0x50, u32(64));
  write(client, REGISTERS, 0x58, u32(1));
  const until = Date.now() + 1000;
  while (sent.length < 2 && Date.now() < until) client.serve();
  client.serve();
  assert.equal(sent.length, 2);
  assert.deepEqual([client.reply()?.id, client.reply()?.id], sent);
});

test('U-10 U-14 U-17 U-18 U-19: what maps and unmaps are refused', (t) => {
  const client = peer(t);
  const doMap = (payload: Uint8Array, fds: number[] = []): number =>
    client.call(wire.VFIO_USER_DMA_MAP, payload, fds).error;
  const doUnmap = (payload: Uint8Array): number => client.call(wire.VFIO_USER_DMA_UNMAP, payload).error;
  assert.equal(doMap(map(0x1000, 0x2000)), 0);
  assert.equal(doMap(map(0x2000, 0x2000)), 17);
  assert.equal(doMap(map(0x8000, 0)), EINVAL);
  assert.equal(doMap(map(0x8000, 0x1000, 0)), EINVAL);
  assert.equal(doMap(map(0x8000, 0x1000, RW | wire.VFIO_USER_F_DMA_REGION_MMAP)), EINVAL);
  assert.equal(doMap(map((1n << 64n) - 0x1000n, 0x2000)), EINVAL);
  assert.equal(doMap(map(0x8000, 2n ** 43n + 4096n)), 28);
  assert.equal(doMap(map(0x8000, 0x3000), [file(t, 0x2000)]), EINVAL, 'beyond the end of the file');
  assert.equal(doUnmap(unmap(0x1000, 0x1000)), 2, 'half of a map');
  assert.equal(client.device.maps.count, 1);
  const echo = client.call(wire.VFIO_USER_DMA_UNMAP, unmap(0x10_0000, 0x10_0000));
  assert.deepEqual([echo.error, echo.payload], [0, unmap(0x10_0000, 0x10_0000)]);
  assert.equal(doUnmap(unmap(0xfef0_0000, 0xffff_ffff_0110_0000n)), 0);
  assert.equal(doUnmap(unmap(0xfef0_0000, 0xffff_ffff_0110_0001n)), EINVAL);
  assert.equal(doUnmap(unmap(0, 0)), EINVAL);
  assert.equal(doUnmap(unmap(0x1000, 0, wire.VFIO_USER_F_DMA_UNMAP_ALL)), EINVAL);
  assert.equal(doUnmap(unmap(0x1000, 0x2000, wire.VFIO_USER_F_DMA_UNMAP_GET_DIRTY_BITMAP)), EINVAL);
  for (let i = 0; i < 256; i++) assert.equal(doMap(map(0x100_0000 + i * 0x1000, 0x1000)), 0);
  assert.equal(doUnmap(unmap(0, 0x10ff_0000)), 0);
  assert.equal(client.device.maps.count, 0);
  assert.equal(doMap(map(0x1000, 0x1000)), 0);
  assert.equal(doMap(map(0x4000, 0x2000)), 0);
  assert.equal(doUnmap(unmap(0, 0x5000)), 2);
  assert.equal(client.device.maps.count, 2);
  assert.equal(doUnmap(unmap(0, 0, wire.VFIO_USER_F_DMA_UNMAP_ALL)), 0);
  assert.equal(client.device.maps.count, 0);
});

test('U-17 U-18: with strictUnmap only one exact map is removed', (t) => {
  const client = peer(t, { strictUnmap: true });
  for (const at of [0x1000, 0x2000]) client.call(wire.VFIO_USER_DMA_MAP, map(at, 0x1000));
  assert.equal(client.call(wire.VFIO_USER_DMA_UNMAP, unmap(0x1000, 0x2000)).error, 2);
  assert.equal(client.call(wire.VFIO_USER_DMA_UNMAP, unmap(0x8000, 0x1000)).error, 2);
  assert.equal(client.call(wire.VFIO_USER_DMA_UNMAP, unmap(0x1000, 0x1000)).error, 0);
});

test('U-15: a write through a map that is for reading is refused without a message', (t) => {
  const client = peer(t, { mode: 'message' });
  const asked: number[] = [];
  client.onCommand = ({ command, payload, view }) => {
    asked.push(command);
    return Buffer.concat([payload, new Uint8Array(Number(view.getBigUint64(8, true)))]);
  };
  client.call(wire.VFIO_USER_DMA_MAP, map(0, 0x1000, wire.VFIO_USER_F_DMA_REGION_READ));
  assert.equal(copy(client, 0, 0x800, 16), 0x506);
  assert.deepEqual(asked, [wire.VFIO_USER_DMA_READ]);
});

test('U-28 U-34: MSI-X is enabled without a descriptor; only vectors that have one signal', (t) => {
  const client = peer(t);
  const irqs = (flags: number, index: number, start: number, count: number, fds: number[] = []): number =>
    client.call(wire.VFIO_USER_DEVICE_SET_IRQS, uapi.vfio_irq_set.write({ argsz: 20, flags, index, start, count }), fds)
      .error;
  const fds = Array.from({ length: 3 }, () => createEventfd());
  t.after(() => {
    for (const fd of fds) closeSync(fd);
  });
  assert.equal(irqs(0x24, 2, 0, 1), 0);
  assert.equal(irqs(0x24, 2, 3, 1, [fds[0]!]), 0);
  for (const vector of [0, 3, 4]) write(client, REGISTERS, 0x20, u32(vector));
  assert.equal(readEventfd(fds[0]!), 1);
  assert.equal(irqs(0x24, 2, 4, 2, [fds[1]!, fds[2]!]), 0, 'U-29: two descriptors for two vectors');
  assert.equal(irqs(0x24, 2, 4, 2, [fds[1]!]), EINVAL, 'U-29: one too few');
  write(client, REGISTERS, 0x20, u32(5));
  assert.equal(readEventfd(fds[2]!), 1);
  assert.equal(irqs(0x24, 2, 3, 1), 0, 'U-29: taken away');
  write(client, REGISTERS, 0x20, u32(3));
  assert.equal(readEventfd(fds[0]!), 0);
  assert.equal(irqs(0x21, 2, 0, 0), 0);
  assert.equal(irqs(0x24, 2, 0xffff_ffff, 2), EINVAL);
  assert.equal(irqs(0x24, 2, 0, 0x7fff_ffff), EINVAL);
});

test('U-32: WRITE_MULTI stops at the first bad entry and says how many were done', (t) => {
  const entry = (offset: number, region: number, count: number): Uint8Array =>
    wire.vfio_user_write_multi_entry.write({ offset: BigInt(offset), region, count, data: u64(offset) });
  const payload = Buffer.concat([u64(4), entry(0, 0, 4), entry(8, 0, 8), entry(0, 77, 4), entry(16, 0, 4)]);
  const client = peer(t);
  const reply = client.call(wire.VFIO_USER_REGION_WRITE_MULTI, payload);
  assert.deepEqual([reply.error, reply.payload], [0, u64(2)]);
  assert.equal(read32(client, 0, 8), 8);
  assert.equal(read32(client, 0, 16), 0);
  client.disconnect();
  client.connect();
  client.negotiate({});
  assert.equal(client.call(wire.VFIO_USER_REGION_WRITE_MULTI, payload).error, EINVAL);
});

test('FEATURE of something the device has not is ENOTSUP; migration data EINVAL; IO_FDS none', (t) => {
  const client = peer(t);
  const feature = wire.vfio_user_device_feature.write({ argsz: 16, flags: uapi.VFIO_DEVICE_FEATURE_GET | 1 });
  assert.equal(client.call(wire.VFIO_USER_DEVICE_FEATURE, Buffer.concat([feature, u64(0)])).error, 95);
  assert.equal(client.call(wire.VFIO_USER_MIG_DATA_READ, new Uint8Array(8)).error, EINVAL);
  const fds = wire.vfio_user_region_io_fds.write({ argsz: 16, flags: 0, index: 0, count: 0 });
  assert.deepEqual(client.call(wire.VFIO_USER_DEVICE_GET_REGION_IO_FDS, fds).payload, fds);
});

test('U-50 U-51: a client that goes takes its maps and descriptors with it; registers stay', (t) => {
  const client = peer(t);
  const fd = file(t, 0x1000);
  const event = createEventfd();
  t.after(() => closeSync(event));
  write(client, REGISTERS, 8, u32(0xcafe));
  client.disconnect();
  const before = openDescriptors();
  for (let i = 0; i < 20; i++) {
    client.connect();
    client.negotiate();
    client.call(wire.VFIO_USER_DMA_MAP, map(0, 0x1000), [fd]);
    const set = uapi.vfio_irq_set.write({ argsz: 20, flags: 0x24, index: 2, start: 0, count: 1 });
    client.call(wire.VFIO_USER_DEVICE_SET_IRQS, set, [event]);
    client.sendBytes(encodeMessage({ id: 1, command: 2 }, map(0x1000, 0x1000)).subarray(0, 20), [fd]);
    client.disconnect();
  }
  assert.equal(openDescriptors(), before);
  assert.equal(client.device.maps.count, 0);
  client.connect();
  client.negotiate();
  assert.equal(read32(client, REGISTERS, 8), 0xcafe);
});

test('U-52: half a message and then the end', (t) => {
  const client = peer(t);
  client.sendBytes(encodeMessage({ id: 1, command: 9 }, access(0, 0, 4)).subarray(0, 19));
  client.disconnect();
  assert.deepEqual(client.closed, ['the client left in the middle of a message']);
});

test('RESET clears the registers and leaves eventfds where they are', (t) => {
  const client = peer(t);
  const event = createEventfd();
  t.after(() => closeSync(event));
  const set = uapi.vfio_irq_set.write({ argsz: 20, flags: 0x24, index: 2, start: 0, count: 1 });
  client.call(wire.VFIO_USER_DEVICE_SET_IRQS, set, [event]);
  write(client, REGISTERS, 8, u32(5));
  assert.equal(client.call(wire.VFIO_USER_DEVICE_RESET).error, 0);
  assert.equal(read32(client, REGISTERS, 8), 0);
  write(client, REGISTERS, 0x20, u32(0));
  assert.equal(readEventfd(event), 1);
});

test('a conventional function has the error interrupt, too, as every vfio-user device', (t) => {
  const client = peer(t, { model: 'edu' });
  const info = uapi.vfio_irq_info.write({ argsz: 16, flags: 0, index: 3, count: 0 });
  const reply = client.call(wire.VFIO_USER_DEVICE_GET_IRQ_INFO, info);
  assert.deepEqual([reply.error, uapi.vfio_irq_info.read(reply.payload).count], [0, 1]);
  const event = createEventfd();
  t.after(() => closeSync(event));
  const set = (start: number): Uint8Array =>
    uapi.vfio_irq_set.write({ argsz: 20, flags: 0x24, index: 3, start, count: 1 });
  assert.equal(client.call(wire.VFIO_USER_DEVICE_SET_IRQS, set(0), [event]).error, 0);
  assert.equal(client.call(wire.VFIO_USER_DEVICE_SET_IRQS, set(1), [event]).error, EINVAL);
});

test('a long transfer over pages that were never mapped moves the right bytes, and the next one, too', (t) => {
  const client = peer(t);
  const memory = new Uint8Array(16 * 2 ** 20);
  const length = 5 * 2 ** 20;
  for (let at = 0; at < length; at += 4096) memory[at] = (at / 4096) % 251;
  client.onCommand = ({ command, payload, view }) => {
    const address = Number(view.getBigUint64(0, true)) - 0x1000_0000;
    const count = Number(view.getBigUint64(8, true));
    if (command === wire.VFIO_USER_DMA_READ) {
      return Buffer.concat([payload, memory.subarray(address, address + count)]);
    }
    memory.set(payload.subarray(16, 16 + count), address);
    return payload.slice(0, 16);
  };
  for (const to of [8 * 2 ** 20, 10 * 2 ** 20]) {
    assert.equal(copy(client, 0x1000_0000, 0x1000_0000 + to, length), 2);
    assert.ok(Buffer.compare(memory.subarray(0, length), memory.subarray(to, to + length)) === 0);
  }
});

test('U-30: a mask, and its end, are told by eventfd; a masked vector keeps its signal', (t) => {
  const client = peer(t);
  const events = Array.from({ length: 4 }, () => createEventfd());
  t.after(() => {
    for (const event of events) closeSync(event);
  });
  const [trigger, masked, unmasked, pin] = events as [number, number, number, number];
  const set = (flags: number, index: number, start: number, count: number, fds: number[] = []): number =>
    client.call(wire.VFIO_USER_DEVICE_SET_IRQS, uapi.vfio_irq_set.write({ argsz: 20, flags, index, start, count }), fds)
      .error;
  const [NONE, EVENTFD, MASK, UNMASK, TRIGGER] = [1, 4, 8, 16, 32];
  assert.equal(set(EVENTFD | TRIGGER, 2, 3, 1, [trigger]), 0);
  assert.equal(set(EVENTFD | MASK, 2, 3, 1, [masked]), 0);
  assert.equal(set(EVENTFD | UNMASK, 2, 3, 1, [unmasked]), 0);
  const fire = (): void => write(client, REGISTERS, 0x20, u32(3));
  fire();
  assert.deepEqual([readEventfd(trigger), readEventfd(masked)], [1, 0]);
  assert.equal(set(NONE | MASK, 2, 3, 1), 0);
  assert.deepEqual([readEventfd(masked), readEventfd(unmasked)], [1, 0]);
  fire();
  fire();
  assert.equal(readEventfd(trigger), 0);
  assert.equal(set(NONE | UNMASK, 2, 3, 1), 0);
  assert.deepEqual([readEventfd(trigger), readEventfd(masked), readEventfd(unmasked)], [1, 0, 1]);
  // The eventfd is taken back: nobody is told.
  assert.equal(set(EVENTFD | MASK, 2, 3, 1), 0);
  assert.equal(set(NONE | MASK, 2, 3, 1), 0);
  assert.equal(readEventfd(masked), 0);
  assert.equal(set(NONE | MASK, 2, 7, 2), EINVAL, 'beyond the vectors');
  assert.equal(set(NONE | MASK, 2, 0, 0), EINVAL);
  assert.equal(set(NONE | MASK, 4, 0, 1), EINVAL, 'an index without masks');
  // The pin.
  assert.equal(set(NONE | TRIGGER, 2, 0, 0), 0);
  assert.equal(set(EVENTFD | TRIGGER, 0, 0, 1, [trigger]), 0);
  assert.equal(set(EVENTFD | MASK, 0, 0, 1, [pin]), 0);
  assert.equal(set(NONE | MASK, 0, 0, 1), 0);
  assert.equal(readEventfd(pin), 1);
  const before = openDescriptors();
  client.disconnect();
  assert.ok(openDescriptors() < before, 'and all are given back');
});
