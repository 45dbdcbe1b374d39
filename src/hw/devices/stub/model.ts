/**
 * stub: a function that is only there, with identity, BARs and capabilities as the host file says. Its registers read as zero.
 * Described in docs/devices/stub.md.
 */

import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import type { BarSpec } from '../../pci/bar.ts';
import { advancedFeatures, pciExpress, powerManagement } from '../../pci/capabilities.ts';
import { type DeviceEnvironment, type DeviceModel, parseInteger, readOptions } from '../../pci/device-model.ts';
import { acs, aer, ats, pasid, pri, serialNumber } from '../../pci/extended-capabilities.ts';
import type { CapabilitySpec } from '../../pci/function-spec.ts';
import { msi } from '../../pci/msi.ts';
import { msix } from '../../pci/msix.ts';

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
    const bars = (options['bars'] as unknown[]).map((bar, i) => barOf(env, bar, i));
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

const BAR_FIELDS = ['index', 'kind', 'size', 'is64', 'prefetchable', 'mappable'];

function barOf(env: DeviceEnvironment, given: unknown, position: number): BarSpec {
  const refuse = (what: string): never => {
    throw new Errno('EINVAL', `model 'stub', bars[${position}]: ${what}`);
  };
  if (typeof given !== 'object' || given === null || Array.isArray(given)) return refuse('must be an object');
  const bar = given as Record<string, unknown>;
  for (const name of Object.keys(bar)) {
    if (!BAR_FIELDS.includes(name)) refuse(`there is no '${name}', only ${BAR_FIELDS.join(', ')}`);
  }
  const index = parseInteger(bar['index']) ?? refuse('index must be 0 to 5');
  if (index > 5) refuse('index must be 0 to 5');
  const kind = bar['kind'] ?? 'memory';
  if (kind !== 'memory' && kind !== 'io') return refuse('kind must be memory or io');
  const size = parseInteger(bar['size']) ?? refuse('size must be a number or a text such as "16M"');
  const least = kind === 'io' ? 4 : 16;
  if (size < least || !Number.isInteger(Math.log2(size))) refuse(`size must be a power of two from ${least}`);
  const flag = (name: string): boolean => {
    const value = bar[name] ?? false;
    return typeof value === 'boolean' ? value : refuse(`${name} must be true or false`);
  };
  if (kind === 'io' && (flag('is64') || flag('prefetchable') || flag('mappable'))) refuse('ports are none of these');
  return {
    index,
    kind,
    size,
    is64: flag('is64'),
    prefetchable: flag('prefetchable'),
    ...(flag('mappable') ? { shared: env.allocateShared(`stub-bar${index}`, size) } : {}),
  };
}
