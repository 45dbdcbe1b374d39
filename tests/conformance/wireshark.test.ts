/** tools/wireshark/vfio-user.lua, read by Debian's tshark, on a conversation with every command in it. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Direction, PcapWriter } from '../../src/doors/vfio-user/pcap.ts';
import { needs, provided, run, scratch, tree } from '../support/box.ts';

needs('tshark');

const REPLY = 1;
const NO_REPLY = 0x10;
const ERROR = 0x20;

/** Little-endian words: [bytes, value]. */
function words(...list: readonly (readonly [number, number | bigint])[]): Buffer {
  return Buffer.concat(
    list.map(([size, value]) => {
      const word = Buffer.alloc(8);
      word.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
      return word.subarray(0, size);
    }),
  );
}
const u32s = (...values: readonly number[]): Buffer => words(...values.map((value) => [4, value] as const));
const u64s = (...values: readonly (number | bigint)[]): Buffer => words(...values.map((value) => [8, value] as const));

function message(id: number, cmd: number, flags: number, payload: Uint8Array = Buffer.alloc(0), error = 0): Buffer {
  const header = words([2, id], [2, cmd], [4, 16 + payload.length], [4, flags], [4, error]);
  return Buffer.concat([header, payload]);
}

interface Step {
  from: Direction;
  bytes: Buffer;
  fds?: number;
  connection?: number;
  /** What the summary says. */
  info: string;
}

const client = (bytes: Buffer, info: string, fds = 0): Step => ({ from: 'from-client', bytes, info, fds });
const server = (bytes: Buffer, info: string, fds = 0): Step => ({ from: 'from-server', bytes, info, fds });

const json = '{"capabilities": {"max_msg_fds": 16, "migration": {"pgsize": 4096}, "write_multiple": true}}\0';
const version = Buffer.concat([words([2, 0], [2, 1]), Buffer.from(json)]);
const map = Buffer.concat([u32s(32, 3), u64s(0x1000, 0xfffff00000000000n, 0x2000_0000)]);
const unmap = Buffer.concat([u32s(24, 0), u64s(0xfef0_0000, 0xffff_ffff_0110_0000n)]);
const region = Buffer.concat([u32s(64, 15, 2, 32), u64s(0x10000, 0), u32s(0x1_0001, 0, 1, 0), u64s(0x1000, 0x2000)]);
const access = (offset: number, index: number, count: number): Buffer =>
  Buffer.concat([u64s(offset), u32s(index, count)]);
const ioFd = Buffer.concat([u64s(0x40, 4), u32s(0, 0, 0, 0), u64s(7)]);

const steps: readonly Step[] = [
  client(message(0, 1, 0, version), 'VERSION 0.1'),
  server(message(0, 1, REPLY, version), 'VERSION reply 0.1'),
  client(message(1, 2, 0, map), 'DMA_MAP 0xfffff00000000000+0x20000000 rw [1 fd]', 1),
  server(message(1, 2, REPLY), 'DMA_MAP reply'),
  client(message(2, 3, 0, unmap), 'DMA_UNMAP 0xfef00000+0xffffffff01100000'),
  server(message(2, 3, REPLY | ERROR, undefined, 2), 'DMA_UNMAP reply ENOENT'),
  client(message(3, 4, 0, u32s(16, 0, 0, 0)), 'DEVICE_GET_INFO'),
  server(message(3, 4, REPLY, u32s(16, 3, 9, 5)), 'DEVICE_GET_INFO reply 9 regions, 5 interrupt indexes'),
  client(message(4, 5, 0, Buffer.concat([u32s(64, 0, 2, 0), u64s(0, 0)])), 'DEVICE_GET_REGION_INFO BAR2'),
  server(message(4, 5, REPLY, region), 'DEVICE_GET_REGION_INFO reply BAR2 size 0x10000 [1 fd]', 1),
  client(message(5, 6, 0, u32s(64, 0, 0, 0)), 'DEVICE_GET_REGION_IO_FDS BAR0'),
  server(
    message(5, 6, REPLY, Buffer.concat([u32s(56, 0, 0, 1), ioFd])),
    'DEVICE_GET_REGION_IO_FDS reply BAR0 [1 fd]',
    1,
  ),
  client(message(6, 7, 0, u32s(16, 0, 2, 0)), 'DEVICE_GET_IRQ_INFO MSIX'),
  server(message(6, 7, REPLY, u32s(16, 9, 2, 8)), 'DEVICE_GET_IRQ_INFO reply MSIX count 8'),
  client(message(7, 8, 0, u32s(20, 0x24, 2, 3, 1)), 'DEVICE_SET_IRQS MSIX EVENTFD|TRIGGER start 3 count 1 [1 fd]', 1),
  server(message(7, 8, REPLY), 'DEVICE_SET_IRQS reply'),
  client(message(8, 9, 0, access(4, 7, 2)), 'REGION_READ CONFIG+0x4 2 B'),
  // The server asks with the same id and another command before it answers.
  server(message(8, 11, 0, u64s(0x1000, 4)), 'DMA_READ 0x1000 4 B'),
  client(message(8, 11, REPLY, Buffer.concat([u64s(0x1000, 4), u32s(0xcafe)])), 'DMA_READ reply 0x1000 4 B = 0xcafe'),
  server(
    message(8, 9, REPLY, Buffer.concat([access(4, 7, 2), words([2, 0x407])])),
    'REGION_READ reply CONFIG+0x4 2 B = 0x407',
  ),
  client(
    message(9, 10, NO_REPLY, Buffer.concat([access(0x40, 0, 8), u64s(0x1122334455667788n)])),
    'REGION_WRITE BAR0+0x40 8 B = 0x1122334455667788 (posted)',
  ),
  server(message(9, 12, 0, Buffer.concat([u64s(0x2000, 3), Buffer.from('abc')])), 'DMA_WRITE 0x2000 3 B'),
  client(message(9, 12, REPLY | ERROR, undefined, 19), 'DMA_WRITE reply ENODEV'),
  client(message(10, 13, 0), 'DEVICE_RESET'),
  server(message(10, 13, REPLY), 'DEVICE_RESET reply'),
  client(message(11, 15, 0, Buffer.concat([u64s(1), access(8, 1, 4), u64s(5)])), 'REGION_WRITE_MULTI 1 writes'),
  server(message(11, 15, REPLY, u64s(1)), 'REGION_WRITE_MULTI reply 1 done'),
  client(message(12, 16, 0, u32s(16, 0x20002, 2, -1)), 'DEVICE_FEATURE MIG_DEVICE_STATE SET RUNNING'),
  server(message(12, 16, REPLY, u32s(16, 0x20002, 2, -1)), 'DEVICE_FEATURE reply MIG_DEVICE_STATE SET RUNNING'),
  client(message(13, 17, 0, u32s(8, 100)), 'MIG_DATA_READ 100 B'),
  server(message(13, 17, REPLY, Buffer.concat([u32s(11, 3), Buffer.from('xyz')])), 'MIG_DATA_READ reply 3 B'),
  client(message(14, 18, 0, Buffer.concat([u32s(11, 3), Buffer.from('xyz')])), 'MIG_DATA_WRITE 3 B'),
  server(message(14, 18, REPLY), 'MIG_DATA_WRITE reply'),
  // Not as they should be: a short payload, a command that is not there, a reply to nothing, half a header.
  client(message(15, 2, 0, u32s(1)), 'DMA_MAP (short)'),
  server(message(15, 2, REPLY | ERROR, undefined, 22), 'DMA_MAP reply EINVAL'),
  client(message(16, 99, 0, u32s(1)), 'command 99'),
  server(message(17, 9, REPLY, access(0, 0, 0)), 'REGION_READ reply BAR0+0x0 0 B'),
  client(Buffer.from([1, 2, 3]), 'message without a whole header'),
  // Two requests with one id, answered in order.
  client(message(18, 13, 0), 'DEVICE_RESET'),
  client(message(18, 13, 0), 'DEVICE_RESET'),
  server(message(18, 13, REPLY), 'DEVICE_RESET reply'),
  server(message(18, 13, REPLY), 'DEVICE_RESET reply'),
];

const columns = [
  'frame.number',
  '_ws.col.Info',
  'vfio_user.response_to',
  'vfio_user.response_in',
  'vfio_user.no_response',
  'vfio_user.time',
  '_ws.expert.message',
  '_ws.malformed',
];

function capture(t: TestContext): string {
  const parts: Uint8Array[] = [];
  let time = 1_700_000_000_000_000_000n;
  const writer = new PcapWriter((bytes) => parts.push(bytes), {
    now: () => {
      time += 1000n;
      return time;
    },
  });
  for (const { from, bytes, fds } of steps) writer.message(from, bytes, fds ?? 0);
  // The same requests on a second connection stay open.
  writer.nextConnection();
  writer.message('from-client', message(10, 13, 0), 0);
  const file = join(scratch(t), 'talk.pcap');
  writeFileSync(file, Buffer.concat(parts));
  return file;
}

function tshark(folder: string, file: string, args: readonly string[]): ReturnType<typeof run> {
  const script = `lua_script:${join(tree, 'tools/wireshark/vfio-user.lua')}`;
  return run([join(folder, 'bin/tshark'), '-X', script, '-2', '-r', file, ...args], {
    timeout: 60_000,
    limit: 64 << 20,
  });
}

test('tshark names every message and joins replies to their requests', { timeout: 120_000 }, async (t) => {
  const folder = provided(t, 'tshark');
  if (folder === undefined) return;
  const file = capture(t);
  const outcome = await tshark(folder, file, [
    '-T',
    'fields',
    '-E',
    'separator=|',
    ...columns.flatMap((c) => ['-e', c]),
  ]);
  assert.equal(outcome.status, 0, outcome.story);
  assert.doesNotMatch(outcome.stderr, /lua|error/i, outcome.story);
  const rows = outcome.stdout
    .trimEnd()
    .split('\n')
    .map((line) => line.replaceAll('EVENTFD|TRIGGER', 'EVENTFD/TRIGGER').split('|'));
  assert.deepEqual(
    rows.map((row) => row[1]),
    [...steps.map(({ info }) => info.replace('EVENTFD|TRIGGER', 'EVENTFD/TRIGGER')), 'DEVICE_RESET'],
    outcome.story,
  );
  assert.deepEqual(
    rows.map((row) => row[7]).filter((text) => text !== ''),
    [],
    'a message that tshark finds malformed',
  );
  const replies = new Map(rows.filter((row) => row[2] !== '').map((row) => [Number(row[0]), Number(row[2])]));
  // 17 asks, 18 is the server's question within it.
  assert.deepEqual([replies.get(19), replies.get(20)], [18, 17]);
  assert.deepEqual([replies.get(40), replies.get(41)], [undefined, 39]);
  assert.equal(replies.get(42), 40);
  const asked = new Map(rows.filter((row) => row[3] !== '').map((row) => [Number(row[3]), Number(row[0])]));
  assert.deepEqual(new Map([...asked].sort(([a], [b]) => a - b)), replies);
  assert.deepEqual(
    rows.filter((row) => row[4] !== '').map((row) => Number(row[0])),
    [36, 43],
  );
  assert.equal(rows[19]?.[5], '0.000003000');
  t.diagnostic(`${rows.length} messages, ${replies.size} replies matched`);
});

test('what the structures hold: JSON of VERSION, flags by name, mappable areas', { timeout: 120_000 }, async (t) => {
  const folder = provided(t, 'tshark');
  if (folder === undefined) return;
  const outcome = await tshark(folder, capture(t), ['-V']);
  assert.equal(outcome.status, 0, outcome.story);
  for (const line of [
    /Capability: max_msg_fds: 16$/m,
    /Capability: migration\.pgsize: 4096$/m,
    /Capability: write_multiple: true$/m,
    /= Readable: True$/m,
    /= Access by mmap: False$/m,
    /Region: BAR2 \(2\)$/m,
    /Capability: SPARSE_MMAP \(1\)$/m,
    /Offset: 0x0*1000$/m,
    /Type: ioeventfd \(0\)$/m,
    /State: RUNNING \(2\)$/m,
    /Error number: ENODEV \(19\)$/m,
    /Expert Info .*: Reply to nothing\]?/m,
    /Sender: server \(1\)$/m,
  ]) {
    assert.match(outcome.stdout, line);
  }
  assert.doesNotMatch(outcome.stdout, /Lua Error/);
});

test('messages of any bytes are no trouble for it', { timeout: 120_000 }, async (t) => {
  const folder = provided(t, 'tshark');
  if (folder === undefined) return;
  let state = 1;
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const parts: Uint8Array[] = [];
  const writer = new PcapWriter((bytes) => parts.push(bytes), { keep: 100 });
  for (let i = 0; i < 3000; i++) {
    const payload = Uint8Array.from({ length: random(120) }, () => (random(3) === 0 ? random(256) : random(4)));
    const bytes = message(random(3), random(20), random(2) | (random(8) === 0 ? ERROR : 0), payload, random(120));
    writer.message(
      random(2) ? 'from-client' : 'from-server',
      random(9) ? bytes : bytes.subarray(0, random(40)),
      random(3),
    );
  }
  const file = join(scratch(t), 'noise.pcap');
  writeFileSync(file, Buffer.concat(parts));
  const outcome = await tshark(folder, file, ['-V']);
  assert.equal(outcome.status, 0, outcome.story);
  assert.equal(outcome.stdout.match(/^Frame \d+:/gm)?.length, 3000);
  assert.deepEqual(outcome.stdout.match(/.*(Lua Error|Malformed Packet).*/g)?.slice(0, 3) ?? [], []);
});
