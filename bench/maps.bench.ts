/**
 * What 65,535 mappings of one page cost a container: live bytes of the box beyond page tables, and the time of MAP and UNMAP in the kernel
 * part alone. The 65,536th is refused.
 */
import { loadHost, Machine, ManualClock } from '../src/host/index.ts';
import { privateShared } from '../src/hw/memory/backing.ts';
import { refusal, TestTask } from '../src/kernel/core/test-task.ts';
import type { Container } from '../src/kernel/vfio/container.ts';
import { Type1 } from '../src/kernel/vfio/type1.ts';
import {
  VFIO_GROUP_SET_CONTAINER,
  VFIO_IOMMU_MAP_DMA,
  VFIO_IOMMU_UNMAP_DMA,
  VFIO_SET_IOMMU,
  VFIO_TYPE1v2_IOMMU,
  vfio_iommu_type1_dma_map,
  vfio_iommu_type1_dma_unmap,
} from '../src/uapi/vfio.ts';

const COUNT = 65_535;
const IOVA = 0x1_0000_0000n;

const gc = globalThis.gc as undefined | (() => void);
const machine = new Machine(loadHost('default'), {
  clock: new ManualClock(),
  allocateShared: privateShared,
  log: () => {},
});
const task = new TestTask({ physical: machine.physical, capabilities: ['CAP_IPC_LOCK'] });
const { descriptor, file: container } = task.open(machine.vfio.openContainer(task) as Container);
const group = machine.vfio.openGroup(4, task);
task.ioctl(group, VFIO_GROUP_SET_CONTAINER, new Uint8Array(Int32Array.of(descriptor).buffer));
task.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
const vaddr = BigInt(task.memory.map(4096));
const tables = machine.iommu.units[0]!.tables;

const map = (i: number): number =>
  task.ioctl(
    container,
    VFIO_IOMMU_MAP_DMA,
    vfio_iommu_type1_dma_map.write({ argsz: 32, flags: 3, vaddr, iova: IOVA + BigInt(i) * 4096n, size: 4096n }),
  );
const unmap = (i: number): number =>
  task.ioctl(
    container,
    VFIO_IOMMU_UNMAP_DMA,
    vfio_iommu_type1_dma_unmap.write({ argsz: 24, flags: 0, iova: IOVA + BigInt(i) * 4096n, size: 4096n }),
  );
const live = (): number => {
  gc?.();
  gc?.();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
};

for (let i = 0; i < 20_000; i++) {
  map(i & 63);
  unmap(i & 63);
}
const before = live();
const tablesBefore = tables.used;
const begin = performance.now();
for (let i = 0; i < COUNT; i++) map(i);
const mapTime = performance.now() - begin;
const tableBytes = (tables.used - tablesBefore) * 4096;
const bytes = (live() - before - tableBytes) / COUNT;
console.log(`node ${process.version}${gc === undefined ? ', without --expose-gc: bytes include garbage' : ''}`);
console.log(
  `${COUNT} mappings: ${bytes.toFixed(0)} bytes each beyond ${(tableBytes / COUNT).toFixed(0)} bytes of page tables (goal 200${bytes > 200 ? ', MISSED' : ''})`,
);
console.log(`MAP ${((mapTime / COUNT) * 1000).toFixed(2)} µs each, kernel part with test doubles`);
console.log(`mapping ${COUNT + 1}: ${refusal(() => map(COUNT))}`);
if (!(container.driver instanceof Type1) || container.driver.dmas.size !== COUNT) throw new Error('not all are held');
