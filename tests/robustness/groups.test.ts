/** Group computation against the rules said plainly, on many random machines (a few of them: src/kernel/iommu/joins.test.ts). */
import { test } from 'node:test';
import { checkGroups } from '../../src/kernel/iommu/test-topology.ts';

const TOPOLOGIES = 10_000;

test(`G-1 G-8: ${TOPOLOGIES} random machines have the groups of the plain rules, in every order of siblings, and of the relations between pairs`, () => {
  for (let seed = 1000; seed < 1000 + TOPOLOGIES; seed++) checkGroups(seed);
});
