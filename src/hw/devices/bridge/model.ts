/**
 * Bridges: root port, switch ports, PCIe-to-PCI bridge, conventional bridge, and the host bridge at the root. Described in
 * docs/devices/bridge.md.
 */

import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import { pciExpress, powerManagement } from '../../pci/capabilities.ts';
import { type DeviceModel, type ModelOption, parseInteger, readOptions } from '../../pci/device-model.ts';
import { acs, aer } from '../../pci/extended-capabilities.ts';
import type { CapabilitySpec } from '../../pci/function-spec.ts';
import { msi } from '../../pci/msi.ts';

const services: Readonly<Record<string, number>> = {
  SV: reg.PCI_ACS_SV,
  TB: reg.PCI_ACS_TB,
  RR: reg.PCI_ACS_RR,
  CR: reg.PCI_ACS_CR,
  UF: reg.PCI_ACS_UF,
  EC: reg.PCI_ACS_EC,
  DT: reg.PCI_ACS_DT,
};

const acsOptions: Readonly<Record<string, ModelOption>> = {
  acs: {
    type: 'text',
    default: 'SV|TB|RR|CR|UF|DT',
    description:
      'ACS services that exist, of SV TB RR CR UF EC DT joined by |, a number, or none for no ACS capability',
  },
  acsControl: {
    type: 'text',
    default: '',
    description: 'ACS services switched on at boot, in the same form; none: all off; empty: all that isolates',
  },
};

/** Bits of `SV|RR`, `0x1d`, `none`. EINVAL. */
export function acsBits(model: string, option: string, value: unknown): number {
  const text = value as string;
  if (text === 'none' || text === '') return 0;
  const number = parseInteger(text);
  if (number !== undefined && number <= 0x7f) return number;
  let bits = 0;
  for (const name of text.split('|')) {
    const bit = services[name];
    if (bit === undefined) {
      throw new Errno(
        'EINVAL',
        `option '${option}' of '${model}': ${name} is none of ${Object.keys(services).join(', ')}`,
      );
    }
    bits |= bit;
  }
  return bits;
}

function acsCapability(model: string, options: Record<string, unknown>): CapabilitySpec[] {
  const capability = acsBits(model, 'acs', options['acs']);
  if (options['acs'] === 'none') return [];
  const wanted = options['acsControl'];
  return [acs(wanted === '' ? { capability } : { capability, control: acsBits(model, 'acsControl', wanted) })];
}

interface Port {
  readonly name: string;
  readonly description: string;
  readonly vendor: number;
  readonly device: number;
  readonly revision: number;
  readonly type: number;
  readonly hasAcs: boolean;
}

/** A PCI Express port with the capabilities that ports of QEMU have. */
function portModel(port: Port): DeviceModel {
  const options: Record<string, ModelOption> = {
    slot: { type: 'integer', default: 0, description: 'Number of the slot behind a root or downstream port' },
    port: { type: 'integer', default: 0, description: 'Port number in Link Capabilities' },
    ...(port.hasAcs ? acsOptions : {}),
  };
  const isDownstream = port.type === reg.PCI_EXP_TYPE_ROOT_PORT || port.type === reg.PCI_EXP_TYPE_DOWNSTREAM;
  const model: DeviceModel = {
    name: port.name,
    description: port.description,
    options,
    create(_env, given) {
      const values = readOptions(model, given);
      return {
        vendor: port.vendor,
        device: port.device,
        class24: 0x060400,
        revision: port.revision,
        interruptPin: isDownstream ? 1 : 0,
        capabilities: [
          powerManagement({ noSoftReset: true }),
          msi({ vectors: 1, maskable: true }),
          pciExpress({
            type: port.type,
            portNumber: values['port'] as number,
            ...(isDownstream ? { slot: values['slot'] as number } : {}),
          }),
          aer(),
          ...(port.hasAcs ? acsCapability(port.name, values) : []),
        ],
        bridge: {},
      };
    },
  };
  return model;
}

export const rootPort = portModel({
  name: 'root-port',
  description: 'PCI Express root port',
  vendor: 0x1b36,
  device: 0x000c,
  revision: 0,
  type: reg.PCI_EXP_TYPE_ROOT_PORT,
  hasAcs: true,
});

export const switchUpstream = portModel({
  name: 'switch-upstream',
  description: 'Upstream port of a PCI Express switch',
  vendor: 0x104c,
  device: 0x8232,
  revision: 2,
  type: reg.PCI_EXP_TYPE_UPSTREAM,
  hasAcs: false,
});

export const switchDownstream = portModel({
  name: 'switch-downstream',
  description: 'Downstream port of a PCI Express switch',
  vendor: 0x104c,
  device: 0x8233,
  revision: 1,
  type: reg.PCI_EXP_TYPE_DOWNSTREAM,
  hasAcs: true,
});

export const pciePciBridge = portModel({
  name: 'pcie-pci-bridge',
  description: 'Bridge from PCI Express to conventional PCI',
  vendor: 0x1b36,
  device: 0x000e,
  revision: 0,
  type: reg.PCI_EXP_TYPE_PCI_BRIDGE,
  hasAcs: false,
});

export const pciBridge: DeviceModel = {
  name: 'pci-bridge',
  description: 'Conventional PCI-to-PCI bridge',
  options: {
    vendor: { type: 'integer', default: 0x1b36, description: 'Vendor ID' },
    device: { type: 'integer', default: 0x0001, description: 'Device ID' },
  },
  create(_env, given) {
    const values = readOptions(pciBridge, given);
    return {
      vendor: values['vendor'] as number,
      device: values['device'] as number,
      class24: 0x060400,
      bridge: {},
    };
  },
};

export const hostBridge: DeviceModel = {
  name: 'host-bridge',
  description: 'Host bridge at the root of a segment: identity only',
  options: {
    vendor: { type: 'integer', default: 0x8086, description: 'Vendor ID' },
    device: { type: 'integer', default: 0x29c0, description: 'Device ID' },
  },
  create(_env, given) {
    const values = readOptions(hostBridge, given);
    return {
      vendor: values['vendor'] as number,
      device: values['device'] as number,
      class24: 0x060000,
      subsystemVendor: 0x1af4,
      subsystemDevice: 0x1100,
    };
  },
};

/** All of this folder, for the catalog. */
export const bridges: readonly DeviceModel[] = [
  hostBridge,
  rootPort,
  switchUpstream,
  switchDownstream,
  pciePciBridge,
  pciBridge,
];
