/** Virtual machines and interrupt entries by the thousand. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { closeInAnyOrder } from '../../src/host/test-kvm.ts';
import { PhysicalMemory } from '../../src/hw/memory/physical-memory.ts';
import { HostInterrupts } from '../../src/kernel/core/host-interrupts.ts';
import { refusal } from '../../src/kernel/core/test-task.ts';
import { IrqRemapping, type RemappedIrq } from '../../src/kernel/iommu/irq-remapping.ts';
import { endpoint, IommuMachine } from '../../src/kernel/iommu/test-machine.ts';

test('K-70: 250 machines whose files are closed in any order leave nothing', { timeout: 120_000 }, () => {
  for (const seed of [1, 2, 3, 4, 5]) closeInAnyOrder(50, seed);
});

test('a table of 65,536 entries fills up to ENOSPC, also in blocks, and empties', { timeout: 60_000 }, () => {
  const machine = new IommuMachine();
  const fn = machine.add(endpoint(true), '03.0');
  machine.boot();
  const interrupts = new HostInterrupts();
  const table = new IrqRemapping(machine.unit, new PhysicalMemory(), interrupts);
  for (const size of [1, 32, 3]) {
    const all: RemappedIrq[] = [];
    const handlers = Array.from({ length: size }, () => () => {});
    assert.equal(
      refusal(() => {
        for (;;) all.push(...table.allocate(fn, handlers));
      }),
      'ENOSPC',
    );
    const blocks = 65536 / 2 ** Math.ceil(Math.log2(size));
    assert.deepEqual([all.length, table.used, interrupts.used], [blocks * size, blocks * size, blocks * size]);
    assert.equal(new Set(all.map(({ index }) => index)).size, all.length);
    for (const irq of all) irq.free();
    assert.deepEqual([table.used, interrupts.used], [0, 0]);
  }
});
