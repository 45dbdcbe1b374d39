/**
 * testdev, 1234:11e9: one of each kind of BAR, a DMA engine with 64-bit addresses, MSI-X, function level reset, and virtual
 * functions if wanted. Described in docs/devices/testdev.md.
 */

import { Errno } from '../../../lib/errno.ts';
import * as reg from '../../../uapi/pci-regs.ts';
import type { BarSpec, Registers } from '../../pci/bar.ts';
import { pciExpress, powerManagement } from '../../pci/capabilities.ts';
import { DeviceClock } from '../../pci/device-clock.ts';
import { type DeviceEnvironment, type DeviceModel, readOptions, type SharedMemory } from '../../pci/device-model.ts';
import { aer, pasid, serialNumber } from '../../pci/extended-capabilities.ts';
import type { CapabilitySpec, FunctionSpec } from '../../pci/function-spec.ts';
import { migrationOf, migrationOption } from '../../pci/migration-option.ts';
import { msi } from '../../pci/msi.ts';
import { msix } from '../../pci/msix.ts';
import { sriov } from '../../pci/sriov.ts';
import { Testdev, type TestdevState } from './testdev.ts';

interface Settings {
  readonly vectors: number;
  readonly dmaLatencyNs: number;
  readonly trapped: boolean;
  readonly totalVfs: number;
  readonly pasid: boolean;
  readonly ability: ReturnType<typeof migrationOf>;
}

const VF_BARS = [
  { index: 0, size: 0x10000 },
  { index: 4, size: 0x1000 },
  { index: 5, size: 0x8000 },
] as const;

export const testdev: DeviceModel = {
  name: 'testdev',
  description: 'One of each kind of BAR, 64-bit DMA with faults told apart, MSI-X, reset, virtual functions',
  options: {
    vectors: { type: 'integer', default: 8, description: 'MSI-X vectors, 1 to 1024' },
    dmaLatencyNs: { type: 'integer', default: 1_000, description: 'From command to its end' },
    bars: {
      type: 'text',
      choices: ['registers', 'trapped'],
      default: 'registers',
      description: 'registers: BAR 4 is not offered for mmap; trapped: it is, and every access is forwarded',
    },
    totalVfs: { type: 'integer', default: 0, description: 'Virtual functions (SR-IOV), 0 for no capability' },
    pasid: {
      type: 'boolean',
      default: false,
      description: 'Requests with PASID: the capability, and the register takes effect',
    },
    migration: migrationOption,
  },
  create(env, given) {
    const options = readOptions(testdev, given);
    const vectors = options['vectors'] as number;
    const totalVfs = options['totalVfs'] as number;
    if (vectors < 1 || vectors > 1024)
      throw new Errno('EINVAL', `testdev cannot have ${vectors} vectors, but 1 to 1024`);
    if (totalVfs > 256) throw new Errno('EINVAL', `testdev cannot have ${totalVfs} virtual functions, but at most 256`);
    return physicalFunction(env, {
      vectors,
      totalVfs,
      dmaLatencyNs: options['dmaLatencyNs'] as number,
      trapped: options['bars'] === 'trapped',
      pasid: options['pasid'] as boolean,
      ability: migrationOf(options['migration']),
    });
  },
};

function physicalFunction(env: DeviceEnvironment, settings: Settings): FunctionSpec {
  const small = env.allocateShared('testdev-bar0', 0x10000);
  const large = env.allocateShared('testdev-bar2', 0x10_0000);
  const ports = new Ports();
  const extended: CapabilitySpec[] = [aer(), serialNumber(0x1234_11e9_0000_0001n)];
  if (settings.pasid) extended.push(pasid({ width: 20 }));
  if (settings.totalVfs > 0) {
    extended.push(
      sriov({
        totalVfs: settings.totalVfs,
        vfDevice: 0x11ea,
        firstOffset: 8,
        stride: 1,
        vfBars: VF_BARS,
        virtualFunction: (index) => virtualFunction(env, settings, index),
      }),
    );
  }
  return {
    ...body(
      env,
      settings,
      new Map([
        ['bar0', small],
        ['bar2', large],
      ]),
      [
        { index: 0, kind: 'memory', size: 0x10000, shared: small },
        { index: 1, kind: 'io', size: 0x100, registers: ports },
        { index: 2, kind: 'memory', size: 0x10_0000, is64: true, prefetchable: true, shared: large },
      ],
      ports,
    ),
    device: 0x11e9,
    interruptPin: 1,
    capabilities: [
      powerManagement(),
      msi({ vectors: 4, maskable: true }),
      msix({ vectors: settings.vectors, tableBar: 5, tableOffset: 0, pbaOffset: 0x4000 }),
      pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }),
      ...extended,
    ],
  };
}

function virtualFunction(env: DeviceEnvironment, settings: Settings, index: number): FunctionSpec {
  const small = env.allocateShared(`testdev-vf${index}-bar0`, 0x10000);
  return {
    ...body(env, settings, new Map([['bar0', small]]), [{ index: 0, kind: 'memory', size: 0x10000, shared: small }]),
    device: 0x11ea,
    capabilities: [
      msix({ vectors: settings.vectors, tableBar: 5, tableOffset: 0, pbaOffset: 0x4000 }),
      pciExpress({ type: reg.PCI_EXP_TYPE_ENDPOINT, flr: true }),
    ],
  };
}

/** What both kinds of function share: the engine with its registers in BAR 4, the MSI-X table in BAR 5. */
function body(
  env: DeviceEnvironment,
  settings: Settings,
  memories: ReadonlyMap<string, SharedMemory>,
  bars: readonly BarSpec[],
  ports?: Ports,
): Omit<FunctionSpec, 'device' | 'capabilities' | 'interruptPin'> {
  const clock = new DeviceClock(env.clock);
  const engine = new Testdev(clock, settings.dmaLatencyNs, settings.vectors, () =>
    [...memories.values()].map((memory) => memory.bytes()),
  );
  return {
    vendor: 0x1234,
    class24: 0x00ff00,
    revision: 1,
    subsystemVendor: 0x1234,
    subsystemDevice: 0x11e9,
    bars: [
      ...bars,
      { index: 4, kind: 'memory', size: 0x1000, trapped: settings.trapped, registers: engine },
      { index: 5, kind: 'memory', size: 0x8000 },
    ],
    attach: (fn) => engine.attach(fn),
    reset: () => engine.reset(),
    removed: () => {
      engine.stop();
      for (const memory of memories.values()) memory.close();
    },
    ...settings.ability,
    memories,
    stop: () => clock.stop(),
    run: () => clock.run(),
    save: () => ({
      registers: {},
      timers: clock.save(),
      device: { engine: engine.save(), ports: ports === undefined ? [] : [...ports.bytes] },
    }),
    restore: ({ device, timers }) => {
      const state = device as { engine: TestdevState; ports: number[] };
      ports?.bytes.set(state.ports);
      engine.restore(state.engine);
      clock.restore(timers);
    },
  };
}

/** Ports that keep what is written. */
class Ports implements Registers {
  readonly bytes = new Uint8Array(0x100);

  read(offset: number, into: Uint8Array): void {
    for (let i = 0; i < into.length; i++) into[i] = this.bytes[offset + i]!;
  }

  write(offset: number, from: Uint8Array): void {
    for (let i = 0; i < from.length; i++) this.bytes[offset + i] = from[i]!;
  }
}
