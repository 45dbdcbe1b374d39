/**
 * The kernel's own iommufd suite, unmodified, on the box's mock driver. On a real kernel of the same version 241 of its 246 tests pass and
 * five skip, because their variant has no virtual IOMMU.
 *
 * `iommufd_fail_nth` needs the kernel's fault injection in debugfs and skips here, as it does on a kernel without; what it does is done
 * with named failpoints in src/kernel/iommufd/selftest/fail-nth.test.ts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { needs, provided, runInBox, scratch, tree } from '../support/box.ts';

needs('selftests', 'cc', 'uapi');

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

test('the time of ACCESS_RW, most of the suite’s 290,000 calls', { timeout: 120_000 }, async (t) => {
  if (provided(t, 'cc') === undefined) return;
  const headers = provided(t, 'uapi');
  if (headers === undefined) return;
  const program = join(scratch(t), 'access-rw');
  const include = ['usr/include', 'usr/include/x86_64-linux-gnu'].flatMap((path) => ['-isystem', join(headers, path)]);
  const source = join(tree, 'tests/conformance/access-rw.c');
  const cc = spawnSync(process.env['CC'] ?? 'cc', ['-O1', '-w', ...include, '-o', program, source], {
    encoding: 'utf8',
  });
  assert.equal(cc.status, 0, cc.stderr);
  const outcome = await runInBox([program], { host: 'iommufd-selftest', timeout: 100_000 });
  assert.equal(outcome.status, 0, outcome.story);
  const [, p50, p99] = /^p50 (\d+) p99 (\d+)$/m.exec(outcome.stdout)!;
  t.diagnostic(`p50 ${Number(p50) / 1000} µs, p99 ${Number(p99) / 1000} µs`);
});
