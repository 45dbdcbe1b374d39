import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { VFIO_USER_REGION_WRITE, VFIO_USER_VERSION } from '../../uapi/vfio-user.ts';
import { bufferLength, encodeMessage, MessageStream, ProtocolError } from './codec.ts';

const limits = { maxMsgFds: 2, maxDataXferSize: 256 };
const stream = (): MessageStream => new MessageStream(new Uint8Array(bufferLength(limits)), limits);

function take(from: MessageStream): { id: number; payload: string; descriptors: number[]; surplus: boolean }[] {
  const all = [];
  for (let message = from.next(); message !== undefined; message = from.next()) {
    const { id, payload, descriptors, hasSurplus } = message;
    all.push({
      id,
      payload: Buffer.from(payload).toString('hex'),
      descriptors: [...descriptors],
      surplus: hasSurplus,
    });
  }
  return all;
}

test('messages come out as they went in, however the stream is cut', () => {
  const message = fc.record({ id: fc.nat(0xffff), payload: fc.uint8Array({ maxLength: 200 }) });
  fc.assert(
    fc.property(
      fc.array(message, { maxLength: 20 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 90 })),
      (sent, cuts) => {
        const bytes = Buffer.concat(
          sent.map(({ id, payload }) => encodeMessage({ id, command: VFIO_USER_REGION_WRITE }, payload)),
        );
        const reader = stream();
        const got = [];
        for (let at = 0; at < bytes.length; ) {
          const length = Math.min(cuts.next().value, bytes.length - at);
          reader.push(bytes.subarray(at, at + length));
          at += length;
          got.push(...take(reader));
        }
        assert.deepEqual(
          got.map(({ id, payload }) => ({ id, payload })),
          sent.map(({ id, payload }) => ({ id, payload: Buffer.from(payload).toString('hex') })),
        );
        assert.equal(reader.isWithinMessage, false);
      },
    ),
    { numRuns: 100 },
  );
});

test('descriptors belong to the message that their piece ends in', () => {
  const reader = stream();
  const first = encodeMessage({ id: 1, command: 9 }, new Uint8Array(16));
  const second = encodeMessage({ id: 2, command: 2 }, new Uint8Array(32));
  reader.push(Buffer.concat([first, second.subarray(0, 20)]), [7]);
  reader.push(Buffer.concat([second.subarray(20), first]));
  assert.deepEqual(
    take(reader).map(({ id, descriptors }) => [id, descriptors]),
    [
      [1, []],
      [2, [7]],
      [1, []],
    ],
  );
});

test('descriptors beyond the limit are given back, also when they dribble in', () => {
  const reader = stream();
  const message = encodeMessage({ id: 1, command: 2 }, new Uint8Array(32));
  reader.push(message.subarray(0, 10), [3, 4]);
  reader.push(message.subarray(10, 20), [5]);
  reader.push(message.subarray(20), [6]);
  assert.deepEqual(reader.takeSurplus(), [5, 6]);
  assert.deepEqual(take(reader), [{ id: 1, payload: '00'.repeat(32), descriptors: [3, 4], surplus: true }]);
  reader.push(message, [8]);
  assert.deepEqual(take(reader)[0]?.descriptors, [8]);
  reader.push(message.subarray(0, 4), [9]);
  assert.deepEqual(reader.takeAll(), [9]);
});

test('sizes that cannot be are the end of the stream', () => {
  for (const size of [0, 15, 16 + 4 + 256 + 1, 0xffff_ffff]) {
    const bytes = encodeMessage({ id: 1, command: VFIO_USER_VERSION });
    new DataView(bytes.buffer).setUint32(4, size, true);
    const reader = stream();
    reader.push(bytes);
    assert.throws(() => reader.next(), ProtocolError);
  }
  const reader = stream();
  reader.push(encodeMessage({ id: 1, command: 9, flags: 2 }));
  assert.throws(() => reader.next(), ProtocolError);
});

test('U-54: random bytes give messages, wait for more, or end the stream; nothing else', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 64 }), { maxLength: 8 }), (pieces) => {
      const reader = stream();
      try {
        for (const piece of pieces) {
          reader.push(piece, piece.length % 3 === 0 ? [1] : []);
          take(reader);
        }
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
      }
    }),
    { numRuns: 300 },
  );
});

test('a payload stays where it is when the stream goes on in another buffer', () => {
  const reader = stream();
  reader.push(
    Buffer.concat([
      encodeMessage({ id: 1, command: 10 }, Uint8Array.of(1, 2, 3)),
      encodeMessage({ id: 2, command: 10 }, Uint8Array.of(4)).subarray(0, 8),
    ]),
  );
  const first = reader.next()!;
  reader.moveTo(new Uint8Array(bufferLength(limits)));
  reader.push(encodeMessage({ id: 2, command: 10 }, Uint8Array.of(4)).subarray(8));
  assert.deepEqual([...reader.next()!.payload], [4]);
  assert.deepEqual([...first.payload], [1, 2, 3]);
});
