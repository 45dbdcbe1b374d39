/** The IOMMU's units of a host file. */
import { type UnitPresetName, unitPresets } from '../hw/iommu/registers.ts';
import { TablePool } from '../hw/iommu/table-pool.ts';
import { IommuUnit } from '../hw/iommu/unit.ts';
import type { PhysicalMemory } from '../hw/memory/physical-memory.ts';
import type { PciFunction } from '../hw/pci/function.ts';
import { type HostConfig, HostFileError } from './host-file.ts';

/** All units, and who serves which function. HostFileError: a preset is unknown. */
export function makeUnits(
  config: HostConfig,
  memory: PhysicalMemory,
): { all: IommuUnit[]; of(fn: PciFunction): IommuUnit | undefined } {
  const tables = new TablePool();
  const scopes = new Map<string, IommuUnit>();
  let rest: IommuUnit | undefined;
  const all = config.iommu.units.map(({ name, preset, functions, staleness = 'always' }, i) => {
    if (!(preset in unitPresets)) {
      const known = Object.keys(unitPresets).join(', ');
      throw new HostFileError(`at iommu.units[${i}].preset: there is no '${preset}'; there are ${known}`);
    }
    const unit = new IommuUnit(name, { preset: preset as UnitPresetName, tables, memory, staleness });
    if (functions === undefined) rest ??= unit;
    else for (const at of functions) scopes.set(at.length === 7 ? `0000:${at}` : at, unit);
    return unit;
  });
  return { all, of: (fn) => scopes.get(fn.name) ?? rest };
}
