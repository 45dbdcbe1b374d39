/** The unit test of the device: no operating system, no VMM, no waiting. Run with `node --test` after compiling. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TestHost } from 'vfiobox/device';
import myDevice from './my-device.ts';

test('a buffer is reversed, then the interrupt comes, until it is acknowledged', () => {
  const host = new TestHost(myDevice);
  const { address, bytes } = host.allocate(4);
  bytes.set([1, 2, 3, 4]);
  host.drive([
    { read: [0, 0x00], expect: 0x0001_cafe },
    { write: [0, 0x08, address], size: 8 },
    { write: [0, 0x10, 4] },
    { write: [0, 0x14, 1] },
    { read: [0, 0x04], expect: 1 },
    { read: [0, 0x04], expect: 2, within: 10_000 },
    { interrupts: ['intx 1'] },
    { write: [0, 0x04, 2] },
    { read: [0, 0x04], expect: 0 },
    { interrupts: ['intx 0'] },
  ]);
  assert.deepEqual([...bytes], [4, 3, 2, 1]);
});

test('with MSI the end is a message; an address that is not mapped is a bit of STATUS', () => {
  const host = new TestHost(myDevice);
  host.enableMessages();
  host.drive([
    { write: [0, 0x08, 0xdead_0000], size: 8 },
    { write: [0, 0x10, 16] },
    { write: [0, 0x14, 1] },
    { wait: 1000 },
    { read: [0, 0x04], expect: 6 },
    { interrupts: ['message 0'] },
  ]);
  assert.deepEqual(host.log, ['0000:00:01.0: cannot read 0xdead0000: not present']);
});

test('a reset in the middle: nothing comes afterwards', () => {
  const host = new TestHost(myDevice);
  host.write(0, 0x14, 1);
  host.reset();
  host.drive([{ wait: 10_000 }, { read: [0, 0x04], expect: 0 }, { interrupts: [] }]);
});
