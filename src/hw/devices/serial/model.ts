/**
 * serial, 1b36:0002: a PCI card with one 16550A, like QEMU's pci-serial, whose line ends in a file, a socket or the terminal.
 * Described in docs/devices/serial.md.
 */
import type { DeviceModel } from '../../pci/device-model.ts';
import { device, ioBar } from '../../pci/kit/device.ts';
import { Uart } from './uart.ts';

export const serial: DeviceModel = device({
  name: 'serial',
  description: 'PCI serial port (16550A) whose line ends in a file, a socket or the terminal',
  vendor: 0x1b36,
  device: 0x0002,
  class24: 0x070002,
  revision: 1,
  subsystemVendor: 0x1af4,
  subsystemDevice: 0x1100,
  interruptPin: 1,
  options: {
    line: {
      type: 'text',
      default: 'none',
      description:
        'Where the line ends: none, stdio, file:PATH (output only), socket:PATH (a UNIX socket to connect to)',
    },
    byteNs: { type: 'integer', default: 10_000, description: 'From a byte in the transmitter to its end on the line' },
  },
  build(card) {
    const line = card.options['line'] as string;
    const backend = line === 'none' ? undefined : card.openCharacter(line);
    const uart = new Uart(card, backend, card.options['byteNs'] as number);
    return {
      bars: [ioBar({ index: 0, size: 8, registers: uart.registers })],
      reset: () => uart.reset(),
      removed: () => backend?.close(),
      save: () => uart.save(),
      restore: (state) => uart.restore(state as ReturnType<Uart['save']>),
    };
  },
});
