import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  allocIoasid,
  BufferBacking,
  DmaPort,
  FaultReason,
  IoasidSet,
  Ioasids,
  IommuUnit,
  PageTable,
  PhysicalMemory,
  setIoasidData,
  vtdss,
  WRITE,
  x86_64,
} from './iommu.ts';

test('vfiobox/iommu alone: a device writes through two address spaces of its own', () => {
  const memory = new PhysicalMemory();
  const ram = new Uint8Array(16 * 4096);
  const ramPage = memory.addBlock(new BufferBacking(ram));
  const unit = new IommuUnit('dmar0', { preset: 'nested-sm', memory });
  const rid = 0x0300;
  const port = new DmaPort(
    memory,
    unit,
    () => rid,
    () => true,
  );

  // Requests without PASID go through a second stage, PASID 5 through a first stage.
  const second = new PageTable(vtdss, unit.tables);
  const first = new PageTable(x86_64, unit.tables);
  second.map(0x100, ramPage, 4, 3, false);
  first.map(0x100, ramPage + 8, 1, 3, false);
  unit.setRights(rid, { hasDeviceTlb: false, hasPasids: true, hasPageRequests: false });
  unit.setContext(rid, 2, second);
  unit.setPasidEntry(rid, 5, {
    type: 'first',
    did: 3,
    firstStage: { page: first.top, levels: first.levels },
    isWalkSnooped: true,
  });

  assert.equal(port.write(0x100010, Uint8Array.of(1, 2, 3)), undefined);
  assert.equal(port.write(0x100010, Uint8Array.of(7), 5), undefined);
  assert.deepEqual([...ram.subarray(16, 19)], [1, 2, 3]);
  assert.equal(ram[8 * 4096 + 16], 7);

  assert.deepEqual(port.write(0x101000, Uint8Array.of(1), 5), {
    address: 0x101000n,
    access: 'write',
    reason: 'not present',
  });
  assert.equal(unit.lastFault?.reason, FaultReason.FS_NOT_PRESENT);

  // The unit keeps a translation until it is told to forget it.
  second.unmap(0x100, 1);
  assert.equal(unit.translate(rid, -1, 0x100, WRITE), ramPage);
  unit.invalidatePages(2, 0x100, 0);
  assert.equal(unit.translate(rid, -1, 0x100, WRITE), -1);
});

test('A-13: numbers with data; the promise of a change is kept when nobody reads the old value any more', async () => {
  const ids = new Ioasids();
  const set = new IoasidSet<{ name: string }>('mine');
  const id = await allocIoasid(ids, set, 1, 9, { name: 'old' });
  const reader = ids.readers.begin();
  let isDisposable = false;
  const change = setIoasidData(ids, id, { name: 'new' }).then(() => {
    isDisposable = true;
  });
  await Promise.resolve();
  assert.equal(isDisposable, false);
  reader.end();
  await change;
  assert.equal(isDisposable, true);
  await assert.rejects(setIoasidData(ids, 5, null), { code: 'ENOENT' });
});
