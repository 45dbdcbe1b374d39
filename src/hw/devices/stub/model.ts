/**
 * stub: a function that is only there, with identity, BARs and capabilities as the host file says. Its registers read as zero.
 * Described in docs/devices/stub.md.
 */

import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import { advancedFeatures, pciExpress, powerManagement } from '../../pci/capabilities.ts';
import { type DeviceModel, readOptions } from '../../pci/device-model.ts';
import { acs, aer, ats, pasid, pri, serialNumber } from '../../pci/extended-capabilities.ts';
import type { CapabilitySpec } from '../../pci/function-spec.ts';
import { msi } from '../../pci/msi.ts';
import { msix } from '../../pci/msix.ts';
import { readBars } from './stub-bars.ts';

export const stub: DeviceModel = {
  name: 'stub',
  description: 'A function given by identity, BARs and capabilities only; its registers read as zero',
  options: {
    vendor: { type: 'integer', default: 0x1234, description: 'Vendor ID' },
    device: { type: 'integer', default: 0x0001, description: 'Device ID' },
    class: { type: 'integer', default: 0x00ff00, description: 'Base class, sub-class and interface, 24 bits' },
    revision: { type: 'integer', default: 0, description: 'Revision' },
    subsystemVendor: { type: 'integer', default: 0, description: 'Subsystem vendor ID' },
    subsystemDevice: { type: 'integer', default: 0, description: 'Subsystem ID' },
    interruptPin: { type: 'integer', default: 0, description: '0 none, 1 to 4 for INTA to INTD' },
    bars: {
      type: 'list',
      default: [],
      description:
        'BARs: {index, kind: memory|io, size, is64, prefetchable, mappable}; size may be a text such as "16M"',
    },
    romSize: { type: 'integer', default: 0, description: 'Bytes of an expansion ROM, 0 for none' },
    pcie: { type: 'boolean', default: false, description: 'A PCI Express endpoint, else conventional' },
    flr: {
      type: 'boolean',
      default: false,
      description: 'Function level reset, by PCI Express or else by advanced features',
    },
    pm: {
      type: 'text',
      choices: ['none', 'reset', 'no-reset'],
      default: 'none',
      description: 'Power management; reset: going back to D0 resets the function',
    },
    msi: { type: 'integer', default: 0, description: 'MSI vectors, 0 for no capability' },
    msix: { type: 'integer', default: 0, description: 'MSI-X vectors, 0 for no capability' },
    msixBar: { type: 'integer', default: 0, description: 'BAR that holds the MSI-X table' },
    msixOffset: {
      type: 'integer',
      default: 0,
      description: 'Byte of that BAR at which the table starts; the pending bits follow',
    },
    acs: { type: 'integer', default: 0, description: 'ACS capability bits, 0 for no capability' },
    aer: { type: 'boolean', default: false, description: 'Advanced error reporting' },
    ats: { type: 'boolean', default: false, description: 'Address translation services' },
    pri: { type: 'boolean', default: false, description: 'Page request interface' },
    pasidWidth: { type: 'integer', default: 0, description: 'Bits of a PASID, 0 for no capability' },
    serial: { type: 'u64', default: 0n, description: 'Device serial number, 0 for no capability' },
  },
  create(env, given) {
    const options = readOptions(stub, given);
    const number = (name: string): number => options[name] as number;
    const bars = readBars(env, 'stub', 'bars', options['bars'] as unknown[]);
    const shared = bars.flatMap((bar) => (bar.shared === undefined ? [] : [bar.shared]));
    return {
      vendor: number('vendor'),
      device: number('device'),
      class24: number('class'),
      revision: number('revision'),
      subsystemVendor: number('subsystemVendor'),
      subsystemDevice: number('subsystemDevice'),
      interruptPin: number('interruptPin'),
      bars,
      capabilities: capabilitiesOf(options),
      ...(number('romSize') === 0 ? {} : { rom: new Uint8Array(number('romSize')) }),
      reset: () => {
        for (const memory of shared) memory.bytes().fill(0);
      },
      removed: () => {
        for (const memory of shared) memory.close();
      },
    };
  },
};

function capabilitiesOf(options: Record<string, unknown>): CapabilitySpec[] {
  const number = (name: string): number => options[name] as number;
  const isExpress = options['pcie'] as boolean;
  const flr = options['flr'] as boolean;
  const list: CapabilitySpec[] = [];
  if (options['pm'] !== 'none') list.push(powerManagement({ noSoftReset: options['pm'] === 'no-reset' }));
  if (number('msi') > 0) list.push(msi({ vectors: number('msi') }));
  if (number('msix') > 0) {
    list.push(msix({ vectors: number('msix'), tableBar: number('msixBar'), tableOffset: number('msixOffset') }));
  }
  if (isExpress) list.push(pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr }));
  else if (flr) list.push(advancedFeatures());
  const extended: CapabilitySpec[] = [];
  if (options['aer']) extended.push(aer());
  if (number('acs') > 0) extended.push(acs({ capability: number('acs') }));
  if (options['ats']) extended.push(ats());
  if (options['pri']) extended.push(pri());
  if (number('pasidWidth') > 0) extended.push(pasid({ width: number('pasidWidth') }));
  const serial = options['serial'] as bigint;
  if (serial !== 0n) extended.push(serialNumber(serial));
  if (extended.length > 0 && !isExpress) {
    throw new Errno('EINVAL', "model 'stub': acs, aer, ats, pri, pasidWidth and serial need pcie");
  }
  return [...list, ...extended];
}
