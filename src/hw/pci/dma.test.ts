import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DmaPort, noUpstream, READ, type Upstream } from './dma.ts';
import { TestMachine } from './test-machine.ts';

function port(machine: TestMachine): DmaPort {
  return new DmaPort(
    machine.memory,
    machine.upstream,
    () => 0x20,
    () => true,
  );
}

test('neighbouring pages are one copy, scattered pages are several, the bytes are the same', () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.nat(15), { minLength: 4, maxLength: 4 }),
      fc.nat(4095),
      fc.integer({ min: 1, max: 3 * 4096 }),
      (places, offset, length) => {
        const machine = new TestMachine();
        for (const [i, place] of places.entries()) machine.mapRam(0x100 + i, place, 1);
        const dma = port(machine);
        const data = Uint8Array.from({ length }, (_, i) => (i * 7 + 3) & 0xff);
        assert.equal(dma.write(0x100000 + offset, data), undefined);
        for (let i = 0; i < length; i++) {
          const at = places[(offset + i) >> 12]! * 4096 + ((offset + i) & 4095);
          assert.equal(machine.ram[at], data[i]);
        }
        const back = new Uint8Array(length);
        assert.equal(dma.read(BigInt(0x100000 + offset), back), undefined);
        assert.deepEqual(back, data);
      },
    ),
    { numRuns: 30 },
  );
});

test('of large leaves one page is asked for; bytes, faults and direct bytes are those of page by page', () => {
  const leaf = fc.record({ place: fc.nat(7), isThere: fc.boolean() });
  const range = fc.record({ start: fc.nat(20 * 4096), length: fc.integer({ min: 1, max: 12 * 4096 }) });
  fc.assert(
    fc.property(fc.array(leaf, { minLength: 5, maxLength: 5 }), range, (leaves, { start, length }) => {
      const answers = [false, true].map((hasReach) => {
        const machine = new TestMachine();
        for (const [i, { place, isThere }] of leaves.entries()) {
          if (isThere) machine.mapRam(0x100 + 4 * i, place * 4, 4);
        }
        machine.ram.forEach((_, i) => {
          machine.ram[i] = (i * 31) >> 5;
        });
        const { upstream } = machine;
        let asked = 0;
        const counting: Upstream = {
          translate: (rid, pasid, page, access) => {
            asked++;
            return upstream.translate(rid, pasid, page, access);
          },
          get why() {
            return upstream.why;
          },
          ...(hasReach && { reach: (_rid, _pasid, page) => 4 - (page % 4) }),
        };
        const dma = port(machine);
        dma.upstream = counting;
        const into = new Uint8Array(length);
        const read = dma.read(0x100000 + start, into);
        // Where one run ends the first page of the next is asked for twice.
        if (hasReach) assert.ok(asked <= 2 * Math.ceil(length / 16384) + 1, `${asked} questions`);
        const direct = dma.direct(0x100000 + start, length)?.slice();
        const write = dma.write(0x100000 + start, new Uint8Array(length).fill(9));
        return { read, into, direct, write, ram: machine.ram.slice() };
      });
      assert.deepEqual(answers[1], answers[0]);
    }),
    { numRuns: 40 },
  );
});

test('a fault names the first byte that cannot be reached; what comes before is done', () => {
  const machine = new TestMachine();
  machine.mapRam(0x10, 0, 2);
  const dma = port(machine);
  const fault = dma.write(0x11ff0, new Uint8Array(64).fill(0x77));
  assert.deepEqual(fault, { address: 0x12000n, access: 'write', reason: 'not present' });
  assert.equal(machine.ram[0x1fff], 0x77);
  machine.upstream.map(0x12, machine.ramPage + 8, READ);
  assert.equal(dma.write(0x12010, new Uint8Array(1))?.reason, 'no write permission');
  assert.equal(dma.read(0x12010, new Uint8Array(1)), undefined);
});

test('addresses at the top of 64 bits reach their own page and do not wrap', () => {
  const machine = new TestMachine();
  machine.mapRam(2 ** 52 - 1, 3, 1);
  const dma = port(machine);
  assert.equal(dma.write(0xffff_ffff_ffff_fffcn, Uint8Array.of(1, 2, 3, 4)), undefined);
  assert.deepEqual([...machine.ram.subarray(0x3ffc, 0x4000)], [1, 2, 3, 4]);
  assert.equal(dma.write(0xffff_ffff_ffff_fffcn, new Uint8Array(8))?.reason, 'not present');
});

test('PASID goes to the upstream; without an upstream addresses are physical; memory can be gone', () => {
  const machine = new TestMachine();
  machine.mapRam(1, 0, 1);
  const dma = port(machine);
  dma.read(0x1000, new Uint8Array(1), 77);
  assert.equal(machine.upstream.lastPasid, 77);
  dma.upstream = noUpstream;
  assert.equal(dma.write(machine.ramPage * 4096 + 5, Uint8Array.of(9)), undefined);
  assert.equal(machine.ram[5], 9);
  assert.deepEqual(dma.read(0x1000, new Uint8Array(1)), {
    address: 0x1000n,
    access: 'read',
    reason: 'memory has gone',
  });
  assert.equal(dma.read(0x1000, new Uint8Array(0)), undefined);
});
