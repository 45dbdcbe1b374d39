import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Step, TestHost, type TestHostOptions } from '../../pci/kit/test-host.ts';
import { ioat } from './model.ts';

const RUN = 0x001d;
const CHANNEL = 0x80;
const [INT, COMPLETE, NULL] = [0x01, 0x08, 0x20];

interface Ring {
  address: number;
  /** Fills descriptor `index`. */
  put(index: number, size: number, control: number, source: number | bigint, destination: number | bigint): void;
}

interface Setup {
  host: TestHost;
  ring: Ring;
  completion: DataView;
  issue(count: number): void;
}

/** What ioatdma does before its first descriptor: reset, control, completion address, ring, chain address. */
function setup(options: TestHostOptions = {}, channel = 0): Setup {
  const host = new TestHost(ioat, options);
  const base = CHANNEL * (channel + 1);
  const area = host.allocate(8);
  const memory = host.allocate(64 * 8);
  const data = new DataView(memory.bytes.buffer, memory.bytes.byteOffset, memory.bytes.length);
  for (let i = 0; i < 8; i++) data.setBigUint64(64 * i + 24, BigInt(memory.address + 64 * ((i + 1) % 8)), true);
  host.drive([
    { write: [0, base + 4, 0x20], size: 1 },
    { read: [0, base + 4], size: 1, expect: 0 },
    { read: [0, base + 8], size: 8, mask: 7, expect: 3 },
    { write: [0, base, RUN], size: 2 },
    { write: [0, base + 0x18, area.address] },
    { write: [0, base + 0x1c, 0] },
    { write: [0, base + 0x10, memory.address] },
    { write: [0, base + 0x14, 0] },
  ]);
  return {
    host,
    completion: new DataView(area.bytes.buffer, area.bytes.byteOffset, 8),
    issue: (count) => host.write(0, base + 6, count, 2),
    ring: {
      address: memory.address,
      put: (index, size, control, source, destination) => {
        data.setUint32(64 * index, size, true);
        data.setUint32(64 * index + 4, control, true);
        data.setBigUint64(64 * index + 8, BigInt(source), true);
        data.setBigUint64(64 * index + 16, BigInt(destination), true);
      },
    },
  };
}

const status = (expect: number, channel = 0): Step => ({
  read: [0, CHANNEL * (channel + 1) + 8],
  size: 8,
  mask: 7,
  expect,
});
const error = (expect: number): Step => ({ read: [0, CHANNEL + 0x28], expect });

test('the probe of ioatdma: versions, a null descriptor, the copy of its self-test', () => {
  const { host, ring, completion, issue } = setup();
  host.drive([
    { read: [0, 0], size: 1, expect: 1 },
    { read: [0, 1], size: 1, expect: 20 },
    { read: [0, 8], size: 1, expect: 0x34 },
    { read: [0, 0x10], expect: 0 },
  ]);
  assert.deepEqual([host.fn.vendor, host.fn.device, host.fn.config.length], [0x8086, 0x0b00, 4096]);
  host.enableMessages();
  host.write(0, 3, 0x09, 1);
  ring.put(0, 1, NULL | INT | COMPLETE, 0, 0);
  issue(1);
  host.drive([status(0), { wait: 1000 }, status(1), { interrupts: ['message 0'] }]);
  assert.equal(completion.getBigUint64(0, true), BigInt(ring.address) | 1n);

  host.drive([{ write: [0, CHANNEL, RUN], size: 2 }]);
  const source = host.allocate(2000);
  const destination = host.allocate(2000);
  source.bytes.forEach((_, i) => {
    source.bytes[i] = i & 0xff;
  });
  ring.put(1, 2000, INT | COMPLETE, source.address, destination.address);
  issue(2);
  host.drive([{ wait: 1000 }, status(1), { interrupts: ['message 0'] }, error(0)]);
  assert.deepEqual(destination.bytes, source.bytes);
  assert.equal(completion.getBigUint64(0, true), BigInt(ring.address + 64) | 1n);
  assert.equal(host.readWide(0, CHANNEL + 8), BigInt(ring.address + 64) | 1n);
});

test('no second interrupt before the first is re-armed; what came due meanwhile comes then', () => {
  const { host, ring, issue } = setup();
  host.enableMessages();
  host.write(0, 3, 0x09, 1);
  for (let i = 0; i < 3; i++) ring.put(i, 1, NULL | INT, 0, 0);
  issue(3);
  host.drive([{ wait: 1000 }, { interrupts: ['message 0'] }]);
  host.drive([{ write: [0, CHANNEL, RUN], size: 2 }, { interrupts: ['message 0'] }]);
  host.drive([{ write: [0, CHANNEL, RUN], size: 2 }, { interrupts: [] }]);
});

test('INTx: ATTNSTATUS says who, reading it releases the line; the master switch holds it back', () => {
  const { host, ring, issue } = setup({ options: { interrupts: 'intx', channels: 2 } }, 1);
  assert.equal(host.fn.msix ?? host.fn.msi, undefined);
  ring.put(0, 1, NULL | INT, 0, 0);
  issue(1);
  host.drive([{ wait: 1000 }, { interrupts: [] }, { read: [0, 3], size: 1, expect: 2 }]);
  host.drive([{ write: [0, 3, 1], size: 1 }, { interrupts: ['intx 1'] }, { read: [0, 3], size: 1, expect: 7 }]);
  host.drive([{ read: [0, 4], expect: 2 }, { interrupts: ['intx 0'] }, { read: [0, 4], expect: 0 }]);
});

test('MSI: a message at each rise of the attention', () => {
  const { host, ring, issue } = setup({ options: { interrupts: 'msi' } });
  host.enableMessages();
  host.write(0, 3, 1, 1);
  ring.put(0, 1, NULL | INT, 0, 0);
  ring.put(1, 1, NULL | INT, 0, 0);
  issue(1);
  host.drive([{ wait: 1000 }, { interrupts: ['message 0'] }, { read: [0, 4], expect: 1 }]);
  host.write(0, CHANNEL, RUN, 2);
  issue(2);
  host.drive([{ wait: 1000 }, { interrupts: ['message 0'] }]);
});

test('errors halt the channel with their bit, the completion and an interrupt; a reset heals', () => {
  const cases: [name: string, bit: number, prepare: (it: Setup, page: { address: number }) => void][] = [
    ['source', 0x100, ({ ring }, page) => ring.put(0, 16, COMPLETE, 0xdead_0000, page.address)],
    ['destination', 0x200, ({ ring }, page) => ring.put(0, 16, COMPLETE, page.address, 0xdead_0000)],
    ['length 0', 0x800, ({ ring }, page) => ring.put(0, 0, COMPLETE, page.address, page.address)],
    ['length', 0x800, ({ ring }, page) => ring.put(0, 0x10_0001, COMPLETE, page.address, page.address)],
    ['operation', 0x400, ({ ring }, page) => ring.put(0, 16, 0x8700_0000, page.address, page.address)],
    ['chain', 0x004, ({ host }) => host.write(0, CHANNEL + 0x10, 0x7_0000)],
    ['alignment', 0x008, ({ host }) => host.write(0, CHANNEL + 0x10, host.base + 0x20)],
  ];
  for (const [name, bit, prepare] of cases) {
    const it = setup();
    const { host, ring, completion, issue } = it;
    host.enableMessages();
    host.write(0, 3, 0x09, 1);
    prepare(it, host.allocate(4096));
    issue(1);
    host.drive([{ wait: 1000 }, status(3), error(bit), { interrupts: ['message 0'] }]);
    assert.equal(completion.getUint32(0, true), 3, name);
    issue(1);
    assert.equal(host.clock.next, undefined, `${name}: an error keeps it halted`);
    host.drive([{ write: [0, CHANNEL + 0x28, bit] }, error(0), { write: [0, CHANNEL + 4, 0x20], size: 1 }]);
    host.drive([{ write: [0, CHANNEL + 0x10, ring.address] }]);
    ring.put(0, 1, NULL, 0, 0);
    issue(1);
    host.drive([{ wait: 1000 }, status(1)]);
  }
});

test('a completion that cannot be written is an error of its own; with Bus Master off nothing is read', () => {
  const { host, ring, issue } = setup();
  host.drive([{ write: [0, CHANNEL + 0x18, 0xdead_0000] }]);
  ring.put(0, 1, NULL | COMPLETE, 0, 0);
  issue(1);
  host.drive([{ wait: 1000 }, status(3), error(0x1000)]);
  const off = setup({ command: 2 });
  off.issue(1);
  off.host.drive([{ wait: 1000 }, status(3), error(0x1004)]);
});

test('suspend, a chain anew, 64 descriptors at a time, a reset on the way', () => {
  const { host, ring, issue } = setup();
  for (let i = 0; i < 8; i++) ring.put(i, 1, NULL, 0, 0);
  issue(200);
  host.drive([{ wait: 1000 }, status(0), { write: [0, CHANNEL + 4, 4], size: 1 }, status(2)]);
  assert.equal(host.clock.next, undefined);
  host.drive([{ write: [0, CHANNEL + 0x10, ring.address] }]);
  issue(130);
  host.drive([{ wait: 2000 }, status(0), { wait: 1000 }, status(1)]);
  assert.equal(host.readWide(0, CHANNEL + 8) & ~0x3fn, BigInt(ring.address + 64), '130 = 16 rounds of 8, and 2');
  issue(131);
  host.reset();
  assert.equal(host.clock.next, undefined);
  host.drive([status(3), { read: [0, CHANNEL + 0x10], size: 8, expect: 0 }]);
});

test('a copy of a megabyte; a chain goes on in another host from its saved state', () => {
  const { host, ring, issue } = setup({ pages: 600 });
  const source = host.allocate(0x10_0000, 4096);
  const destination = host.allocate(0x10_0000, 4096);
  source.bytes.forEach((_, i) => {
    source.bytes[i] = (i * 7) >> 3;
  });
  ring.put(0, 0x10_0000, COMPLETE, source.address, destination.address);
  issue(1);
  const other = new TestHost(ioat, { pages: 600 });
  other.restore(JSON.parse(JSON.stringify(host.save())));
  other.memory.set(host.memory);
  host.advance(1000);
  assert.deepEqual(destination.bytes, source.bytes);
  other.advance(1000);
  assert.ok(Buffer.compare(other.memory, host.memory) === 0);
});

test('options that cannot be are refused', () => {
  assert.throws(() => new TestHost(ioat, { options: { channels: 5 } }), /5 channels, but 1 to 4/);
  assert.throws(() => new TestHost(ioat, { options: { transferLimit: 40 } }), /transferLimit of 40/);
  assert.equal(new TestHost(ioat, { options: { channels: 4 } }).fn.msix!.vectors, 4);
});
