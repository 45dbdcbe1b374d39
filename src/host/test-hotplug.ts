/**
 * Random life of a machine: cards come and go, drivers change, programs open devices, map memory and end. After every step the
 * files, links and nodes must say what is so, nobody may reach memory that was not given to him, and nobody may wait for nothing.
 */
import assert from 'node:assert/strict';
import type { PciFunction } from '../hw/pci/function.ts';
import { Blocked } from '../kernel/core/blocked.ts';
import type { TestTask } from '../kernel/core/test-task.ts';
import { Errno } from '../lib/errno.ts';
import * as uapi from '../uapi/vfio.ts';
import type { FunctionConfig } from './host-file.ts';
import { HostFileError } from './host-file.ts';
import { TestHost } from './test-host.ts';

const PCI = '/sys/bus/pci';
const IOVA = 0x10_0000n;

const board: readonly FunctionConfig[] = [
  { at: '00:00.0', model: 'host-bridge' },
  { at: '00:01.0', model: 'root-port', secondary: 1, driver: 'pcieport' },
  { at: '00:02.0', model: 'pcie-pci-bridge', secondary: 2 },
  { at: '00:04.0', model: 'edu', driver: 'vfio-pci' },
  { at: '01:00.0', model: 'testdev', options: { totalVfs: 4 }, driver: 'vfio-pci' },
];
const slots = ['00:04.0', '00:05.0', '00:05.1', '01:00.0', '02:01.0', '02:02.0', '00:02.0', '00:01.0'];
const cards: readonly Omit<FunctionConfig, 'at'>[] = [
  { model: 'edu', driver: 'vfio-pci' },
  { model: 'edu' },
  { model: 'serial' },
  { model: 'testdev', options: { totalVfs: 4 }, driver: 'vfio-pci' },
];

interface User {
  readonly task: TestTask;
  /** Groups whose devices it has open, by id. */
  readonly groups: Set<number>;
  /** Functions that it holds. */
  readonly held: Set<PciFunction>;
  isMapped: boolean;
}

/** Counts of what happened, so that a test can see that it happened. */
export interface HotplugCounts {
  steps: number;
  plugged: number;
  waited: number;
  opened: number;
  virtual: number;
}

/** Lives `steps` steps; `random` gives numbers from 0 to below 1. */
export function hotplugLife(random: () => number, steps: number): HotplugCounts {
  const host = new TestHost(board, { enableSriov: true });
  const life = new Life(host, random);
  for (let i = 0; i < steps; i++) {
    const what = life.step();
    try {
      life.check();
    } catch (error) {
      throw new Error(`after step ${i} (${what})`, { cause: error });
    }
  }
  life.end();
  return { steps, ...life.counts };
}

class Life {
  readonly counts = { plugged: 0, waited: 0, opened: 0, virtual: 0 };
  readonly #host: TestHost;
  readonly #random: () => number;
  readonly #users: User[] = [];
  readonly #waiting = new Set<Blocked>();

  constructor(host: TestHost, random: () => number) {
    this.#host = host;
    this.#random = random;
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[Math.floor(this.#random() * list.length)];
  }

  get #functions(): PciFunction[] {
    return this.#host.machine.functions();
  }

  /** Does something, and says what. */
  step(): string {
    const fn = this.#pick(this.#functions);
    const name = fn?.name ?? '0000:00:00.0';
    const actions: readonly [number, string, () => void][] = [
      [4, 'plug', () => this.#plug()],
      [3, `unplug ${name}`, () => this.#call(() => this.#unplug(fn, 'ask'))],
      [1, `pull ${name}`, () => this.#call(() => this.#unplug(fn, 'pull'))],
      [2, `remove ${name}`, () => this.#write(`${PCI}/devices/${name}/remove`, '1')],
      [3, 'rescan', () => this.#write(`${PCI}/rescan`, '1')],
      [4, `unbind ${name}`, () => this.#write(`${PCI}/drivers/vfio-pci/unbind`, name)],
      [
        4,
        `give ${name}`,
        () => this.#call(() => fn !== undefined && this.#host.machine.hotplug.giveTo(fn, 'vfio-pci')),
      ],
      [2, `bind ${name}`, () => this.#write(`${PCI}/drivers/vfio-pci/bind`, name)],
      [2, `serial ${name}`, () => this.#write(`${PCI}/drivers/serial/bind`, name)],
      [4, 'numvfs', () => this.#numVfs()],
      [10, `open ${name}`, () => this.#open(fn)],
      [8, 'end', () => this.#endOne()],
      [1, 'time', () => this.#host.clock.advance(11e9)],
    ];
    let at = this.#random() * actions.reduce((sum, [weight]) => sum + weight, 0);
    for (const [weight, what, action] of actions) {
      at -= weight;
      if (at > 0) continue;
      action();
      return what;
    }
    return 'nothing';
  }

  check(): void {
    const { machine } = this.#host;
    const { tree } = machine;
    const known = this.#functions.filter((fn) => machine.drivers.core.knows(fn));
    const names = new Set(known.map((fn) => fn.name));
    // What was pulled and is still held has its folder until it is let go.
    for (const user of this.#users) for (const fn of user.held) if (!fn.present) names.add(fn.name);
    const shown = tree.list(`${PCI}/devices`);
    for (const fn of known) assert.ok(shown.includes(fn.name), `${fn.name} has no folder`);
    for (const name of shown) assert.ok(names.has(name) || this.#waiting.size > 0, `${name} is still shown`);
    for (const fn of known) {
      const driver = machine.drivers.driverOf(fn);
      assert.equal(
        tree.readlink(`${PCI}/devices/${fn.name}/driver`)?.split('/').at(-1),
        driver,
        `driver of ${fn.name}`,
      );
      const group = machine.iommu.groupOf(fn);
      assert.ok(group?.members.has(fn) === true, `${fn.name} is in no group`);
      assert.ok(tree.has(`/sys/kernel/iommu_groups/${group?.id}/devices/${fn.name}`));
    }
    const ids = machine.iommu.groups().map(({ id }) => String(id));
    assert.deepEqual(tree.list('/sys/kernel/iommu_groups').toSorted(), ids.toSorted(), 'groups');
    const nodes = tree.list('/dev/vfio').filter((name) => /^\d+$/.test(name));
    assert.deepEqual(
      nodes.toSorted(),
      machine.vfio
        .groups()
        .map(({ name }) => name)
        .toSorted(),
      'nodes of groups',
    );
    const devices = machine.vfio.devices().map(({ index }) => `vfio${index}`);
    assert.deepEqual(tree.list('/dev/vfio/devices').toSorted(), devices.toSorted(), 'nodes of devices');
    this.#checkDma();
    if (this.#users.every(({ held }) => held.size === 0)) assert.equal(this.#waiting.size, 0, 'nobody holds anything');
  }

  end(): void {
    while (this.#users.length > 0) this.#endOne();
    this.check();
    const { machine } = this.#host;
    assert.equal(this.#waiting.size, 0);
    for (const fn of this.#functions.toReversed()) {
      if (fn.present) machine.hotplug.unplug(fn, 'ask');
    }
    assert.deepEqual(machine.functions(), []);
    assert.deepEqual(machine.iommu.groups(), []);
    assert.deepEqual(machine.invariants(), { pins: 0, maps: 0, objects: 0, files: 0, blocks: 0 });
  }

  /** Only a device whose group is in a container with memory reaches memory. */
  #checkDma(): void {
    for (const fn of this.#functions) {
      const group = this.#host.machine.iommu.groupOf(fn);
      // What the kernel was told to forget still shares the requester ID of others behind its bridge.
      if (fn.isBridge || group === undefined) continue;
      const may = this.#users.some((user) => user.isMapped && user.groups.has(group.id));
      const command = fn.config.get(4, 2);
      fn.config.set(4, 2, command | 4);
      const fault = fn.dma.write(IOVA, Uint8Array.of(1));
      fn.config.set(4, 2, command);
      if (!may) assert.notEqual(fault, undefined, `${fn.name} reached memory that nobody gave it`);
    }
  }

  #plug(): void {
    const at = this.#pick(slots)!;
    const card: Omit<FunctionConfig, 'at'> =
      at === '00:02.0'
        ? { model: 'pcie-pci-bridge', secondary: 2 }
        : at === '00:01.0'
          ? { model: 'root-port', secondary: 1 }
          : this.#pick(cards)!;
    try {
      this.#host.machine.hotplug.plug({ at, ...card });
      this.counts.plugged++;
    } catch (error) {
      if (!(error instanceof HostFileError)) throw error;
    }
  }

  #unplug(fn: PciFunction | undefined, how: 'ask' | 'pull'): void {
    if (fn === undefined || fn.name === '0000:00:00.0' || fn.isVirtfn) return;
    this.#host.machine.hotplug.takeOut(fn, how);
  }

  #numVfs(): void {
    const target = this.#pick(this.#functions.filter(({ sriov }) => sriov !== undefined));
    if (target?.sriov === undefined) return;
    const before = target.sriov.functions.length;
    this.#write(
      `${PCI}/devices/${target.name}/sriov_numvfs`,
      String(before > 0 ? 0 : 1 + Math.floor(this.#random() * 4)),
    );
    if (target.sriov.functions.length > before) this.counts.virtual++;
  }

  #write(path: string, text: string): void {
    if (path.includes('0000:00:00.0') || !this.#host.has(path)) return;
    const written = this.#host.write(path, text);
    if (written instanceof Blocked) this.#wait(written);
  }

  #call(call: () => unknown): void {
    try {
      call();
    } catch (error) {
      if (error instanceof Blocked) this.#wait(error);
      else if (!(error instanceof Errno)) throw error;
    }
  }

  #wait(blocked: Blocked): void {
    this.counts.waited++;
    this.#waiting.add(blocked);
    blocked.onEnd(() => this.#waiting.delete(blocked));
  }

  /** A program opens a device, with its token when it is one of a function with virtual ones, and sometimes gives it memory. */
  #open(fn: PciFunction | undefined): void {
    const id = fn === undefined ? undefined : this.#host.machine.iommu.groupOf(fn)?.id;
    if (fn === undefined || id === undefined || this.#users.length > 4) return;
    const task = this.#host.task();
    const user: User = { task, groups: new Set(), held: new Set(), isMapped: false };
    this.#users.push(user);
    try {
      const container = this.#host.open(task, '/dev/vfio/vfio');
      const group = this.#host.open(task, `/dev/vfio/${id}`);
      const fd = new Uint8Array(Int32Array.of(container.descriptor).buffer);
      task.ioctl(group.file, uapi.VFIO_GROUP_SET_CONTAINER, fd);
      user.groups.add(id);
      task.ioctl(container.file, uapi.VFIO_SET_IOMMU, 1n);
      if (this.#random() < 0.5) {
        const map = new DataView(new ArrayBuffer(32));
        map.setUint32(0, 32, true);
        map.setUint32(4, 3, true);
        map.setBigUint64(8, BigInt(task.memory.map(4096)), true);
        map.setBigUint64(16, IOVA, true);
        map.setBigUint64(24, 4096n, true);
        task.ioctl(container.file, uapi.VFIO_IOMMU_MAP_DMA, new Uint8Array(map.buffer));
        user.isMapped = true;
      }
      const token = fn.isVirtfn || fn.sriov !== undefined ? ' vf_token=52ac9bff-3a88-4fbd-901a-0d767c3b6c97' : '';
      const text = new TextEncoder().encode(`${fn.name}${token}\0`);
      task.ioctl(group.file, uapi.VFIO_GROUP_GET_DEVICE_FD, text);
      user.held.add(fn);
      this.counts.opened++;
    } catch (error) {
      if (!(error instanceof Errno || (error instanceof Error && /is not the machine's|has no/.test(error.message))))
        throw error;
      if (this.#random() < 0.8) this.#leave(user);
    }
  }

  #endOne(): void {
    const user = this.#pick(this.#users);
    if (user !== undefined) this.#leave(user);
  }

  #leave(user: User): void {
    this.#users.splice(this.#users.indexOf(user), 1);
    user.task.exit();
  }
}

/** The same numbers for the same seed (mulberry32). */
export function numbersFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
