/**
 * From a host file's list to functions in their slots: models are found and make their functions, bridges come before what is behind them.
 */
import type { DeviceModel } from '../hw/pci/device-model.ts';
import type { PciFunction, Place } from '../hw/pci/function.ts';
import type { Quirks } from '../hw/pci/function-spec.ts';
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
    `at ${where}.at: nothing leads to bus ${address.bus.toString(16).padStart(2, '0')} of '${config.at}'; a bridge before it in the list must have "secondary": ${address.bus}, or "roots" must name it`,
  );
}

function placeOf(config: FunctionConfig, bus: Bus, devfn: number, quirks: Quirks | undefined): Place {
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
    ...(config.subordinate !== undefined && { subordinate: config.subordinate }),
    ...(config.multifunction !== undefined && { multifunction: config.multifunction }),
    ...(config.wellBehaved !== undefined && { wellBehaved: config.wellBehaved }),
    ...(quirks !== undefined && { quirks }),
  };
}

function quirksOf(config: FunctionConfig, tree: PciTree, where: string): Quirks | undefined {
  const { quirks } = config;
  if (quirks === undefined) return undefined;
  const { acsOverride, bridgeTranslationRoot, bridgeNoAlias, pcieBridgeAlias, realDmaDevice } = quirks;
  const real = realDmaDevice === undefined ? undefined : tree.find(fullAddress(realDmaDevice));
  if (realDmaDevice !== undefined && real === undefined) {
    throw new HostFileError(`at ${where}.quirks.realDmaDevice: no function before it is at '${realDmaDevice}'`);
  }
  return {
    ...(acsOverride !== undefined && { acsOverride }),
    ...(bridgeTranslationRoot !== undefined && { bridgeTranslationRoot }),
    ...(bridgeNoAlias !== undefined && { bridgeNoAlias }),
    ...(pcieBridgeAlias !== undefined && { pcieBridgeAlias }),
    ...(real !== undefined && { realDmaDevice: real }),
  };
}

/** Virtual functions that are there from the start. Each counts as an entry of its own behind the others. */
function enableVirtual(placed: Map<PciFunction, FunctionConfig>): void {
  for (const [fn, { numVfs, model }] of [...placed]) {
    if (numVfs === undefined) continue;
    if (fn.sriov === undefined) throw new HostFileError(`numVfs of ${fn.name}: it has no SR-IOV capability`);
    try {
      fn.sriov.enable(numVfs);
    } catch (error) {
      throw new HostFileError(`numVfs of ${fn.name}: ${reasonOf(error)}`);
    }
    for (const virtual of fn.sriov.functions) placed.set(virtual, { at: virtual.name, model });
  }
}

/** Places every function of `host`; in the order of the file. HostFileError names the entry that cannot be. */
export function placeFunctions(host: HostConfig, tree: PciTree, platform: Platform): Map<PciFunction, FunctionConfig> {
  const placed = new Map<PciFunction, FunctionConfig>();
  for (const root of host.roots ?? []) {
    const [segment, bus] = root.split(':').map((part) => Number.parseInt(part, 16)) as [number, number];
    if (tree.findBus(segment, bus) === undefined) tree.addRoot(segment, bus);
  }
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
  enableVirtual(placed);
  return placed;
}

/** Places one function on a bus. HostFileError. */
export function placeFunction(config: FunctionConfig, where: string, bus: Bus, platform: Platform): PciFunction {
  const model = modelOf(config, platform.models, where);
  const quirks = quirksOf(config, bus.tree, where);
  try {
    const spec = model.create(platform, config.options ?? {});
    return bus.tree.add(spec, placeOf(config, bus, parseAddress(config.at).devfn, quirks));
  } catch (error) {
    throw new HostFileError(`at ${where} (${config.at}, ${config.model}): ${reasonOf(error)}`);
  }
}

function reasonOf(error: unknown): string {
  const text = error instanceof Error ? ('why' in error ? String(error.why) : error.message) : String(error);
  return text.split('\n')[0]!;
}
