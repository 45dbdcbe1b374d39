import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { Tracepoint } from '../../lib/tracepoint.ts';
import { ioctlName } from './call-names.ts';
import { explain, TraceError, TraceFile } from './reporter.ts';

const folder = mkdtempSync(join(tmpdir(), 'vfiobox-test-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const record = {
  program: 'prog',
  pid: 42,
  call: 'ioctl',
  file: '/dev/vfio/3',
  details: 'VFIO_GROUP_SET_CONTAINER, 0x7ff0',
  result: -22,
  why: 'the descriptor is no container',
};

test('a refusal is one line: who, what, which errno, why', () => {
  assert.equal(
    explain(record),
    'vfiobox: prog[42] ioctl(/dev/vfio/3, VFIO_GROUP_SET_CONTAINER, 0x7ff0) = -1 EINVAL: the descriptor is no container\n',
  );
  assert.equal(
    explain({ ...record, call: 'readlink', details: '', why: undefined }),
    'vfiobox: prog[42] readlink(/dev/vfio/3) = -1 EINVAL: no reason was given\n',
  );
});

test('numbers that mean different calls on different files get their names', () => {
  assert.equal(ioctlName('container', 0x3b70), 'VFIO_IOMMU_GET_INFO');
  assert.equal(ioctlName('device', 0x3b70), 'VFIO_DEVICE_GET_PCI_HOT_RESET_INFO');
  assert.equal(ioctlName('iommufd', 0x3b85), 'IOMMU_IOAS_MAP');
  assert.equal(ioctlName('iommufd', 0x3b71), 'VFIO_IOMMU_MAP_DMA');
  assert.equal(ioctlName('group', 0x5401), '0x5401');
  assert.equal(ioctlName('', 0x3b64), '0x3b64');
});

test('the trace has calls and tracepoints in their order, one JSON object a line, 64-bit values in hexadecimal', () => {
  const path = join(folder, 'trace.jsonl');
  const point = new Tracepoint<{ iova: bigint; length: number }>('test:map');
  let now = 100;
  const trace = new TraceFile(path, () => now++);
  trace.start();
  trace.call({ ...record, result: 0, why: undefined });
  point.fire(() => ({ iova: 0xfee0_0000_0000_0000n, length: 4096 }));
  trace.call(record);
  trace.flush();
  trace.close();
  assert.equal(point.heard, false);
  trace.call(record);
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n');
  assert.deepEqual(
    lines.map((line) => JSON.parse(line)),
    [
      {
        t: 100,
        e: 'call',
        pid: 42,
        program: 'prog',
        call: 'ioctl',
        file: '/dev/vfio/3',
        details: record.details,
        result: 0,
      },
      { t: 101, e: 'test:map', iova: '0xfee0000000000000', length: 4096 },
      {
        t: 102,
        e: 'call',
        pid: 42,
        program: 'prog',
        call: 'ioctl',
        file: '/dev/vfio/3',
        details: record.details,
        result: -22,
        errno: 'EINVAL',
        why: record.why,
      },
    ],
  );
});

test('a trace that cannot be created or written says so once, with what to do', () => {
  assert.throws(() => new TraceFile(join(folder, 'none/x'), () => 0), {
    name: 'Error',
    message: /cannot write the trace to '.*none\/x': ENOENT; choose another file/,
  });
  const full = new TraceFile('/dev/full', () => 0);
  full.start();
  full.call(record);
  assert.throws(
    () => full.flush(),
    (error) => error instanceof TraceError && /disk is full/.test(error.message),
  );
  full.call(record);
  full.close();
});
