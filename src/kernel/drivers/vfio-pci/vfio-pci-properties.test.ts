/** Whatever a program does: configuration space keeps what it must not change, and no eventfd is left behind. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Errno } from '../../../lib/errno.ts';
import * as uapi from '../../../uapi/vfio.ts';
import type { TestTask } from '../../core/test-task.ts';
import type { DeviceFile } from '../../vfio/vfio-device.ts';
import { recordedMachine } from './test-machine.ts';

const CONFIG = 7 * 2 ** 40;

/** Makes a call that may be refused; a bug goes on. */
function attempt(call: () => unknown): void {
  try {
    call();
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
  }
}

function readAll(task: TestTask, file: DeviceFile, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  assert.equal(file.read(task, bytes, CONFIG), length);
  return bytes;
}

/** Bytes of testdev's space that no write may ever change, as the user and as the hardware sees them. */
const fixed = [0, 1, 2, 3, 8, 9, 10, 11, 0x2c, 0x2d, 0x2e, 0x2f, 0x34, 0x3d];

test('writes to configuration space never reach BARs, identity and MSI of the hardware, and reads never throw', () => {
  const write = fc.record({
    offset: fc.oneof(fc.integer({ min: 0, max: 0x13f }), fc.integer({ min: 0, max: 4095 })),
    bytes: fc.uint8Array({ minLength: 1, maxLength: 16 }),
  });
  fc.assert(
    fc.property(fc.array(write, { maxLength: 40 }), (writes) => {
      const machine = recordedMachine();
      const fn = machine.express;
      machine.bind(fn);
      const { file, descriptor } = machine.open(fn);
      const { task } = machine;
      const before = readAll(task, file, 4096);
      const hardware = fn.config.bytes.slice();
      const msi = fn.msi!.offset;
      const msix = fn.msix!.offset;
      for (const { offset, bytes } of writes) {
        attempt(() => file.write(task, bytes, CONFIG + offset));
        const after = readAll(task, file, 4096);
        for (const at of fixed) assert.equal(after[at], before[at], `byte 0x${at.toString(16)}`);
        for (let at = 0x10; at < 0x34; at++) assert.equal(fn.config.bytes[at], hardware[at], 'a real BAR');
        assert.equal(fn.msi!.enabled, false, 'MSI is enabled by SET_IRQS only');
        assert.equal(fn.config.bytes[msi + 4], hardware[msi + 4], 'the message address of the hardware');
        assert.equal(fn.config.bytes[msix + 3]! & 0xc0, 0, 'MSI-X of the hardware');
      }
      task.close(descriptor);
      assert.equal(fn.busMaster, false);
      assert.equal(fn.config.read(4, 2), 0x103, 'COMMAND is as before the user');
      assert.equal(fn.powerState, 0);
    }),
    { numRuns: 25 },
  );
});

test('C-54: whatever SET_IRQS did, after the end of the process every eventfd was closed exactly once', () => {
  const call = fc.record({
    index: fc.integer({ min: 0, max: 5 }),
    data: fc.constantFrom(1, 2, 4, 4, 4, 4, 6),
    action: fc.constantFrom(8, 16, 32, 32, 32),
    start: fc.integer({ min: 0, max: 8 }),
    count: fc.integer({ min: 0, max: 4 }),
    fds: fc.array(fc.constantFrom(-2, -1, 0, 1, 2, 3, 999), { minLength: 4, maxLength: 4 }),
    extra: fc.constantFrom('none', 'none', 'reset', 'raise', 'disable', 'low power', 'signal'),
  });
  fc.assert(
    fc.property(fc.array(call, { maxLength: 40 }), (calls) => {
      const machine = recordedMachine();
      const fn = machine.express;
      machine.bind(fn);
      const { file } = machine.open(fn);
      const { task } = machine;
      const events = Array.from({ length: 4 }, () => task.openEventfd());
      for (const { index, data, action, start, count, fds, extra } of calls) {
        const numbers = fds.map((fd) => events[fd]?.descriptor ?? fd);
        const bytes = new Uint8Array(Uint32Array.of(36, data | action, index, start, count, ...numbers).buffer);
        attempt(() => task.ioctl(file, uapi.VFIO_DEVICE_SET_IRQS, bytes));
        if (extra === 'reset') task.ioctl(file, uapi.VFIO_DEVICE_RESET);
        if (extra === 'raise') for (let vector = 0; vector < 8; vector++) fn.msix!.fire(vector);
        if (extra === 'raise') fn.intx.assert();
        if (extra === 'disable') file.write(task, Uint8Array.of(3, start & 1 ? 4 : 0), CONFIG + 4);
        if (extra === 'low power') {
          const feature = Uint32Array.of(16, (1 << 17) | 4, events[0]!.descriptor, 0);
          attempt(() => task.ioctl(file, uapi.VFIO_DEVICE_FEATURE, new Uint8Array(feature.buffer)));
        }
        if (extra === 'signal') events[start & 3]!.file.add();
      }
      // A context that is closed twice throws.
      task.exit();
      assert.deepEqual(
        events.map(({ file: event }) => event.contexts),
        [0, 0, 0, 0],
      );
      assert.equal(fn.sink, undefined);
      assert.equal(fn.msi!.enabled || fn.msix!.enabled, false);
    }),
    { numRuns: 60 },
  );
});
