/**
 * A device that asks its client for memory at every opportunity, and a client that answers nothing while it waits itself, as QEMU does:
 * neither may wait for the other.
 */
import assert from 'node:assert/strict';
import { closeSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { device, isFault, memoryBar, msix, PCI_EXP_TYPE_ENDPOINT, pciExpress, register } from '../../device.ts';
import { signalEventfd } from '../../sys/index.ts';
import * as uapi from '../../uapi/vfio.ts';
import * as wire from '../../uapi/vfio-user.ts';
import { parseIoFds } from './client-regions.ts';
import type { Message } from './codec.ts';
import { TestPeer } from './test-peer.ts';

const ADDRESS = 0x00;
/** A write fetches four bytes at once, inside the access. */
const FETCH = 0x08;
const RESULT = 0x0c;
/** A read fetches four bytes and gives them. */
const PEEK = 0x10;
/** A write fetches four bytes a moment later. */
const LATER = 0x14;
const COUNT = 0x18;
const SCRATCH = 0x1c;
const FAULT = 0xffff_ffff;

const asker = device({
  name: 'asker',
  vendor: 0x1234,
  device: 0x4321,
  class24: 0xff0000,
  capabilities: [
    pciExpress({ type: PCI_EXP_TYPE_ENDPOINT, flr: true }),
    msix({ vectors: 1, tableBar: 2, tableOffset: 0 }),
  ],
  build(card) {
    const address = register({ name: 'ADDRESS', at: ADDRESS, width: 8 });
    const result = register({ name: 'RESULT', at: RESULT, width: 4 });
    const count = register({ name: 'COUNT', at: COUNT, width: 4 });
    const fetch = (): number => {
      const view = card.dma.view(address.wide, 4);
      const value = isFault(view) ? FAULT : view.u32(0);
      result.low = value;
      count.low++;
      return value;
    };
    return {
      bars: [
        memoryBar({
          index: 0,
          size: 0x1000,
          doorbells: [
            { at: LATER, size: 4, value: 1, shares: 'queues' },
            { at: SCRATCH, size: 4, value: 0x77, shares: 'queues' },
            { at: COUNT, size: 2 },
          ],
          registers: [
            address,
            result,
            count,
            register({ name: 'FETCH', at: FETCH, width: 4, write: fetch }),
            register({ name: 'PEEK', at: PEEK, width: 4, read: fetch }),
            register({ name: 'LATER', at: LATER, width: 4, write: () => card.clock.after(1, fetch) }),
            register({ name: 'SCRATCH', at: SCRATCH, width: 4 }),
          ],
        }),
        memoryBar({ index: 2, size: 0x1000 }),
      ],
    };
  },
});

const PATIENCE = 30;
const VALUE = 0x600d_f00d;

const u32 = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);

function peer(t: TestContext, isStubborn: boolean, patience = PATIENCE): TestPeer {
  const client = new TestPeer({ model: asker, mode: 'message', patience });
  t.after(() => client.close());
  client.negotiate();
  client.isStubborn = isStubborn;
  client.onCommand = ({ payload }) => Buffer.concat([payload.subarray(0, 16), u32(VALUE)]);
  assert.equal(client.call(wire.VFIO_USER_DMA_MAP, map(0x10_0000)).error, 0);
  write(client, ADDRESS, 0x10_0010);
  return client;
}

function map(address: number): Uint8Array {
  const { size: argsz } = wire.vfio_user_dma_map;
  return wire.vfio_user_dma_map.write({ argsz, flags: 3, offset: 0n, addr: BigInt(address), size: 0x1000n });
}

function unmap(address: number): Uint8Array {
  const { size: argsz } = wire.vfio_user_dma_unmap;
  return wire.vfio_user_dma_unmap.write({ argsz, flags: 0, addr: BigInt(address), size: 0x1000n });
}

function access(offset: number, data?: Uint8Array, region = 0): Uint8Array {
  const header = wire.vfio_user_region_access.write({ offset: BigInt(offset), region, count: data?.length ?? 4 });
  return data === undefined ? header : Buffer.concat([header, data]);
}

function write(client: TestPeer, offset: number, value: number): void {
  assert.equal(client.call(wire.VFIO_USER_REGION_WRITE, access(offset, u32(value))).error, 0);
}

function numberIn(reply: Message): number {
  return new DataView(reply.payload.buffer, reply.payload.byteOffset).getUint32(16, true);
}

function read(client: TestPeer, offset: number): number {
  return numberIn(client.call(wire.VFIO_USER_REGION_READ, access(offset)));
}

/** Once, when the server next waits, `client` sends this; the result has its id. */
function sendsWhenAsked(client: TestPeer, command: number, payload: Uint8Array): { id: number } {
  const sent = { id: -1 };
  client.onWait = () => {
    client.onWait = () => {};
    sent.id = client.send(command, payload);
  };
  return sent;
}

/** How long `action` takes, in milliseconds. */
function time(action: () => void): number {
  const start = performance.now();
  action();
  return performance.now() - start;
}

test('a write that makes the device ask for memory is answered before the device goes on: the client can then answer', (t) => {
  const client = peer(t, true, 2000);
  assert.ok(time(() => write(client, FETCH, 1)) < 1000);
  assert.equal(read(client, RESULT), VALUE);
  assert.deepEqual(client.notices, []);
});

test('a read that makes the device ask gets a fault in time from a client that waits, and the memory from one that answers', (t) => {
  const client = peer(t, true);
  const took = time(() => assert.equal(read(client, PEEK), FAULT));
  assert.ok(took >= PATIENCE - 1 && took < 20 * PATIENCE, `${took} ms`);
  assert.match(
    client.notices.join(),
    /^0000:01:00.0: a DMA by message was given up after 30 ms: it was started inside REGION_READ/,
  );
  assert.equal(read(client, PEEK), FAULT);
  assert.equal(client.notices.length, 1);
  // The late answer is to nothing; what comes behind it is understood.
  client.isStubborn = false;
  assert.equal(read(client, PEEK), VALUE);
});

test('a write to a posted register, then a read: the read waits for the write and not for the client', (t) => {
  const client = peer(t, true, 2000);
  client.send(wire.VFIO_USER_REGION_WRITE, access(FETCH, u32(1)), [], wire.VFIO_USER_F_NO_REPLY);
  client.send(wire.VFIO_USER_REGION_WRITE, access(SCRATCH, u32(5)), [], wire.VFIO_USER_F_NO_REPLY);
  assert.ok(time(() => assert.equal(read(client, SCRATCH), 5)) < 1000);
  assert.equal(read(client, RESULT), VALUE);
});

const setIrqs = uapi.vfio_irq_set.write({ argsz: 20, flags: 0x24, index: 2, start: 0, count: 1 });
const info = wire.vfio_user_device_info.write({ argsz: 16, flags: 0, num_regions: 0, num_irqs: 0 });
for (const [what, command, payload] of [
  ['DMA_MAP', wire.VFIO_USER_DMA_MAP, map(0x20_0000)],
  ['DMA_UNMAP of other pages', wire.VFIO_USER_DMA_UNMAP, unmap(0x30_0000)],
  ['SET_IRQS', wire.VFIO_USER_DEVICE_SET_IRQS, setIrqs],
  ['GET_INFO', wire.VFIO_USER_DEVICE_GET_INFO, info],
  ['a read of a register', wire.VFIO_USER_REGION_READ, access(SCRATCH)],
  ['a write to configuration space', wire.VFIO_USER_REGION_WRITE, access(0x3c, Uint8Array.of(5), 7)],
] as const) {
  test(`U-53: ${what} is answered while a DMA of the device waits for the client, which then answers`, (t) => {
    const client = peer(t, true, 2000);
    const sent = sendsWhenAsked(client, command, payload);
    assert.ok(time(() => write(client, LATER, 1)) < 1000);
    client.serve();
    const reply = client.reply();
    assert.deepEqual([reply?.id, reply?.error], [sent.id, 0]);
    assert.equal(read(client, RESULT), VALUE);
  });
}

test('U-13: an unmap of pages that a DMA is using is answered after it', (t) => {
  const client = peer(t, false, 2000);
  const sent = sendsWhenAsked(client, wire.VFIO_USER_DMA_UNMAP, unmap(0x10_0000));
  write(client, LATER, 1);
  client.serve();
  assert.deepEqual([client.reply()?.id, client.device.maps.count], [sent.id, 0]);
  assert.equal(read(client, RESULT), VALUE, 'the DMA had its memory');
});

test('U-13: the same from a client that answers nothing meanwhile: the DMA is a fault, and the unmap is done', (t) => {
  const client = peer(t, true);
  const sent = sendsWhenAsked(client, wire.VFIO_USER_DMA_UNMAP, unmap(0x10_0000));
  const took = time(() => {
    write(client, LATER, 1);
    client.serve();
  });
  assert.deepEqual([client.reply()?.id, client.device.maps.count], [sent.id, 0]);
  assert.ok(took >= PATIENCE - 1 && took < 20 * PATIENCE, `${took} ms`);
  assert.equal(read(client, RESULT), FAULT);
});

test('RESET ends a DMA that waits, and the device is as after power-on', (t) => {
  const client = peer(t, true, 2000);
  const sent = sendsWhenAsked(client, wire.VFIO_USER_DEVICE_RESET, new Uint8Array(0));
  const took = time(() => {
    write(client, LATER, 1);
    client.serve();
  });
  assert.deepEqual([client.reply()?.id, read(client, COUNT), read(client, RESULT)], [sent.id, 0, 0]);
  assert.ok(took < 1000, `${took} ms`);
});

test('answers to questions of different depth may come in any order', (t) => {
  const client = peer(t, false, 2000);
  const held: Message[] = [];
  client.onCommand = (message) => {
    held.push(message);
    if (held.length === 1) {
      client.send(wire.VFIO_USER_REGION_WRITE, access(FETCH, u32(1)));
      return 'later';
    }
    // The outer one first.
    for (const [i, { id, command, payload }] of held.entries()) {
      client.answer(id, command, Buffer.concat([payload, u32(7 + i)]));
    }
    return 'later';
  };
  write(client, LATER, 1);
  client.serve();
  assert.equal(client.reply()?.command, wire.VFIO_USER_REGION_WRITE);
  assert.equal(read(client, COUNT), 2);
  assert.equal(read(client, RESULT), 7, 'the outer one ended last');
});

test('neither side waits for the other, whatever a stubborn client does: 400 random commands', (t) => {
  const client = peer(t, true, 5);
  let seed = 7;
  const random = (most: number): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * most);
  };
  const offsets = [FETCH, PEEK, LATER, COUNT, SCRATCH];
  const next = (): [number, Uint8Array, number] => {
    const offset = offsets[random(offsets.length)]!;
    switch (random(8)) {
      case 0:
        return [wire.VFIO_USER_DMA_MAP, map(random(2) * 0x10_0000), 0];
      case 1:
        return [wire.VFIO_USER_DMA_UNMAP, unmap(random(2) * 0x10_0000), 0];
      case 2:
        return [wire.VFIO_USER_DEVICE_RESET, new Uint8Array(0), 0];
      case 3:
        return [wire.VFIO_USER_REGION_WRITE, access(offset, u32(1)), wire.VFIO_USER_F_NO_REPLY];
      case 4:
      case 5:
        return [wire.VFIO_USER_REGION_WRITE, access(offset, u32(1)), 0];
      default:
        return [wire.VFIO_USER_REGION_READ, access(offset), 0];
    }
  };
  const owed: number[] = [];
  const speak = (): void => {
    const [command, payload, flags] = next();
    const id = client.send(command, payload, [], flags);
    if (flags === 0) owed.push(id);
  };
  const hear = (): void => {
    for (let reply = client.reply(); reply !== undefined; reply = client.reply()) {
      assert.ok(owed.includes(reply.id), 'one answer each');
      owed.splice(owed.indexOf(reply.id), 1);
    }
  };
  let spoken = 0;
  // It speaks again as soon as it has its answer, also while the server waits.
  client.onWait = () => {
    hear();
    if (owed.length > 0 || spoken >= 400) return;
    spoken++;
    speak();
  };
  let longest = 0;
  while (spoken < 400) {
    spoken++;
    speak();
    longest = Math.max(
      longest,
      time(() => {
        for (let i = 0; i < 20 && owed.length > 0; i++) {
          client.serve();
          hear();
        }
      }),
    );
    assert.deepEqual(owed, [], 'every command was answered');
  }
  assert.deepEqual([client.session.isOpen, client.closed], [true, []]);
  assert.ok(longest < 1000, `${longest} ms`);
  t.diagnostic(`longest without an answer: ${longest.toFixed(1)} ms`);
});

test('U-27: doorbells with their eventfds, two of which share one; a kick reaches the device', (t) => {
  const client = peer(t, false, 2000);
  const ask = (argsz: number, index = 0): Message =>
    client.call(
      wire.VFIO_USER_DEVICE_GET_REGION_IO_FDS,
      wire.vfio_user_region_io_fds.write({ argsz, flags: 0, index, count: 0 }),
    );
  const short = ask(16);
  assert.deepEqual(
    [wire.vfio_user_region_io_fds.read(short.payload), short.descriptors, short.payload.length],
    [{ argsz: 16 + 3 * 40, flags: 0, index: 0, count: 3 }, [], 16],
  );
  const { payload, descriptors } = ask(16 + 3 * 40);
  t.after(() => {
    for (const fd of descriptors) closeSync(fd);
  });
  assert.equal(descriptors.length, 2);
  const entries = parseIoFds(payload, descriptors.length);
  assert.deepEqual(
    entries.map(({ offset, length, fdIndex, flags, datamatch }) =>
      [offset, length, fdIndex, flags, datamatch].map(Number),
    ),
    [
      [LATER, 4, 0, 1, 1],
      [SCRATCH, 4, 0, 1, 0x77],
      [COUNT, 2, 1, 0, 0],
    ],
  );
  assert.equal(client.call(wire.VFIO_USER_REGION_WRITE, access(4, Uint8Array.of(6, 0), 7)).error, 0);
  signalEventfd(descriptors[0]!, 1);
  for (let i = 0; i < 50 && (read(client, RESULT) === 0 || read(client, SCRATCH) === 0); i++) client.serve();
  assert.deepEqual([read(client, RESULT), read(client, SCRATCH), read(client, COUNT)], [VALUE, 0x77, 1]);
  signalEventfd(descriptors[1]!, 1);
  for (let i = 0; i < 50 && read(client, COUNT) !== 0; i++) client.serve();
  assert.equal(read(client, COUNT), 0);
  assert.equal(ask(1000, 2).payload.length, 16, 'a BAR without doorbells');
  assert.equal(ask(1000, 1).error, 22, 'no BAR');
  assert.equal(ask(2 ** 21).error, 22);
  // A client that goes takes its eventfds with it; the next one gets new ones.
  client.disconnect();
  client.connect();
  client.negotiate();
  signalEventfd(descriptors[0]!, 1);
  assert.equal(ask(200).descriptors.length, 2);
  client.serve();
  assert.equal(read(client, COUNT), 0);
});
