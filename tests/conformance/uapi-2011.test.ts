/** include/vfio-2011.h and src/uapi/vfio-2011.ts say the same, in both revisions, as the C compiler sees it. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Struct } from '../../src/lib/struct.ts';
import * as seed from '../../src/uapi/vfio-2011.ts';
import * as late from '../../src/uapi/vfio-2011-late.ts';
import { needs, provided, scratch, tree } from '../support/box.ts';

needs('cc');

/** What the later revision has no more. */
const GONE = [
  'VFIO_DEVICE_SET_IRQ_EVENTFDS',
  'VFIO_DEVICE_UNMASK_IRQ',
  'VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFDS',
  'VFIO_IRQ_INFO_FLAG_LEVEL',
  'vfio_irq_eventfds',
  'vfio_unmask_irq',
];
const { seed: december, late: later } = {
  seed: Object.entries(seed),
  late: Object.entries({ ...seed, ...late }).filter(([name]) => !GONE.includes(name)),
};

for (const [revision, names, flags] of [
  ['seed', december, []],
  ['late', later, ['-DVFIO_2011_LATE']],
] as const) {
  test(`include/vfio-2011.h agrees with the tables of revision ${revision}`, { timeout: 60_000 }, (t) => {
    if (provided(t, 'cc') === undefined) return;
    const expected: string[] = [];
    const lines: string[] = [];
    for (const [name, value] of names) {
      if (value instanceof Struct) {
        lines.push(`printf("sizeof ${name} %zu\\n", sizeof(struct ${name}));`);
        expected.push(`sizeof ${name} ${value.size}`);
        for (const [member, offset] of Object.entries(value.offsets)) {
          lines.push(
            `printf("${name}.${member} %zu %zu\\n", offsetof(struct ${name}, ${member}), sizeof(((struct ${name} *)0)->${member}));`,
          );
          expected.push(`${name}.${member} ${offset} ${value.members[member as keyof typeof value.members]!.size}`);
        }
      } else {
        lines.push(`printf("${name} %u\\n", (unsigned)(${name}));`);
        expected.push(`${name} ${value}`);
      }
    }
    const folder = scratch(t);
    const source = join(folder, 'layout.c');
    const program = join(folder, 'layout');
    writeFileSync(
      source,
      `#include "vfio-2011.h"\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{\n${lines.join('\n')}\nreturn 0;\n}\n`,
    );
    const cc = spawnSync(
      process.env['CC'] ?? 'cc',
      ['-Wall', '-Wextra', '-Werror', '-pedantic', ...flags, '-I', join(tree, 'include'), '-o', program, source],
      { encoding: 'utf8' },
    );
    assert.equal(cc.status, 0, cc.stderr.slice(0, 3000));
    const measured = spawnSync(program, { encoding: 'utf8' }).stdout.trim().split('\n');
    t.diagnostic(`${measured.length} facts compared`);
    assert.ok(measured.length > 70);
    assert.deepEqual(measured, expected);
  });
}
