/**
 * A unit whose memory is full of nonsense and whose registers are written at random: every request ends in an address or a fault that is
 * counted, nothing throws, nothing goes on for ever.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  BufferBacking,
  type Fault,
  IommuUnit,
  legacyContext,
  PhysicalMemory,
  type UnitPresetName,
} from '../../src/iommu.ts';

const PAGES = 64;
const STEPS = 60_000;

function randomNumbers(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

for (const [preset, seed] of [
  ['nested-sm', 1],
  ['legacy-nosc', 2],
  ['sm-noprs', 3],
] as [UnitPresetName, number][]) {
  test(`${preset}: ${STEPS} steps of nonsense`, { timeout: 60_000 }, () => {
    const random = randomNumbers(seed);
    const memory = new PhysicalMemory();
    const ramPage = memory.addBlock(new BufferBacking(PAGES * 4096));
    const unit = new IommuUnit('dmar0', { preset, memory });
    const { registers } = unit;
    const endpoint = { invalidate: () => random(4) !== 0, respond: () => {} };
    /** An entry that is often nearly right: a page of RAM, or of nowhere, with bits that mean something. */
    const entry = (): bigint => {
      const page = random(8) === 0 ? random(2 ** 30) : ramPage + random(PAGES);
      const high = random(16) === 0 ? BigInt(random(4096)) << 52n : 0n;
      const bits =
        random(3) === 0 ? random(4096) : [1, 3, 7, 0x27, 0x83, 0x87, 0x49, 0x89, 0xc9, 0x109, 0x1d][random(11)]!;
      return high | (BigInt(page) << 12n) | BigInt(bits);
    };
    const outcomes = new Map<string, number>();
    const rid = (): number => (random(4) === 0 ? random(65536) : random(3) << 3);
    const isScalable = preset !== 'legacy-nosc';
    /** Contexts and PASID entries are as they should be again; the tables that they point to are not. */
    const bind = (): void => {
      unit.requesters.root = { page: unit.root.page, isScalable, isInvalid: false };
      unit.setTranslating(true);
      unit.faults.clear();
      for (const requester of [0, 8, 16]) {
        unit.clearContext(requester);
        const stage = (): { page: number; levels: number } => ({ page: ramPage + random(4), levels: 4 });
        if (!isScalable) {
          unit.root.setLegacy(requester, legacyContext({ did: 5, secondStage: stage() }));
          continue;
        }
        const hasPageRequests = preset === 'nested-sm';
        unit.setRights(requester, { hasDeviceTlb: true, hasPasids: true, hasPageRequests }, 64);
        for (const pasid of [0, 1]) {
          const type = (['first', 'second', 'nested', 'pass-through'] as const)[random(4)]!;
          const firstStage = type === 'nested' ? { page: random(8), levels: 4 } : stage();
          const flags = { isWalkSnooped: random(4) !== 0, allowsExec: true, allowsSupervisor: true, hasSmep: true };
          const did = 5 + random(4);
          unit.setPasidEntry(requester, pasid, { type, did, firstStage, secondStage: stage(), ...flags });
        }
      }
    };
    for (let step = 0; step < STEPS; step++) {
      const kind = random(20);
      if (kind < 8) {
        const at = BigInt(ramPage + random(PAGES)) * 4096n + BigInt(random(random(2) === 0 ? 24 : 512) * 8);
        unit.memory.poke(at, entry());
      } else if (kind < 15) {
        const page = random(4) === 0 ? random(2 ** 30) * 2 ** 22 : random(2048);
        const pasid = random(3) - 1;
        unit.lastFault = undefined;
        const how = { pasid, exec: random(8) === 0, privileged: random(8) === 0, translated: random(16) === 0 };
        unit.request(rid(), page, random(2) === 0 ? 1 : 2, how);
        const fault = unit.lastFault as Fault | undefined;
        const outcome = fault === undefined ? 'done' : fault.reason.toString(16);
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      } else if (kind === 15) {
        unit.translationRequest(endpoint, rid(), random(2048), { pasid: random(3) - 1, write: random(2) === 0 });
      } else if (kind === 16) {
        const rest = { exec: false, privileged: false, last: random(2) === 0, group: random(512) };
        unit.pageRequest(endpoint, rid(), {
          pasid: random(3) - 1,
          page: random(2048),
          read: true,
          write: true,
          ...rest,
        });
        if (random(8) === 0) unit.takePageRequests();
      } else if (kind === 17) {
        registers.write32(random(1024) * 4, random(2 ** 32));
        assert.ok(registers.read32(random(1024) * 4) >= 0);
      } else if (kind === 18) {
        registers.write64(0x90, (BigInt(ramPage + random(PAGES)) << 12n) | BigInt(random(2) << 11));
        registers.write32(0x34, 0x72);
        registers.write32(0x18, 0xc400_0000);
        registers.write32(0x88, random(256) * 16);
      } else {
        bind();
      }
      assert.ok(unit.queue.tail === unit.queue.head || unit.queue.head < 2 ** 20);
    }
    assert.ok(outcomes.size > (isScalable ? 12 : 6), [...outcomes.keys()].sort().join(', '));
  });
}
