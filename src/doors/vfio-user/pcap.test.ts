import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PcapWriter } from './pcap.ts';

function collect(keep?: number): { writer: PcapWriter; file: () => Buffer } {
  const parts: Uint8Array[] = [];
  let time = 1_700_000_000_123_456_789n;
  const now = (): bigint => {
    time += 1_000_000_000n;
    return time;
  };
  const writer = new PcapWriter((bytes) => parts.push(bytes), keep === undefined ? { now } : { now, keep });
  return { writer, file: () => Buffer.concat(parts) };
}

test('the file header: nanoseconds, version 2.4, the private link type', () => {
  const file = collect().file();
  assert.equal(file.toString('hex'), '4d3cb2a10200040000000000000000000800010093000000');
});

test('a message with direction, descriptors and connection', () => {
  const { writer, file } = collect();
  writer.message('from-client', Uint8Array.of(1, 2, 3), 2);
  assert.equal(writer.nextConnection(), 1);
  writer.message('from-server', Uint8Array.of(4), 0);
  writer.message('from-client', new Uint8Array(), 0, 0);
  const packets = file().subarray(24);
  assert.equal(
    packets.toString('hex'),
    ['01f15365', '15cd5b07', '0b000000', '0b000000', '00', '00', '0200', '00000000', '010203'].join('') +
      ['02f15365', '15cd5b07', '09000000', '09000000', '00', '01', '0000', '01000000', '04'].join('') +
      ['03f15365', '15cd5b07', '08000000', '08000000', '00', '00', '0000', '00000000'].join(''),
  );
});

test('a long message is cut, and its length kept', () => {
  const { writer, file } = collect(16);
  writer.message('from-server', new Uint8Array(1000), 0);
  const packet = file().subarray(24);
  assert.equal(packet.length, 16 + 8 + 16);
  assert.equal(packet.readUInt32LE(8), 24);
  assert.equal(packet.readUInt32LE(12), 1008);
});

test('the bytes may change after the call', () => {
  const { writer, file } = collect();
  const bytes = Uint8Array.of(9);
  writer.message('from-client', bytes, 0);
  bytes[0] = 0;
  assert.equal(file().at(-1), 9);
});
