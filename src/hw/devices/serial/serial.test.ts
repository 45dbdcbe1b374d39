import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CharacterBackend } from '../../pci/device-model.ts';
import { type Step, TestHost } from '../../pci/kit/test-host.ts';
import { serial } from './model.ts';

class Line implements CharacterBackend {
  text = '';
  closed = false;
  #receive: (bytes: Uint8Array) => void = () => {};

  write(bytes: Uint8Array): void {
    this.text += Buffer.from(bytes).toString('latin1');
  }

  onInput(receive: (bytes: Uint8Array) => void): void {
    this.#receive = receive;
  }

  type(text: string): void {
    this.#receive(Buffer.from(text, 'latin1'));
  }

  close(): void {
    this.closed = true;
  }
}

function setup(): { host: TestHost; line: Line } {
  const line = new Line();
  const host = new TestHost(serial, {
    options: { line: 'test' },
    character: (target) => {
      assert.equal(target, 'test');
      return line;
    },
  });
  return { host, line };
}

const out = (offset: number, value: number): Step => ({ write: [0, offset, value], size: 1 });
const see = (offset: number, expect: number, mask = 0xff): Step => ({ read: [0, offset], size: 1, expect, mask });
const [FIFOS_ON, LOOP] = [out(2, 0xc7), 0x10];

test('the tests of Linux’s 8250 driver: a 16550A with 16 bytes of FIFO', () => {
  const { host } = setup();
  assert.deepEqual([host.fn.class24 >> 8, host.fn.bars[0]!.kind, host.fn.bars[0]!.size], [0x0700, 'io', 8]);
  host.drive([out(1, 0), see(1, 0), out(1, 0x0f), see(1, 0x0f), out(1, 0xff), see(1, 0x0f), out(1, 0)]);
  host.drive([out(4, LOOP | 0x0a), see(6, 0x90, 0xf0), out(4, 0), see(6, 0xb0, 0xf0)]);
  host.drive([out(3, 0xbf), out(2, 0), out(3, 0), see(2, 1), out(2, 1), see(2, 0xc1), out(7, 0x5a), see(7, 0x5a)]);
  host.drive([out(3, 0x80), out(0, 0x34), out(1, 0x12), see(0, 0x34), see(1, 0x12), out(3, 3), see(1, 0)]);
  // The length of the FIFO: what comes back of 256 bytes in loopback.
  host.drive([FIFOS_ON, out(4, LOOP)]);
  for (let i = 0; i < 256; i++) host.drive([out(0, i)]);
  host.advance(20_000_000);
  let count = 0;
  while ((host.read(0, 5, 1) & 1) !== 0) assert.equal(host.read(0, 0, 1), count++);
  assert.equal(count, 16);
});

test('bytes go out after their time on the line; the transmitter says when it is empty', () => {
  const { host, line } = setup();
  host.drive([FIFOS_ON, see(5, 0x60)]);
  for (const byte of Buffer.from('hello\n')) host.drive([out(0, byte)]);
  host.drive([see(5, 0)]);
  assert.equal(line.text, '');
  host.drive([{ wait: 10_000 }, see(5, 0x60)]);
  assert.equal(line.text, 'hello\n');
});

test('the transmitter’s interrupt comes when enabled while empty, goes by reading IIR, comes again after a byte', () => {
  const { host } = setup();
  host.drive([FIFOS_ON, out(1, 2), { interrupts: ['intx 1'] }, see(2, 0xc2), see(2, 0xc1), { interrupts: ['intx 0'] }]);
  host.drive([out(1, 0), out(1, 2), see(2, 0xc2), { interrupts: ['intx 1', 'intx 0'] }]);
  host.drive([
    out(0, 65),
    see(2, 0xc1),
    { interrupts: [] },
    { wait: 10_000 },
    { interrupts: ['intx 1'] },
    see(2, 0xc2),
  ]);
});

test('bytes arrive: interrupt until they are read, timeout below the trigger, nothing lost behind the FIFO', () => {
  const { host, line } = setup();
  host.drive([FIFOS_ON, out(1, 1), see(5, 0x60)]);
  line.type('ab');
  host.drive([{ interrupts: ['intx 1'] }, see(2, 0xcc), see(5, 0x61), see(0, 97), see(0, 98), see(5, 0x60)]);
  host.drive([{ interrupts: ['intx 0'] }, see(2, 0xc1), see(0, 0)]);
  const long = 'the quick brown fox jumps over the lazy dog';
  line.type(long);
  host.drive([see(2, 0xc4)]);
  let text = '';
  while ((host.read(0, 5, 1) & 1) !== 0) text += String.fromCharCode(host.read(0, 0, 1));
  assert.equal(text, long);
});

test('without FIFOs one byte is there at a time; in loopback the line waits', () => {
  const { host, line } = setup();
  line.type('xyz');
  host.drive([see(5, 0x61), see(0, 120), see(0, 121)]);
  host.drive([out(4, LOOP), see(0, 122), out(0, 0x41), { wait: 10_000 }, see(0, 0x41)]);
  line.type('!');
  host.drive([see(5, 0x60), out(4, 0), see(0, 33)]);
  assert.equal(line.text, '');
});

test('what nobody reads for a megabyte is lost, and said', () => {
  const { host, line } = setup();
  host.drive([FIFOS_ON, out(1, 4)]);
  line.type('a'.repeat(1 << 20));
  host.drive([{ interrupts: [] }]);
  line.type('b'.repeat(100));
  host.drive([{ interrupts: ['intx 1'] }, see(2, 0xc6), see(5, 0x63), see(5, 0x61), { interrupts: ['intx 0'] }]);
});

test('modem lines in loopback: deltas interrupt until MSR is read', () => {
  const { host } = setup();
  host.drive([
    out(1, 8),
    out(4, LOOP),
    { interrupts: ['intx 1'] },
    see(2, 0),
    see(6, 0x0b),
    { interrupts: ['intx 0'] },
  ]);
  host.drive([out(4, LOOP | 4), see(6, 0x40), out(4, LOOP), see(6, 0x04), see(6, 0)]);
});

test('reset, removal, saved state; a machine without the outside', () => {
  const { host, line } = setup();
  host.drive([FIFOS_ON, out(1, 1), out(7, 9)]);
  line.type('q');
  const other = setup().host;
  other.restore(JSON.parse(JSON.stringify(host.save())));
  other.drive([{ interrupts: ['intx 1'] }, see(7, 9), see(2, 0xcc), see(0, 113), { interrupts: ['intx 0'] }]);
  host.drive([out(0, 65)]);
  host.reset();
  host.drive([see(1, 0), see(2, 1), see(5, 0x60), see(7, 0)]);
  assert.equal(host.clock.next, undefined);
  host.fn.remove();
  assert.equal(line.closed, true);
  new TestHost(serial).drive([out(0, 65), { wait: 10_000 }, see(5, 0x60)]);
  new TestHost(serial, { options: { line: 'stdio' } }).drive([out(0, 65), { wait: 10_000 }]);
});
