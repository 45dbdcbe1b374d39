/**
 * The kernel's headers as judge of src/uapi: sizes, offsets and numbers, as the C compiler sees them.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Struct } from '../../src/lib/struct.ts';
import * as iommufd from '../../src/uapi/iommufd.ts';
import * as kvm from '../../src/uapi/kvm.ts';
import * as vfio from '../../src/uapi/vfio.ts';
import { needs, provided, scratch } from '../support/box.ts';

needs('cc', 'uapi');

/** Anonymous in the header (the token of FEATURE_PCI_VF_TOKEN), or of a header that is the kernel's own. */
const NOT_THERE = ['vfio_device_feature_vf_token', 'IOMMU_TEST_CMD'];
const HEADERS = { 'linux/vfio.h': vfio, 'linux/iommufd.h': iommufd, 'linux/kvm.h': kvm } as const;

for (const [header, tables] of Object.entries(HEADERS)) {
  test(`src/uapi agrees with ${header}`, { timeout: 60_000 }, (t) => {
    if (provided(t, 'cc') === undefined) return;
    const headers = provided(t, 'uapi');
    if (headers === undefined) return;
    const folder = scratch(t);
    const expected: string[] = [];
    const lines: string[] = [];
    for (const [name, value] of Object.entries(tables)) {
      if (NOT_THERE.includes(name)) continue;
      if (value instanceof Struct) {
        lines.push(`printf("sizeof ${value.name} %zu\\n", sizeof(struct ${value.name}));`);
        expected.push(`sizeof ${value.name} ${value.size}`);
        for (const [member, offset] of Object.entries(value.offsets)) {
          lines.push(`printf("${value.name}.${member} %zu\\n", offsetof(struct ${value.name}, ${member}));`);
          expected.push(`${value.name}.${member} ${offset}`);
        }
      } else if (typeof value === 'number' && /^(VFIO|IOMMU|KVM)_/.test(name)) {
        lines.push(`printf("${name} %u\\n", (unsigned)(${name}));`);
        expected.push(`${name} ${value}`);
      }
    }
    const source = join(folder, 'layout.c');
    const program = join(folder, 'layout');
    writeFileSync(
      source,
      `#include <stddef.h>\n#include <stdio.h>\n#include <${header}>\nint main(void)\n{\n${lines.join('\n')}\nreturn 0;\n}\n`,
    );
    const include = join(headers, 'usr/include');
    const cc = spawnSync(
      process.env['CC'] ?? 'cc',
      ['-w', '-isystem', include, '-isystem', join(include, 'x86_64-linux-gnu'), '-o', program, source],
      { encoding: 'utf8' },
    );
    assert.equal(cc.status, 0, cc.stderr.slice(0, 3000));
    const measured = spawnSync(program, { encoding: 'utf8' }).stdout.trim().split('\n');
    t.diagnostic(`${measured.length} facts of ${header} compared`);
    assert.ok(measured.length > 60);
    assert.deepEqual(
      expected
        .filter((line, i) => line !== measured[i])
        .map((line) => `${line}, the header: ${measured[expected.indexOf(line)]}`),
      [],
    );
  });
}
