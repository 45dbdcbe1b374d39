/** Every call of the operating system that is wrapped, once for real. A new koffi is taken only when this passes. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { copyBytes } from './copy.ts';
import {
  abstractName,
  accept,
  capabilities,
  closeDescriptor,
  connectTo,
  createEventfd,
  duplicate,
  EAGAIN,
  EPOLLHUP,
  EPOLLIN,
  EPOLLRDHUP,
  findMapping,
  inodeOf,
  isWritable,
  linkOf,
  listenOn,
  MappedFile,
  makeSocketNode,
  memlockLimit,
  NativeShared,
  namedPair,
  Poller,
  ProcessMemory,
  peerOf,
  programName,
  Region,
  raiseDescriptorLimit,
  readEventfd,
  receive,
  receiveDescriptors,
  SCM_MAX_FD,
  SystemError,
  sealsOf,
  send,
  sendDescriptors,
  signalEventfd,
} from './index.ts';
import * as libc from './libc.ts';
import { giveSlot, takeSlot } from './memory.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const buffer = new Region(8192);

function put(...bytes: number[]): number {
  buffer.bytes.set(bytes);
  return bytes.length;
}

test('a message goes from a client to a listener and back, whole, and the kernel says who the client is', () => {
  const path = join(folder, 'socket');
  const listener = listenOn(path);
  assert.equal(accept(listener), -EAGAIN);
  const client = connectTo(path);
  const server = accept(listener);
  assert.ok(server > 2);
  assert.deepEqual(peerOf(server), { pid: process.pid, uid: process.getuid!(), gid: process.getgid!() });
  assert.equal(receive(server, buffer.address, 100), -EAGAIN);
  assert.equal(send(client, buffer.address, put(1, 2, 3)), 3);
  assert.equal(send(client, buffer.address, put(9, 8)), 2);
  buffer.bytes.fill(0);
  assert.equal(receive(server, buffer.address, 100), 3);
  assert.deepEqual([...buffer.bytes.subarray(0, 4)], [1, 2, 3, 0]);
  assert.equal(receive(server, buffer.address, 1), 2, 'the length of the message, not what fitted');
  closeDescriptor(client);
  assert.equal(receive(server, buffer.address, 100), 0);
  assert.equal(send(server, buffer.address, 1), -32, 'EPIPE, and no signal');
  closeDescriptor(server);
  closeDescriptor(listener);
});

test('listening on a path that is too long or taken is a SystemError with the errno', () => {
  assert.throws(() => listenOn(`/tmp/${'x'.repeat(120)}`), SystemError);
  const path = join(folder, 'twice');
  const listener = listenOn(path);
  assert.throws(() => listenOn(path), { code: 'EADDRINUSE' });
  closeDescriptor(listener);
});

test('descriptors travel with a message, up to the limit, and only where room is offered', () => {
  const pair = { ours: -1, theirs: -1 };
  assert.equal(namedPair(Buffer.from('vfiobox-test:1'), pair), 0);
  const event = createEventfd();
  assert.equal(sendDescriptors(pair.theirs, buffer.address, put(7), Array(SCM_MAX_FD).fill(event)), 1);
  const came: number[] = [];
  assert.equal(receiveDescriptors(pair.ours, buffer.address, 100, came), 1);
  assert.equal(came.length, SCM_MAX_FD);
  signalEventfd(came[200]!, 5);
  assert.equal(readEventfd(event), 5);
  for (const fd of came) closeDescriptor(fd);

  assert.equal(sendDescriptors(pair.theirs, buffer.address, put(7), [event]), 1);
  assert.equal(receive(pair.ours, buffer.address, 100), 1, 'the kernel drops what nobody asked for');
  assert.equal(sendDescriptors(pair.theirs, buffer.address, put(7), []), 1);
  came.length = 0;
  assert.equal(receiveDescriptors(pair.ours, buffer.address, 100, came), 1);
  assert.deepEqual(came, []);
  assert.throws(() => sendDescriptors(pair.theirs, buffer.address, 1, Array(SCM_MAX_FD + 1).fill(event)));
  for (const fd of [event, pair.ours, pair.theirs]) closeDescriptor(fd);
});

test('the abstract name of a socket travels with every copy of it', () => {
  const pair = { ours: -1, theirs: -1 };
  namedPair(Buffer.from('vfiobox-test:0123456789abcdef:device:00000000000000ff'), pair);
  const copy = duplicate(pair.theirs);
  closeDescriptor(pair.theirs);
  assert.equal(abstractName(copy), 'vfiobox-test:0123456789abcdef:device:00000000000000ff');
  assert.equal(abstractName(pair.ours), undefined);
  assert.equal(abstractName(0), undefined);
  closeDescriptor(copy);
  assert.equal(receive(pair.ours, buffer.address, 10), 0);
  closeDescriptor(pair.ours);
});

test('the poller tells events in the order in which they happened', () => {
  const poller = new Poller();
  const heard: [string, number][] = [];
  const pairs = ['call', 'handle'].map((name) => {
    const pair = { ours: -1, theirs: -1 };
    namedPair(Buffer.from(`vfiobox-test-order:${name}:${process.pid}`), pair);
    const ready = (events: number): unknown => heard.push([name, events]);
    const slot = poller.add(pair.ours, { comesFirst: name === 'handle', ready });
    return { ...pair, slot };
  });
  const [call, handle] = pairs as [(typeof pairs)[0], (typeof pairs)[0]];
  closeDescriptor(handle.theirs);
  send(call.theirs, buffer.address, 1);
  assert.equal(poller.run(100), 2);
  assert.deepEqual(
    heard.map(([name]) => name),
    ['handle', 'call'],
  );
  assert.equal(heard[0]![1] & (EPOLLHUP | EPOLLRDHUP), EPOLLHUP | EPOLLRDHUP);
  assert.equal(heard[1]![1], EPOLLIN);
  assert.equal(poller.run(0), 2, 'what is left is reported again');
  poller.remove(handle.ours, handle.slot);
  assert.equal(receive(call.ours, buffer.address, 10), 1);
  assert.equal(poller.run(0), 0);
  poller.remove(call.ours, call.slot);
  send(call.theirs, buffer.address, 1);
  assert.equal(poller.run(0), 0, 'a removed source is not told');
  for (const fd of [call.ours, call.theirs, handle.ours]) closeDescriptor(fd);
  assert.equal(poller.add(9999, { ready() {} }), -9);
  poller.close();
});

test('a source that removes another one in the same batch keeps it from being told', () => {
  const poller = new Poller();
  let second = 0;
  const [a, b] = [createEventfd(), createEventfd()];
  let slotOfB = -1;
  const slotOfA = poller.add(a, { ready: () => poller.remove(b, slotOfB) });
  slotOfB = poller.add(b, { ready: () => second++ });
  signalEventfd(a);
  signalEventfd(b);
  assert.equal(poller.run(0), 2);
  assert.equal(second, 0);
  poller.remove(a, slotOfA);
  closeDescriptor(a);
  closeDescriptor(b);
  poller.close();
});

test('an event counter that is full, or empty and blocking, blocks nobody', () => {
  const fd = libc.eventfd(0, 0);
  assert.equal(readEventfd(fd), 0);
  buffer.u32[0] = 0xffff_fffe;
  buffer.u32[1] = 0xffff_ffff;
  assert.equal(libc.write(fd, buffer.address, 8), 8);
  signalEventfd(fd);
  assert.ok(readEventfd(fd) >= 2 ** 63);
  signalEventfd(fd, 3);
  assert.equal(readEventfd(fd), 3);
  assert.equal(linkOf(fd), 'anon_inode:[eventfd]');
  closeDescriptor(fd);
});

test('a slot of an arena reads zeros after it was given back, and is used again', () => {
  const slot = takeSlot(10_000);
  assert.equal(slot.length, 12_288);
  assert.equal(slot.bytes.length, 10_000);
  slot.bytes.fill(7);
  giveSlot(slot);
  assert.equal(slot.bytes[5000], 0);
  const others = [takeSlot(4096), takeSlot(8192), takeSlot(4096)];
  assert.equal(others[0]!.address, slot.address);
  for (const other of [others[1]!, others[0]!, others[2]!]) giveSlot(other);
  const again = takeSlot(16_384);
  assert.equal(again.address, slot.address, 'neighbours are joined');
  giveSlot(again);
  assert.throws(() => takeSlot(2 ** 45), { code: 'ENOMEM' });
});

test('shared memory: another mapping sees it, faults while it is revoked, and sees it again', () => {
  const memory = new NativeShared('bar', 8192);
  memory.bytes()[4096] = 42;
  const mapped = new MappedFile(memory.fd, 8192, true);
  const byte = new Uint8Array(1);
  assert.ok(mapped.read(4096, byte));
  assert.equal(byte[0], 42);
  memory.revoke();
  assert.equal(mapped.read(4096, byte), false, 'EFAULT where a load would get SIGBUS');
  assert.equal(memory.bytes()[4096], 42, 'the owner keeps the contents');
  memory.bytes()[4096] = 43;
  memory.revoke();
  memory.restore();
  assert.ok(mapped.read(4096, byte));
  assert.equal(byte[0], 43);
  assert.ok(mapped.write(4097, new Uint8Array([44])));
  assert.equal(memory.bytes()[4097], 44);
  memory.close();
  memory.close();
  assert.equal(memory.bytes()[4097], 0, 'stray reads are harmless');
  mapped.close();
  assert.equal(mapped.read(0, byte), false);
});

test('a mapped file that is cut gives false, not SIGBUS', () => {
  const fd = libc.memfd_create('cut', 3);
  assert.deepEqual(sealsOf(fd), { canShrink: true });
  assert.ok(isWritable(fd));
  libc.ftruncate(fd, 65536);
  assert.equal(inodeOf(fd).length, 65536);
  const mapped = new MappedFile(fd, 65536, true);
  const large = new Uint8Array(40_000).fill(3);
  assert.ok(mapped.write(10, large));
  const back = new Uint8Array(40_000);
  assert.ok(mapped.read(10, back));
  assert.deepEqual(back, large);
  assert.equal(mapped.read(60_000, back), false, 'beyond the end');
  libc.ftruncate(fd, 4096);
  assert.equal(mapped.read(10, back), false);
  assert.equal(mapped.write(8192, new Uint8Array(1)), false);
  mapped.close();
  new MappedFile(fd, 0, true).close();
  closeDescriptor(fd);
  const ordinary = openSync('/dev/null', 'r');
  assert.equal(sealsOf(ordinary), undefined);
  assert.equal(isWritable(ordinary), false);
  closeSync(ordinary);
});

test('the memory of a process: short and long, holes, the top of the address space', () => {
  const self = new ProcessMemory(process.pid);
  const region = new Region(262_144);
  region.bytes.set([1, 2, 3, 4], 100_000);
  const short = new Uint8Array(4);
  assert.ok(self.read(region.address + 100_000, short));
  assert.deepEqual([...short], [1, 2, 3, 4]);
  const long = new Uint8Array(200_000).map((_, i) => i);
  assert.ok(self.write(region.address, long));
  const back = new Uint8Array(200_000);
  assert.ok(self.read(region.address, back));
  assert.deepEqual(back, long);
  assert.equal(self.read(8, short), false);
  assert.equal(self.write(8, short), false);
  assert.equal(self.read(2 ** 47 - 2, short), false);
  assert.ok(self.read(8, new Uint8Array(0)));
});

test('long copies come out the same wherever source and destination lie within a page', () => {
  const self = new ProcessMemory(process.pid);
  const region = new Region(262_144);
  const buffer = new Uint8Array(262_144);
  for (const ours of [0, 1, 16, 63, 64, 4095]) {
    for (const theirs of [0, 1, 48, 4095]) {
      const long = buffer.subarray(ours, ours + 150_001);
      for (let i = 0; i < long.length; i++) long[i] = (i * 7 + ours + theirs) & 0xff;
      const sent = long.slice();
      assert.ok(self.write(region.address + theirs, long));
      assert.deepEqual(region.bytes.subarray(theirs, theirs + long.length), sent);
      long.fill(0);
      assert.ok(self.read(region.address + theirs, long));
      assert.deepEqual(long, sent);
    }
  }
});

test('copyBytes is a copy, wherever the two lie', () => {
  const region = new Region(262_144);
  const buffer = new Uint8Array(262_144);
  for (const [to, from] of [
    [0, 0],
    [16, 0],
    [1, 0],
    [0, 16],
    [63, 0],
    [64, 0],
    [5000, 4984],
  ] as const) {
    for (const length of [1, 4095, 4096, 70_001, 200_000]) {
      for (let i = 0; i < length; i++) region.bytes[from + i] = (i * 13 + to) & 0xff;
      const into = buffer.subarray(to, to + length).fill(0);
      copyBytes(into, region.bytes.subarray(from, from + length));
      assert.deepEqual(into, region.bytes.subarray(from, from + length));
    }
  }
});

test('a mapping of a process is found with its rights and its file; the text of /proc says the same', () => {
  const memory = new NativeShared('seen', 8192);
  const self = new ProcessMemory(process.pid);
  const region = new Region(8192);
  const found = self.mapping(region.address + 5000)!;
  assert.ok(found.start <= region.address && found.end >= region.address + 8192);
  assert.deepEqual([found.readable, found.writable, found.shared, found.key], [true, true, false, undefined]);
  assert.equal(self.mapping(4096), undefined);
  assert.ok(self.isHeld);
  const slot = libc.mmap(0, 4096, 1, 1, memory.fd, 4096);
  const text = findMapping(`${readMaps()}`, slot)!;
  assert.deepEqual(self.mapping(slot), text);
  assert.deepEqual(
    [text.readable, text.writable, text.shared, text.offset, text.key],
    [true, false, true, 4096, memory.key],
  );
  assert.equal(findMapping(readMaps(), 4096), undefined);
  libc.munmap(slot, 4096);
  memory.close();
  self.close();
  assert.equal(self.mapping(region.address), undefined);
});

function readMaps(): string {
  const fd = openSync('/proc/self/maps', 'r');
  try {
    const pieces: Buffer[] = [];
    const piece = Buffer.alloc(65536);
    for (;;) {
      const n = libcRead(fd, piece);
      if (n <= 0) return Buffer.concat(pieces).toString('latin1');
      pieces.push(Buffer.from(piece.subarray(0, n)));
    }
  } finally {
    closeSync(fd);
  }
}

function libcRead(fd: number, into: Buffer): number {
  return libc.read(fd, libc.addressOfBytes(into), into.length);
}

test('a process that has no connection is reached by what was opened before, and not at all after its end', async () => {
  const child = spawn('cat', { stdio: ['pipe', 'pipe', 'inherit'] });
  // cat answers: it has run past its start, and its stack stays where it is.
  child.stdin.write('x');
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const memory = new ProcessMemory(child.pid!);
  const stack = stackOf(child.pid!);
  const bytes = new Uint8Array(8);
  assert.ok(memory.read(stack, bytes));
  memory.detach();
  assert.equal(memory.read(stack, bytes), false, 'nothing was opened yet');
  memory.attach();
  assert.ok(memory.mapping(stack)!.writable);
  memory.detach();
  assert.ok(memory.read(stack, bytes));
  assert.ok(memory.write(stack, bytes));
  assert.equal(memory.write(8, bytes), false);
  assert.equal(programName(child.pid!), 'cat');
  assert.equal(memlockLimit(child.pid!), memlockLimit(process.pid));
  assert.equal(capabilities(child.pid!), capabilities(process.pid));
  child.stdin.end();
  await new Promise((resolve) => child.once('exit', resolve));
  assert.equal(memory.read(stack, bytes), false);
  assert.equal(memory.mapping(stack), undefined);
  assert.equal(programName(child.pid!), '?');
  memory.close();
});

function stackOf(pid: number): number {
  const fd = openSync(`/proc/${pid}/maps`, 'r');
  const piece = Buffer.alloc(1 << 20);
  let length = 0;
  for (;;) {
    const n = libcRead(fd, piece.subarray(length));
    if (n <= 0) break;
    length += n;
  }
  closeSync(fd);
  const line = piece
    .toString('latin1', 0, length)
    .split('\n')
    .find((text) => text.endsWith('[stack]'))!;
  return Number.parseInt(line.split('-')[1]!, 16) - 64;
}

test('rights: limits and capabilities come from the system', () => {
  assert.ok(memlockLimit(process.pid) > 0);
  assert.equal((capabilities(process.pid) & (1n << 14n)) !== 0n, process.getuid!() === 0);
  assert.equal(capabilities(2 ** 30), 0n);
  assert.equal(memlockLimit(2 ** 30), Number.POSITIVE_INFINITY);
  raiseDescriptorLimit();
});

test('the place of a device node is an inode that cannot be opened', () => {
  const path = join(folder, 'node');
  makeSocketNode(path);
  assert.ok(statSync(path).isSocket());
  assert.throws(() => openSync(path, 'r'), { code: 'ENXIO' });
  assert.throws(() => makeSocketNode(path), { code: 'EEXIST' });
});
