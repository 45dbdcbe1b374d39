/**
 * Random programs over the whole graph of objects: made, used and destroyed in any order, from three processes, two of which share an
 * iommufd, with failures ordered by name. After every call: a refused one has left everything as it was, every count of users is the
 * one that the graph says, and the errno is one that this call may have. In the end nothing is left.
 */
import assert from 'node:assert/strict';
import { PhysicalMemory } from '../../../hw/memory/physical-memory.ts';
import { Errno } from '../../../lib/errno.ts';
import { failAt, failpoints } from '../../../lib/failpoint.ts';
import * as uapi from '../../../uapi/iommufd.ts';
import * as mock from '../../../uapi/iommufd-test.ts';
import { TestMemoryFile, TestTask } from '../../core/test-task.ts';
import type { IommufdContext, IommufdObject, ObjectKind } from '../context.ts';
import { IommufdCore } from '../core.ts';
import { IommufdDevice } from '../device.ts';
import { FaultQueue } from '../eventq.ts';
import { HwPagetable, HwptNested, HwptPaging } from '../hw-pagetable.ts';
import { Ioas } from '../ioas.ts';
import type { Viommu } from '../viommu.ts';
import { MockProgram } from './test-mock.ts';

const BASE = BigInt(mock.MOCK_APERTURE_START);
const BUFFER_PAGES = 8;
const names = (): string[] => failpoints.map(({ name }) => name).filter((name) => /^iommufd(_mock)?:/.test(name));

export interface GraphResult {
  steps: number;
  refusals: Map<string, number>;
  injected: number;
  /** Names of operations that succeeded at least once. */
  done: Set<string>;
}

interface Operation {
  readonly name: string;
  readonly weight: number;
  /** What it may be refused with, beside what is ordered. */
  readonly errnos: string;
  run(p: MockProgram): void;
  /** A refused call may have done a part of its work, as the kernel's. */
  readonly isPartial?: boolean;
}

class World {
  readonly core = new IommufdCore({ physical: new PhysicalMemory(), selftest: true });
  readonly programs: MockProgram[];
  readonly owners: MockProgram[];
  readonly buffers = new Map<TestTask, number>();
  /** Open descriptors beside the iommufds. */
  readonly fds: { task: TestTask; fd: number; kind: 'fault' | 'veventq' | 'access' | 'dmabuf' | 'memfd' }[] = [];
  readonly operations: Operation[];
  readonly #random: () => number;

  constructor(random: () => number) {
    this.#random = random;
    this.owners = [0, 1].map((i) => new MockProgram({ core: this.core, pid: 1000 + i }));
    const guest = new TestTask({ pid: 1002, physical: this.core.physical });
    // The third process has inherited the first one's iommufd.
    const shared = Object.assign(Object.create(MockProgram.prototype) as MockProgram, this.owners[0], { task: guest });
    this.programs = [...this.owners, shared];
    for (const { task } of this.programs) this.buffers.set(task, task.memory.map(BUFFER_PAGES * 4096));
    this.operations = this.#table();
  }

  below(n: number): number {
    return Math.floor(this.#random() * n);
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }

  /** Mostly the number of an object of this kind, sometimes any number. */
  id(context: IommufdContext, ...kinds: ObjectKind[]): number {
    const all = [...context.objects.entries()];
    const fitting = all.filter(([, { kind }]) => kinds.includes(kind));
    if (fitting.length > 0 && this.below(10) > 0) return this.pick(fitting)[0];
    return all.length > 0 && this.below(2) === 0 ? this.pick(all)[0] : this.below(40);
  }

  fd(task: TestTask, kind: string): number {
    const fitting = this.fds.filter((open) => open.task === task && open.kind === kind);
    return fitting.length > 0 && this.below(12) > 0 ? this.pick(fitting).fd : this.below(12);
  }

  opened(task: TestTask, fd: number, kind: World['fds'][number]['kind']): void {
    this.fds.push({ task, fd, kind });
  }

  /** Where the program's memory is, or is not. */
  address(task: TestTask): number {
    return this.buffers.get(task)! + this.below(BUFFER_PAGES) * 4096 + (this.below(8) === 0 ? 2048 : 0);
  }

  iova(): bigint {
    return BASE + BigInt(this.below(24)) * 2048n * (this.below(4) === 0 ? 1n : 2n);
  }

  length(): number {
    return this.below(16) === 0 ? this.below(5000) : (1 + this.below(4)) * (this.below(4) === 0 ? 2048 : 4096);
  }

  prot(): number {
    return this.pick([6, 6, 6, 4, 2, 0]);
  }

  #table(): Operation[] {
    const op = (name: string, weight: number, errnos: string, run: Operation['run'], isPartial = false): Operation => ({
      name,
      weight,
      errnos,
      run,
      isPartial,
    });
    const ioas = (p: MockProgram): number => this.id(p.file.context, 'ioas');
    const hwpt = (p: MockProgram): number => this.id(p.file.context, 'hwpt-paging', 'hwpt-nested');
    const paging = (p: MockProgram): number => this.id(p.file.context, 'hwpt-paging');
    const pt = (p: MockProgram): number => this.id(p.file.context, 'ioas', 'hwpt-paging', 'hwpt-nested');
    const dev = (p: MockProgram): number => this.id(p.file.context, 'device');
    const owner = (p: MockProgram): number => this.id(p.file.context, 'selftest');
    const viommu = (p: MockProgram): number => this.id(p.file.context, 'viommu');
    const flags = (...all: number[]): number => all.reduce((sum, flag) => sum | (this.below(3) === 0 ? flag : 0), 0);
    const { IOMMU_HWPT_ALLOC_NEST_PARENT: NEST, IOMMU_HWPT_ALLOC_DIRTY_TRACKING: DIRTY } = uapi;
    const { IOMMU_HWPT_ALLOC_PASID: PASID, IOMMU_HWPT_FAULT_ID_VALID: FAULT } = uapi;
    const attachErrnos = 'ENOENT EINVAL EBUSY EADDRINUSE EFAULT ENOMEM';
    return [
      op('ioas_alloc', 4, '', (p) => p.ioas()),
      op('destroy', 14, 'ENOENT EBUSY', (p) => this.#destroy(p)),
      op('map', 14, 'ENOENT EINVAL EEXIST ENOSPC EFAULT EOVERFLOW', (p) =>
        p.map(ioas(p), this.below(3) > 0 ? this.iova() : undefined, this.address(p.task), this.length(), this.prot()),
      ),
      op('map_file', 5, 'ENOENT EINVAL EEXIST EBADF ENODEV', (p) =>
        p.mapFile(
          ioas(p),
          this.iova(),
          this.fd(p.task, this.pick(['memfd', 'dmabuf'])),
          0n,
          BigInt(this.length()),
          this.prot(),
        ),
      ),
      op('copy', 6, 'ENOENT EINVAL EEXIST EPERM ENOSPC EFAULT', (p) =>
        p.copy(
          ioas(p),
          this.below(2) > 0 ? this.iova() : undefined,
          ioas(p),
          this.iova(),
          BigInt(this.length()),
          this.prot(),
        ),
      ),
      op(
        'unmap',
        8,
        'ENOENT EINVAL EBUSY EDEADLOCK EOVERFLOW',
        (p) =>
          this.below(8) === 0
            ? p.unmap(ioas(p), 0n, 2n ** 64n - 1n)
            : p.unmap(ioas(p), this.iova(), BigInt(this.length())),
        true,
      ),
      op('allow', 2, 'ENOENT EINVAL EADDRINUSE', (p) =>
        p.allow(ioas(p), this.below(2) === 0 ? [] : [[BASE, BASE + 0x3ffffn]]),
      ),
      op('huge_pages', 2, 'ENOENT EINVAL EADDRINUSE', (p) => {
        const given = { option_id: 1, op: 0, object_id: ioas(p), val64: BigInt(this.below(3)) };
        p.call(uapi.IOMMU_OPTION, uapi.iommu_option, given);
      }),
      op('add_reserved', 1, 'ENOENT EINVAL EADDRINUSE', (p) => {
        const given = { start: BASE + BigInt(this.below(30)) * 4096n, length: BigInt(this.below(2)) * 4096n };
        p.test(mock.IOMMU_TEST_OP_ADD_RESERVED, ioas(p), mock.test_add_reserved, given);
      }),
      op('mock_device', 10, attachErrnos, (p) => p.device(pt(p), this.pick([undefined, 0, 1, 4, 5, 2]))),
      op('replace', 10, attachErrnos, (p) => p.replace(owner(p), pt(p))),
      op('pasid_attach', 5, attachErrnos, (p) =>
        p.pasid(mock.IOMMU_TEST_OP_PASID_ATTACH, owner(p), this.pick([0, 1, 2, 1024, 2 ** 20]), pt(p)),
      ),
      op('pasid_replace', 4, attachErrnos, (p) =>
        p.pasid(mock.IOMMU_TEST_OP_PASID_REPLACE, owner(p), this.pick([1, 2, 1024]), pt(p)),
      ),
      op('pasid_detach', 4, 'ENOENT', (p) =>
        p.pasid(mock.IOMMU_TEST_OP_PASID_DETACH, owner(p), this.pick([1, 2, 1024])),
      ),
      op('hwpt_alloc', 8, 'ENOENT EINVAL EOPNOTSUPP EADDRINUSE EFAULT', (p) =>
        p.hwpt(dev(p), this.id(p.file.context, 'ioas', 'ioas', 'hwpt-paging', 'viommu'), {
          flags: flags(NEST, DIRTY, PASID),
          fault_id: 0,
        }),
      ),
      op('hwpt_nested', 8, 'ENOENT EINVAL EOPNOTSUPP EADDRINUSE EFAULT', (p) =>
        p.nested(dev(p), this.id(p.file.context, 'hwpt-paging', 'viommu'), {
          flags: flags(PASID, FAULT),
          fault_id: this.id(p.file.context, 'fault'),
        }),
      ),
      op('viommu', 4, 'ENOENT EINVAL', (p) => p.viommu(dev(p), paging(p), this.below(2) === 0)),
      op('vdevice', 5, 'ENOENT EEXIST', (p) => p.vdevice(viommu(p), dev(p), BigInt(this.below(4)))),
      op('veventq', 3, 'ENOENT EEXIST EINVAL', (p) =>
        this.opened(p.task, p.veventq(viommu(p), this.below(3)).fd, 'veventq'),
      ),
      op('hw_queue', 4, 'ENOENT EINVAL EEXIST EIO EFAULT EPERM EADDRINUSE', (p) =>
        p.hwQueue(viommu(p), this.below(3), this.iova(), BigInt(this.length())),
      ),
      op('fault_queue', 3, '', (p) => this.opened(p.task, p.faultQueue().fd, 'fault')),
      op('iopf', 5, 'ENOENT', (p) => p.iopf(dev(p), this.below(3))),
      op('vevent', 4, 'ENOENT EOPNOTSUPP', (p) => p.vevent(dev(p))),
      op('read_events', 5, 'EINVAL EBADF ESPIPE', (p) => this.#read(p)),
      op('answer', 3, 'EINVAL EBADF', (p) => this.#answer(p)),
      op('access', 4, 'ENOENT EADDRINUSE EOPNOTSUPP', (p) =>
        this.opened(p.task, p.access(ioas(p), this.below(2)), 'access'),
      ),
      op('access_pages', 6, 'EBADFD ENOENT EINVAL EPERM EOPNOTSUPP EFAULT EBADE', (p) =>
        p.pages(this.fd(p.task, 'access'), this.iova(), BigInt(this.length()), 0, this.below(2)),
      ),
      op('unpin', 3, 'EBADFD ENOENT', (p) => p.unpinPages(this.fd(p.task, 'access'), this.below(4))),
      op(
        'access_rw',
        6,
        'EBADFD ENOENT EINVAL EPERM EFAULT',
        (p) => p.rw(this.fd(p.task, 'access'), this.iova(), BigInt(this.length()), this.address(p.task), this.below(2)),
        true,
      ),
      op('access_replace', 3, 'EBADFD ENOENT EADDRINUSE', (p) =>
        p.test(mock.IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, this.fd(p.task, 'access'), mock.test_access_replace_ioas, {
          ioas_id: ioas(p),
        }),
      ),
      op('close', 5, '', () => this.#close()),
      op('memfd', 2, '', (p) => this.opened(p.task, p.task.open(new TestMemoryFile(4 * 4096)).descriptor, 'memfd')),
      op('dmabuf', 2, '', (p) => this.opened(p.task, p.dmabuf(2 * 4096), 'dmabuf')),
      op('revoke', 2, 'EBADF EINVAL', (p) => p.revoke(this.fd(p.task, 'dmabuf'), this.below(2))),
      op('set_dirty', 3, 'ENOENT EOPNOTSUPP', (p) =>
        p.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.iommu_hwpt_set_dirty_tracking, {
          hwpt_id: hwpt(p),
          flags: this.below(2),
        }),
      ),
      op('change_process', 2, 'EINVAL', (p) =>
        p.call(uapi.IOMMU_IOAS_CHANGE_PROCESS, uapi.iommu_ioas_change_process, {}),
      ),
      op('hw_info', 1, 'ENOENT', (p) => p.call(uapi.IOMMU_GET_HW_INFO, uapi.iommu_hw_info, { dev_id: dev(p) })),
    ];
  }

  #destroy(p: MockProgram): void {
    const { context } = p.file;
    const id = this.id(
      context,
      this.pick([
        'ioas',
        'hwpt-paging',
        'hwpt-nested',
        'selftest',
        'viommu',
        'vdevice',
        'hw-queue',
        'fault',
        'veventq',
      ]),
    );
    const object = context.objects.get(id);
    const users = object?.users ?? -1;
    try {
      p.destroy(id);
    } catch (error) {
      if (error instanceof Errno)
        assert.equal(error.code, users < 0 ? 'ENOENT' : 'EBUSY', `DESTROY of ${object?.kind}`);
      if (error instanceof Errno && error.code === 'EBUSY') assert.ok(users > 0);
      throw error;
    }
    assert.equal(users, 0);
    assert.notEqual(context.objects.get(id), object);
  }

  #read(p: MockProgram): void {
    const file = p.task.file(this.fd(p.task, this.pick(['fault', 'veventq'])));
    if (file.isEventQueue) file.read(p.task, new Uint8Array(this.pick([40, 80, 8, 12])), 0);
  }

  #answer(p: MockProgram): void {
    const file = p.task.file(this.fd(p.task, 'fault'));
    if (file.kind !== 'fault') throw new Errno('EINVAL', 'no fault queue');
    file.write(p.task, uapi.iommu_hwpt_page_response.write({ cookie: this.below(4), code: this.below(2) }), 0);
  }

  #close(): void {
    if (this.fds.length === 0) return;
    const [open] = this.fds.splice(this.below(this.fds.length), 1);
    open!.task.close(open!.fd);
  }

  // ---- what holds after every step ----

  /** Everything that a refused call must leave as it was. */
  fingerprint(): string {
    const parts: string[] = [];
    for (const { file } of this.owners) {
      for (const [id, object] of file.context.objects.entries()) {
        const more =
          object instanceof Ioas
            ? `${object.iopt.areas.size},${object.iopt.alignment},${object.iopt.domains.length}`
            : '';
        parts.push(`${id}${object.kind}${object.users}${more}`);
      }
      parts.push('|');
    }
    for (const { task } of this.programs) parts.push(`${task.mm.pins} ${task.mm.pinnedPages} ${task.mm.lockedPages}`);
    parts.push(`${this.core.files.size} ${this.core.physical.blocks} ${this.core.userLocked.pages}`);
    return parts.join(' ');
  }

  /** Every count of users follows from the graph. */
  checkUsers(): void {
    for (const { file } of this.owners) {
      const expected = new Map<IommufdObject, number>();
      const add = (object: IommufdObject | undefined): void => {
        if (object !== undefined) expected.set(object, (expected.get(object) ?? 0) + 1);
      };
      for (const [, object] of file.context.objects.entries()) {
        if (object instanceof Ioas) for (const _ of object.iopt.accesses) add(object);
        if (object instanceof HwptPaging) add(object.ioas);
        if (object instanceof HwPagetable) add(object.fault);
        if (object instanceof HwptNested) add(object.viommu ?? object.paging);
        if (object.kind === 'viommu') add((object as Viommu).hwpt);
        if (object.kind === 'access') add(object);
        if (['vdevice', 'veventq', 'hw-queue'].includes(object.kind))
          add((object as unknown as { viommu: Viommu }).viommu);
        if (object.kind === 'hw-queue') add((object as unknown as { dependsOn?: IommufdObject }).dependsOn);
        if (!(object instanceof IommufdDevice)) continue;
        add(object);
        for (const { devices, hwpt } of object.igroup.attachments.values()) {
          if (!devices.has(object)) continue;
          add(hwpt);
          add(object);
        }
      }
      for (const { task, fd } of this.fds) {
        const { queue } = task.file(fd) as unknown as { queue?: IommufdObject };
        if (queue instanceof FaultQueue || queue?.kind === 'veventq') add(queue);
      }
      for (const [id, object] of file.context.objects.entries()) {
        assert.equal(object.users, expected.get(object) ?? 0, `users of ${object.kind} ${id}`);
      }
    }
  }

  /** Closes everything in any order; nothing is left. */
  end(): void {
    const closings = [
      ...this.fds.map((open) => () => open.task.close(open.fd)),
      ...this.owners.map((p) => () => p.task.close(p.descriptor)),
    ];
    while (closings.length > 0) closings.splice(this.below(closings.length), 1)[0]!();
    for (const { file } of this.owners) assert.equal(file.context.objects.size, 0);
    for (const { task } of this.programs)
      assert.deepEqual([task.mm.pins, task.mm.pinnedPages, task.mm.lockedPages], [0, 0, 0]);
    assert.deepEqual([this.core.physical.blocks, this.core.files.size, this.core.userLocked.pages], [0, 0, 0]);
  }
}

/** Runs so many steps in worlds of `worldSteps` each. Throws with the seed and the step when something does not hold. */
export function runGraph(seed: number, steps: number, worldSteps = 1000): GraphResult {
  const random = generator(seed);
  const result: GraphResult = { steps: 0, refusals: new Map(), injected: 0, done: new Set() };
  const all = names();
  let world = new World(random);
  for (let step = 0; step < steps; step++) {
    if (step % worldSteps === worldSteps - 1) {
      world.end();
      world = new World(random);
    }
    try {
      perform(world, result, random() < 0.4 ? world.pick(all) : undefined);
    } catch (error) {
      throw new Error(`seed ${seed}, step ${step}: ${(error as Error).message}`, { cause: error });
    }
    result.steps++;
  }
  world.end();
  return result;
}

function perform(world: World, result: GraphResult, failing: string | undefined): void {
  const sum = world.operations.reduce((total, { weight }) => total + weight, 0);
  let at = world.below(sum);
  const operation = world.operations.find(({ weight }) => {
    at -= weight;
    return at < 0;
  })!;
  const program = world.pick(world.programs);
  const before = world.fingerprint();
  using order = failing === undefined ? undefined : failAt(failing, world.below(2));
  try {
    operation.run(program);
    result.done.add(operation.name);
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    const failed = order?.failed[0];
    if (failed !== undefined) result.injected++;
    else {
      result.refusals.set(error.code, (result.refusals.get(error.code) ?? 0) + 1);
      assert.ok(
        operation.errnos.split(' ').includes(error.code),
        `${operation.name} is refused with ${error.code}: ${error.why}`,
      );
    }
    // A call whose answer cannot be stored has done its work.
    if (operation.isPartial !== true && failed !== 'iommufd:respond') {
      assert.equal(
        world.fingerprint(),
        before,
        `${operation.name}, refused with ${error.code} (${failed ?? error.why})`,
      );
    }
  }
  world.checkUsers();
}

function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
