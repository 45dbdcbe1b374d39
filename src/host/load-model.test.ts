import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { privateShared } from '../hw/memory/backing.ts';
import { ManualClock } from '../hw/pci/clock.ts';
import { TestHost } from '../hw/pci/kit/test-host.ts';
import { HostFileError, isModelFile, loadHost } from './host-file.ts';
import { loadModel } from './load-model.ts';
import { Machine } from './machine.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-model-'));
after(() => rmSync(folder, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

const device = (parts: string): string =>
  `import { device, memoryBar, msi, register, vendorSpecific } from 'vfiobox/device';
   export default device({ name: 'mine', vendor: 1, device: 2, class24: 0xff0000, build: () => (${parts}) });`;

test('a TypeScript file with types and an import of its own becomes a model', () => {
  file('registers.ts', 'export const answer: number = 42;');
  const path = file(
    'mine.ts',
    `import { device, memoryBar, register, type DeviceModel } from 'vfiobox/device';
     import { answer } from './registers.ts';
     const model: DeviceModel = device({
       name: 'mine', vendor: 0x1234, device: 0x5678, class24: 0xff0000,
       build: () => ({ bars: [memoryBar({ index: 0, size: 16, registers: [register({ at: 0, reset: answer as number })] })] }),
     });
     export default model;`,
  );
  const host = new TestHost(loadModel(path));
  assert.equal(host.read(0, 0), 42);
});

test('JavaScript, as module and as script', () => {
  assert.equal(loadModel(file('a.mjs', device('{}'))).name, 'mine');
  assert.equal(
    loadModel(
      file(
        'b.cjs',
        "module.exports.default = require('vfiobox/device').device({name:'b',vendor:1,device:2,class24:3,build:()=>({})})",
      ),
    ).name,
    'b',
  );
  assert.deepEqual(['x.ts', 'x.js', 'edu', 'root-port', 'a.json'].map(isModelFile), [true, true, false, false, false]);
});

test('a file that cannot be a model is refused in one line that says why', () => {
  const cases: [string, RegExp][] = [
    [join(folder, 'missing.ts'), /^there is no model file .*missing\.ts$/],
    [file('text.json', '{}'), /must end in \.ts/],
    [file('broken.ts', 'export default {\n  a: ,\n}'), /broken\.ts is not valid: .*broken\.ts:2: Unexpected ","$/],
    [
      file('import.ts', "import './nowhere.ts'; export default 1"),
      /is not valid: .*Could not resolve "\.\/nowhere\.ts"$/,
    ],
    [file('throws.ts', "throw new Error('no luck\\ntoday')"), /throws when it is loaded: no luck$/],
    [file('nothing.ts', 'export const a = 1;'), /must have a device as its default export/],
    [
      file('identity.ts', device('{}').replace('vendor: 1', 'vendor: 70000')),
      /vendor of device 'mine' must be a number of 16 bits/,
    ],
  ];
  for (const [path, why] of cases) {
    assert.throws(
      () => loadModel(path),
      (error: Error) => error instanceof HostFileError && why.test(error.message) && !error.message.includes('\n'),
      path,
    );
  }
});

test('a host file names a model by its path, seen from the host file', () => {
  const host = (model: string): string =>
    file(
      'host.json',
      JSON.stringify({ name: 'h', iommu: { units: [] }, functions: [{ at: '00:05.0', model, options: {} }] }),
    );
  const build = (): Machine =>
    new Machine(loadHost(host('./mine2.ts')), {
      clock: new ManualClock(),
      allocateShared: privateShared,
      log: () => {},
    });
  file('mine2.ts', device('{}'));
  assert.equal(build().functions()[0]!.vendor, 1);
  for (const [parts, why] of [
    ['{ bars: [memoryBar({ index: 0, size: 100 })] }', /BAR 0 of 0x64 bytes is not a power of two/],
    [
      '{ capabilities: [msi({ vectors: 1, at: 0x40 }), vendorSpecific(new Uint8Array(9), { at: 0x44 })] }',
      /cannot be at 0x44/,
    ],
    ["(() => { throw new Error('no\\nmore') })()", /: no$/],
  ] as const) {
    file('mine2.ts', device(parts));
    assert.throws(build, (error: Error) => {
      assert.match(error.message, why);
      assert.match(error.message, /^at functions\[0\] \(00:05\.0, .*mine2\.ts\): /);
      return error instanceof HostFileError && !error.message.includes('\n');
    });
  }
  assert.throws(
    () =>
      new Machine(loadHost(host('./none.ts')), {
        clock: new ManualClock(),
        allocateShared: privateShared,
        log: () => {},
      }),
    /^HostFileError|there is no model file/,
  );
});
