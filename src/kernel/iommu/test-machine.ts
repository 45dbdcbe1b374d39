/**
 * A machine for tests of the kernel's half of the IOMMU: PCI functions whose DMA goes through units into RAM of plain bytes.
 */
import assert from 'node:assert/strict';
import { TablePool } from '../../hw/iommu/table-pool.ts';
import { IommuUnit, type IommuUnitOptions } from '../../hw/iommu/unit.ts';
import { BufferBacking } from '../../hw/memory/backing.ts';
import { PhysicalMemory } from '../../hw/memory/physical-memory.ts';
import { pciExpress } from '../../hw/pci/capabilities.ts';
import { acs } from '../../hw/pci/extended-capabilities.ts';
import type { PciFunction, Place } from '../../hw/pci/function.ts';
import type { FunctionSpec } from '../../hw/pci/function-spec.ts';
import { type Bus, PciTree } from '../../hw/pci/tree.ts';
import { Errno } from '../../lib/errno.ts';
import * as reg from '../../uapi/pci-regs.ts';
import { IommuCore, type IommuOptions } from './iommu.ts';

export const ISOLATING = reg.PCI_ACS_SV | reg.PCI_ACS_RR | reg.PCI_ACS_CR | reg.PCI_ACS_UF;

const RAM_PAGES = 1024;

export interface MachineOptions extends IommuOptions {
  readonly units?: readonly IommuUnitOptions[];
}

export class IommuMachine {
  readonly memory = new PhysicalMemory();
  readonly ram = new Uint8Array(RAM_PAGES * 4096);
  /** First physical page of `ram`; a multiple of 1 GiB. */
  readonly ramPage = this.memory.addBlock(new BufferBacking(this.ram));
  readonly units: readonly IommuUnit[];
  readonly core: IommuCore;
  readonly tree: PciTree;
  readonly root: Bus;

  constructor(options: MachineOptions = {}) {
    const shared = { tables: new TablePool(), memory: this.memory };
    this.units = (options.units ?? [{}]).map((unit, i) => new IommuUnit(`dmar${i}`, { ...shared, ...unit }));
    this.core = new IommuCore(options);
    this.core.units.push(...this.units);
    this.tree = new PciTree({
      memory: this.memory,
      upstreamOf: (fn) => (options.unitOf === undefined ? this.unit : (options.unitOf(fn) ?? this.unit)),
    });
    this.root = this.tree.addRoot();
  }

  get unit(): IommuUnit {
    return this.units[0]!;
  }

  /** Places a function; `at` is `slot.function` on `bus`, the root bus unless given. */
  add(spec: FunctionSpec, at: string, place: Partial<Place> = {}): PciFunction {
    const [slot, fn] = at.split('.');
    const devfn = (Number.parseInt(slot!, 16) << 3) | Number.parseInt(fn!, 16);
    return this.tree.add(spec, { bus: this.root, ...place, devfn });
  }

  /** Numbers the buses, then adds the functions to groups, in the order of the bus unless given. Bus Master is on everywhere. */
  boot(order: readonly PciFunction[] = this.tree.functions()): this {
    this.tree.enumerate();
    for (const fn of order) {
      this.core.probe(fn);
      fn.config.write(reg.PCI_COMMAND, 2, fn.config.read(reg.PCI_COMMAND, 2) | reg.PCI_COMMAND_MASTER);
    }
    return this;
  }

  /** The groups as lists of short names, `00:1e.0`, in the order of ids. */
  groups(): string[][] {
    return this.core.groups().map((group) => [...group.members].map(shortName));
  }

  /** Writes one byte by DMA. `ok`, or why not. */
  dma(fn: PciFunction, page: number, value = 0x5a): string {
    return fn.dma.write(page * 4096, Uint8Array.of(value))?.reason ?? 'ok';
  }
}

/** Without the segment. */
export function shortName(fn: PciFunction): string {
  return fn.name.slice(5);
}

/** A bridge: a PCI Express port of this type, or a conventional one; with ACS, all of it or what `control` says. */
export function bridge(type?: number, services?: { control?: number } | 'none'): FunctionSpec {
  const isPort = type === reg.PCI_EXP_TYPE_ROOT_PORT || type === reg.PCI_EXP_TYPE_DOWNSTREAM;
  const hasAcs = services !== 'none' && (services !== undefined || isPort);
  const control = services === 'none' ? undefined : services?.control;
  return {
    vendor: 0x1b36,
    device: 0x000c,
    class24: 0x060400,
    bridge: {},
    capabilities: [
      ...(type === undefined ? [] : [pciExpress({ type })]),
      ...(hasAcs ? [acs({ capability: ISOLATING, ...(control === undefined ? {} : { control }) })] : []),
    ],
  };
}

export const rootPort = (services?: { control?: number } | 'none'): FunctionSpec =>
  bridge(reg.PCI_EXP_TYPE_ROOT_PORT, services);

/** An endpoint of PCI Express, with all of ACS or without. */
export function endpoint(hasAcs = false, class24 = 0xff0000): FunctionSpec {
  return {
    vendor: 0x1234,
    device: 0x0001,
    class24,
    capabilities: [
      pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT }),
      ...(hasAcs ? [acs({ capability: ISOLATING })] : []),
    ],
  };
}

/** A conventional PCI function. */
export function conventional(class24 = 0xff0000): FunctionSpec {
  return { vendor: 0x1234, device: 0x11e8, class24 };
}

/** That `call` is refused with this errno. */
export function refuses(code: string, call: () => void, why?: RegExp): void {
  assert.throws(call, (error) => {
    assert.ok(error instanceof Errno, String(error));
    assert.equal(error.code, code, error.why);
    if (why !== undefined) assert.match(error.why, why);
    return true;
  });
}
