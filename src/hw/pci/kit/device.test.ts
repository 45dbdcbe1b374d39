import assert from 'node:assert/strict';
import { test } from 'node:test';
import { vendorSpecific } from '../capabilities.ts';
import type { DeviceModel } from '../device-model.ts';
import { msi } from '../msi.ts';
import { msix } from '../msix.ts';
import { isFault } from './card.ts';
import { type CardParts, type DeviceDescription, device, ioBar, mappedBar, memoryBar } from './device.ts';
import { register } from './register.ts';
import { TestHost } from './test-host.ts';

const identity = { name: 'adder', vendor: 0x1234, device: 0xadde, class24: 0xff0000, interruptPin: 1 };

/** Adds the two numbers at an address, a moment later, and interrupts. */
function adder(more: Partial<DeviceDescription> = {}): DeviceModel {
  return device({
    ...identity,
    capabilities: [msi({ vectors: 1 })],
    options: { delayNs: { type: 'integer', default: 100, description: 'From start to end' } },
    ...more,
    build(card) {
      let sums = 0;
      const address = register({ at: 0, width: 8, name: 'ADDRESS' });
      const status = register({ at: 8, name: 'STATUS', readOnly: 2, writeOneToClear: 1 });
      const start = register({
        at: 12,
        name: 'START',
        writeOnly: true,
        write: () => {
          card.clock.after(card.options['delayNs'] as number, () => {
            const view = card.dma.view(address.wide, 12);
            if (isFault(view)) {
              card.log(`no numbers at 0x${view.address.toString(16)}: ${view.reason}`);
              status.set(2);
            } else {
              sums++;
              view.data.setUint32(8, view.u32(0) + view.u32(4), true);
              if (view.store(8) !== undefined) status.set(2);
            }
            status.set(1);
            card.interrupts.raise();
          });
        },
      });
      return {
        bars: [
          memoryBar({ index: 0, size: 0x1000, registers: [address, status, start] }),
          ioBar({ index: 1, size: 16, registers: [register({ at: 0, read: () => sums })] }),
          mappedBar({ index: 2, memory: card.share('adder-notes', 0x1000) }),
        ],
        reset: () => {
          sums = 0;
        },
        save: () => ({ sums }),
        restore: (state) => {
          sums = (state as { sums: number }).sums;
        },
      };
    },
  });
}

test('a device of a few lines: registers, DMA, time, interrupts, driven by a script', () => {
  const host = new TestHost(adder());
  const { address, bytes } = host.allocate(12);
  bytes.set([40, 0, 0, 0, 2]);
  host.enableMessages();
  host.drive([
    { write: [0, 0, address], size: 8 },
    { write: [0, 12, 1] },
    { read: [0, 8], expect: 0 },
    { interrupts: [] },
    { read: [0, 8], expect: 1, within: 1000 },
    { interrupts: ['message 0'] },
    { write: [0, 8, 1] },
    { read: [0, 8], expect: 0 },
    { read: [1, 0], expect: 1 },
  ]);
  assert.equal(bytes[8], 42);
  assert.throws(
    () => host.drive([{ wait: 1 }, { read: [0, 8], expect: 5 }]),
    /step 1 of the script: BAR 0 at 0x8: expected 0x5, not 0x0/,
  );
  assert.throws(() => host.drive([{ interrupts: ['intx 1'] }]), /step 0.*expected interrupts \[intx 1\]/);
});

test('DMA faults are values: nothing mapped, no right to write, bus master off', () => {
  const host = new TestHost(adder());
  const { address, bytes } = host.allocate(12);
  const start = [{ write: [0, 0, address], size: 8 }, { write: [0, 12, 1] }, { wait: 100 }] as const;
  host.protect(address);
  host.drive([...start, { read: [0, 8], expect: 3 }, { interrupts: ['intx 1'] }]);
  assert.equal(bytes[8], 0);
  host.unmap(address);
  host.drive(start);
  assert.deepEqual(host.log, ['0000:00:01.0: no numbers at 0x100000: not present']);
  host.fn.config.write(4, 2, 3);
  host.drive(start);
  assert.match(host.log[1]!, /bus master is off/);
});

test('a reset takes registers, timers and inner state back; memory of BARs stays', () => {
  const host = new TestHost(adder());
  host.write(2, 8, 0x1234);
  host.drive([{ write: [0, 0, 7], size: 8 }, { write: [0, 12, 1] }]);
  host.reset();
  assert.equal(host.clock.next, undefined);
  host.drive([
    { read: [0, 0], size: 8, expect: 0 },
    { read: [1, 0], expect: 0 },
    { read: [2, 8], expect: 0x1234 },
  ]);
  host.write(0, 12, 1);
  host.fn.remove();
  assert.equal(host.clock.next, undefined);
});

test('state goes from one host to another', () => {
  const one = new TestHost(adder());
  one.drive([{ write: [0, 0, one.base], size: 8 }, { write: [0, 12, 1] }, { wait: 100 }]);
  const state = JSON.parse(JSON.stringify(one.save()));
  const two = new TestHost(adder());
  two.restore(state);
  two.drive([
    { read: [0, 0], size: 8, expect: one.base },
    { read: [0, 8], expect: 1 },
    { read: [1, 0], expect: 1 },
  ]);
  assert.throws(() => two.restore({ registers: {}, device: undefined }), /no registers of BAR 0/);
});

test('a view of more bytes than sense is a fault, not an allocation', () => {
  let seen = '';
  const model = device({
    ...identity,
    build: (card) => ({
      attached: () => {
        for (const length of [2 ** 40, -1, Number.NaN]) {
          const view = card.dma.view(0, length);
          seen += isFault(view) ? `${view.reason};` : 'a view;';
        }
      },
    }),
  });
  new TestHost(model);
  assert.equal(seen, '1099511627776 bytes are too many;-1 bytes are too many;NaN bytes are too many;');
});

test('a level with messages: one at each rise', () => {
  const model = device({
    ...identity,
    capabilities: [msi({ vectors: 1 })],
    build: (card) => ({
      bars: [
        memoryBar({
          index: 0,
          size: 16,
          registers: [register({ at: 0, write: (_self, written) => card.interrupts.set(written !== 0) })],
        }),
      ],
    }),
  });
  const host = new TestHost(model);
  host.drive([1, 1, 0, 1].map((value) => ({ write: [0, 0, value] as const })));
  assert.deepEqual(host.interrupts(), ['intx 1', 'intx 0', 'intx 1']);
  host.reset();
  host.interrupts();
  host.enableMessages();
  host.drive([1, 1, 0, 1].map((value) => ({ write: [0, 0, value] as const })));
  assert.deepEqual(host.interrupts(), ['message 0', 'message 0']);
});

test('what cannot be is refused in one plain line', () => {
  const built = (parts: () => CardParts) => () => new TestHost(device({ ...identity, build: parts }));
  const bar = (size: number, index = 0) => memoryBar({ index, size });
  const cases: [() => unknown, RegExp][] = [
    [built(() => ({ bars: [bar(0x1001)] })), /BAR 0 of 0x1001 bytes is not a power of two/],
    [built(() => ({ bars: [bar(8)] })), /BAR 0 of 0x8 bytes is not a power of two from 16/],
    [built(() => ({ bars: [bar(Number.NaN)] })), /power of two/],
    [built(() => ({ bars: [bar(2 ** 32)] })), /BAR 0 of 0x100000000 bytes needs 64 bits/],
    [
      built(() => ({
        bars: [bar(64)],
        capabilities: [msix({ vectors: 2, tableBar: 0, tableOffset: 0, pbaOffset: 24 })],
      })),
      /pending bits at 0x18, inside its table/,
    ],
    [
      built(() => ({ bars: [bar(64)], capabilities: [msix({ vectors: 1, tableBar: 0, tableOffset: 4 })] })),
      /multiple of 8/,
    ],
    [built(() => ({ bars: [bar(16), bar(16)] })), /BAR 0 does not fit/],
    [built(() => ({ bars: [memoryBar({ index: 5, size: 16, is64: true })] })), /BAR 5 does not fit/],
    [built(() => ({ bars: [ioBar({ index: 0, size: 0x20000 })] })), /larger than I\/O space/],
    [
      built(() => ({ bars: [memoryBar({ index: 0, size: 16, registers: [register({ at: 14 })] })] })),
      /0xe does not fit into BAR 0/,
    ],
    [
      built(() => ({ capabilities: [msi({ vectors: 1, at: 0x40 }), vendorSpecific(new Uint8Array(4), { at: 0x44 })] })),
      /capability of 7 bytes cannot be at 0x44: it overlaps capability 0x5 at 0x40/,
    ],
    [built(() => ({ capabilities: [vendorSpecific(new Uint8Array(4), { at: 0x10 })] })), /cannot be at 0x10/],
    [built(() => ({ capabilities: [msix({ vectors: 4, tableBar: 3, tableOffset: 0 })] })), /MSI-X names a BAR/],
    [
      built(() => ({ bars: [bar(16)], capabilities: [msix({ vectors: 4, tableBar: 0, tableOffset: 0 })] })),
      /BAR 0 is too small/,
    ],
    [
      () => device({ ...identity, vendor: 0x12345, build: () => ({}) }),
      /vendor of device 'adder' must be a number of 16 bits/,
    ],
    [() => new TestHost(adder(), { options: { delay: 1 } }), /no option 'delay'; it has delayNs/],
  ];
  for (const [make, why] of cases) {
    assert.throws(make, (error: Error) => why.test(error.message) && !error.message.includes('\n'), String(why));
  }
});
