// Tests native/ alone, without the TypeScript half: the decoder against the processor, then exercise.c against stub_box.py
// with paths rewritten and through the launcher.   node tests/support/native/check.mjs
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const top = join(here, '../../..');
const folder = mkdtempSync(join(tmpdir(), 'vfiobox-native-'));
const exercise = join(folder, 'exercise');
const runs = [
  ['decoder', process.execPath, [join(top, 'scripts/build-native.mjs'), '--test']],
  [
    'compile',
    process.env.CC ?? 'cc',
    ['-O1', '-g', '-Wall', '-Wextra', '-pthread', '-o', exercise, join(here, 'exercise.c')],
  ],
  ['paths rewritten', 'python3', [join(here, 'stub_box.py'), '--', exercise]],
  [
    'through the launcher, mounted where allowed',
    'python3',
    [join(here, 'stub_box.py'), '--launch', 'auto', '--', exercise],
  ],
];
let failed = 0;
for (const [name, command, args] of runs) {
  const ran = spawnSync(command, args, { encoding: 'utf8' });
  const isGood = ran.status === 0;
  if (!isGood) failed++;
  const text = `${ran.stdout}${ran.stderr}${ran.error ?? ''}`.trimEnd();
  console.log(`== ${name}: ${isGood ? text.split('\n').at(-1) || 'ok' : `FAILED\n${text}`}`);
}
rmSync(folder, { recursive: true });
process.exit(failed ? 1 : 0);
