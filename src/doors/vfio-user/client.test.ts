import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as wire from '../../uapi/vfio-user.ts';
import {
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_READ,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_DMA_WRITE,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_REGION_WRITE_MULTI,
  VFIO_USER_VERSION,
} from '../../uapi/vfio-user.ts';
import { VfioUserClient } from './client.ts';
import { encodeMessage } from './codec.ts';
import { type Heard, type Script, TestServer, versionReply } from './test-server.ts';

/** Little-endian words; a bigint takes two. */
function words(...values: (number | bigint)[]): Uint8Array {
  const flat = values.flatMap((v) => (typeof v === 'bigint' ? [Number(v & 0xffff_ffffn), Number(v >> 32n)] : [v]));
  return new Uint8Array(Uint32Array.from(flat).buffer);
}

function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}

/** A client of a server that negotiates and then follows `script`. */
function clientOf(script: Script, capabilities: Parameters<typeof versionReply>[0] = {}, timeout = 200) {
  const server = new TestServer((heard, self) => {
    if (heard.command === VFIO_USER_VERSION) self.reply(heard, versionReply(capabilities));
    else script(heard, self);
  });
  return { server, client: new VfioUserClient(server, { timeout, twinSocket: false }) };
}

function connectTo(answer: (heard: Heard, server: TestServer) => void, twinSocket = true) {
  const server = new TestServer(answer);
  return { server, connect: () => new VfioUserClient(server, { timeout: 50, twinSocket }) };
}

test('U-1: the first message is VERSION with these bytes', () => {
  const { server } = clientOf(() => {});
  const first = server.heard[0]!;
  assert.equal(first.command, VFIO_USER_VERSION);
  assert.equal(first.id, 0);
  assert.deepEqual([...first.payload.subarray(0, 4)], [0, 0, 1, 0]);
  assert.equal(
    Buffer.from(first.payload.subarray(4)).toString(),
    '{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}\0',
  );
});

test('U-3 U-5 U-7: a reply without text, with unknown keys, with a lower minor version is accepted', () => {
  for (const [payload, minor, fds] of [
    [new Uint8Array([0, 0, 0, 0]), 0, 1],
    [joined(new Uint8Array([0, 0, 1, 0]), Buffer.from('{"x":1,"capabilities":{"max_msg_fds":3,"y":{}}}\0')), 1, 3],
  ] as const) {
    const { connect } = connectTo((heard, self) => self.reply(heard, payload));
    const client = connect();
    assert.equal(client.version.minor, minor);
    assert.equal(client.capabilities.max_msg_fds, fds);
    assert.equal(client.capabilities.max_data_xfer_size, 1048576);
  }
});

test('U-4: a version that cannot be understood, or is newer, ends the connection by name', () => {
  for (const payload of [
    new Uint8Array([0, 0]),
    new Uint8Array([1, 0, 0, 0]),
    versionReply({}, 2),
    joined(new Uint8Array(4), Buffer.from('{}')),
    joined(new Uint8Array(4), Buffer.from('{"capabilities":[]}\0')),
    joined(new Uint8Array(4), Buffer.from('{"capabilities":{"max_msg_fds":-1}}\0')),
  ]) {
    const { server, connect } = connectTo((heard, self) => self.reply(heard, payload));
    assert.throws(connect, { name: 'BadServerError', code: 'EPROTO' });
    assert.ok(server.isClosed);
  }
  const { server, connect } = connectTo((heard, self) => self.refuse(heard, 22));
  assert.throws(connect, { name: 'RefusedError', code: 'EINVAL', command: 'VERSION' });
  assert.ok(server.isClosed);
});

test('U-6: a second socket is taken, and refused where it does not fit together', () => {
  const twin = { twin_socket: { supported: true, fd_index: 0 } };
  const good = connectTo((heard, self) => self.reply(heard, versionReply(twin), [40]));
  assert.ok(good.connect().hasTwinSocket);
  assert.equal(good.server.seconds.length, 1);
  for (const [capabilities, descriptors, isOffered] of [
    [twin, [40], false],
    [twin, [], true],
    [{ twin_socket: { supported: true } }, [40], true],
    [{ twin_socket: { supported: true, fd_index: 1 } }, [40], true],
    [{}, [40], true],
  ] as const) {
    const bad = connectTo((heard, self) => self.reply(heard, versionReply(capabilities), descriptors), isOffered);
    assert.throws(bad.connect, { name: 'BadServerError' });
    assert.ok(bad.server.isClosed);
    assert.deepEqual(bad.server.dropped, [...descriptors], 'descriptors are closed');
  }
});

test('the device is described, and an answer that is too short ends the connection', () => {
  let reply = words(16, 3, 9, 5);
  const { client, server } = clientOf((heard, self) => self.reply(heard, reply));
  assert.deepEqual(client.deviceInfo(), { flags: 3, regionCount: 9, irqCount: 5 });
  assert.deepEqual(server.heard[1]!.payload, words(16, 0, 0, 0));
  reply = words(16, 7, 3);
  assert.throws(() => client.deviceInfo(), { name: 'BadServerError' });
  assert.equal(client.isConnected, false);
  assert.throws(() => client.reset(), { name: 'DisconnectedError', code: 'ENOTCONN' });
});

test('a region is asked again with the size that its capabilities need, and they are decoded', () => {
  const chain = joined(
    words(88, 0xf, 2, 32, 0x4000n, 0x10000n),
    joined(words(0x1_0001, 64, 1, 0), words(0x1000n, 0x2000n)),
    words(0x1_0002, 80, 7, 9),
    words(0x2_0063, 0),
  );
  const { client, server } = clientOf((heard, self) => {
    assert.equal(heard.command, VFIO_USER_DEVICE_GET_REGION_INFO);
    const argsz = new DataView(heard.payload.buffer).getUint32(0, true);
    if (argsz < 88) self.reply(heard, chain.slice(0, 32));
    else self.reply(heard, chain, [50]);
  });
  const { info, fd } = client.regionFile(2);
  assert.equal(fd, 50);
  assert.deepEqual(info, {
    index: 2,
    flags: 0xf,
    length: 0x4000,
    offset: 0x10000n,
    capabilities: [
      { kind: 'sparse-mmap', areas: [{ offset: 0x1000, length: 0x2000 }] },
      { kind: 'type', type: 7, subtype: 9 },
      { kind: 'unknown', id: 0x63, version: 2, bytes: new Uint8Array(0) },
    ],
  });
  assert.equal(server.heard.length, 3);
});

test('capabilities that leave the reply or run in a circle end the connection, descriptors closed', () => {
  for (const chain of [
    joined(words(40, 0xc, 0, 36, 1n, 0n), words(1, 0)),
    joined(words(40, 0xc, 0, 8, 1n, 0n), words(1, 0)),
    joined(words(40, 0xc, 0, 32, 1n, 0n), words(1, 32)),
    joined(words(48, 0xc, 0, 32, 1n, 0n), words(0x1_0001, 0, 9, 0)),
    joined(words(32, 4, 0, 0, 0xffff_ffff_ffff_ffffn, 0n)),
  ]) {
    const { client, server } = clientOf((heard, self) => {
      const isAsked = new DataView(heard.payload.buffer).getUint32(0, true) >= chain.length;
      self.reply(heard, isAsked ? chain : chain.slice(0, 32), isAsked ? [60] : []);
    });
    assert.throws(() => client.regionInfo(0), { name: 'BadServerError' });
    assert.deepEqual(server.dropped, [60]);
  }
});

test('U-24: a long read is cut at the agreed size, and a short answer ends it', () => {
  const sizes: number[] = [];
  const { client } = clientOf(
    (heard, self) => {
      const view = new DataView(heard.payload.buffer);
      const offset = view.getUint32(0, true);
      const count = Math.min(view.getUint32(12, true), 1000 - offset);
      sizes.push(view.getUint32(12, true));
      const data = new Uint8Array(count).map((_, i) => offset + i);
      self.reply(heard, joined(words(BigInt(offset), 7, count), data));
    },
    { max_data_xfer_size: 64 },
  );
  const bytes = client.regionRead(7, 900, 200);
  assert.equal(bytes.length, 100);
  assert.equal(bytes[99], 999 & 0xff);
  assert.deepEqual(sizes, [64, 64]);
  assert.equal(client.readRegister(7, 0x10, 4), 0x13121110);
});

test('a read that answers more than was asked ends the connection', () => {
  const { client } = clientOf((heard, self) => self.reply(heard, joined(words(0n, 0, 8), new Uint8Array(8))));
  assert.throws(() => client.regionRead(0, 0, 4), { name: 'BadServerError', message: /read 8 of 4/ });
});

test('posted writes carry the flag, wait for nothing, and come before the read behind them', () => {
  const { client, server } = clientOf((heard, self) => {
    if (heard.command === VFIO_USER_REGION_READ) self.reply(heard, words(0n, 0, 4, 77));
  });
  for (let i = 0; i < 10; i++) client.writeRegister(0, 4 * i, 4, i, true);
  assert.equal(client.readRegister(0, 0, 4), 77);
  const writes = server.heard.filter(({ command }) => command === VFIO_USER_REGION_WRITE);
  assert.equal(writes.length, 10);
  assert.ok(writes.every(({ wantsReply }) => !wantsReply));
  assert.deepEqual(writes[3]!.payload, words(12n, 0, 4, 3));
});

test('64 reads under way find their answers, in whatever order these come', () => {
  const asked: Heard[] = [];
  const { client } = clientOf((heard, self) => {
    asked.push(heard);
    if (asked.length < 64) return;
    for (const one of asked.reverse()) self.reply(one, joined(one.payload, words(one.payload[0]! * 3)));
  });
  const ids = Array.from({ length: 64 }, (_, i) => client.startRegionRead(1, i, 4));
  assert.equal(new Set(ids).size, 64);
  ids.forEach((id, i) => {
    assert.equal(client.finishRegionRead(id, 4)[0], i * 3);
  });
  assert.throws(() => client.finish(ids[0]!), RangeError);
});

test('U-28: eventfds go in as many messages as the server takes; missing ones are told without descriptors', () => {
  const { client, server } = clientOf((heard, self) => self.reply(heard));
  client.setIrqEventfds(2, 0, [10, 11, 12, 13, 14, 15, 16, 17, 18]);
  client.setIrqEventfds(2, 3, [-1, -1, 30]);
  client.disableIrqs(2);
  const sent = server.heard.slice(1).map(({ payload, descriptors }) => [payload, descriptors]);
  assert.deepEqual(sent, [
    [words(20, 0x24, 2, 0, 8), [10, 11, 12, 13, 14, 15, 16, 17]],
    [words(20, 0x24, 2, 8, 1), [18]],
    [words(20, 0x24, 2, 3, 2), []],
    [words(20, 0x24, 2, 5, 1), [30]],
    [words(20, 0x21, 2, 0, 0), []],
  ]);
  assert.ok(server.heard.slice(1).every(({ command }) => command === VFIO_USER_DEVICE_SET_IRQS));
});

test('several writes in one message, and how many were done', () => {
  const { client, server } = clientOf((heard, self) => self.reply(heard, words(2n)));
  const bytes = Uint8Array.of(1, 2);
  assert.equal(client.writeMulti([0, 1, 2].map((offset) => ({ region: 1, offset, bytes }))), 2);
  const { command, payload } = server.heard[1]!;
  assert.equal(command, VFIO_USER_REGION_WRITE_MULTI);
  assert.equal(payload.length, 8 + 3 * 24);
  assert.deepEqual(payload.subarray(32, 56), words(1n, 1, 2, 0x201, 0));
  assert.throws(() => client.writeMulti([{ region: 0, offset: 0, bytes: new Uint8Array(9) }]), RangeError);
});

test('sub-regions with their descriptors, in entries of 40 bytes and of 48', () => {
  for (const size of [40, 48]) {
    const entry = (offset: bigint, match: number): Uint8Array =>
      joined(
        words(offset, 4n, 0, 0, 0, 0, size === 40 ? BigInt(match) : 0n),
        words(...(size === 48 ? [BigInt(match)] : [])),
      );
    const whole = joined(words(16 + 2 * size, 0, 1, 2), entry(0x10n, 5), entry(0x20n, 6));
    const { client, server } = clientOf((heard, self) => {
      assert.equal(heard.command, VFIO_USER_DEVICE_GET_REGION_IO_FDS);
      if (heard.payload[0] === 16) self.reply(heard, words(16 + 2 * size, 0, 1, 2));
      else self.reply(heard, whole, [70]);
    });
    const { subRegions, descriptors } = client.regionIoFds(1);
    assert.deepEqual(descriptors, [70]);
    assert.deepEqual(
      subRegions.map(({ offset, fdIndex, datamatch }) => [offset, fdIndex, datamatch]),
      [
        [0x10n, 0, 5n],
        [0x20n, 0, 6n],
      ],
    );
    whole[32 + 0] = 9; // the first entry's fd_index
    assert.throws(() => client.regionIoFds(1), { name: 'BadServerError' });
    assert.deepEqual(server.dropped, [70]);
  }
});

test("the server's DMA is answered from the maps while a call waits for its own answer", () => {
  const answers: Heard[] = [];
  let reset: Heard | undefined;
  const { client, server } = clientOf((heard, self) => {
    if (heard.isReply) {
      answers.push(heard);
      if (answers.length === 2) self.reply(reset!);
    } else if (heard.command === VFIO_USER_DEVICE_RESET) {
      reset = heard;
      self.say(encodeMessage({ id: 500, command: VFIO_USER_DMA_READ }, words(0xffcn, 8n)));
      const write = joined(words(0x1ffen, 3n), Uint8Array.of(7, 8, 9));
      self.say(encodeMessage({ id: 501, command: VFIO_USER_DMA_WRITE }, write));
    } else self.reply(heard);
  });
  const first = new Uint8Array(4096).fill(1);
  const second = new Uint8Array(8192).fill(2);
  client.dmaMap({ address: 0x1000n, length: 8192n, backing: { kind: 'bytes', bytes: second } });
  client.dmaMap({ address: 0n, length: 4096n, backing: { kind: 'bytes', bytes: first }, access: 'read' });
  server.pace = 7;
  client.reset();
  assert.deepEqual(
    answers.map(({ id, error, payload }) => [id, error, [...payload]]),
    [
      [500, 0, [...words(0xffcn, 8n), 1, 1, 1, 1, 2, 2, 2, 2]],
      [501, 0, [...words(0x1ffen, 3n)]],
    ],
  );
  assert.deepEqual([...second.subarray(0xffd, 0x1003)], [2, 7, 8, 9, 2, 2]);
  const map = server.heard.find(({ command }) => command === VFIO_USER_DMA_MAP)!;
  assert.deepEqual(map.payload, words(32, 3, 0n, 0x1000n, 8192n));
});

test("the server's DMA outside of maps, against their rights, too long or with descriptors is refused", () => {
  const { client, server } = clientOf((heard, self) => {
    if (!heard.isReply) self.reply(heard);
  });
  const bytes = new Uint8Array(4096);
  client.dmaMap({ address: 0x1000n, length: 4096n, backing: { kind: 'bytes', bytes }, access: 'read' });
  client.dmaMap({ address: 0x2000n, length: 4096n, backing: { kind: 'bytes', bytes }, access: 'write' });
  client.dmaMap({ address: 0x3000n, length: 4096n, backing: { kind: 'none' } });
  const write = (address: bigint): Uint8Array => joined(words(address, 4n), new Uint8Array(4).fill(9));
  const cases: [number, Uint8Array, number, number[]?][] = [
    [VFIO_USER_DMA_READ, words(0xfffn, 2n), 22],
    [VFIO_USER_DMA_READ, words(0x1ffen, 4n), 1],
    [VFIO_USER_DMA_WRITE, write(0x1000n), 1],
    [VFIO_USER_DMA_WRITE, write(0x3000n), 22],
    [VFIO_USER_DMA_WRITE, write(0xffff_ffff_ffff_fffen), 22],
    [VFIO_USER_DMA_WRITE, write(0x2000n).slice(0, 19), 22],
    [VFIO_USER_DMA_READ, words(0x1000n, 0x10_0001n), 7],
    [VFIO_USER_DMA_READ, words(0x1000n), 22],
    [VFIO_USER_REGION_READ, words(0n, 0, 4), 22],
    [VFIO_USER_DMA_READ, words(0x1000n, 4n), 22, [80, 81]],
  ];
  cases.forEach(([command, payload, , descriptors], id) => {
    server.say(encodeMessage({ id, command }, payload), descriptors);
  });
  client.serve(20);
  assert.deepEqual(
    server.heard.filter(({ isReply }) => isReply).map(({ id, error }) => [id, error]),
    cases.map(([, , error], id) => [id, error]),
  );
  assert.ok(bytes.every((byte) => byte === 0));
  assert.deepEqual(server.dropped, [80, 81]);
  assert.ok(client.isConnected);
});

test('a refused map or unmap changes nothing here; unmapping all forgets all', () => {
  let error = 0;
  const { client } = clientOf((heard, self) =>
    error === 0 ? self.reply(heard, heard.payload) : self.refuse(heard, error),
  );
  const backing = { kind: 'none' } as const;
  client.dmaMap({ address: 0n, length: 4096n, backing });
  client.dmaMap({ address: 8192n, length: 4096n, backing });
  error = 17;
  assert.throws(() => client.dmaMap({ address: 4096n, length: 4096n, backing }), {
    name: 'RefusedError',
    code: 'EEXIST',
  });
  assert.throws(() => client.dmaUnmap(0n, 2048n), { command: 'DMA_UNMAP' });
  assert.equal(client.maps.count, 2);
  error = 0;
  client.dmaUnmap(0n, 4096n);
  assert.deepEqual(
    [...client.maps].map(({ address }) => address),
    [8192n],
  );
  client.dmaUnmapAll();
  assert.equal(client.maps.count, 0);
});

test('a map that the server takes twice counts once, with what was said last', () => {
  const { client } = clientOf((heard, self) => self.reply(heard));
  const [first, second] = [new Uint8Array(4096), new Uint8Array(4096)];
  for (const bytes of [first, second]) client.dmaMap({ address: 0n, length: 4096n, backing: { kind: 'bytes', bytes } });
  assert.equal(client.maps.count, 1);
  assert.ok([...client.maps].every(({ backing }) => backing.kind === 'bytes' && backing.bytes === second));
});

test('an error of a number without a name, and of none, is told as such', () => {
  let error = 4095;
  const { client } = clientOf((heard, self) => self.refuse(heard, error));
  assert.throws(() => client.reset(), { name: 'RefusedError', errno: 4095, code: 'errno 4095' });
  error = 0;
  assert.throws(() => client.reset(), { name: 'RefusedError', code: 'EINVAL' });
});

test('no answer in time is an error with a name, and the answer that comes later is dropped', () => {
  const late: Heard[] = [];
  const { client, server } = clientOf(
    (heard, self) => {
      if (heard.command === VFIO_USER_DEVICE_RESET) late.push(heard);
      else self.reply(heard, words(16, 2, 9, 5));
    },
    {},
    20,
  );
  assert.throws(() => client.reset(), { name: 'TimeoutError', code: 'ETIMEDOUT' });
  server.reply(late[0]!);
  assert.equal(client.deviceInfo().regionCount, 9);
  server.reply(late[0]!);
  assert.throws(() => client.deviceInfo(), { name: 'BadServerError', message: /nobody asked for/ });
});

test('replies to nothing, of another command, with unasked descriptors, twice, or of no type end the connection', () => {
  const reply = (heard: Heard, changes: Partial<{ id: number; command: number; flags: number }> = {}): Uint8Array =>
    encodeMessage({ id: heard.id, command: heard.command, flags: 1, ...changes }, words(16, 2, 9, 5));
  const cases: Record<string, Script> = {
    'of an id that nobody used': (heard, self) => self.say(reply(heard, { id: 999 })),
    'of another command': (heard, self) => self.say(reply(heard, { command: VFIO_USER_DMA_UNMAP })),
    'with descriptors': (heard, self) => self.say(reply(heard), [90, 91]),
    'with too many descriptors': (heard, self) =>
      self.say(
        reply(heard),
        Array.from({ length: 9 }, (_, i) => 100 + i),
      ),
    'of no known type': (heard, self) => self.say(reply(heard, { flags: 2 })),
    'shorter than its header': (_heard, self) => self.say(words(0, 8, 1, 0)),
    'longer than agreed': (_heard, self) => self.say(words(0, 0x4000_0000, 1, 0)),
    garbage: (_heard, self) => self.say(new Uint8Array(100_000).fill(0xff)),
  };
  for (const [what, script] of Object.entries(cases)) {
    const { client, server } = clientOf(script);
    assert.throws(() => client.deviceInfo(), { name: 'BadServerError' }, what);
    assert.ok(server.isClosed, what);
    if (what.includes('descriptors')) assert.ok(server.dropped.length >= 2, what);
  }
});

test('U-52: a server that is gone, also in the middle of a message, is an error with a name', () => {
  for (const bytes of [0, 5, 16, 20]) {
    const { client } = clientOf((heard, self) => {
      const whole = encodeMessage({ id: heard.id, command: heard.command, flags: 1 }, words(16, 2, 9, 5));
      if (bytes > 0) self.say(whole.slice(0, bytes));
      self.isGone = true;
    });
    assert.throws(() => client.deviceInfo(), { name: 'DisconnectedError' });
    assert.equal(client.isConnected, false);
    client.close();
  }
});

test('a closed client says so, and closes descriptors that wait in a reply', () => {
  const { client, server } = clientOf((heard, self) => self.reply(heard, words(32, 4, 0, 0, 0n, 0n), [95]));
  const payload = words(32, 0, 0, 0, 0n, 0n);
  const id = client.start(VFIO_USER_DEVICE_GET_REGION_INFO, payload, { takesDescriptors: true });
  client.serve(5);
  client.close();
  client.close();
  assert.deepEqual(server.dropped, [95]);
  assert.throws(() => client.finish(id), { name: 'DisconnectedError' });
  assert.throws(() => client.start(VFIO_USER_DEVICE_GET_INFO), { message: 'the client was closed' });
});

test('features: what goes out and what comes back; too short an answer ends the connection', () => {
  const { client, server } = clientOf((heard, self) => {
    const { argsz, flags } = wire.vfio_user_device_feature.read(heard.payload);
    if ((flags & 0xffff) === 9) self.refuse(heard, 95);
    else if ((flags & 0xffff) === 8) self.reply(heard, new Uint8Array(7));
    else self.reply(heard, Buffer.concat([wire.vfio_user_device_feature.write({ argsz, flags }), Uint8Array.of(7, 8)]));
  });
  assert.deepEqual([...client.feature('get', 1, new Uint8Array(0), 8)], [7, 8]);
  client.feature('set', 2, Uint8Array.of(1, 2, 3, 4));
  client.feature('probe', 2);
  const sent = server.heard
    .filter(({ command }) => command === wire.VFIO_USER_DEVICE_FEATURE)
    .map(({ payload }) => [wire.vfio_user_device_feature.read(payload), [...payload.subarray(8)]]);
  assert.deepEqual(sent, [
    [{ argsz: 16, flags: 0x1_0001 }, []],
    [{ argsz: 12, flags: 0x2_0002 }, [1, 2, 3, 4]],
    [{ argsz: 8, flags: 0x5_0002 }, []],
  ]);
  assert.throws(() => client.feature('get', 9), { code: 'EOPNOTSUPP' });
  assert.ok(client.isConnected);
  assert.throws(() => client.feature('get', 8), { code: 'EPROTO' });
  assert.ok(!client.isConnected);
});

test('the state of a device is read and written in pieces; more than was asked for ends the connection', () => {
  let left = 10;
  const { client, server } = clientOf((heard, self) => {
    if (heard.command === wire.VFIO_USER_MIG_DATA_WRITE) return self.reply(heard);
    const { size } = wire.vfio_user_mig_data.read(heard.payload);
    const length = size === 3 ? 4 : Math.min(size, left);
    left -= length;
    const header = wire.vfio_user_mig_data.write({ argsz: 8 + length, size: length });
    return self.reply(heard, Buffer.concat([header, new Uint8Array(length).fill(5)]));
  });
  assert.deepEqual([...client.migrationRead(8)], new Array(8).fill(5));
  assert.deepEqual([...client.migrationRead(8)], [5, 5]);
  assert.equal(client.migrationRead(8).length, 0);
  client.migrationWrite(Uint8Array.of(1, 2, 3));
  const { payload } = server.heard.at(-1)!;
  assert.deepEqual(
    [wire.vfio_user_mig_data.read(payload), [...payload.subarray(8)]],
    [{ argsz: 11, size: 3 }, [1, 2, 3]],
  );
  assert.throws(() => client.migrationRead(3), { code: 'EPROTO' });
  assert.ok(!client.isConnected);
});
