import assert from 'node:assert/strict';
import { test } from 'node:test';
import { READ } from '../pci/dma.ts';
import { encodeDescriptor } from './descriptors.ts';
import { legacyContext, pasidEntry, rootHalf, scalableContext } from './entries.ts';
import { Register } from './register-file.ts';
import { RID, TestUnit } from './test-unit.ts';

const TE = 0x8000_0000;
const SRTP = 0x4000_0000;
const QIE = 1 << 26;

function off(preset: 'nested-sm' | 'legacy-sc') {
  const machine = new TestUnit({ preset, isOff: true });
  const { registers } = machine.unit;
  const messages: string[] = [];
  registers.onMessage = (address, data) => messages.push(`${address.toString(16)} ${data}`);
  const put = (page: number, index: number, words: ArrayLike<number>): void => {
    for (let i = 0; i < words.length; i += 2) {
      machine.put(page, index + i / 2, (BigInt(words[i + 1]!) << 32n) | BigInt(words[i]!));
    }
  };
  return { machine, unit: machine.unit, registers, messages, put };
}

test('capabilities, version and what is not there', () => {
  const { unit, registers } = off('nested-sm');
  assert.equal(registers.read64(Register.CAP), unit.cap);
  assert.equal(registers.read64(Register.ECAP), unit.ecap);
  assert.equal(registers.read32(Register.VER), 0x60);
  assert.equal(registers.read32(Register.GCMD), 0);
  assert.deepEqual([registers.read32(0xf00), registers.read32(8192), registers.read32(-4)], [0, 0, 0]);
  registers.write64(Register.CAP, 0n);
  assert.equal(registers.read64(Register.CAP), unit.cap, 'read-only');
});

test('a driver brings a scalable unit up by registers alone: root table, queue, translation', () => {
  const { machine, unit, registers, put } = off('nested-sm');
  assert.equal(unit.translate(RID, -1, 5, READ), 5, 'off: addresses are physical');
  const [root, contexts, directory, table, leafPage, ring, status] = Array.from({ length: 7 }, () =>
    machine.page(),
  ) as [number, number, number, number, number, number, number];
  const top = machine.path(4, 5, (BigInt(leafPage) << 12n) | 3n, 3n)[0]!;
  put(root, 12, rootHalf(contexts));
  const rights = { hasDeviceTlb: true, hasPasids: true, hasPageRequests: true };
  put(contexts, (RID & 127) * 4, scalableContext({ ...rights, pdts: 2, directoryPage: directory }));
  put(directory, 0, rootHalf(table));
  put(table, 0, pasidEntry({ type: 'second', did: 5, secondStage: { page: top, levels: 4 }, isWalkSnooped: true }));
  registers.write64(Register.RTADDR, (BigInt(root) << 12n) | (1n << 10n));
  registers.write32(Register.GCMD, SRTP);
  registers.write64(Register.IQA, (BigInt(ring) << 12n) | 0x800n);
  registers.write32(Register.GCMD, QIE);
  registers.write32(Register.GCMD, QIE | TE);
  assert.equal(registers.read32(Register.GSTS), (TE | SRTP | QIE) >>> 0);
  assert.equal(unit.translate(RID, -1, 5, READ), leafPage);
  assert.equal(unit.translate(RID, -1, 6, READ), -1);
  put(ring, 0, encodeDescriptor({ kind: 'pasid-cache' }));
  put(ring, 4, encodeDescriptor({ kind: 'wait', status: { address: (BigInt(status) << 12n) + 4n, data: 9 } }));
  registers.write32(Register.IQT, 64);
  assert.deepEqual([registers.read32(Register.IQH), registers.read32(Register.IQT)], [64, 64]);
  assert.equal(machine.get(status, 0), 9n << 32n);
  registers.write32(Register.GCMD, QIE);
  assert.equal(unit.translate(RID, -1, 6, READ), 6, 'off again');
});

test('an unknown mode in RTADDR is a fault, not a guess', () => {
  const { unit, registers, machine } = off('legacy-sc');
  registers.write64(Register.RTADDR, (BigInt(machine.page()) << 12n) | (1n << 10n));
  registers.write32(Register.GCMD, SRTP | TE);
  assert.equal(unit.translate(RID, -1, 5, READ), -1);
  assert.equal(unit.lastFault!.reason, 0x30);
});

test('legacy: caches are invalidated by CCMD and the IOTLB registers, and say what they did', () => {
  const { machine, unit, registers, put } = off('legacy-sc');
  const [root, contexts, leafPage] = [machine.page(), machine.page(), machine.page()];
  const tables = machine.path(4, 5, (BigInt(leafPage) << 12n) | 3n, 3n);
  put(root, 12, rootHalf(contexts));
  put(contexts, (RID & 255) * 2, legacyContext({ did: 5, secondStage: { page: tables[0]!, levels: 4 } }));
  registers.write64(Register.RTADDR, BigInt(root) << 12n);
  registers.write32(Register.GCMD, SRTP | TE);
  const go = (): number => unit.translate(RID, -1, 5, READ);
  assert.equal(go(), leafPage);
  machine.put(tables[3]!, 5, 0n);
  assert.equal(go(), leafPage, 'stale');
  const iotlb = unit.capabilities.iotlbOffset;
  registers.write64(iotlb, 0x5000n);
  const page = 3n << 60n;
  registers.write64(iotlb + 8, (1n << 63n) | page | (6n << 32n));
  assert.equal(go(), leafPage, 'another domain');
  registers.write64(iotlb + 8, (1n << 63n) | page | (5n << 32n));
  assert.equal(registers.read64(iotlb + 8) >> 57n, 0b011011n, 'done, by page');
  assert.equal(go(), -1);
  put(contexts, (RID & 255) * 2, [0, 0, 0, 0]);
  assert.equal(go(), -1);
  assert.equal(unit.lastFault!.reason, 6);
  for (const granularity of [1n, 2n, 3n]) {
    put(contexts, (RID & 255) * 2, legacyContext({ did: 5, secondStage: undefined }));
    registers.write64(Register.CCMD, (1n << 63n) | (granularity << 61n) | (BigInt(RID) << 16n) | 5n);
    assert.equal(registers.read64(Register.CCMD) >> 59n, (granularity << 2n) | granularity);
    assert.equal(go(), 5);
  }
});

test('faults: records, status, event message, mask and pending', () => {
  const { machine, unit, registers, messages } = off('nested-sm');
  registers.write64(Register.RTADDR, (BigInt(machine.page()) << 12n) | (1n << 10n));
  registers.write32(Register.GCMD, SRTP | TE);
  registers.write32(Register.FECTL + 4, 0x41);
  registers.write32(Register.FECTL + 8, 0xfee0_0000);
  unit.translate(RID, -1, 5, READ);
  assert.deepEqual(messages, [], 'masked after power-on');
  assert.equal(registers.read32(Register.FECTL) >>> 0, 0xc000_0000);
  registers.write32(Register.FECTL, 0);
  assert.deepEqual(messages, ['fee00000 65']);
  unit.translate(RID, -1, 6, READ);
  assert.equal(messages.length, 2);
  assert.equal(registers.read32(Register.FSTS), 2);
  const record = unit.capabilities.faultRecordOffset;
  assert.equal(registers.read64(record), 0x5000n);
  assert.equal(registers.read64(record + 8), 0xc000_0039_0000_0669n);
  registers.write32(record + 12, 0x8000_0000);
  assert.equal(registers.read32(Register.FSTS), 0x102, 'the next one');
  for (let i = 0; i < 9; i++) unit.translate(RID, -1, i, READ);
  assert.equal(registers.read32(Register.FSTS) & 1, 1);
  registers.write32(Register.FSTS, 1);
  assert.equal(registers.read32(Register.FSTS) & 1, 0);
});

test('page requests: status, head, overflow', () => {
  const { machine, unit, registers, messages } = off('nested-sm');
  const on = new TestUnit();
  assert.equal(on.unit.registers.read32(Register.GSTS), (TE | SRTP) >>> 0, 'a unit that the kernel has set up');
  registers.write64(Register.PQA, BigInt(machine.page()) << 12n);
  registers.write32(Register.PECTL, 0);
  unit.devices.queue.push(RID, {
    pasid: 3,
    page: 5,
    read: true,
    write: false,
    exec: false,
    privileged: false,
    last: true,
    group: 1,
  });
  unit.devices.signal?.();
  assert.deepEqual([registers.read32(Register.PRS), registers.read32(Register.PQT), messages.length], [1, 32, 1]);
  registers.write32(Register.PQH, 32);
  registers.write32(Register.PRS, 1);
  assert.deepEqual([registers.read32(Register.PRS), registers.read32(Register.PQH)], [0, 32]);
});
