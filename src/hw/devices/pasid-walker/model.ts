/**
 * pasid-walker, 1234:11ec: a device that follows a linked list in a program's heap by the program's own addresses (PASID, ATS, PRI).
 * Described in docs/devices/pasid-walker.md.
 */
import * as reg from '../../../uapi/pci-regs.ts';
import { pciExpress, powerManagement } from '../../pci/capabilities.ts';
import { type DeviceModel, readOptions } from '../../pci/device-model.ts';
import { ats, pasid, pri } from '../../pci/extended-capabilities.ts';
import { Walker } from './walker.ts';

export const pasidWalker: DeviceModel = {
  name: 'pasid-walker',
  description: "Follows a list in a program's heap by PASID, with translation and page requests",
  options: {
    burstNs: { type: 'integer', default: 2_000, description: 'Between two bursts of 64 nodes' },
  },
  create(env, given) {
    const options = readOptions(pasidWalker, given);
    const walker = new Walker(env.clock, options['burstNs'] as number);
    return {
      vendor: 0x1234,
      device: 0x11ec,
      class24: 0x12_0000,
      revision: 1,
      subsystemVendor: 0x1234,
      subsystemDevice: 0x11ec,
      bars: [{ index: 0, kind: 'memory', size: 0x1000, registers: walker }],
      capabilities: [
        powerManagement(),
        pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }),
        ats(),
        pri(),
        pasid({ width: 20 }),
      ],
      attach: (fn) => walker.attach(fn),
      reset: () => walker.reset(),
      removed: () => walker.reset(),
    };
  },
};
