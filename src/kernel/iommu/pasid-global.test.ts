import assert from 'node:assert/strict';
import { test } from 'node:test';
import { INVALID_IOASID } from './ioasid.ts';
import { GlobalPasids } from './pasid-global.ts';
import { VirtualPasids } from './pasid-policy.ts';
import { refuses } from './test-machine.ts';

test('A-50 A-51: global PASIDs begin at 1; a device with 4 of them has three to give', () => {
  const pasids = new GlobalPasids();
  assert.deepEqual(
    [1, 2, 3, INVALID_IOASID],
    [4, 4, 4, 4].map((max) => pasids.alloc(max)),
  );
  assert.equal(pasids.alloc(0x10_0000), 4, 'another device of the same pool goes on');
  assert.equal(pasids.alloc(0), INVALID_IOASID);
  pasids.free(0);
  pasids.free(2);
  pasids.free(2);
  assert.equal(pasids.alloc(4), 2);
  assert.equal(pasids.used, 4);
});

test('A-60: two VMs use one number for different PASIDs of the host; an active one keeps its meaning', () => {
  const one = new VirtualPasids('translated');
  const two = new VirtualPasids('translated');
  one.map(5, 100);
  two.map(5, 200);
  assert.deepEqual([one.hostOf(5), two.hostOf(5)], [100, 200]);
  refuses('EBUSY', () => one.map(5, 101));
  one.map(5, 100);
  one.unmap(5);
  assert.equal(one.hostOf(5), -1);
  one.map(5, 101);
  assert.equal(one.hostOf(5), 101);
  assert.equal(one.count, 1);
});

test('identical numbers are the default; a device may have none for guests', () => {
  const same = new VirtualPasids();
  same.map(5, 5);
  refuses('EINVAL', () => same.map(6, 7));
  refuses('EINVAL', () => same.map(0x10_0000, 0x10_0000));
  refuses('EOPNOTSUPP', () => new VirtualPasids('none').map(5, 5));
});
