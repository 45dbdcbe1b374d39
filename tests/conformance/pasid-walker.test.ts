/** include/pasid-walker.h and src/uapi/pasid-walker.ts say the same, as the C compiler sees it. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import * as uapi from '../../src/uapi/pasid-walker.ts';
import { needs, provided, scratch, tree } from '../support/box.ts';

needs('cc');

const structures = [uapi.pasid_walker_bind, uapi.pasid_walker_walk, uapi.pasid_walker_status];

test('include/pasid-walker.h agrees with the tables: requests, sizes, offsets', { timeout: 60_000 }, (t) => {
  if (provided(t, 'cc') === undefined) return;
  const lines: string[] = [];
  const expected: string[] = [];
  for (const [name, value] of Object.entries(uapi)) {
    if (typeof value !== 'number') continue;
    lines.push(`printf("${name} %u\\n", (unsigned)${name});`);
    expected.push(`${name} ${value}`);
  }
  for (const structure of structures) {
    lines.push(`printf("${structure.name} %zu\\n", sizeof(struct ${structure.name}));`);
    expected.push(`${structure.name} ${structure.size}`);
    for (const [member, offset] of Object.entries(structure.offsets)) {
      lines.push(`printf("${member} %zu\\n", offsetof(struct ${structure.name}, ${member}));`);
      expected.push(`${member} ${offset}`);
    }
  }
  const program = join(scratch(t), 'layout');
  const source = `#include "pasid-walker.h"\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{\n${lines.join('\n')}\nreturn 0;\n}\n`;
  const args = ['-x', 'c', '-', '-I', join(tree, 'include'), '-o', program];
  execFileSync(process.env['CC'] ?? 'cc', args, { input: source });
  assert.deepEqual(execFileSync(program, { encoding: 'utf8' }).trim().split('\n'), expected);
});
