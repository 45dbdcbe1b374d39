/**
 * Random lives of programs, devices and groups of 2011, beside a small model of the rules: sets of groups, who has them, which pages are
 * mapped. After every step the core has to say what the model says, and no DMA may arrive where the model has none.
 */
import assert from 'node:assert/strict';
import { refusal, type ToyDevice, type User, World } from './test-world.ts';

const SLOTS = ['1.0', '1.1', '2.0', '2.1', '3.0', '4.0', '5.0'];
const PAGES = 24;
const USERS = 3;
const MOST_DESCRIPTORS = 14;

interface ModelDevice {
  readonly at: string;
  readonly device: ToyDevice;
  readonly group: ModelGroup;
  isBound: boolean;
  isWaiting: boolean;
  isGoing: boolean;
  files: number;
}

interface ModelGroup {
  readonly name: string;
  readonly devices: Set<ModelDevice>;
  files: number;
  set: ModelSet;
}

interface ModelSet {
  readonly groups: Set<ModelGroup>;
  owner: User | undefined;
  files: number;
  /** Address behind each mapped page. */
  readonly pages: Map<number, number>;
}

type Open =
  | { kind: 'group'; group: ModelGroup }
  | { kind: 'iommu'; set: ModelSet }
  | { kind: 'device'; device: ModelDevice };

interface Program {
  user: User;
  descriptors: Map<number, Open>;
}

/** Numbers from 0 to `below` - 1, the same for the same seed. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}

class Life {
  readonly world = new World();
  readonly devices = new Map<string, ModelDevice>();
  readonly groups = new Map<string, ModelGroup>();
  readonly programs: Program[] = [];
  readonly done = new Map<string, number>();
  readonly random: (below: number) => number;

  constructor(seed: number) {
    this.random = randomNumbers(seed);
    for (let i = 0; i < USERS; i++) this.programs.push({ user: this.world.user(), descriptors: new Map() });
    this.world.onClaim = (device) => {
      this.world.bind(device);
      this.#count('claim');
    };
  }

  step(): void {
    const steps = [
      () => this.#open(),
      () => this.#open(),
      () => this.#getIommu(),
      () => this.#getDevice(),
      () => this.#getDevice(),
      () => this.#merge(),
      () => this.#merge(),
      () => this.#unmerge(),
      () => this.#map(),
      () => this.#map(),
      () => this.#unmap(),
      () => this.#plug(),
      () => this.#plug(),
      () => this.#bind(),
      () => this.#bind(),
      () => (this.random(3) === 0 ? this.#unbindOrUnplug('unbind') : this.#bind()),
      () => (this.random(2) === 0 ? this.#unbindOrUnplug('unplug') : this.#plug()),
      () => this.#close(),
      () => this.#close(),
      () => (this.random(6) === 0 ? this.#kill() : undefined),
    ];
    steps[this.random(steps.length)]!();
    this.#check();
  }

  end(): void {
    for (const program of this.programs) this.#exit(program);
    assert.deepEqual(this.world.held(), { pins: 0, locked: 0, entries: 0, files: 0, owners: 0 });
  }

  // ---- what programs do ----

  #open(): void {
    const program = this.#pick(this.programs)!;
    const name = `toy:${this.random(SLOTS.length)}`;
    const group = this.groups.get(name);
    if (program.descriptors.size >= MOST_DESCRIPTORS) return;
    let descriptor = -1;
    const outcome = refusal(() => {
      descriptor = program.user.group(name);
    });
    this.#expect('open', outcome, group === undefined ? 'ENODEV' : 'ok');
    if (group === undefined) return;
    group.files++;
    program.descriptors.set(descriptor, { kind: 'group', group });
  }

  #getIommu(): void {
    const [program, fd, group] = this.#anyGroup();
    if (group === undefined) return;
    const { set } = group;
    let descriptor = -1;
    const outcome = refusal(() => {
      descriptor = program.user.iommu(fd);
    });
    this.#expect('iommu', outcome, this.#whyNotOpen(set, program.user) ?? 'ok');
    if (outcome !== 'ok') return;
    set.owner = program.user;
    set.files++;
    program.descriptors.set(descriptor, { kind: 'iommu', set });
  }

  #getDevice(): void {
    const [program, fd, group] = this.#anyGroup();
    const wanted = this.#pick([...this.devices.values()]);
    if (group === undefined || wanted === undefined) return;
    const { set } = group;
    let descriptor = -1;
    const outcome = refusal(() => {
      descriptor = program.user.device(fd, wanted.device.name);
    });
    const isMember = set.groups.has(wanted.group);
    this.#expect('device', outcome, this.#whyNotOpen(set, program.user) ?? (isMember ? 'ok' : 'ENODEV'));
    if (outcome !== 'ok') return;
    set.owner = program.user;
    wanted.files++;
    program.descriptors.set(descriptor, { kind: 'device', device: wanted });
  }

  #merge(): void {
    const [program, fd, merger] = this.#anyGroup();
    if (merger === undefined) return;
    const isOther = (group: ModelGroup): boolean => group.set !== merger.set || this.random(4) === 0;
    const [other, mergee] = this.#groupOf(program, isOther) ?? [fd, merger];
    const [set, old] = [merger.set, mergee.set];
    const outcome = refusal(() => program.user.merge(fd, other));
    let expected = 'ok';
    if (set.owner !== undefined && set.owner !== program.user) expected = 'EPERM';
    else if (set === old || old.groups.size > 1 || old.owner !== undefined) expected = 'EINVAL';
    else if (!viable(set) || !viable(old)) expected = 'EBUSY';
    this.#expect('merge', outcome, expected);
    if (outcome !== 'ok') return;
    set.groups.add(mergee);
    mergee.set = set;
  }

  #unmerge(): void {
    const [program, fd, group] = this.#anyGroup();
    if (group === undefined) return;
    const { set } = group;
    const outcome = refusal(() => program.user.unmerge(fd));
    let expected = 'ok';
    if (set.owner !== undefined && set.owner !== program.user) expected = 'EPERM';
    else if (set.groups.size === 1) expected = 'EINVAL';
    else if ([...group.devices].some(({ files }) => files > 0)) expected = 'EBUSY';
    this.#expect('unmerge', outcome, expected);
    if (outcome !== 'ok') return;
    this.#alone(group);
    this.#settle(set);
    this.#settle(group.set);
  }

  #map(): void {
    const [program, fd, set] = this.#anyIommu();
    if (set === undefined) return;
    const page = this.random(PAGES);
    const count = 1 + this.random(4);
    let address = 0;
    const outcome = refusal(() => {
      address = program.user.map(fd, page, count);
    });
    const range = Array.from({ length: count }, (_, i) => page + i);
    this.#expect('map', outcome, range.some((at) => set.pages.has(at)) ? 'EBUSY' : 'ok');
    if (outcome === 'ok') range.forEach((at, i) => void set.pages.set(at, address + i * 4096));
  }

  #unmap(): void {
    const [program, fd, set] = this.#anyIommu();
    if (set === undefined) return;
    const page = this.random(PAGES);
    const count = 1 + this.random(6);
    this.#expect(
      'unmap',
      refusal(() => program.user.unmap(fd, page, count)),
      'ok',
    );
    for (let i = 0; i < count; i++) set.pages.delete(page + i);
  }

  #close(): void {
    const program = this.#pick(this.programs)!;
    const descriptor = this.#pick([...program.descriptors.keys()]);
    if (descriptor === undefined) return;
    program.user.close(descriptor);
    this.#closed(program, descriptor);
    this.#count('close');
  }

  #kill(): void {
    const at = this.random(USERS);
    this.#exit(this.programs[at]!);
    this.programs[at] = { user: this.world.user(), descriptors: new Map() };
    this.#count('kill');
  }

  #exit(program: Program): void {
    program.user.exit();
    for (const descriptor of [...program.descriptors.keys()].sort((a, b) => a - b)) this.#closed(program, descriptor);
    assert.equal(program.user.mm.pins, 0, 'pins of a program that has ended');
    this.world.users.splice(this.world.users.indexOf(program.user), 1);
  }

  // ---- what the administrator does ----

  #plug(): void {
    const at = this.#pick(SLOTS)!;
    if (this.devices.has(at)) return;
    const claims = this.done.get('claim') ?? 0;
    const device = this.world.add(at, false);
    let group = this.groups.get(device.group);
    if (group === undefined) {
      group = { name: device.group, devices: new Set(), files: 0, set: newSet() };
      group.set.groups.add(group);
      this.groups.set(group.name, group);
    }
    const isClaimed = inUse(group.set);
    const member = { at, device, group, isBound: isClaimed, isWaiting: false, isGoing: false, files: 0 };
    group.devices.add(member);
    this.devices.set(at, member);
    assert.equal((this.done.get('claim') ?? 0) - claims, isClaimed ? 1 : 0, 'claimed once, when in use only');
    this.#count('plug');
  }

  #bind(): void {
    const member = this.#pick([...this.devices.values()].filter(({ isBound }) => !isBound));
    if (member === undefined) return;
    this.world.bind(member.device);
    member.isBound = true;
    this.#count('bind');
  }

  #unbindOrUnplug(what: 'unbind' | 'unplug'): void {
    const candidates = [...this.devices.values()].filter(
      (member) => !member.isWaiting && (member.isBound || what === 'unplug'),
    );
    const member = this.#pick(candidates);
    if (member === undefined) return;
    const { device } = member;
    const ended = (): void => assert.ok(this.ended.delete(member), 'the driver is told once');
    const outcome = what === 'unbind' ? this.world.core.unbindDevice(device, ended) : this.world.unplug(device, ended);
    member.isGoing = what === 'unplug';
    const expected = member.isBound && inUse(member.group.set) ? 'waiting' : 'done';
    this.#expect(what, outcome, expected);
    if (expected === 'done') this.#letGo(member);
    else {
      member.isWaiting = true;
      this.ended.add(member);
    }
  }

  /** Devices whose driver waits to be told. */
  readonly ended = new Set<ModelDevice>();

  // ---- the model's own life ----

  #closed(program: Program, descriptor: number): void {
    const open = program.descriptors.get(descriptor)!;
    program.descriptors.delete(descriptor);
    if (open.kind === 'group') {
      open.group.files--;
      this.#settle(open.group.set);
    } else if (open.kind === 'iommu') {
      open.set.files--;
      this.#settle(open.set);
    } else {
      open.device.files--;
      this.#settle(open.device.group.set);
    }
  }

  #settle(set: ModelSet): void {
    if (inUse(set)) return;
    set.owner = undefined;
    set.pages.clear();
    const groups = [...set.groups];
    if (groups.every(({ files }) => files === 0)) for (const group of groups.slice(1)) this.#alone(group);
    for (const group of groups) this.#dropEmpty(group);
    for (const member of groups.flatMap(({ devices }) => [...devices])) if (member.isWaiting) this.#letGo(member);
  }

  #alone(group: ModelGroup): void {
    group.set.groups.delete(group);
    group.set = newSet();
    group.set.groups.add(group);
  }

  #letGo(member: ModelDevice): void {
    member.isBound = false;
    member.isWaiting = false;
    if (!member.isGoing) return;
    this.devices.delete(member.at);
    member.group.devices.delete(member);
    this.#dropEmpty(member.group);
  }

  #dropEmpty(group: ModelGroup): void {
    if (group.devices.size > 0 || group.files > 0) return;
    group.set.groups.delete(group);
    this.groups.delete(group.name);
  }

  #whyNotOpen(set: ModelSet, user: User): string | undefined {
    if (set.owner !== undefined && set.owner !== user) return 'EPERM';
    if (!viable(set)) return 'EBUSY';
    return [...set.groups].every(({ devices }) => devices.size === 0) ? 'EBUSY' : undefined;
  }

  // ---- comparison ----

  #check(): void {
    for (const member of this.ended) assert.ok(member.isWaiting, 'whoever waits is told in the turn of the last close');
    assert.deepEqual(
      this.world.core
        .groups()
        .map(({ name }) => name)
        .sort(),
      [...this.groups.keys()].sort(),
    );
    for (const { user } of this.programs) {
      let pages = 0;
      for (const set of this.#sets()) if (set.owner === user) pages += set.pages.size;
      assert.equal(user.mm.pins, pages, 'pins are the pages that are mapped');
      assert.equal(user.mm.lockedPages, pages);
    }
    const page = this.random(PAGES + 4);
    for (const { device, group } of this.devices.values()) {
      const { owner, pages } = group.set;
      const address = owner === undefined ? undefined : pages.get(page);
      const value = 1 + this.random(255);
      assert.equal(
        this.world.dma(device, page, value) === 'ok',
        address !== undefined,
        `DMA of ${device.name} to page ${page}`,
      );
      if (address !== undefined) assert.equal(owner!.byte(address), value);
    }
    const [program, fd, group] = this.#anyGroup();
    if (group === undefined) return;
    const flags = (viable(group.set) ? 1 : 0) | (group.set.owner === undefined ? 0 : 2);
    assert.equal(program.user.info(fd), flags, `GET_INFO of ${group.name}`);
  }

  #sets(): Set<ModelSet> {
    return new Set([...this.groups.values()].map(({ set }) => set));
  }

  #anyGroup(): [Program, number, ModelGroup | undefined] {
    const program = this.#pick(this.programs)!;
    return [program, ...(this.#groupOf(program) ?? ([-1, undefined] as const))] as [
      Program,
      number,
      ModelGroup | undefined,
    ];
  }

  #groupOf(program: Program, isWanted: (group: ModelGroup) => boolean = () => true): [number, ModelGroup] | undefined {
    const groups: [number, ModelGroup][] = [];
    for (const [fd, open] of program.descriptors) {
      if (open.kind === 'group' && isWanted(open.group)) groups.push([fd, open.group]);
    }
    return this.#pick(groups);
  }

  #anyIommu(): [Program, number, ModelSet | undefined] {
    const program = this.#pick(this.programs)!;
    const iommus = [...program.descriptors].flatMap(([fd, open]) =>
      open.kind === 'iommu' ? [[fd, open.set] as const] : [],
    );
    const [fd, set] = this.#pick(iommus) ?? [-1, undefined];
    return [program, fd, set];
  }

  #pick<T>(from: readonly T[]): T | undefined {
    return from.length === 0 ? undefined : from[this.random(from.length)];
  }

  #expect(what: string, outcome: string, expected: string): void {
    assert.equal(outcome, expected, what);
    this.#count(`${what} ${outcome}`);
  }

  #count(what: string): void {
    this.done.set(what, (this.done.get(what) ?? 0) + 1);
  }
}

function newSet(): ModelSet {
  return { groups: new Set(), owner: undefined, files: 0, pages: new Map() };
}

function inUse(set: ModelSet): boolean {
  return set.files > 0 || [...set.groups].some(({ devices }) => [...devices].some(({ files }) => files > 0));
}

function viable(set: ModelSet): boolean {
  return [...set.groups].every(({ devices }) => [...devices].every(({ isBound }) => isBound));
}

/** Lives `steps` steps and ends. Returns how often what came out; the message of a failure names seed and step. */
export function live(seed: number, steps: number): ReadonlyMap<string, number> {
  const life = new Life(seed);
  let step = 0;
  try {
    for (; step < steps; step++) life.step();
    life.end();
  } catch (error) {
    if (error instanceof Error) error.message = `seed ${seed}, step ${step}: ${error.message}`;
    throw error;
  }
  return life.done;
}
