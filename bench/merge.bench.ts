/**
 * What merging saves, as the first documentation of VFIO argues: N groups of one program that all map the same M buffers, each in an address
 * space of its own against all in one. Time of the maps, pins, memory of the page tables.
 */
import { loadHost, Machine, ManualClock } from '../src/host/index.ts';
import { privateShared } from '../src/hw/memory/backing.ts';
import { TestTask } from '../src/kernel/core/test-task.ts';
import { VFIO_GROUP_GET_IOMMU_FD, VFIO_GROUP_MERGE, VFIO_IOMMU_MAP_DMA, vfio_dma_map } from '../src/uapi/vfio-2011.ts';

const PAGES = 16;
const MAPS = 2000;
/** A buffer each 64 KiB of device address, so that no two of them join. */
const STRIDE = 0x2_0000n;

interface Outcome {
  time: number;
  pins: number;
  tables: number;
}

/** A machine with `count` devices below isolating root ports, all given to `vfio`. */
function machine(count: number): Machine {
  const preset = loadHost('seed-2011');
  const functions = Array.from({ length: count }, (_, i) => {
    const [port, bus] = [(i + 1).toString(16).padStart(2, '0'), (i + 1).toString(16).padStart(2, '0')];
    return [
      { at: `00:${port}.0`, model: 'root-port', secondary: i + 1 },
      { at: `${bus}:00.0`, model: 'testdev', driver: 'vfio' },
    ];
  }).flat();
  const { groups: _, ...rest } = preset;
  return new Machine(
    { ...rest, functions: [{ at: '00:00.0', model: 'host-bridge' }, ...functions] },
    { clock: new ManualClock(), allocateShared: privateShared, log: () => {} },
  );
}

function run(count: number, isMerged: boolean): Outcome {
  const { api2011, iommu, physical, drivers } = machine(count);
  const core = api2011!.core;
  const task = new TestTask({ physical, capabilities: ['CAP_IPC_LOCK'] });
  const names = core
    .groups()
    .filter(({ devices }) => devices.some(({ isBound }) => isBound))
    .map(({ name }) => name);
  if (names.length !== count || drivers.bus.functionsOf('vfio').length !== count)
    throw new Error('Not all are groups of their own');
  const groups = names.map((name) => task.open(core.openGroup(name)));
  const buffer = BigInt(task.memory.map(MAPS * PAGES * 4096));
  const { tables } = iommu.units[0]!;
  const before = tables.used;
  const begin = performance.now();
  const first = groups[0]!.file;
  if (isMerged) {
    for (const { descriptor } of groups.slice(1)) {
      task.ioctl(first, VFIO_GROUP_MERGE, new Uint8Array(Int32Array.of(descriptor).buffer));
    }
  }
  for (const { file } of isMerged ? groups.slice(0, 1) : groups) {
    const space = task.file(task.ioctl(file, VFIO_GROUP_GET_IOMMU_FD));
    for (let i = 0; i < MAPS; i++) {
      const vaddr = buffer + BigInt(i * PAGES * 4096);
      const iova = BigInt(i) * STRIDE;
      task.ioctl(
        space,
        VFIO_IOMMU_MAP_DMA,
        vfio_dma_map.write({ argsz: 32, flags: 3, vaddr, iova, size: BigInt(PAGES * 4096) }),
      );
    }
  }
  const time = performance.now() - begin;
  const outcome = { time, pins: task.mm.pins, tables: (tables.used - before) * 4096 };
  task.exit();
  if (task.mm.pins !== 0) throw new Error('Pins are left');
  return outcome;
}

const median = (outcomes: Outcome[]): Outcome => outcomes.toSorted((a, b) => a.time - b.time)[outcomes.length >> 1]!;

run(1, false);
console.log(`${MAPS} maps of ${PAGES} pages; separate address spaces against one of merged groups`);
console.log('groups      time, ms (ratio)          pins (ratio)          page tables, KiB (ratio)');
for (const count of [1, 2, 4, 8]) {
  const rounds = [0, 1, 2].map(() => ({ separate: run(count, false), merged: run(count, true) }));
  const separate = median(rounds.map((round) => round.separate));
  const merged = median(rounds.map((round) => round.merged));
  const cell = (a: number, b: number): string =>
    `${a.toFixed(0).padStart(8)} ${b.toFixed(0).padStart(8)} ${(a / b).toFixed(1).padStart(4)}x`;
  console.log(
    `${String(count).padStart(6)}  ${cell(separate.time, merged.time)}  ${cell(separate.pins, merged.pins)}  ${cell(separate.tables / 1024, merged.tables / 1024)}`,
  );
}
