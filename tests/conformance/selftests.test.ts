/**
 * The kernel's own VFIO selftests, unmodified, on the box's edu and testdev. What a real kernel answered with edu: all pass, but those
 * that need a reset or MSI-X, which edu has not, and those that need hugepages where there are none.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { EDU, HOST, TESTDEV, TESTDEV_HOST } from '../e2e/machine.ts';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('selftests');

interface Result {
  name: string;
  result: 'pass' | 'skip' | 'fail';
}

/** The result lines of a kselftest program: "ok 1 fixture.variant.test", "ok 2 name # SKIP why", "not ok 3 name". */
function results(output: string): Result[] {
  return [...output.matchAll(/^(not )?ok \d+ (\S+)(.*)$/gm)].map(([, not, name, rest]) => ({
    name: name!,
    result: not ? 'fail' : /# SKIP/.test(rest!) ? 'skip' : 'pass',
  }));
}

interface Suite {
  program: string;
  device: 'edu' | 'testdev' | 'physical';
  tests: number;
  /** The tests that may skip, and how many do; undefined when the machine decides. */
  skips: RegExp;
  skipped: number | undefined;
}

const suites: readonly Suite[] = [
  { program: 'vfio_pci_device_test', device: 'edu', tests: 5, skips: /reset|msix/i, skipped: 2 },
  { program: 'vfio_iommufd_setup_test', device: 'edu', tests: 6, skips: /^$/, skipped: 0 },
  { program: 'vfio_dma_mapping_test', device: 'edu', tests: 30, skips: /hugetlb/i, skipped: undefined },
  { program: 'vfio_pci_device_init_perf_test', device: 'edu', tests: 5, skips: /^$/, skipped: 0 },
  { program: 'vfio_dma_mapping_mmio_test', device: 'edu', tests: 15, skips: /^$/, skipped: 0 },
  // testdev has a reset and MSI-X, and BARs in plain memory.
  { program: 'vfio_pci_device_test', device: 'testdev', tests: 5, skips: /^$/, skipped: 0 },
  { program: 'vfio_iommufd_setup_test', device: 'testdev', tests: 6, skips: /^$/, skipped: 0 },
  { program: 'vfio_dma_mapping_mmio_test', device: 'testdev', tests: 15, skips: /^$/, skipped: 0 },
  { program: 'vfio_pci_sriov_uapi_test', device: 'physical', tests: 45, skips: /^$/, skipped: 0 },
];

const places = {
  edu: { host: HOST, at: EDU },
  testdev: { host: TESTDEV_HOST, at: TESTDEV },
  physical: { host: 'sriov', at: TESTDEV },
};

for (const { program, device, tests, skips, skipped } of suites) {
  test(`kernel selftest ${program} on ${device}`, { timeout: 180_000 }, async (t) => {
    const folder = provided(t, 'selftests');
    if (folder === undefined) return;
    const { host, at } = places[device];
    const outcome = await runInBox([join(folder, 'vfio', program), at], { host, timeout: 150_000 });
    assert.equal(outcome.timedOut, false, outcome.story);
    const seen = results(outcome.stdout);
    const named = (result: Result['result']) => seen.filter((one) => one.result === result).map(({ name }) => name);
    assert.deepEqual(named('fail'), [], outcome.story);
    assert.equal(seen.length, tests, outcome.story);
    assert.deepEqual(
      named('skip').filter((name) => !skips.test(name)),
      [],
      outcome.story,
    );
    if (skipped !== undefined) assert.equal(named('skip').length, skipped, outcome.story);
    assert.equal(outcome.status, 0, outcome.story);
    t.diagnostic(`${named('pass').length} pass, ${named('skip').length} skip, ${outcome.milliseconds} ms`);
  });
}

test('kernel selftest vfio_pci_sriov_uapi_test with enable_sriov off: the write says ENOENT, as recorded', {
  timeout: 60_000,
}, async (t) => {
  const folder = provided(t, 'selftests');
  if (folder === undefined) return;
  const program = join(folder, 'vfio/vfio_pci_sriov_uapi_test');
  const script = `echo N >/sys/module/vfio_pci/parameters/enable_sriov && exec ${program} ${TESTDEV}`;
  const outcome = await runInBox(['sh', '-c', script], { host: 'sriov', timeout: 30_000 });
  assert.equal(outcome.status, 1, outcome.story);
  assert.match(outcome.stdout + outcome.stderr, /errno: 2 /, outcome.story);
});

test('kernel selftest vfio_pci_sriov_uapi_test on a function without virtual ones skips as a whole', {
  timeout: 60_000,
}, async (t) => {
  const folder = provided(t, 'selftests');
  if (folder === undefined) return;
  const outcome = await runInBox([join(folder, 'vfio/vfio_pci_sriov_uapi_test'), EDU], { host: HOST, timeout: 30_000 });
  assert.match(outcome.stdout, /1\.\.0 # SKIP/, outcome.story);
});

test('kernel selftests vfio_dma_mapping_test and vfio_pci_device_init_perf_test where an iommufd answers on /dev/vfio/vfio', {
  timeout: 120_000,
}, async (t) => {
  const folder = provided(t, 'selftests');
  if (folder === undefined) return;
  const host = join(scratch(t), 'compat.json');
  const { $schema: _, ...machine } = JSON.parse(readFileSync(join(tree, 'hosts/default.json'), 'utf8')) as object & {
    $schema?: string;
  };
  writeFileSync(host, JSON.stringify({ ...machine, name: 'compat', iommufd: { container: 'iommufd' } }));
  for (const [program, tests] of [
    ['vfio_dma_mapping_test', 30],
    ['vfio_pci_device_init_perf_test', 5],
  ] as const) {
    const outcome = await runInBox([join(folder, 'vfio', program), EDU], { host, timeout: 60_000 });
    const seen = results(outcome.stdout);
    assert.equal(seen.length, tests, outcome.story);
    const odd = seen.filter(({ name, result }) => result === 'fail' || (result === 'skip' && !/hugetlb/.test(name)));
    assert.deepEqual(odd, [], outcome.story);
  }
});
