/**
 * ioat, 8086:0b00: an Intel I/OAT DMA engine, version 3.4, for the stock ioatdma driver of Linux: copies by chains of descriptors.
 * Described in docs/devices/ioat.md.
 */
import { Errno } from '../../../lib/errno.ts';
import { PCI_EXP_TYPE_ENDPOINT } from '../../../uapi/pci-regs.ts';
import { pciExpress, powerManagement } from '../../pci/capabilities.ts';
import type { DeviceModel } from '../../pci/device-model.ts';
import type { CapabilitySpec } from '../../pci/function-spec.ts';
import { device, memoryBar } from '../../pci/kit/device.ts';
import { register } from '../../pci/kit/register.ts';
import { msi } from '../../pci/msi.ts';
import { msix } from '../../pci/msix.ts';
import { Channel } from './channel.ts';
import * as r from './registers.ts';

const BAR_SIZE = 0x4000;
const MSIX_TABLE = 0x2000;
const MSIX_PBA = 0x3000;

export const ioat: DeviceModel = device({
  name: 'ioat',
  description: 'Intel I/OAT DMA engine 3.4: copies by chains of descriptors, for the ioatdma driver of Linux',
  vendor: 0x8086,
  device: 0x0b00,
  class24: 0x088000,
  subsystemVendor: 0x8086,
  interruptPin: 1,
  options: {
    channels: { type: 'integer', default: 1, description: 'DMA channels, 1 to 4' },
    latencyNs: { type: 'integer', default: 1_000, description: 'From the count of descriptors to their execution' },
    transferLimit: {
      type: 'integer',
      default: 20,
      description: 'Log2 of the longest transfer of one descriptor, 12 to 20',
    },
    interrupts: {
      type: 'text',
      choices: ['msix', 'msi', 'intx'],
      default: 'msix',
      description: 'The best kind of interrupt that the engine has; the simpler ones it has as well',
    },
  },
  build(card) {
    const channelCount = card.options['channels'] as number;
    const transferLimit = card.options['transferLimit'] as number;
    const latencyNs = card.options['latencyNs'] as number;
    if (channelCount < 1 || channelCount > 4) {
      throw new Errno('EINVAL', `ioat cannot have ${channelCount} channels, but 1 to 4`);
    }
    if (transferLimit < 12 || transferLimit > 20) {
      throw new Errno('EINVAL', `ioat cannot have a transferLimit of ${transferLimit}, but 12 to 20`);
    }

    const isWaiting = (): boolean => attention.value !== 0;
    /** Of INTx and a single MSI: the level that ATTNSTATUS and the master switch make. */
    const update = (): void => card.interrupts.set(isWaiting() && control.has(r.INTRCTRL_MASTER_INT_EN));
    const usesVectors = (): boolean => (card.fn?.msix?.enabled ?? false) && control.has(r.INTRCTRL_MSIX_VECTOR_CONTROL);
    const interrupt = (channel: number): void => {
      if (usesVectors()) {
        if (control.has(r.INTRCTRL_MASTER_INT_EN)) card.interrupts.raise(channel);
        return;
      }
      attention.set(1 << channel);
      update();
    };
    const control = register({
      at: 0x03,
      width: 1,
      name: 'INTRCTRL',
      readOnly: r.INTRCTRL_INT_STATUS | r.INTRCTRL_INT,
      read: (self) => {
        const waits = isWaiting() ? r.INTRCTRL_INT_STATUS : 0;
        return self.value | waits | (waits !== 0 && self.has(r.INTRCTRL_MASTER_INT_EN) ? r.INTRCTRL_INT : 0);
      },
      write: update,
    });
    const attention = register({
      at: 0x04,
      name: 'ATTNSTATUS',
      readOnly: true,
      read: (self) => {
        const value = self.value;
        self.value = 0;
        update();
        return value;
      },
    });
    const channels = Array.from({ length: channelCount }, (_, i) => {
      const base = r.CHANNEL_STRIDE * (i + 1);
      return new Channel(card, { base, transferLimit, latencyNs, interrupt: () => interrupt(i) });
    });
    // The driver's latency hints for a channel lie among the registers of the next one; they have no effect.
    const hints = channels.flatMap((_, i) => {
      const next = r.CHANNEL_STRIDE * (i + 2);
      return [
        register({ at: next + 0x3c, width: 1, name: `LTR_SWSEL${i}` }),
        register({ at: next + 0x40, name: `LTR_ACTIVE${i}` }),
        register({ at: next + 0x44, name: `LTR_IDLE${i}` }),
      ];
    });
    const fixed = (at: number, width: 1 | 2 | 4, name: string, reset: number) =>
      register({ at, width, name, reset, readOnly: true });
    const registers = [
      fixed(0x00, 1, 'CHANCNT', channelCount),
      fixed(0x01, 1, 'XFERCAP', transferLimit),
      register({ at: 0x02, width: 1, name: 'GENCTRL' }),
      control,
      attention,
      fixed(0x08, 1, 'VER', r.VERSION),
      fixed(0x0a, 2, 'PERPORTOFFSET', 0),
      register({
        at: 0x0c,
        width: 2,
        name: 'INTRDELAY',
        reset: r.INTRDELAY_COALESCE_SUPPORT,
        readOnly: r.INTRDELAY_COALESCE_SUPPORT,
      }),
      fixed(0x0e, 2, 'DEVICE_STATUS', 0),
      fixed(0x10, 4, 'DMA_CAP', 0),
      register({ at: 0x4c, width: 1, name: 'CHWPREFLMT' }),
      ...channels.flatMap((channel) => channel.registers),
      ...hints,
    ];
    return {
      bars: [memoryBar({ index: 0, size: BAR_SIZE, is64: true, registers })],
      capabilities: capabilities(card.options['interrupts'] as string, channelCount),
      reset: () => {
        for (const channel of channels) channel.reset();
      },
      save: () => channels.map((channel) => channel.save()),
      restore: (state) => {
        const saved = state as ReturnType<Channel['save']>[];
        channels.forEach((channel, i) => {
          channel.restore(saved[i]!);
        });
        if (!usesVectors()) update();
      },
    };
  },
});

function capabilities(best: string, channelCount: number): CapabilitySpec[] {
  return [
    powerManagement(),
    ...(best === 'intx' ? [] : [msi({ vectors: 1 })]),
    ...(best === 'msix'
      ? [msix({ vectors: channelCount, tableBar: 0, tableOffset: MSIX_TABLE, pbaOffset: MSIX_PBA })]
      : []),
    pciExpress({ type: PCI_EXP_TYPE_ENDPOINT, flr: true }),
  ];
}
