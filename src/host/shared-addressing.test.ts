/** A whole machine in which a device uses a program's addresses, and what becomes of it when one of both goes. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as uapi from '../uapi/pasid-walker.ts';
import { TestHost } from './test-host.ts';

const AT = '0000:01:00.0';
const NODE = '/dev/pasid-walker0';

function world() {
  const host = new TestHost(
    [
      { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
      { at: '01:00.0', model: 'pasid-walker', driver: 'pasid-walker' },
    ],
    {},
    [{ name: 'dmar0', preset: 'nested-sm' }],
  );
  const task = host.task();
  const heap = task.memory.map(3 * 4096);
  // Two nodes that lead to each other.
  for (const [at, next] of [
    [heap, heap + 4096],
    [heap + 4096, heap],
  ] as const) {
    const node = new Uint8Array(16);
    new DataView(node.buffer).setBigUint64(0, BigInt(next), true);
    task.memory.write(at, node);
  }
  const { file, descriptor } = host.open(task, NODE);
  const call = (request: number, bytes: Uint8Array): void => void task.ioctl(file, request, bytes);
  call(uapi.PASID_WALKER_BIND, uapi.pasid_walker_bind.write({ argsz: 8, pasid: 0 }));
  const walk = { argsz: 24, flags: 0, head: BigInt(heap), limit: 0xffff_ffff, reserved: 0 };
  call(uapi.PASID_WALKER_WALK, uapi.pasid_walker_walk.write(walk));
  return { host, task, file, descriptor, call };
}

test('the card is pulled, or its driver taken away, while it is at work: nothing is left, and the descriptor says ENODEV', () => {
  for (const how of ['pull', 'ask', 'unbind'] as const) {
    const { host, task, call } = world();
    host.clock.advance(3_000);
    const { machine } = host;
    assert.equal(machine.counters.sharedNow().bonds, 1);
    const fn = host.fn(AT);
    if (how === 'unbind') machine.drivers.unbind('pasid-walker', AT, 0);
    else machine.hotplug.unplug(fn, how);
    assert.deepEqual(machine.counters.sharedNow(), { bonds: 0, faults: 0 });
    assert.equal(machine.open(task as never, NODE, 2), undefined);
    assert.throws(() => call(uapi.PASID_WALKER_BIND, uapi.pasid_walker_bind.write({ argsz: 8, pasid: 0 })), {
      code: 'ENODEV',
    });
    host.clock.advance(1_000_000);
    task.exit();
    assert.deepEqual([machine.counters.now().pins, machine.counters.now().files, machine.shared.sva.pages], [0, 0, 0]);
  }
});

test('the program ends while the device is at work: nothing is left, and the next one is served', () => {
  const { host, task } = world();
  host.clock.advance(50_000);
  assert.ok(host.machine.shared.sva.pages > 0);
  host.machine.shared.sva.exit(task.mm);
  assert.equal(task.mm.pins, 0, 'before its descriptors are closed');
  task.exit();
  assert.deepEqual(host.machine.counters.sharedNow(), { bonds: 0, faults: 0 });
  for (const [name, value] of Object.entries(host.machine.counters.now())) assert.equal(value, 0, name);
  const next = host.task();
  const { file } = host.open(next, NODE);
  const bind = uapi.pasid_walker_bind.write({ argsz: 8, pasid: 0 });
  next.ioctl(file, uapi.PASID_WALKER_BIND, bind);
  assert.equal(uapi.pasid_walker_bind.read(bind).pasid, 1, 'the number is free again');
});
