import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pasidWalker } from '../../../hw/devices/pasid-walker/model.ts';
import * as device from '../../../hw/devices/pasid-walker/registers.ts';
import { privateShared } from '../../../hw/memory/backing.ts';
import * as uapi from '../../../uapi/pasid-walker.ts';
import type { File } from '../../core/file.ts';
import { TestTask } from '../../core/test-task.ts';
import { refuses, rootPort } from '../../iommu/test-machine.ts';
import { svmWorld } from '../../iommu/test-svm.ts';
import { PasidWalkerDriver } from './pasid-walker.ts';

const BUSY = uapi.PASID_WALKER_BUSY;
const DONE = uapi.PASID_WALKER_DONE;
const ERROR = uapi.PASID_WALKER_ERROR;

/** A program with a buffer for arguments. */
class Program {
  readonly task: TestTask;
  readonly #argument: number;
  readonly file: File;

  constructor(world: World) {
    this.task = new TestTask({ physical: world.svm.machine.memory });
    this.#argument = this.task.memory.map(4096);
    this.file = world.nodes.get('/dev/pasid-walker0')!();
  }

  ioctl(request: number, bytes: Uint8Array = new Uint8Array(8)): Uint8Array {
    this.task.memory.write(this.#argument, bytes);
    this.file.ioctl(this.task, request, BigInt(this.#argument));
    const answer = new Uint8Array(bytes.length);
    this.task.memory.read(this.#argument, answer);
    return answer;
  }

  bind(): number {
    return uapi.pasid_walker_bind.read(
      this.ioctl(uapi.PASID_WALKER_BIND, uapi.pasid_walker_bind.write({ argsz: 8, pasid: 0 })),
    ).pasid;
  }

  walk(head: number, limit = 1000, flags = 0): void {
    const wanted = { argsz: 24, flags, head: BigInt(head), limit, reserved: 0 };
    this.ioctl(uapi.PASID_WALKER_WALK, uapi.pasid_walker_walk.write(wanted));
  }

  status(): uapi.pasid_walker_status {
    const bytes = new Uint8Array(uapi.pasid_walker_status.size);
    bytes[0] = bytes.length;
    return uapi.pasid_walker_status.read(this.ioctl(uapi.PASID_WALKER_STATUS, bytes));
  }

  /** Nodes on pages of their own, every third one over a border; values from 1 up. Returns the first one's address and all. */
  list(count: number): number[] {
    const { memory } = this.task;
    const base = memory.map((count + 1) * 4096);
    const nodes = Array.from({ length: count }, (_, i) => base + i * 4096 + (i % 3 === 0 ? 4090 : 16 * i));
    nodes.forEach((at, i) => {
      this.put(at, nodes[i + 1] ?? 0, i + 1);
    });
    return nodes;
  }

  put(at: number, next: number, value: number): void {
    const node = new DataView(new ArrayBuffer(16));
    node.setBigUint64(0, BigInt(next), true);
    node.setBigUint64(8, BigInt(value), true);
    this.task.memory.write(at, new Uint8Array(node.buffer));
  }

  value(at: number): number {
    const bytes = new Uint8Array(8);
    this.task.memory.read(at + 8, bytes);
    return Number(new DataView(bytes.buffer).getBigUint64(0, true));
  }
}

interface World {
  readonly svm: ReturnType<typeof svmWorld>;
  readonly driver: PasidWalkerDriver;
  readonly nodes: Map<string, () => File>;
  readonly fn: Parameters<PasidWalkerDriver['probe']>[0];
}

function world(): World {
  const svm = svmWorld({ delay: 1_000 });
  const { machine, clock } = svm;
  const port = machine.add(rootPort(), '1c.0');
  const environment = { clock, allocateShared: privateShared, log: () => {} } as never;
  const fn = machine.add(pasidWalker.create(environment, {}), '0.0', { bus: port.secondary! });
  machine.boot();
  const nodes = new Map<string, () => File>();
  const driver = new PasidWalkerDriver({
    sva: svm.sva,
    groupOf: (one) => machine.core.groupOf(one),
    publish: (path, open) => {
      nodes.set(path, open);
      return () => nodes.delete(path);
    },
  });
  driver.probe(fn);
  return { svm, driver, nodes, fn };
}

test('I-54: a device follows a list in a heap, asks for its pages, and adds to it; a second walk asks for nothing', () => {
  const here = world();
  const program = new Program(here);
  const nodes = program.list(100);
  assert.equal(program.bind(), 1);
  assert.equal(program.bind(), 1, 'again');
  program.walk(nodes[0]!, 1000, uapi.PASID_WALKER_ADD);
  assert.equal(program.status().state, BUSY);
  here.svm.clock.advance(10_000_000);
  const { state, visited, sum, page_requests } = program.status();
  assert.deepEqual([state, visited, sum], [DONE, 100, 5050n]);
  assert.ok(page_requests >= 100);
  assert.deepEqual(
    nodes.map((at) => program.value(at)),
    nodes.map((_, i) => i + 2),
  );
  program.walk(nodes[0]!);
  here.svm.clock.advance(10_000_000);
  assert.deepEqual([program.status().sum, program.status().page_requests], [5150n, 0]);
  program.walk(nodes[0]!, 7);
  here.svm.clock.advance(10_000_000);
  assert.equal(program.status().visited, 7);
  program.file.release();
  assert.deepEqual([here.svm.sva.bonds, here.svm.sva.pages, program.task.mm.pins], [0, 0, 0]);
});

test('lists that lead out of memory end with the page; two programs take turns', () => {
  const here = world();
  const one = new Program(here);
  const two = new Program(here);
  const nodes = one.list(3);
  const others = two.list(2);
  assert.deepEqual([one.bind(), two.bind()], [1, 2]);
  one.put(nodes[2]!, 0x1234_5000, 9);
  one.walk(nodes[0]!);
  refuses('EBUSY', () => two.walk(others[0]!), /another list/);
  here.svm.clock.advance(1_000_000);
  const { state, code, fault_address, visited } = one.status();
  assert.deepEqual([state, code, fault_address, visited], [ERROR, device.ERROR_PAGE, 0x1234_5000n, 3]);
  two.walk(others[0]!);
  here.svm.clock.advance(1_000_000);
  assert.deepEqual([two.status().state, two.status().sum], [DONE, 3n]);
  assert.equal(one.status().state, uapi.PASID_WALKER_IDLE, 'the device has worked for somebody else since');
  two.walk(nodes[0]!);
  here.svm.clock.advance(1_000_000);
  assert.deepEqual(
    [two.status().state, two.status().visited],
    [DONE, 2],
    'the same address is another place in another process',
  );
});

test('a process that ends in the middle: what waits is answered, the device stops with an error, nothing is left', () => {
  for (const when of [0, 500, 1_500, 3_000, 5_200, 100_000]) {
    const here = world();
    const program = new Program(here);
    const nodes = program.list(40);
    program.put(nodes[39]!, nodes[0]!, 1);
    program.bind();
    program.walk(nodes[0]!, 0xffff_ffff);
    here.svm.clock.advance(when);
    here.svm.sva.exit(program.task.mm);
    here.svm.clock.advance(1_000_000);
    assert.equal(program.status().state, ERROR);
    assert.deepEqual([here.svm.sva.pages, here.svm.faults.pending, program.task.mm.pins], [0, 0, 0]);
    program.file.release();
    assert.deepEqual([here.svm.sva.bonds, here.svm.ids.used], [0, 0]);
    const next = new Program(here);
    const [head] = next.list(5);
    next.bind();
    next.walk(head!);
    here.svm.clock.advance(1_000_000);
    assert.deepEqual([next.status().state, next.status().sum], [DONE, 15n]);
  }
});

test('closing the descriptor in the middle stops the device, with a stop marker and without an answer that is late', () => {
  const here = world();
  const program = new Program(here);
  const nodes = program.list(40);
  program.bind();
  program.walk(nodes[0]!, 0xffff_ffff);
  here.svm.clock.advance(2_100);
  assert.equal(program.status().state, BUSY);
  program.file.release();
  here.svm.clock.advance(1_000_000);
  assert.equal(here.svm.faults.counters.stopMarkers, 1);
  assert.deepEqual([here.svm.sva.bonds, here.svm.faults.pending, program.task.mm.pins], [0, 0, 0]);
});

test('what the driver refuses; after it let go of the device, descriptors that are open answer ENODEV', () => {
  const here = world();
  const program = new Program(here);
  refuses('EINVAL', () => program.walk(0x1000), /no address space is bound/);
  refuses('EINVAL', () => program.ioctl(uapi.PASID_WALKER_UNBIND));
  refuses('EINVAL', () => program.ioctl(uapi.PASID_WALKER_BIND, Uint8Array.of(4, 0, 0, 0)), /argsz is 4/);
  refuses('ENOTTY', () => program.ioctl(0xb7ff));
  program.bind();
  refuses('EINVAL', () => program.walk(0x1000, 1, 2), /flags 0x2/);
  const child = new Program(here);
  const [argument] = child.list(1);
  child.task.memory.write(argument!, Uint8Array.of(8));
  refuses('EBUSY', () => program.file.ioctl(child.task, uapi.PASID_WALKER_BIND, BigInt(argument!)), /another process/);
  program.ioctl(uapi.PASID_WALKER_UNBIND);
  program.bind();
  let isDone = false;
  here.driver.remove(here.fn, () => {
    isDone = true;
  });
  assert.equal(isDone, true);
  assert.equal(here.nodes.size, 0);
  refuses('ENODEV', () => program.bind());
  assert.equal(here.svm.sva.bonds, 0);
  program.file.release();
});
