/**
 * From a host file's list to functions in their slots: models are found and make their functions, bridges come before what is behind them.
 */
import type { DeviceModel } from '../hw/pci/device-model.ts';
import type { PciFunction, Place } from '../hw/pci/function.ts';
import type { Bus, PciTree } from '../hw/pci/tree.ts';
import { models } from './catalog.ts';
import { type FunctionConfig, fullAddress, type HostConfig, HostFileError, isModelFile } from './host-file.ts';
import { loadModel } from './load-model.ts';
import type { Platform } from './platform.ts';

interface Address {
  segment: number;
  bus: number;
  devfn: number;
}

export function parseAddress(at: string): Address {
  const [segment, bus, rest] = fullAddress(at).split(':') as [string, string, string];
  const [slot, fn] = rest.split('.') as [string, string];
  return {
    segment: Number.parseInt(segment, 16),
    bus: Number.parseInt(bus, 16),
    devfn: (Number.parseInt(slot, 16) << 3) | Number.parseInt(fn, 16),
  };
}

function modelOf(config: FunctionConfig, more: Platform['models'], where: string): DeviceModel {
  const model =
    more?.get(config.model) ?? (isModelFile(config.model) ? loadModel(config.model) : models.get(config.model));
  if (model !== undefined) return model;
  throw new HostFileError(
    `at ${where}.model: there is no device model '${config.model}'; there are ${[...models.keys()].join(', ')}`,
  );
}

function findBus(tree: PciTree, address: Address, config: FunctionConfig, where: string): Bus {
  const bus = tree.findBus(address.segment, address.bus);
  if (bus !== undefined) return bus;
  if (address.bus === 0) return tree.addRoot(address.segment, 0);
  throw new HostFileError(
    `at ${where}.at: nothing leads to bus ${address.bus.toString(16).padStart(2, '0')} of '${config.at}'; a bridge before it in the list must have "secondary": ${address.bus}`,
  );
}

function placeOf(config: FunctionConfig, bus: Bus, devfn: number): Place {
  return {
    bus,
    devfn,
    ...(config.untrusted !== undefined && { untrusted: config.untrusted }),
    ...(config.dmaAliases !== undefined && {
      dmaAliases: config.dmaAliases.map((at) => parseAddress(`00:${at}`).devfn),
    }),
    ...(config.bars !== undefined && {
      barAddresses: Object.fromEntries(Object.entries(config.bars).map(([index, value]) => [index, Number(value)])),
    }),
    ...(config.interruptLine !== undefined && { interruptLine: config.interruptLine }),
    ...(config.secondary !== undefined && { secondary: config.secondary }),
  };
}

/** Places every function of `host`; in the order of the file. HostFileError names the entry that cannot be. */
export function placeFunctions(host: HostConfig, tree: PciTree, platform: Platform): Map<PciFunction, FunctionConfig> {
  const placed = new Map<PciFunction, FunctionConfig>();
  host.functions.forEach((config, i) => {
    const where = `functions[${i}]`;
    const bus = findBus(tree, parseAddress(config.at), config, where);
    placed.set(placeFunction(config, where, bus, platform), config);
  });
  try {
    tree.enumerate();
  } catch (error) {
    throw new HostFileError(`the machine cannot be laid out: ${reasonOf(error)}`);
  }
  return placed;
}

/** Places one function on a bus. HostFileError. */
export function placeFunction(config: FunctionConfig, where: string, bus: Bus, platform: Platform): PciFunction {
  const model = modelOf(config, platform.models, where);
  try {
    const spec = model.create(platform, config.options ?? {});
    return bus.tree.add(spec, placeOf(config, bus, parseAddress(config.at).devfn));
  } catch (error) {
    throw new HostFileError(`at ${where} (${config.at}, ${config.model}): ${reasonOf(error)}`);
  }
}

function reasonOf(error: unknown): string {
  const text = error instanceof Error ? ('why' in error ? String(error.why) : error.message) : String(error);
  return text.split('\n')[0]!;
}
