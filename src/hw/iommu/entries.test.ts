import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeDescriptor, encodeDescriptor, type Invalidation } from './descriptors.ts';
import {
  legacyContext,
  pasidEntry,
  pasidIndexes,
  readLegacyContext,
  readPasidEntry,
  readScalableContext,
  scalableContext,
} from './entries.ts';
import { coveringBlock } from './invalidation.ts';
import { decodePageRequest, encodePageRequest } from './page-request-queue.ts';

const qwords = (words: Uint32Array): bigint[] => {
  const found: bigint[] = [];
  for (let i = 0; i < words.length; i += 2) found.push((BigInt(words[i + 1]!) << 32n) | BigInt(words[i]!));
  return found;
};

test('I-93: legacy context entries, byte for byte', () => {
  const secondStage = { page: 1, levels: 4 };
  assert.deepEqual(qwords(legacyContext({ secondStage, did: 5 })), [0x1001n, 0x502n]);
  assert.deepEqual(qwords(legacyContext({ secondStage, did: 5, hasDeviceTlb: true })), [0x1005n, 0x502n]);
  const words = legacyContext({ secondStage: undefined, did: 1, isFaultRecordingOff: true });
  assert.deepEqual(readLegacyContext(words), {
    secondStage: undefined,
    did: 1,
    isFaultRecordingOff: true,
    hasDeviceTlb: false,
  });
});

test('I-94: PASID entries, byte for byte', () => {
  const secondStage = { page: 5, levels: 4 };
  const second = { type: 'second', did: 7, secondStage } as const;
  assert.deepEqual(qwords(pasidEntry(second)).slice(0, 3), [0x5089n, 0x7n, 0n]);
  assert.deepEqual(qwords(pasidEntry({ ...second, isWalkSnooped: true })).slice(0, 2), [0x5089n, 0x80_0007n]);
  assert.equal(qwords(pasidEntry({ ...second, hasSecondStageDirty: true }))[0], 0x5289n);
  const first = { type: 'first', did: 7, firstStage: { page: 5, levels: 4 }, isWalkSnooped: true } as const;
  assert.deepEqual(qwords(pasidEntry(first)), [0x49n, 0x80_0007n, 0x5000n, 0n, 0n, 0n, 0n, 0n]);
  assert.equal(qwords(pasidEntry({ ...first, isPageSnooped: true }))[1], 0x180_0007n);
});

test('I-95: where a PASID is found', () => {
  assert.deepEqual(pasidIndexes(0x12345), { directory: 0x48d, table: 5 });
});

test('I-96: invalidation descriptors, byte for byte', () => {
  const pages = { firstPage: 0x200, order: 9 };
  assert.deepEqual(qwords(encodeDescriptor({ kind: 'iotlb', did: 7, pages })), [0x700f2n, 0x20_0009n]);
  const status = { address: 0x1234_5678_9000n, data: 2 };
  assert.deepEqual(qwords(encodeDescriptor({ kind: 'wait', status })), [0x2_0000_0025n, 0x1234_5678_9000n]);
});

test('I-97: a range becomes a base and an order', () => {
  assert.deepEqual(coveringBlock(5, 7), { firstPage: 4, order: 2 });
});

test('what software writes into an entry is what hardware reads', () => {
  const context = {
    isFaultRecordingOff: true,
    hasDeviceTlb: true,
    hasPasids: true,
    hasPageRequests: true,
    pdts: 7,
    directoryPage: 2 ** 40 - 1,
    ridPasid: 0xf_ffff,
  };
  assert.deepEqual(readScalableContext(scalableContext(context)), context);
  const entry = {
    type: 'nested',
    did: 0xffff,
    isFaultRecordingOff: true,
    secondStage: { page: 2 ** 40 - 1, levels: 5 },
    firstStage: { page: 2 ** 39 + 1, levels: 5 },
    hasSecondStageDirty: true,
    isWalkSnooped: true,
    isPageSnooped: true,
    allowsSupervisor: true,
    allowsExec: true,
    isWriteProtected: true,
    hasNoExecute: true,
    hasSmep: true,
    hasExtendedAccessed: true,
  } as const;
  assert.deepEqual(readPasidEntry(pasidEntry(entry)), entry);
});

test('every reserved bit of an entry is noticed', () => {
  const stages = { secondStage: { page: 5, levels: 4 }, firstStage: { page: 6, levels: 4 } };
  const whole = pasidEntry({ type: 'nested', did: 7, ...stages });
  const reserved: number[] = [];
  for (let bit = 0; bit < 512; bit++) {
    const words = whole.slice();
    words[bit >> 5]! |= 1 << (bit & 31);
    if (readPasidEntry(words) === 'reserved') reserved.push(bit);
  }
  const range = (first: number, last: number): number[] =>
    Array.from({ length: last - first + 1 }, (_, i) => first + i);
  assert.deepEqual(reserved, [
    ...[5, 10, 11],
    ...range(52, 63),
    ...range(80, 86),
    ...range(89, 127),
    ...range(136, 139),
    ...range(180, 511),
  ]);
});

test('every descriptor says what it was made to say, and a bit too many makes it malformed', () => {
  const pages = { firstPage: 0xabc00, order: 9 };
  const all: Invalidation[] = [
    { kind: 'context' },
    { kind: 'context', did: 9 },
    { kind: 'context', did: 0, rid: 0x669 },
    { kind: 'iotlb' },
    { kind: 'iotlb', did: 9 },
    { kind: 'iotlb', did: 9, pages },
    { kind: 'device-tlb', rid: 0x669, pages: { firstPage: 5, order: 0 } },
    { kind: 'device-tlb', rid: 0x669, pages },
    { kind: 'device-tlb', rid: 0x669, pages: { firstPage: 0, order: 52 } },
    { kind: 'interrupt-entry' },
    { kind: 'interrupt-entry', index: 0x1200, order: 4 },
    { kind: 'wait', isFence: true, drains: true, interrupts: false, status: { address: 0x9_0000_0004n, data: 2 } },
    { kind: 'pasid-iotlb', did: 9, pasid: 0x12345 },
    { kind: 'pasid-iotlb', did: 9, pasid: 0x12345, pages },
    { kind: 'pasid-cache' },
    { kind: 'pasid-cache', did: 9 },
    { kind: 'pasid-cache', did: 9, pasid: 0x12345 },
    { kind: 'pasid-device-tlb', rid: 0x669, pasid: 0x12345, isAllPasids: false, pages },
    { kind: 'response', rid: 0x669, pasid: -1, group: 511, code: 'failure' },
    { kind: 'response', rid: 0x669, pasid: 5, group: 0, code: 'invalid' },
  ];
  for (const what of all) assert.deepEqual(decodeDescriptor(encodeDescriptor(what)), what);
  assert.equal(decodeDescriptor(Uint32Array.of(0, 0, 0, 0)), undefined);
  assert.equal(decodeDescriptor(Uint32Array.of(10, 0, 0, 0)), undefined);
  assert.equal(decodeDescriptor(Uint32Array.of(0x101, 0, 0, 0)), undefined);
  assert.equal(decodeDescriptor(Uint32Array.of(0x2009, 0, 0, 0)), undefined, 'a response code that there is not');
});

test('page requests lie in the queue bit by bit', () => {
  const request = {
    pasid: 0x12345,
    page: 2 ** 52 - 3,
    read: true,
    write: false,
    exec: true,
    privileged: false,
    last: true,
    group: 0x1ff,
  };
  const words = encodePageRequest(0x669, request);
  assert.deepEqual(qwords(words), [0x11_2345_0669_0101n, 0xffff_ffff_ffff_dffdn, 0n, 0n]);
  assert.deepEqual(decodePageRequest(words), { ...request, rid: 0x669 });
});
