/**
 * A device of one's own: it reverses the bytes of a buffer in memory. Serve it to a VMM:
 *
 *   bin/vfiobox serve --model examples/my-device/my-device.ts --socket-path /tmp/my-device.sock
 *
 * docs/writing-a-device.md explains it line by line.
 */
import { device, isFault, memoryBar, msi, register } from 'vfiobox/device';

const BUSY = 1;
const DONE = 2;
const FAULT = 4;

export default device({
  name: 'my-device',
  description: 'Reverses the bytes of a buffer',
  vendor: 0x1234,
  device: 0xcafe,
  class24: 0xff0000,
  interruptPin: 1,
  capabilities: [msi({ vectors: 1 })],
  options: {
    latencyNs: { type: 'integer', default: 1000, description: 'From start to end of a reversal' },
  },
  build(card) {
    const latency = card.options['latencyNs'] as number;

    const id = register({ at: 0x00, name: 'ID', reset: 0x0001_cafe, readOnly: true });
    const status = register({
      at: 0x04,
      name: 'STATUS',
      readOnly: BUSY,
      writeOneToClear: DONE | FAULT,
      write: (self) => {
        if (!self.has(DONE)) card.interrupts.lower();
      },
    });
    const address = register({ at: 0x08, width: 8, name: 'ADDRESS' });
    const length = register({ at: 0x10, name: 'LENGTH' });
    const start = register({
      at: 0x14,
      name: 'START',
      writeOnly: true,
      write: () => {
        if (status.has(BUSY)) return;
        status.set(BUSY);
        card.clock.after(latency, finish);
      },
    });

    /** Fetches the buffer, reverses it, puts it back; a fault is a value and becomes a bit. */
    function finish(): void {
      const buffer = card.dma.view(address.wide, Math.min(length.value, 65536));
      if (isFault(buffer)) {
        card.log(`cannot read 0x${buffer.address.toString(16)}: ${buffer.reason}`);
        status.set(FAULT);
      } else {
        buffer.bytes.reverse();
        if (buffer.store() !== undefined) status.set(FAULT);
      }
      status.clear(BUSY);
      status.set(DONE);
      card.interrupts.raise();
    }

    return {
      bars: [memoryBar({ index: 0, size: 0x1000, registers: [id, status, address, length, start] })],
    };
  },
});
