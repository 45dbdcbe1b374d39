/**
 * edu, 1234:11e8: QEMU's device for teaching, register for register. Described in docs/devices/edu.md.
 */
import { advancedFeatures } from '../../pci/capabilities.ts';
import { DeviceClock } from '../../pci/device-clock.ts';
import { type DeviceModel, readOptions } from '../../pci/device-model.ts';
import { migrationOf, migrationOption } from '../../pci/migration-option.ts';
import { msi } from '../../pci/msi.ts';
import { Edu, type EduState } from './edu.ts';

export const edu: DeviceModel = {
  name: 'edu',
  description: "QEMU's device for teaching: factorials, interrupts, DMA through a 28-bit window",
  options: {
    dma_mask: {
      type: 'u64',
      default: 0x0fff_ffffn,
      description: 'Address bits that DMA drives (as the property of QEMU)',
    },
    dmaLatencyNs: { type: 'integer', default: 100_000, description: 'From start to end of a transfer (QEMU: 100 ms)' },
    factorialLatencyNs: { type: 'integer', default: 1_000, description: 'From request to result of a factorial' },
    flr: {
      type: 'boolean',
      default: false,
      description: 'Function level reset, by advanced features (conventional PCI), at 0x50; QEMU has none',
    },
    bars: {
      type: 'text',
      choices: ['registers', 'trapped'],
      default: 'registers',
      description: 'registers: BAR 0 is not offered for mmap; trapped: it is, and every access is forwarded',
    },
    migration: migrationOption,
  },
  create(env, given) {
    const options = readOptions(edu, given);
    const clock = new DeviceClock(env.clock);
    const engine = new Edu(
      clock,
      {
        dmaMask: options['dma_mask'] as bigint,
        dmaLatencyNs: options['dmaLatencyNs'] as number,
        factorialLatencyNs: options['factorialLatencyNs'] as number,
      },
      env.log,
    );
    return {
      vendor: 0x1234,
      device: 0x11e8,
      class24: 0x00ff00,
      revision: 0x10,
      subsystemVendor: 0x1af4,
      subsystemDevice: 0x1100,
      interruptPin: 1,
      bars: [{ index: 0, kind: 'memory', size: 0x10_0000, trapped: options['bars'] === 'trapped', registers: engine }],
      capabilities: [
        msi({ vectors: 1, at: 0x40 }),
        ...(options['flr'] === true ? [advancedFeatures({ at: 0x50 })] : []),
      ],
      attach: (fn) => engine.attach(fn),
      reset: () => engine.reset(),
      removed: () => engine.stop(),
      ...migrationOf(options['migration']),
      stop: () => clock.stop(),
      run: () => clock.run(),
      save: () => ({ registers: {}, timers: clock.save(), device: engine.save() }),
      restore: ({ device, timers }) => {
        engine.restore(device as EduState);
        clock.restore(timers);
      },
    };
  },
};
