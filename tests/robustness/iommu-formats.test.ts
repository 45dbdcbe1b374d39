/** Page-table formats over a long life: 100,000 operations each and for each depth, against a map of pages and a walk by bytes. */
import { test } from 'node:test';
import { amdV1 } from '../../src/hw/iommu/fmt/amd-v1.ts';
import { liveLong } from '../../src/hw/iommu/fmt/format.suite.ts';
import { vtdss } from '../../src/hw/iommu/fmt/vtdss.ts';
import { x86_64 } from '../../src/hw/iommu/fmt/x86-64.ts';
import { naiveAmd, naiveFirst, naiveSecond } from '../../src/hw/iommu/naive-walk.ts';

const OPERATIONS = 100_000;

for (const [format, naive] of [
  [vtdss, naiveSecond],
  [x86_64, naiveFirst],
  [amdV1, naiveAmd],
] as const) {
  for (const levels of Object.keys(format.widths).map(Number)) {
    test(`${format.name}, ${levels} levels: ${OPERATIONS} random operations`, () => {
      liveLong(format, naive, levels, OPERATIONS, 1000 + levels);
    });
  }
}
