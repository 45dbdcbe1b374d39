import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { z } from 'zod';
import { HostFileError, hostSchema, loadHost, parseHost, presetNames } from './host-file.ts';

const good = {
  name: 'x',
  iommu: { units: [{ name: 'dmar0', preset: 'vtd-legacy-sc' }] },
  functions: [{ at: '00:04.0', model: 'edu' }],
};

test('every preset satisfies the schema', () => {
  for (const name of presetNames()) hostSchema(z).parse(loadHost(name));
});

test('the published schema is the one that is checked', () => {
  const published = JSON.parse(readFileSync(new URL('../../../schema/host.json', import.meta.url), 'utf8'));
  assert.deepEqual(published, {
    title: 'vfiobox host file',
    ...JSON.parse(JSON.stringify(z.toJSONSchema(hostSchema(z)))),
  });
});

test('a wrong file is told where it is wrong and what was expected', () => {
  const wrong = (change: (file: Record<string, unknown>) => void, expected: RegExp): void => {
    const file = structuredClone(good) as Record<string, unknown>;
    change(file);
    assert.throws(
      () => parseHost(JSON.stringify(file), 'lab.json'),
      (error: Error) => {
        assert.ok(error instanceof HostFileError);
        assert.match(error.message, expected);
        assert.ok(!error.message.includes('\n'));
        return true;
      },
    );
  };
  const first = (file: Record<string, unknown>): Record<string, unknown> =>
    (file['functions'] as Record<string, unknown>[])[0]!;
  wrong((f) => (first(f)['at'] = '4.0'), /^lab\.json: at functions\[0\]\.at: expected an address such as "00:04\.0"/);
  wrong((f) => delete first(f)['model'], /at functions\[0\]\.model: .*expected string/);
  wrong((f) => (first(f)['modle'] = 1), /at functions\[0\]: .*modle/);
  wrong((f) => (first(f)['bars'] = { 9: 0 }), /at functions\[0\]\.bars/);
  wrong((f) => (f['functions'] = 3), /at functions: .*expected array/);
  wrong((f) => (f['api'] = 2012), /at api: expected 2011; or expected one of "today"\|"both"$/);
  wrong((f) => (f['options'] = { kvm: { policy: 'x' } }), /at options\.kvm\.policy: .*"kernel"\|"strict"/);
});

test('text that is no JSON or YAML, files and presets that do not exist', () => {
  assert.throws(() => parseHost('{', 'lab.json'), /^Error: lab\.json: |lab\.json: /);
  assert.throws(() => loadHost('/nonexistent/lab.json'), /cannot read host file '\/nonexistent\/lab\.json': ENOENT/);
  assert.throws(
    () => loadHost('nonesuch'),
    /no host file or preset 'nonesuch'; presets: default, iommufd-selftest, kernel-golden, sriov, seed-2011/,
  );
});

test('YAML is read as JSON is', () => {
  const yaml =
    'name: x\niommu: { units: [{ name: dmar0, preset: vtd-legacy-sc }] }\nfunctions:\n  - at: "00:04.0"\n    model: edu\n';
  assert.deepEqual(parseHost(yaml, 'lab.yaml'), good);
});
