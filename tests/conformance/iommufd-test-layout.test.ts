/** The kernel's iommufd_test.h, which belongs to its suite, as judge of src/uapi/iommufd-test.ts. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Struct } from '../../src/lib/struct.ts';
import * as tables from '../../src/uapi/iommufd-test.ts';
import { needs, provided, scratch } from '../support/box.ts';

needs('cc', 'uapi', 'selftests');

test('src/uapi/iommufd-test.ts agrees with drivers/iommu/iommufd/iommufd_test.h', { timeout: 60_000 }, (t) => {
  if (provided(t, 'cc') === undefined) return;
  const headers = provided(t, 'uapi');
  const selftests = provided(t, 'selftests');
  if (headers === undefined || selftests === undefined) return;
  const header = join(selftests, 'iommu/iommufd_test.h');
  if (!existsSync(header)) {
    t.skip(`${header} is not there: the suite was built before the header was kept (scripts/provision/selftests.sh)`);
    return;
  }
  const folder = scratch(t);
  const expected: string[] = [];
  const lines: string[] = [];
  const compare = (name: string, expression: string, value: number): void => {
    lines.push(`printf("${name} %u\\n", (unsigned)(${expression}));`);
    expected.push(`${name} ${value}`);
  };
  for (const [name, value] of Object.entries(tables)) {
    if (name === 'IOMMU_TEST_UNION')
      compare(name, 'offsetof(struct iommu_test_cmd, check_map)', tables.IOMMU_TEST_UNION);
    else if (typeof value === 'number') compare(name, name, value);
    else if (!(value instanceof Struct)) continue;
    else if (name.startsWith('test_')) {
      // A member of the union in iommu_test_cmd.
      for (const [member, offset] of Object.entries(value.offsets)) {
        const at = `${value.name}.${member}`;
        compare(at, `offsetof(struct iommu_test_cmd, ${at})`, tables.IOMMU_TEST_UNION + (offset as number));
      }
    } else {
      compare(`sizeof ${name}`, `sizeof(struct ${name})`, value.size);
      for (const [member, offset] of Object.entries(value.offsets)) {
        if (/^union\d$/.test(member)) continue;
        compare(`${name}.${member}`, `offsetof(struct ${name}, ${member})`, offset as number);
      }
    }
  }
  const source = join(folder, 'layout.c');
  const program = join(folder, 'layout');
  const includes = ['stddef.h', 'stdio.h', 'linux/types.h', 'linux/iommufd.h', 'iommufd_test.h'];
  writeFileSync(
    source,
    `${includes.map((name) => `#include <${name}>\n`).join('')}int main(void)\n{\n${lines.join('\n')}\nreturn 0;\n}\n`,
  );
  const folders = [
    join(headers, 'usr/include'),
    join(headers, 'usr/include/x86_64-linux-gnu'),
    join(selftests, 'iommu'),
  ];
  const cc = spawnSync(
    process.env['CC'] ?? 'cc',
    ['-w', ...folders.flatMap((path) => ['-isystem', path]), '-o', program, source],
    { encoding: 'utf8' },
  );
  assert.equal(cc.status, 0, cc.stderr.slice(0, 3000));
  const measured = spawnSync(program, { encoding: 'utf8' }).stdout.trim().split('\n');
  t.diagnostic(`${measured.length} facts of iommufd_test.h compared`);
  assert.ok(measured.length > 100);
  assert.deepEqual(expected, measured);
});
