/** The door with a made-up machine behind it and clients that speak the protocol by hand, well and badly. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, beforeEach, test } from 'node:test';
import fc from 'fast-check';
import {
  Blocked,
  type EventContext,
  File,
  type IoctlResult,
  type Machine,
  Process,
  type Task,
} from '../../host/index.ts';
import { Errno } from '../../lib/errno.ts';
import {
  abstractName,
  closeDescriptor,
  connectTo,
  createEventfd,
  duplicate,
  EAGAIN,
  NativeShared,
  Region,
  readEventfd,
  receive,
  receiveDescriptors,
  send,
  sendDescriptors,
} from '../../sys/index.ts';
import { CallDoor } from './call-door.ts';
import { Connections } from './connections.ts';
import { FetchedDescriptors } from './descriptors.ts';
import { EventLoop } from './event-loop.ts';
import { Handles } from './handles.ts';
import { Processes } from './processes.ts';
import type { CallRecord } from './reporter.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));

// Operations, as in docs/run-protocol.md: written down again, so that a change here is seen.
const HELLO = 1;
const OPEN = 2;
const IOCTL = 3;
const PREAD = 4;
const PWRITE = 5;
const MMAP = 6;
const TRAP_READ = 7;
const TRAP_WRITE = 8;
const FDS = 9;
const STAT = 10;
const NAME = 11;
const ACCESS = 12;

const ANYTHING = 0;
const ADD_ONE = 1;
const NEW_FILE = 2;
const NEW_FILE_IN_ARGUMENT = 3;
const REFUSE = 4;
const BUG = 5;
const TAKE_EVENTFD = 6;
const TAKE_TWO = 7;
const NAME_OF_FILE = 8;
const TAKE_MEMFD = 9;

/** What happened, in order. */
let log: string[] = [];
const shared = new NativeShared('test', 4096);
let held: EventContext | undefined;
/** What a write of the byte WAIT waits for. */
let blocked = new Blocked(0, '');
const WAIT = 0xb1;

class TestFile extends File {
  readonly kind = 'test';
  readonly path: string;
  readonly bytes = new Uint8Array(10_000).map((_, i) => i);

  constructor(path: string) {
    super();
    this.path = path;
  }

  override ioctl(task: Task, request: number, argument: bigint): IoctlResult {
    const memory = task.mm.memory;
    const word = new Uint8Array(4);
    if (request !== ANYTHING && request < NEW_FILE && !memory.read(Number(argument), word)) {
      throw new Errno('EFAULT', 'no argument');
    }
    const number = (): number => {
      if (!memory.read(Number(argument), word)) throw new Errno('EFAULT', 'no argument');
      return new DataView(word.buffer).getInt32(0, true);
    };
    log.push(`ioctl ${request}`);
    switch (request) {
      case ADD_ONE:
        word[0]!++;
        if (!memory.write(Number(argument), word)) throw new Errno('EFAULT', 'cannot be stored');
        return 5;
      case NEW_FILE:
        return { file: new TestFile('anon_inode:[new]'), closeOnExec: true };
      case NEW_FILE_IN_ARGUMENT:
        return { file: new TestFile('anon_inode:[new]'), closeOnExec: false, offset: 8 };
      case REFUSE:
        memory.write(Number(argument), new Uint8Array([1, 2, 3, 4]));
        throw new Errno('ENOSPC', 'because it was asked for');
      case BUG:
        throw new Error('a bug');
      case TAKE_EVENTFD:
        held = task.eventfd(number());
        return 0;
      case TAKE_TWO: {
        const first = task.eventfd(number());
        log.push('first resolved');
        try {
          task.eventfd(number() + 1).close();
        } finally {
          first.close();
        }
        return 0;
      }
      case NAME_OF_FILE:
        log.push(task.file(number()).path);
        return 0;
      case TAKE_MEMFD: {
        const file = task.memoryFile(number());
        log.push(`${file.length} ${file.writable} ${file.identity}`);
        file.close();
        return 0;
      }
      default:
        return 0;
    }
  }

  override read(_task: Task, into: Uint8Array, position: number): number {
    const part = this.bytes.subarray(position, position + into.length);
    into.set(part);
    return part.length;
  }

  override write(_task: Task, from: Uint8Array, position: number): number {
    log.push(`write ${from.length} at ${position}: ${from[0]}`);
    if (from[0] === WAIT) {
      blocked = new Blocked(from.length, 'the test');
      throw blocked;
    }
    return from.length;
  }

  override access(task: Task, buffer: Uint8Array, position: number, isWrite: boolean): number {
    if (position === 4096) throw new Errno('EIO', 'nobody answers');
    return super.access(task, buffer, position, isWrite);
  }

  override mmap(_task: Task, length: number, prot: number, flags: number, offset: number) {
    log.push(`mmap ${length} ${prot} ${flags} ${offset}`);
    return { memory: shared, offset: 2048, trapped: offset !== 0 };
  }

  override release(): void {
    log.push(`release ${this.path}`);
  }
}

function makeDoor(name: string) {
  const machine = {
    open: (_caller: Process, path: string) => {
      log.push(`open ${path}`);
      if (path === '/dev/vfio/busy') throw new Errno('EBUSY', 'somebody has it');
      return path.startsWith('/dev/vfio/') ? new TestFile(path) : undefined;
    },
    access: (_caller: Process, path: string, mode: number) => {
      if (path === '/dev/vfio/gone') throw new Errno('ENOENT', 'no such node');
      if (!path.startsWith('/dev/vfio/')) return undefined;
      if ((mode & 1) !== 0) throw new Errno('EACCES', 'a device node cannot be executed');
      return true;
    },
    stat: (path: string) => {
      if (path === '/dev/vfio/gone') throw new Errno('ENOENT', 'no such node');
      if (!path.startsWith('/dev/vfio/')) return undefined;
      return { mode: 0o20600, uid: 1, gid: 2, major: 10, minor: 196, nlink: 1, ino: 77, size: 0 };
    },
    counters: { ended() {} },
    createProcess: (...[identity, memory, descriptors, rights]: Parameters<Machine['createProcess']>) =>
      new Process(identity, { memory } as Process['mm'], descriptors, rights),
  } as unknown as Machine;
  const loop = new EventLoop();
  const records: CallRecord[] = [];
  const errors: unknown[] = [];
  const handles = new Handles(loop, {
    closed() {},
    written: (handle, bytes) => log.push(`written ${handle.file.path}: ${bytes.length}`),
    failed: (error) => errors.push(error),
  });
  const descriptors = new FetchedDescriptors(loop, (fd) => handles.find(fd));
  const door = new CallDoor(machine, handles, descriptors, {
    call: (record) => records.push(record),
    failed: (error) => errors.push(error),
  });
  const processes = new Processes(machine, descriptors, new Map(), door);
  const path = join(folder, name);
  const connections = new Connections(loop, door, processes, path);
  return { loop, handles, connections, processes, path, records, errors };
}

const world = makeDoor('socket');
const { loop, records, errors } = world;
after(() => {
  world.connections.closeAll();
  world.handles.closeAll();
  loop.close();
});

beforeEach(() => {
  log = [];
  records.length = 0;
  errors.length = 0;
});

function settle(): void {
  for (let i = 0; i < 20; i++) loop.turn(0);
}

interface Reply {
  kind: number;
  seq: number;
  ret: number;
  fdoff: number;
  flags: number;
  length: number;
  payload: Uint8Array;
  fds: number[];
}

const argument = new Region(8192);

class Client {
  readonly fd: number;
  readonly #out = new Region(8192);
  readonly #in = new Region(131_072);
  #seq = 0;

  constructor(hello: { word?: bigint; version?: bigint } | null = {}, path = world.path) {
    this.fd = connectTo(path);
    if (hello !== null) this.post(HELLO, { a: hello.word ?? 1n, b: hello.version ?? 1n });
  }

  /** Sends a request. */
  post(
    op: number,
    fields: { handle?: bigint; a?: bigint; b?: bigint; c?: bigint; d?: bigint; payload?: Uint8Array },
    fds?: number[],
  ): void {
    const { handle = 0n, a = 0n, b = 0n, c = 0n, d = 0n, payload = new Uint8Array() } = fields;
    const { view, bytes, address } = this.#out;
    view.setUint32(0, op, true);
    view.setUint32(4, ++this.#seq, true);
    [handle, a, b, c, d].forEach((value, i) => {
      view.setBigUint64(8 + 8 * i, BigInt.asUintN(64, value), true);
    });
    bytes.set(payload, 48);
    const n =
      fds === undefined
        ? send(this.fd, address, 48 + payload.length)
        : sendDescriptors(this.fd, address, 48 + payload.length, fds);
    assert.equal(n, 48 + payload.length);
  }

  /** The answer; undefined when the connection was closed. */
  take(): Reply | undefined {
    settle();
    const fds: number[] = [];
    const n = receiveDescriptors(this.fd, this.#in.address, this.#in.length, fds);
    if (n <= 0) {
      assert.ok(n === 0 || n === -104, `answer expected, ${n === -EAGAIN ? 'there is none' : n}`);
      return undefined;
    }
    const { view, bytes } = this.#in;
    const length = view.getUint32(24, true);
    assert.equal(n, 32 + length);
    return {
      kind: view.getUint32(0, true),
      seq: view.getUint32(4, true),
      ret: Number(view.getBigInt64(8, true)),
      fdoff: view.getInt32(16, true),
      flags: view.getUint32(20, true),
      length,
      payload: bytes.slice(32, 32 + length),
      fds,
    };
  }

  call(...request: Parameters<Client['post']>): Reply {
    this.post(...request);
    const reply = this.take();
    assert.ok(reply !== undefined, 'the connection was closed');
    assert.equal(reply.seq, this.#seq);
    return reply;
  }

  /** Opens a node: its descriptor and its id. */
  open(path = '/dev/vfio/x'): { fd: number; handle: bigint } {
    const { ret, fds } = this.call(OPEN, { payload: text(path) });
    assert.equal(ret, 0);
    return { fd: fds[0]!, handle: idOf(fds[0]!) };
  }

  /** An ioctl with these bytes as its argument. */
  ioctl(handle: bigint, request: number, bytes: number[] = [], at = argument.address): Reply {
    argument.bytes.set(bytes);
    return this.call(IOCTL, { handle, a: BigInt(request), b: BigInt(at), payload: argument.bytes.slice(0, 64) });
  }

  close(): void {
    closeDescriptor(this.fd);
    settle();
  }
}

function text(path: string): Uint8Array {
  return Buffer.from(`${path}\0`);
}

function idOf(fd: number): bigint {
  return BigInt(`0x${abstractName(fd)!.slice(-16)}`);
}

function close(...fds: number[]): void {
  for (const fd of fds) closeDescriptor(fd);
  settle();
}

test('a node is opened, named, asked for its status, and released with its last copy', () => {
  const client = new Client();
  const { ret, fdoff, flags, fds } = client.call(OPEN, { a: 0o2000002n, payload: text('/dev/vfio/3') });
  assert.deepEqual([ret, fdoff, flags, fds.length], [0, -1, 1, 1]);
  assert.match(abstractName(fds[0]!)!, /^vfiobox:[0-9a-f]{16}:test:[0-9a-f]{16}$/);
  const handle = idOf(fds[0]!);
  const name = client.call(NAME, { handle });
  assert.equal(Buffer.from(name.payload).toString(), '/dev/vfio/3');
  const stat = client.call(STAT, { handle });
  const words = new Uint32Array(stat.payload.buffer);
  assert.deepEqual([...words], [0o20600, 1, 2, 10, 196, 1, 77, 0, 0, 0]);
  const copy = duplicate(fds[0]!);
  close(fds[0]!);
  assert.deepEqual(log, ['open /dev/vfio/3']);
  close(copy);
  assert.deepEqual(log, ['open /dev/vfio/3', 'release /dev/vfio/3']);
  assert.equal(client.call(NAME, { handle }).ret, -9);
  client.close();
});

test('paths that are not the box’s are passed, refusals carry their errno', () => {
  const client = new Client();
  assert.equal(client.call(OPEN, { payload: text('/etc/passwd') }).ret, 1);
  assert.equal(client.call(STAT, { payload: text('/etc/passwd') }).ret, 1);
  assert.equal(client.call(ACCESS, { payload: text('/etc/passwd') }).ret, 1);
  assert.equal(client.call(OPEN, { payload: text('/dev/vfio/busy') }).ret, -16);
  assert.equal(client.call(STAT, { payload: text('/dev/vfio/gone') }).ret, -2);
  assert.equal(client.call(ACCESS, { a: 6n, payload: text('/dev/vfio/3') }).ret, 0);
  assert.equal(client.call(ACCESS, { a: 1n, payload: text('/dev/vfio/3') }).ret, -13);
  assert.deepEqual(
    records.filter(({ result }) => result < 0).map(({ call, file, why }) => [call, file, why]),
    [
      ['open', '/dev/vfio/busy', 'somebody has it'],
      ['stat', '/dev/vfio/gone', 'no such node'],
      ['access', '/dev/vfio/3', 'a device node cannot be executed'],
    ],
  );
  client.close();
});

test('an ioctl gives its value and what it stored; a refused one, too', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const added = client.ioctl(handle, ADD_ONE, [41, 7, 0, 0]);
  assert.deepEqual([added.ret, [...added.payload]], [5, [42, 7, 0, 0]]);
  const refused = client.ioctl(handle, REFUSE);
  assert.deepEqual([refused.ret, [...refused.payload]], [-28, [1, 2, 3, 4]]);
  assert.equal(records.at(-1)!.why, 'because it was asked for');
  const nowhere = client.call(IOCTL, { handle, a: BigInt(ADD_ONE), b: 8n });
  assert.deepEqual([nowhere.ret, nowhere.length], [-14, 0]);
  close(fd);
  client.close();
});

test('descriptors that an ioctl makes are its value or lie in its argument', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const value = client.ioctl(handle, NEW_FILE);
  assert.deepEqual([value.ret, value.fdoff, value.flags, value.fds.length], [0, -1, 1, 1]);
  const stored = client.ioctl(handle, NEW_FILE_IN_ARGUMENT);
  assert.deepEqual([stored.ret, stored.fdoff, stored.flags, stored.fds.length], [0, 8, 0, 1]);
  close(...value.fds, ...stored.fds, fd);
  assert.equal(world.handles.count, 0);
  client.close();
});

test('reads and writes: registers, blocks, positions, lengths beyond a message, bad addresses', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const four = client.call(PREAD, { handle, a: 3n, b: 4n });
  assert.deepEqual([four.ret, [...four.payload]], [4, [3, 4, 5, 6]]);
  const none = client.call(PREAD, { handle, a: 10_000n, b: 4n });
  assert.deepEqual([none.ret, none.length], [0, 0]);
  const block = client.call(PREAD, { handle, a: 1n, b: 4096n });
  assert.equal(block.payload.length, 4096);
  const position = -1n;
  assert.deepEqual([...client.call(PREAD, { handle, a: position, b: 2n }).payload], [0, 1]);
  assert.deepEqual([...client.call(PREAD, { handle, a: position, b: 2n }).payload], [2, 3]);

  const long = client.call(PREAD, { handle, a: 16n, b: 5000n, c: BigInt(argument.address) });
  assert.deepEqual([long.ret, long.length], [5000, 0]);
  assert.equal(argument.bytes[0], 16);
  assert.equal(client.call(PREAD, { handle, a: 0n, b: 5000n, c: 16n }).ret, -14);

  assert.equal(client.call(PWRITE, { handle, a: 8n, b: 2n, payload: new Uint8Array([9, 8]) }).ret, 2);
  argument.bytes.fill(5);
  assert.equal(client.call(PWRITE, { handle, a: 1n, b: 6000n, c: BigInt(argument.address) }).ret, 6000);
  assert.equal(
    client.call(PWRITE, { handle, a: 1n, b: 100n, c: 16n }).ret,
    -14,
    'what could not be sent cannot be read',
  );
  assert.deepEqual(
    log.filter((line) => line.startsWith('write')),
    ['write 2 at 8: 9', 'write 6000 at 1: 5'],
  );
  close(fd);
  client.close();
});

test('a mapping comes with the memory and the place in it', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const plain = client.call(MMAP, { handle, a: 4096n, b: 3n, c: 1n, d: 0n });
  assert.deepEqual([plain.ret, plain.fdoff, plain.fds.length], [0, -1, 1]);
  assert.deepEqual([...new Uint32Array(plain.payload.buffer)], [0, 0, 2048, 0]);
  const trapped = client.call(MMAP, { handle, a: 4096n, b: 3n, c: 1n, d: 0x100_0000_0000n });
  assert.deepEqual([...new Uint32Array(trapped.payload.buffer)], [1, 0, 2048, 0]);
  assert.ok(log.includes('mmap 4096 3 1 1099511627776'));
  close(...plain.fds, ...trapped.fds, fd);
  assert.equal(shared.bytes()[0], 0, 'the box keeps its own');
  client.close();
});

test('accesses of the processor: sizes, bytes, a device that does not answer', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const read = client.call(TRAP_READ, { handle, a: 7n, b: 3n });
  assert.deepEqual([read.ret, [...read.payload]], [3, [7, 8, 9]]);
  assert.equal(client.call(TRAP_WRITE, { handle, a: 7n, b: 64n, payload: new Uint8Array(64) }).ret, 64);
  assert.equal(client.call(TRAP_READ, { handle, a: 4096n, b: 4n }).ret, -5);
  for (const b of [0n, 65n, 2n ** 32n + 4n]) assert.equal(client.call(TRAP_READ, { handle, a: 0n, b }).ret, -22);
  assert.equal(client.call(TRAP_WRITE, { handle, a: 0n, b: 4n, payload: new Uint8Array(3) }).ret, -22);
  close(fd);
  client.close();
});

test('a descriptor of the program is asked for, and the call runs again from its start', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const event = createEventfd();
  const ask = client.ioctl(handle, TAKE_EVENTFD, [17, 0, 0, 0]);
  assert.deepEqual([ask.kind, ask.fds.length, ask.ret, ask.length], [1, 0, 17, 0]);
  const before = openDescriptors();
  client.post(FDS, { payload: new Uint8Array(4) }, [event]);
  const answer = client.take()!;
  assert.deepEqual([answer.kind, answer.seq, answer.ret], [0, ask.seq, 0]);
  held!.signal(3);
  assert.equal(readEventfd(event), 3);
  let heard = 0;
  const stop = held!.watch(() => heard++);
  held!.signal();
  settle();
  assert.equal(heard, 1);
  assert.equal(readEventfd(event), 0, 'whoever watches resets the counter');
  stop();
  held!.signal();
  settle();
  assert.equal(heard, 1);
  held!.close();
  held!.close();
  assert.deepEqual(openDescriptors(), before, 'nothing of what came is kept');
  assert.deepEqual(log.slice(1), ['ioctl 6', 'ioctl 6']);
  close(event, fd);
  client.close();
});

test('one that is not open is EBADF, one of another kind is refused, and each round gives back what it took', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  const event = createEventfd();
  client.ioctl(handle, TAKE_EVENTFD, [17, 0, 0, 0]);
  client.post(FDS, { payload: new Uint8Array([9, 0, 0, 0]) });
  assert.equal(client.take()!.ret, -9);
  client.ioctl(handle, TAKE_EVENTFD, [17, 0, 0, 0]);
  client.post(FDS, { payload: new Uint8Array(4) }, [fd]);
  assert.equal(client.take()!.ret, -22);
  assert.equal(client.ioctl(handle, TAKE_EVENTFD, [255, 255, 255, 255]).ret, -9, 'a negative number is not asked for');

  const before = openDescriptors();
  assert.equal(client.ioctl(handle, TAKE_TWO, [20, 0, 0, 0]).ret, 20);
  client.post(FDS, { payload: new Uint8Array(4) }, [event]);
  assert.equal(client.take()!.ret, 21);
  client.post(FDS, { payload: new Uint8Array(4) }, [event]);
  assert.equal(client.take()!.ret, 0);
  assert.deepEqual(openDescriptors(), before);
  close(event, fd);
  client.close();
});

test('a copy of a handle is the file behind it, anything else is foreign; memfds show what they are', () => {
  const client = new Client();
  const { fd, handle } = client.open('/dev/vfio/one');
  for (const [given, expected] of [
    [fd, '/dev/vfio/one'],
    [client.fd, /^socket:/],
  ] as const) {
    client.ioctl(handle, NAME_OF_FILE, [30, 0, 0, 0]);
    client.post(FDS, { payload: new Uint8Array(4) }, [given]);
    assert.equal(client.take()!.ret, 0);
    assert.match(log.at(-1)!, expected instanceof RegExp ? expected : new RegExp(`^${expected}$`));
  }
  client.ioctl(handle, TAKE_MEMFD, [30, 0, 0, 0]);
  client.post(FDS, { payload: new Uint8Array(4) }, [shared.fd]);
  assert.equal(client.take()!.ret, 0);
  assert.equal(log.at(-1), `4096 true ${shared.key}`);
  client.ioctl(handle, TAKE_MEMFD, [30, 0, 0, 0]);
  client.post(FDS, { payload: new Uint8Array(4) }, [fd]);
  assert.equal(client.take()!.ret, -22);
  close(fd);
  client.close();
});

test('a call after a close finds the file released, whatever was called before', () => {
  const client = new Client();
  const { fd, handle } = client.open('/dev/vfio/one');
  for (let i = 0; i < 50; i++) {
    const other = client.open('/dev/vfio/two');
    client.ioctl(handle, TAKE_EVENTFD, [17, 0, 0, 0]);
    client.post(FDS, { payload: new Uint8Array([9, 0, 0, 0]) });
    client.take();
    log = [];
    closeDescriptor(other.fd);
    client.ioctl(handle, ANYTHING);
    assert.deepEqual(log, ['release /dev/vfio/two', 'ioctl 0']);
  }
  close(fd);
  client.close();
});

test('a write past all wrappers reaches the file; the handle says readable from its start', () => {
  const client = new Client();
  const { fd } = client.open();
  assert.equal(receive(fd, argument.address, 10), 1);
  assert.equal(send(fd, argument.address, 3), 3);
  assert.equal(send(fd, argument.address, 0), 0, 'a write of nothing is not the end');
  assert.equal(send(fd, argument.address, 3), 3);
  settle();
  assert.deepEqual(log.slice(1), ['written /dev/vfio/x: 3', 'written /dev/vfio/x: 3']);
  close(fd);
  assert.equal(log.at(-1), 'release /dev/vfio/x');
  client.close();
});

test('a bug ends the connection that met it and nothing else', () => {
  const [client, other] = [new Client(), new Client()];
  const { fd, handle } = client.open();
  client.post(IOCTL, { handle, a: BigInt(BUG) });
  assert.equal(client.take(), undefined);
  assert.equal((errors[0] as Error).message, 'a bug');
  assert.equal(other.ioctl(handle, ANYTHING).ret, 0);
  close(fd);
  client.close();
  other.close();
});

test('whoever does not keep to the protocol is cut off', () => {
  const stranger = new Client(null);
  stranger.post(NAME, {});
  assert.equal(stranger.take(), undefined, 'no HELLO');
  stranger.close();
  const bad: [string, (client: Client) => void][] = [
    ['half a header', (c) => assert.equal(send(c.fd, argument.address, 20), 20)],
    ['nothing', (c) => assert.equal(send(c.fd, argument.address, 0), 0)],
    ['too long', (c) => assert.equal(send(c.fd, argument.address, 48 + 4097), 48 + 4097)],
    ['an unknown operation', (c) => c.post(99, {})],
    ['operation 0', (c) => c.post(0, {})],
    ['HELLO again', (c) => c.post(HELLO, { a: 1n, b: 1n })],
    ['descriptors that nobody asked for', (c) => c.post(FDS, { payload: new Uint8Array(4) }, [c.fd])],
  ];
  for (const [what, misbehave] of bad) {
    const client = new Client();
    misbehave(client);
    assert.equal(client.take(), undefined, what);
    client.close();
  }
  assert.deepEqual(errors, []);
  assert.equal(world.connections.count, 0);
});

test('a wrong answer to a question for descriptors ends the connection and closes what came', () => {
  const wrong: [string, (client: Client) => void][] = [
    ['another call', (c) => c.post(NAME, {})],
    ['too few', (c) => c.post(FDS, { payload: new Uint8Array(4) })],
    ['too many', (c) => c.post(FDS, { payload: new Uint8Array(4) }, [c.fd, c.fd])],
    ['one for a closed number', (c) => c.post(FDS, { payload: new Uint8Array([9, 0, 0, 0]) }, [c.fd])],
    ['no states', (c) => c.post(FDS, {}, [c.fd])],
    ['the end', (c) => c.close()],
  ];
  for (const [what, answer] of wrong) {
    const client = new Client();
    const { fd, handle } = client.open();
    const before = openDescriptors();
    client.ioctl(handle, TAKE_EVENTFD, [17, 0, 0, 0]);
    answer(client);
    settle();
    if (what !== 'the end') {
      assert.equal(client.take(), undefined, what);
      assert.equal(openDescriptors(), before - 1, what);
      client.close();
    }
    close(fd);
  }
});

test('requests that were sent ahead are all answered, in order', () => {
  const client = new Client();
  const { fd, handle } = client.open();
  for (let i = 0; i < 5; i++) client.post(PREAD, { handle, a: BigInt(i), b: 1n });
  const bytes: number[] = [];
  for (let i = 0; i < 200 && bytes.length < 5; i++) {
    loop.turn(15);
    const reply = receive(client.fd, argument.address, 100);
    if (reply > 0) bytes.push(argument.bytes[32]!);
  }
  assert.deepEqual(bytes, [0, 1, 2, 3, 4]);
  close(fd);
  client.close();
});

test('processes are told apart by number and word; a program with no connection is forgotten', () => {
  const before = world.processes.count;
  const clients = [new Client({ word: 11n }), new Client({ word: 11n }), new Client({ word: 12n })];
  settle();
  assert.equal(world.processes.count, before + 2);
  for (const client of clients) client.close();
  assert.equal(world.processes.count, before);
});

test('any bytes at all: an errno or the end of the connection, never an exception', () => {
  const opened = new Client();
  const { fd, handle } = opened.open();
  const value = fc.oneof(
    fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    fc.constantFrom(0n, 1n, 4n, 64n, 4096n, 2n ** 32n, 2n ** 47n, 2n ** 64n - 1n, BigInt(argument.address)),
  );
  const request = fc.record({
    op: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.nat(20)),
    handle: fc.constantFrom(handle, handle, 0n, 1n << 40n),
    a: value,
    b: value,
    c: value,
    d: value,
    payload: fc.uint8Array({ maxLength: 200 }),
  });
  fc.assert(
    fc.property(fc.array(request, { maxLength: 10 }), (requests) => {
      const client = new Client();
      for (const { op, ...fields } of requests) {
        if (op === IOCTL && Number(fields.a & 0xffffffffn) === BUG) continue;
        // The program is this very process: an address that happens to be mapped would be overwritten.
        if ((op === PREAD || op === PWRITE) && fields.c !== BigInt(argument.address)) fields.c = 8n;
        if (op === PREAD && fields.b > 8192n) fields.c = 8n;
        if (op === IOCTL) fields.b = fields.b % 2n === 0n ? BigInt(argument.address) : 8n;
        client.post(op, fields);
        const reply = client.take();
        if (reply === undefined) break;
        close(...reply.fds);
        assert.ok(reply.kind <= 1);
      }
      client.close();
    }),
    { numRuns: 60 },
  );
  assert.deepEqual(errors, []);
  assert.equal(opened.call(NAME, { handle }).ret, 0);
  held?.close();
  close(fd);
  opened.close();
  assert.equal(world.handles.count, 0);
  assert.equal(world.connections.count, 0);
});

function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

const ANYWHERE = 0xffff_ffff_ffff_ffffn;

test('a call that waits is answered when what it waits for has happened; others go on meanwhile', () => {
  const client = new Client();
  const other = new Client();
  const { fd, handle } = client.open();
  client.post(PWRITE, { handle, a: ANYWHERE, b: 3n, payload: Uint8Array.of(WAIT, 2, 3) });
  settle();
  const first = blocked;
  assert.equal(other.call(PREAD, { handle, a: 0n, b: 4n }).ret, 4);
  other.post(PWRITE, { handle, a: ANYWHERE, b: 2n, payload: Uint8Array.of(WAIT, 2) });
  settle();
  assert.notEqual(blocked, first);
  first.end();
  const reply = client.take();
  assert.equal(reply?.ret, 3);
  blocked.end(new Errno('ENODEV', 'it is gone'));
  assert.equal(other.take()?.ret, -19);
  assert.deepEqual(
    records.filter(({ call }) => call === 'pwrite').map(({ result, why }) => [result, why]),
    [
      [3, undefined],
      [-19, 'it is gone'],
    ],
  );
  // Both connections are in step.
  assert.equal(client.call(PREAD, { handle, a: 0n, b: 4n }).ret, 4);
  assert.equal(other.call(PREAD, { handle, a: 0n, b: 4n }).ret, 4);
  closeDescriptor(fd);
  client.close();
  other.close();
});

test('a caller that ends while it waits is forgotten; one that talks while it waits is cut off', () => {
  const { connections } = world;
  const before = connections.count;
  const keeper = new Client();
  const { fd, handle } = keeper.open();
  for (const how of ['ends', 'talks']) {
    const client = new Client();
    client.post(PWRITE, { handle, a: ANYWHERE, b: 1n, payload: Uint8Array.of(WAIT) });
    settle();
    const waited = blocked;
    if (how === 'ends') client.close();
    else {
      client.post(PREAD, { handle, a: 0n, b: 4n });
      assert.equal(client.take(), undefined);
    }
    assert.equal(connections.count, before + 1);
    waited.end();
    settle();
    if (how === 'talks') client.close();
  }
  assert.deepEqual(errors, []);
  assert.equal(keeper.call(PREAD, { handle, a: 0n, b: 4n }).ret, 4);
  closeDescriptor(fd);
  keeper.close();
});
