/**
 * gpio-pci-idio-16, 494f:0dc8: the ACCES PCI-IDIO-16 digital I/O card as Linux's driver of that name sees it. 16 outputs, 16 inputs
 * that interrupt when one of them changes. Described in docs/devices/gpio-pci-idio-16.md.
 */
import { type DeviceModel, parseInteger } from '../../pci/device-model.ts';
import { device, ioBar } from '../../pci/kit/device.ts';
import { register } from '../../pci/kit/register.ts';

/** Bit of the interrupt status that tells a change of an input. */
const CHANGED = 0x04;

export const gpioPciIdio16: DeviceModel = device({
  name: 'gpio-pci-idio-16',
  description: 'ACCES PCI-IDIO-16: 16 outputs and 16 inputs that interrupt, wired to each other unless said otherwise',
  vendor: 0x494f,
  device: 0x0dc8,
  class24: 0x110000,
  subsystemVendor: 0x494f,
  subsystemDevice: 0x0dc8,
  interruptPin: 1,
  options: {
    inputs: {
      type: 'text',
      choices: ['loopback', 'fixed', 'counter'],
      default: 'loopback',
      description:
        'loopback: input n is wired to output n; fixed: they stay at `level`; counter: they count up from it',
    },
    level: { type: 'integer', default: 0, description: 'Of fixed and counting inputs: where they stand at the start' },
    periodNs: { type: 'integer', default: 1_000_000_000, description: 'Of counting inputs: time between two counts' },
  },
  build(card) {
    const kind = card.options['inputs'] as string;
    const start = (parseInteger(card.options['level']) ?? 0) & 0xffff;
    let inputs = start;
    let enabled = false;

    const change = (levels: number): void => {
      if (levels === inputs) return;
      inputs = levels;
      if (!enabled) return;
      status.set(CHANGED);
      card.interrupts.set(true);
    };
    const acknowledge = (): void => {
      status.clear(CHANGED);
      card.interrupts.set(false);
    };
    const loop = (): void => {
      if (kind === 'loopback') change(outLow.value | (outHigh.value << 8));
    };
    const count = (): void => {
      if (kind !== 'counter') return;
      card.clock.after(card.options['periodNs'] as number, () => {
        change((inputs + 1) & 0xffff);
        count();
      });
    };

    const outLow = register({ at: 0, width: 1, name: 'OUT0-7', write: loop });
    const outHigh = register({ at: 4, width: 1, name: 'OUT8-15', write: loop });
    const inLow = register({ at: 1, width: 1, name: 'IN0-7', read: () => inputs & 0xff, write: acknowledge });
    const inHigh = register({ at: 5, width: 1, name: 'IN8-15', read: () => inputs >> 8, readOnly: true });
    const interrupt = register({
      at: 2,
      width: 1,
      name: 'IRQ',
      // Reading switches interrupts on, writing whatever value off.
      read: () => {
        enabled = true;
        return 0;
      },
      write: () => {
        enabled = false;
        acknowledge();
      },
    });
    const filters = register({ at: 3, width: 1, name: 'FILTER', writeOnly: true });
    const status = register({ at: 6, width: 1, name: 'STATUS', readOnly: true });
    const registers = [outLow, inLow, interrupt, filters, outHigh, inHigh, status];
    return {
      bars: [ioBar({ index: 2, size: 0x100, registers })],
      attached: count,
      reset: () => {
        inputs = start;
        enabled = false;
        count();
      },
      save: () => ({ inputs, enabled }),
      restore: (state) => {
        ({ inputs, enabled } = state as { inputs: number; enabled: boolean });
        card.interrupts.set(status.has(CHANGED));
      },
    };
  },
});
