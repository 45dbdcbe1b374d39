import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Step, TestHost } from '../../pci/kit/test-host.ts';
import { gpioPciIdio16 } from './model.ts';

const out = (offset: number, value: number): Step => ({ write: [2, offset, value], size: 1 });
const input = (offset: number, expect: number): Step => ({ read: [2, offset], size: 1, expect });
/** What the driver does when it is bound and when a line's interrupt is unmasked. */
const probe = [out(2, 0), out(3, 0)];
const unmask = [out(1, 0), input(2, 0)];

test('identity and resources are those that the driver looks for', () => {
  const { fn } = new TestHost(gpioPciIdio16);
  assert.deepEqual([fn.vendor, fn.device, fn.interruptPin], [0x494f, 0x0dc8, 1]);
  assert.deepEqual([fn.bars[2]!.kind, fn.bars[2]!.size], ['io', 0x100]);
});

test('outputs are kept and read back; inputs follow them', () => {
  const host = new TestHost(gpioPciIdio16);
  host.drive([...probe, out(0, 0x81), out(4, 0x42), input(0, 0x81), input(4, 0x42), input(1, 0x81), input(5, 0x42)]);
  host.drive([{ write: [2, 5, 0xff], size: 1 }, input(5, 0x42), { interrupts: [] }]);
});

test('a change interrupts once interrupts are on, until it is acknowledged', () => {
  const host = new TestHost(gpioPciIdio16);
  host.drive([...probe, out(0, 1), input(6, 0), { interrupts: [] }, ...unmask, { interrupts: [] }]);
  host.drive([out(0, 3), input(6, 4), { interrupts: ['intx 1'] }, out(0, 7), { interrupts: [] }]);
  host.drive([out(1, 4), input(6, 0), { interrupts: ['intx 0'] }, out(0, 7), { interrupts: [] }]);
  host.drive([out(0, 6), { interrupts: ['intx 1'] }, out(2, 0), input(6, 0), { interrupts: ['intx 0'] }]);
  host.drive([out(0, 5), input(6, 0), { interrupts: [] }]);
});

test('counting and fixed inputs', () => {
  const host = new TestHost(gpioPciIdio16, { options: { inputs: 'counter', level: '0xfffe', periodNs: 1000 } });
  host.drive([...unmask, input(1, 0xfe), input(5, 0xff), { wait: 1000 }, input(1, 0xff), { interrupts: ['intx 1'] }]);
  host.drive([out(1, 0), { wait: 1000 }, input(1, 0), input(5, 0), { interrupts: ['intx 0', 'intx 1'] }]);
  host.reset();
  host.drive([input(1, 0xfe), { wait: 1000 }, input(1, 0xff)]);
  const fixed = new TestHost(gpioPciIdio16, { options: { inputs: 'fixed', level: 0x1234 } });
  fixed.drive([out(0, 0xff), input(1, 0x34), input(5, 0x12)]);
  assert.equal(fixed.clock.next, undefined);
});

test('reset and saved state', () => {
  const host = new TestHost(gpioPciIdio16);
  host.drive([...unmask, out(0, 0xa5)]);
  const other = new TestHost(gpioPciIdio16);
  other.restore(JSON.parse(JSON.stringify(host.save())));
  other.drive([input(0, 0xa5), input(1, 0xa5), input(6, 4), { interrupts: ['intx 1'] }, out(1, 0), out(0, 0xa4)]);
  assert.deepEqual(other.interrupts(), ['intx 0', 'intx 1']);
  host.reset();
  host.drive([input(0, 0), input(1, 0), input(6, 0), { interrupts: ['intx 1', 'intx 0'] }]);
});
