/**
 * Our client and our server, each a process of its own: DMA by every way, interrupts, many clients, many maps, and clients that die.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { encodeMessage } from '../../src/doors/vfio-user/codec.ts';
import { encodeVersion, ownCapabilities } from '../../src/doors/vfio-user/negotiation.ts';
import {
  ClientMemory,
  closeDescriptor,
  createEventfd,
  RefusedError,
  readEventfd,
  VfioUserClient,
} from '../../src/vfio-user.ts';
import { needs, provided, scratch } from '../support/box.ts';
import {
  descriptorsAtRest,
  expectDescriptors,
  RawPeer,
  type RunningServer,
  startServer,
} from '../support/vfio-user.ts';
import { compile } from './compile.ts';

needs('cc');

const CONFIG = 7;
const REGISTERS = 4;
const SCRATCH = 0x08;
const RAISE = 0x20;
const COPY = 1;

async function withServer(
  t: Parameters<typeof startServer>[0],
  options: readonly string[],
  work: (server: RunningServer) => Promise<void> | void,
): Promise<void> {
  const isWhole = options[0] === '--host';
  const server = await startServer(t, isWhole ? options : ['--model', 'testdev', ...options]);
  VfioUserClient.connect(server.path).close();
  const before = await descriptorsAtRest(server);
  await work(server);
  await expectDescriptors(server, before);
  assert.equal(server.child.exitCode, null, server.errors());
}

/** A machine whose testdev has more vectors than one message has descriptors. */
function sixteenVectors(folder: string): string[] {
  const file = join(folder, 'host.json');
  const functions = [
    { at: '00:00.0', model: 'host-bridge' },
    { at: '00:04.0', model: 'testdev', options: { vectors: 16 }, driver: 'vfio-pci' },
  ];
  const iommu = { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] };
  writeFileSync(file, JSON.stringify({ name: 'sixteen', iommu, functions }));
  return ['--host', file, '--device', '00:04.0'];
}

function enable(client: VfioUserClient): void {
  client.writeRegister(CONFIG, 4, 2, 6);
}

/** testdev copies between device addresses; its status. */
function copy(client: VfioUserClient, from: number, to: number, length: number): number {
  client.writeRegister(REGISTERS, 0x40, 8, from);
  client.writeRegister(REGISTERS, 0x48, 8, to);
  client.writeRegister(REGISTERS, 0x50, 4, length);
  client.writeRegister(REGISTERS, 0x58, 4, COPY);
  for (let i = 0; i < 1000; i++) {
    const status = client.readRegister(REGISTERS, 0x5c, 4);
    if ((status & 1) === 0) return status;
    client.serve(1);
  }
  return -1;
}

for (const twinSocket of [false, true]) {
  for (const options of [[], ['--dma', 'message'], ['--dma', 'file']]) {
    const title = `${options[1] ?? 'as offered'}, ${twinSocket ? 'two sockets' : 'one socket'}`;
    test(`U-11 U-12 U-15: DMA gives the same bytes, and respects rights (${title})`, { timeout: 30_000 }, (t) =>
      withServer(t, options, (server) => {
        using client = VfioUserClient.connect(server.path, { twinSocket });
        assert.equal(client.hasTwinSocket, twinSocket);
        enable(client);
        const memory = new ClientMemory(1 << 20);
        const bytes = new Uint8Array(1 << 16);
        memory.bytes.forEach((_, i) => {
          memory.bytes[i] = i * 7 + (i >> 8);
        });
        client.dmaMap({ address: 0x10_0000n, length: 1n << 20n, backing: { kind: 'memory', memory } });
        client.dmaMap({ address: 0x40_0000n, length: 1n << 16n, backing: { kind: 'bytes', bytes } });
        client.dmaMap({
          address: 0x50_0000n,
          length: 4096n,
          backing: { kind: 'bytes', bytes: bytes.subarray(0, 4096) },
          access: 'read',
        });
        const file = { kind: 'file', fd: memory.fd, offset: 0x8000n } as const;
        client.dmaMap({ address: 0x60_0000n, length: 0x8000n, backing: file, fileAccess: 'file' });
        assert.equal(copy(client, 0x10_0123, 0x40_0000, 50_000) & 6, 2, 'file to bytes');
        assert.deepEqual(bytes.subarray(0, 50_000), memory.bytes.subarray(0x123, 0x123 + 50_000));
        assert.equal(copy(client, 0x40_0000, 0x10_0000, 5000) & 6, 2, 'bytes to file');
        assert.deepEqual(memory.bytes.subarray(0, 5000), bytes.subarray(0, 5000));
        assert.equal(copy(client, 0x60_0001, 0x40_0000, 9000) & 6, 2, 'a file by pread');
        assert.deepEqual(bytes.subarray(0, 9000), memory.bytes.subarray(0x8001, 0x8001 + 9000));
        assert.equal(copy(client, 0x40_0000, 0x60_0000, 9000) & 6, 2, 'a file by pwrite');
        assert.deepEqual(memory.bytes.subarray(0x8000, 0x8000 + 9000), bytes.subarray(0, 9000));
        assert.equal((copy(client, 0x10_0000, 0x50_0000, 100) >> 8) & 0xff, 5, 'a write through a read-only map');
        assert.equal(copy(client, 0x50_0000, 0x10_0000, 100) & 6, 2, 'a read through it');
        assert.equal((copy(client, 0x70_0000, 0x10_0000, 100) >> 8) & 0xff, 4, 'nothing there');
        client.dmaUnmap(0x10_0000n, 1n << 20n);
        assert.equal((copy(client, 0x10_0000, 0x40_0000, 100) >> 8) & 0xff, 4, 'taken away');
        memory.close();
      }),
    );
  }
}

test(
  'U-53: while the server waits for memory, 200 commands that were sent before are kept and answered in order',
  {
    timeout: 30_000,
  },
  (t) =>
    withServer(t, ['--dma', 'message'], (server) => {
      using client = VfioUserClient.connect(server.path, { twinSocket: false });
      enable(client);
      const bytes = new Uint8Array(1 << 20).fill(5);
      client.dmaMap({ address: 0n, length: 1n << 20n, backing: { kind: 'bytes', bytes } });
      for (let round = 0; round < 5; round++) {
        client.writeRegister(REGISTERS, 0x48, 8, 0x8_0000, true);
        client.writeRegister(REGISTERS, 0x50, 4, 0x8_0000, true);
        client.writeRegister(REGISTERS, 0x58, 4, COPY, true);
        const ids = Array.from({ length: 200 }, (_, i) => client.startRegionRead(CONFIG, i % 64, 1));
        const config = client.regionRead(CONFIG, 0, 64);
        // Status and command may change while the device works.
        ids.forEach((id, i) => {
          if (i % 64 < 4 || i % 64 > 8) assert.equal(client.finishRegionRead(id, 1)[0], config[i % 64]);
          else client.finish(id);
        });
      }
    }),
);

test(
  'U-25 U-26 U-51: posted writes are seen, pipelined reads answered in order, registers survive a reconnect',
  {
    timeout: 30_000,
  },
  (t) =>
    withServer(t, [], (server) => {
      const client = VfioUserClient.connect(server.path);
      enable(client);
      for (let i = 0; i <= 10; i++) client.writeRegister(REGISTERS, SCRATCH, 4, i, true);
      assert.equal(client.readRegister(REGISTERS, SCRATCH, 4), 10);
      const ids = Array.from({ length: 64 }, (_, i) => client.startRegionRead(CONFIG, i, 1));
      const config = client.regionRead(CONFIG, 0, 64);
      ids.forEach((id, i) => {
        assert.equal(client.finishRegionRead(id, 1)[0], config[i]);
      });
      const write = Array.from({ length: 3 }, (_, i) => ({
        region: 0,
        offset: i * 4,
        bytes: Uint8Array.of(i + 1, 0, 0, 0),
      }));
      assert.equal(client.writeMulti(write), 3);
      client.close();
      using again = VfioUserClient.connect(server.path);
      assert.equal(again.readRegister(REGISTERS, SCRATCH, 4), 10);
      assert.deepEqual([...again.regionRead(0, 0, 12)], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
      again.reset();
      assert.equal(again.readRegister(REGISTERS, SCRATCH, 4), 0, 'a reset clears registers');
    }),
);

test(
  'U-22 U-31: a mappable region is mapped; what is stored there the device has, and the other way round',
  {
    timeout: 30_000,
  },
  (t) =>
    withServer(t, [], (server) => {
      using client = VfioUserClient.connect(server.path);
      enable(client);
      const device = client.deviceInfo();
      assert.deepEqual([device.flags & 3, device.regionCount, device.irqCount], [3, 9, 5]);
      for (let index = 0; index < device.regionCount; index++) client.regionInfo(index);
      assert.deepEqual(client.regionIoFds(0), { subRegions: [], descriptors: [] });
      const region = client.mapRegion(2);
      assert.ok(region !== undefined && region.length === 1 << 20);
      assert.ok(region.write(0x1234, Uint8Array.of(1, 2, 3)));
      assert.deepEqual([...client.regionRead(2, 0x1234, 3)], [1, 2, 3]);
      client.regionWrite(2, 0x4000, Uint8Array.of(9));
      const byte = new Uint8Array(1);
      assert.ok(region.read(0x4000, byte));
      assert.equal(byte[0], 9);
      assert.equal(region.read(1 << 20, byte), false);
      region.close();
      assert.equal(client.mapRegion(CONFIG), undefined);
      assert.deepEqual(client.regionFile(REGISTERS).fd, -1);
      assert.throws(() => client.regionInfo(9), { name: 'RefusedError', code: 'EINVAL' });
    }),
);

test(
  'U-28 U-34: nine vectors in two messages all fire; enabled without descriptors only those with one do',
  {
    timeout: 30_000,
  },
  (t) =>
    withServer(t, sixteenVectors(scratch(t)), (server) => {
      using client = VfioUserClient.connect(server.path);
      enable(client);
      const events = Array.from({ length: 9 }, () => createEventfd());
      const fire = (vector: number): number[] => {
        client.writeRegister(REGISTERS, RAISE, 4, vector);
        client.readRegister(REGISTERS, RAISE, 4);
        return events.flatMap((fd, i) => (readEventfd(fd) > 0 ? [i] : []));
      };
      client.setIrqEventfds(2, 0, events);
      for (let vector = 0; vector < 9; vector++) assert.deepEqual(fire(vector), [vector]);
      client.disableIrqs(2);
      client.setIrqEventfds(2, 0, [-1]);
      client.setIrqEventfds(2, 3, [events[3]!]);
      assert.deepEqual(fire(2), []);
      assert.deepEqual(fire(3), [3]);
      client.setIrqEventfds(2, 3, [-1]);
      assert.deepEqual(fire(3), []);
      client.disableIrqs(2);
      for (const fd of events) closeDescriptor(fd);
    }),
);

test('64 clients at once are each answered within a second, with 1,000 maps each', { timeout: 60_000 }, (t) =>
  withServer(t, [], async (server) => {
    const began = performance.now();
    const greeting = encodeVersion({
      major: 0,
      minor: 1,
      capabilities: { ...ownCapabilities, twin_socket: { supported: false } },
    });
    const peers = Array.from({ length: 64 }, () => new RawPeer(server.path));
    for (const peer of peers) peer.send(encodeMessage({ id: 9, command: 1 }, greeting));
    // One is served after the other: the next when the one before has left.
    for (const peer of peers) {
      assert.equal(peer.next(5000)?.error, 0);
      peer.close();
    }
    const all = performance.now() - began;
    t.diagnostic(`64 clients in ${all.toFixed(0)} ms`);
    assert.ok(all < 1000, `${all} ms`);
    let slowest = 0;
    for (let n = 0; n < 64; n++) {
      const start = performance.now();
      const client = VfioUserClient.connect(server.path);
      for (let i = 0n; i < 1000n; i++) client.dmaMap({ address: i << 16n, length: 4096n, backing: { kind: 'none' } });
      assert.equal(client.maps.count, 1000);
      client.close();
      slowest = Math.max(slowest, performance.now() - start);
    }
    t.diagnostic(`1,000 maps in ${slowest.toFixed(0)} ms at most`);
  }),
);

test('U-16: 65,535 maps are held, one more is ENOSPC', { timeout: 60_000 }, (t) =>
  withServer(t, [], (server) => {
    using client = VfioUserClient.connect(server.path, { timeout: 60_000 });
    const map = (i: number): void =>
      client.dmaMap({ address: BigInt(i) << 13n, length: 4096n, backing: { kind: 'none' } });
    for (let i = 0; i < 65_535; i++) map(i);
    assert.throws(
      () => map(65_535),
      (error) => error instanceof RefusedError && error.code === 'ENOSPC',
    );
    client.dmaUnmap(0n, 4096n);
    map(65_535);
    client.dmaUnmapAll();
  }),
);

test(
  '10,000 rounds of map and unmap, by file and without, leave memory and descriptors flat',
  { timeout: 60_000 },
  (t) =>
    withServer(t, [], (server) => {
      using client = VfioUserClient.connect(server.path);
      const memory = new ClientMemory(1 << 20);
      const rounds = (count: number): void => {
        for (let i = 0; i < count; i++) {
          client.dmaMap({ address: 0x10_0000n, length: 1n << 20n, backing: { kind: 'memory', memory } });
          client.dmaMap({ address: 0x40_0000n, length: 4096n, backing: { kind: 'none' } });
          client.dmaUnmap(0x10_0000n, 1n << 20n);
          client.dmaUnmap(0x40_0000n, 4096n);
        }
      };
      rounds(5000);
      const [bytes, descriptors] = [server.resident(), server.descriptors()];
      const began = performance.now();
      rounds(10_000);
      t.diagnostic(
        `${((performance.now() - began) / 40).toFixed(1)} µs a message, ${bytes >> 20} → ${server.resident() >> 20} MiB`,
      );
      assert.ok(server.resident() - bytes < 32 << 20, `${bytes} → ${server.resident()}`);
      assert.equal(server.descriptors(), descriptors);
      memory.close();
    }),
);

test('U-50: 100 clients that are killed in the middle of their work leave no descriptor', { timeout: 60_000 }, (t) =>
  withServer(t, [], async (server) => {
    if (provided(t, 'cc') === undefined) return;
    const victim = compile('victim', scratch(t));
    for (let i = 0; i < 100; i++) {
      const child = spawn(victim, [server.path], { stdio: ['ignore', 'pipe', 'inherit'] });
      const over = once(child, 'exit');
      const [text] = await once(child.stdout, 'data');
      assert.equal(String(text), 'ready\n');
      child.kill('SIGKILL');
      const [status, signal] = await over;
      assert.deepEqual([status, signal], [null, 'SIGKILL']);
    }
  }),
);

test('a server that is killed is an error with a name', { timeout: 30_000 }, async (t) => {
  const server = await startServer(t);
  const client = VfioUserClient.connect(server.path);
  const over = once(server.child, 'exit');
  server.child.kill('SIGKILL');
  await over;
  assert.throws(() => client.deviceInfo(), { name: 'DisconnectedError', code: 'ENOTCONN' });
  assert.throws(() => VfioUserClient.connect(server.path), { name: 'SystemError', code: 'ECONNREFUSED' });
  assert.throws(() => VfioUserClient.connect(`${server.path}.none`), { name: 'SystemError', code: 'ENOENT' });
});
