/**
 * The kernel's own iommufd suite, unmodified, on the box's mock driver. On a real kernel of the same version 241 of its 246 tests pass and
 * five skip, because their variant has no virtual IOMMU.
 *
 * `iommufd_fail_nth` needs the kernel's fault injection in debugfs and skips here, as it does on a kernel without; what it does is done
 * with named failpoints in src/kernel/iommufd/selftest/fail-nth.test.ts.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox } from '../support/box.ts';

needs('selftests');

/** The tests that a real kernel skips. */
const SKIPPED = [
  'iommufd_viommu.no_viommu.hw_queue',
  'iommufd_viommu.no_viommu.vdevice_cache',
  'iommufd_viommu.no_viommu.vdevice_tombstone',
  'iommufd_viommu.no_viommu.viommu_alloc_nested_iopf',
  'iommufd_viommu.no_viommu.viommu_alloc_with_data',
];

interface Results {
  pass: string[];
  skip: string[];
  fail: string[];
}

/** The result lines of a kselftest program: "ok 1 fixture.variant.test", "ok 2 name # SKIP why", "not ok 3 name". */
function results(output: string): Results {
  const found: Results = { pass: [], skip: [], fail: [] };
  for (const [, not, name, rest] of output.matchAll(/^(not )?ok \d+ (\S+)(.*)$/gm)) {
    found[not ? 'fail' : /# SKIP/.test(rest!) ? 'skip' : 'pass'].push(name!);
  }
  return found;
}

test('kernel selftest iommufd: 246 tests, 241 pass, 5 skip, as on a real kernel', { timeout: 300_000 }, async (t) => {
  const folder = provided(t, 'selftests');
  if (folder === undefined) return;
  const outcome = await runInBox([join(folder, 'iommu', 'iommufd')], { host: 'iommufd-selftest', timeout: 280_000 });
  assert.equal(outcome.timedOut, false, outcome.story);
  const { pass, skip, fail } = results(outcome.stdout);
  t.diagnostic(`${pass.length} pass, ${skip.length} skip, ${fail.length} fail, ${outcome.milliseconds} ms`);
  assert.deepEqual(fail, [], outcome.story);
  assert.deepEqual(skip.sort(), SKIPPED);
  assert.equal(pass.length, 241);
  assert.equal(new Set(pass).size, 241);
  assert.equal(outcome.status, 0);
});

test('kernel selftest iommufd_fail_nth: all 8 skip, as where the kernel has no fault injection', async (t) => {
  const folder = provided(t, 'selftests');
  if (folder === undefined) return;
  const program = join(folder, 'iommu', 'iommufd_fail_nth');
  const outcome = await runInBox([program], { host: 'iommufd-selftest', timeout: 60_000 });
  const { pass, skip, fail } = results(outcome.stdout);
  assert.deepEqual([pass.length, skip.length, fail.length], [0, 8, 0], outcome.story);
});
