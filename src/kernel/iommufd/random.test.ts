/**
 * Random programs against a model that knows nothing of leaves, runs or shared pages: a list of maps for each address space, and
 * for each device the address space it is attached to.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Failpoint, failNth } from '../../lib/failpoint.ts';
import * as uapi from '../../uapi/iommufd.ts';
import { refusal, TestMemoryFile } from '../core/test-task.ts';
import type { IommufdDevice } from './device.ts';
import { TestIommu, TestProgram } from './test-iommu.ts';

const PAGE = 4096n;
const SPACES = 3;
const DEVICES = 3;
/** Pages of the program's buffer; beyond it nothing is mapped. */
const BUFFER = 12;
const MAX = 2n ** 64n - 1n;

interface ModelMap {
  first: number;
  count: number;
  /** Which map made the pages; copies have the same. */
  origin: number;
  /** Page of the origin's memory at `first`, and of the buffer. */
  offset: number;
  buffer: number;
  isFile: boolean;
  isWritable: boolean;
}

type Step =
  | { do: 'map'; ioas: number; first: number; count: number; buffer: number; isWritable: boolean; isFile: boolean }
  | { do: 'copy'; ioas: number; from: number; first: number; count: number; source: number; isWritable: boolean }
  | { do: 'unmap'; ioas: number; first: number; count: number }
  | { do: 'attach' | 'replace'; device: number; ioas: number }
  | { do: 'detach'; device: number };

const small = (max: number): fc.Arbitrary<number> => fc.integer({ min: 0, max });
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constant('map' as const),
    ioas: small(SPACES - 1),
    first: small(20),
    count: fc.integer({ min: 1, max: 6 }),
    buffer: small(BUFFER),
    isWritable: fc.boolean(),
    isFile: fc.boolean(),
  }),
  fc.record({
    do: fc.constant('copy' as const),
    ioas: small(SPACES - 1),
    from: small(SPACES - 1),
    first: small(20),
    count: fc.integer({ min: 1, max: 6 }),
    source: small(20),
    isWritable: fc.boolean(),
  }),
  fc.record({ do: fc.constant('unmap' as const), ioas: small(SPACES - 1), first: small(20), count: small(12) }),
  fc.record({
    do: fc.constantFrom('attach' as const, 'replace' as const),
    device: small(DEVICES - 1),
    ioas: small(SPACES - 1),
  }),
  fc.record({ do: fc.constant('detach' as const), device: small(DEVICES - 1) }),
);

class Model {
  readonly maps: ModelMap[][] = Array.from({ length: SPACES }, () => []);
  readonly attached: (number | undefined)[] = new Array<undefined>(DEVICES).fill(undefined);
  #origins = 0;

  /** What the call must answer; the model is changed when that is `ok`. */
  run(s: Step): string {
    switch (s.do) {
      case 'map': {
        const map: ModelMap = { ...s, origin: this.#origins++, offset: 0 };
        return this.#add(s.ioas, [map], s.first, s.count);
      }
      case 'copy': {
        const parts = this.#parts(s.from, s.source, s.count);
        if (parts === undefined) return 'ENOENT';
        const moved = parts.map((part) => ({ ...part, first: part.first - s.source + s.first }));
        if (this.#meets(s.ioas, s.first, s.count)) return 'EEXIST';
        if (s.isWritable && moved.some(({ isWritable }) => !isWritable)) return 'EPERM';
        return this.#add(s.ioas, moved, s.first, s.count);
      }
      case 'unmap': {
        if (s.count === 0) return 'EINVAL';
        const met = this.maps[s.ioas]!.filter((m) => m.first < s.first + s.count && s.first < m.first + m.count);
        met.sort((a, b) => a.first - b.first);
        for (const map of met) {
          if (map.first < s.first || map.first + map.count > s.first + s.count) return 'ENOENT';
          this.maps[s.ioas]!.splice(this.maps[s.ioas]!.indexOf(map), 1);
        }
        return met.length === 0 ? 'ENOENT' : 'ok';
      }
      case 'attach':
      case 'replace': {
        const current = this.attached[s.device];
        if (s.do === 'attach' && current !== undefined) return 'EBUSY';
        const isActive = this.attached.includes(s.ioas);
        const bad = isActive ? undefined : this.#firstBad(s.ioas);
        if (bad !== undefined) return bad;
        // The new table is there and filled when it is found that there is no old one.
        if (s.do === 'replace' && current === undefined) return 'EINVAL';
        this.attached[s.device] = s.ioas;
        return 'ok';
      }
      case 'detach':
        this.attached[s.device] = undefined;
        return 'ok';
    }
  }

  /** Pages of the program's memory and of the file that are pinned, each pin counted. */
  get pins(): number {
    const pinned = new Set<string>();
    this.maps.forEach((maps, ioas) => {
      if (!this.attached.includes(ioas)) return;
      for (const map of maps) for (let i = 0; i < map.count; i++) pinned.add(`${map.origin}:${map.offset + i}`);
    });
    return pinned.size;
  }

  #add(ioas: number, maps: ModelMap[], first: number, count: number): string {
    if (this.#meets(ioas, first, count)) return 'EEXIST';
    if (this.attached.includes(ioas)) for (const map of maps) if (isBad(map)) return map.isFile ? 'EINVAL' : 'EFAULT';
    this.maps[ioas]!.push(...maps);
    return 'ok';
  }

  #meets(ioas: number, first: number, count: number): boolean {
    return this.maps[ioas]!.some((m) => m.first < first + count && first < m.first + m.count);
  }

  #parts(ioas: number, first: number, count: number): ModelMap[] | undefined {
    const parts: ModelMap[] = [];
    for (let at = first; at < first + count; ) {
      const map = this.maps[ioas]!.find((m) => m.first <= at && at < m.first + m.count);
      if (map === undefined) return undefined;
      const skip = at - map.first;
      const length = Math.min(map.first + map.count, first + count) - at;
      parts.push({ ...map, first: at, count: length, offset: map.offset + skip, buffer: map.buffer + skip });
      at += length;
    }
    return parts;
  }

  #firstBad(ioas: number): string | undefined {
    const bad = [...this.maps[ioas]!].sort((a, b) => a.first - b.first).find(isBad);
    return bad === undefined ? undefined : bad.isFile ? 'EINVAL' : 'EFAULT';
  }
}

const isBad = (map: ModelMap): boolean => map.buffer + map.count > BUFFER;

interface World {
  p: TestProgram;
  ioases: number[];
  devices: IommufdDevice[];
  buffer: number;
  memfd: number;
}

function makeWorld(): World {
  const p = new TestProgram({ capabilities: [] });
  const ioases = Array.from({ length: SPACES }, () => p.ioas());
  const devices = Array.from({ length: DEVICES }, () => p.bind(new TestIommu()));
  const memfd = p.task.open(new TestMemoryFile(BUFFER * 4096)).descriptor;
  return { p, ioases, devices, buffer: p.task.memory.map(BUFFER * 4096), memfd };
}

function perform({ p, ioases, devices, buffer, memfd }: World, s: Step): void {
  const flags = (isWritable: boolean): number =>
    uapi.IOMMU_IOAS_MAP_READABLE | (isWritable ? uapi.IOMMU_IOAS_MAP_WRITEABLE : 0);
  const bytes = (pages: number): bigint => BigInt(pages) * PAGE;
  switch (s.do) {
    case 'map': {
      const ioas = ioases[s.ioas]!;
      if (s.isFile) p.mapFile(ioas, bytes(s.first), memfd, bytes(s.buffer), bytes(s.count), flags(s.isWritable));
      else p.map(ioas, bytes(s.first), buffer + s.buffer * 4096, s.count * 4096, flags(s.isWritable));
      break;
    }
    case 'copy': {
      const [to, from] = [ioases[s.ioas]!, ioases[s.from]!];
      p.copy(to, bytes(s.first), from, bytes(s.source), bytes(s.count), flags(s.isWritable));
      break;
    }
    case 'unmap':
      p.unmap(ioases[s.ioas]!, bytes(s.first), bytes(s.count));
      break;
    case 'attach':
      devices[s.device]!.attach(ioases[s.ioas]!);
      break;
    case 'replace':
      devices[s.device]!.replace(ioases[s.ioas]!);
      break;
    case 'detach':
      devices[s.device]!.detach();
      break;
  }
}

/** Every device reaches exactly what the model says, and equal pages are equal. */
function compare({ p, devices }: World, model: Model): void {
  const places = new Map<number, string>();
  devices.forEach((device, i) => {
    const ioas = model.attached[i];
    const domain = (device.iommu as TestIommu).domain;
    assert.equal(domain === undefined, ioas === undefined);
    if (domain === undefined || ioas === undefined) return;
    let count = 0;
    for (const map of model.maps[ioas]!) {
      for (let n = 0; n < map.count; n++) {
        const physical = domain.physicalOf(map.first + n);
        const place = `${map.isFile ? 'file' : 'memory'} ${map.buffer + n}`;
        assert(physical >= 0, `page ${map.first + n} is not mapped`);
        assert.equal(places.get(physical) ?? place, place);
        places.set(physical, place);
        count++;
      }
    }
    assert.equal(domain.pages.size, count);
  });
  assert.equal(p.core.userLocked.pages, model.pins);
  assert.equal(p.task.mm.pinnedPages, model.pins);
}

test('any sequence of maps, copies, unmaps and attachments behaves as a list of maps, and leaves nothing behind', () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 60 }), (steps) => {
      const world = makeWorld();
      const model = new Model();
      for (const s of steps) {
        const expected = model.run(s);
        assert.equal(
          refusal(() => perform(world, s)),
          expected,
          JSON.stringify(s),
        );
        compare(world, model);
      }
      for (const device of world.devices) device.unbind();
      world.p.end();
    }),
    { numRuns: 150 },
  );
});

test('whatever fails on the way, the call leaves everything as it was', () => {
  const world = makeWorld();
  const { p, ioases, devices } = world;
  // Besides the failures that the code orders itself: one before every table and every run that is entered into one.
  const mapFails = new Failpoint('test:domain', 'ENOMEM');
  for (const device of devices) {
    const iommu = device.iommu as TestIommu;
    const allocate = iommu.allocatePaging.bind(iommu);
    iommu.allocatePaging = (flags, data) => {
      mapFails.hit();
      const domain = allocate(flags, data);
      const map = domain.map.bind(domain);
      domain.map = (...args) => {
        mapFails.hit();
        map(...args);
      };
      return domain;
    };
  }
  const model = new Model();
  const script: Step[] = [
    { do: 'map', ioas: 0, first: 1, count: 2, buffer: 0, isWritable: true, isFile: false },
    { do: 'map', ioas: 0, first: 4, count: 2, buffer: 2, isWritable: true, isFile: true },
    { do: 'attach', device: 0, ioas: 0 },
    { do: 'attach', device: 1, ioas: 1 },
    { do: 'copy', ioas: 1, from: 0, first: 10, count: 2, source: 4, isWritable: false },
    { do: 'map', ioas: 1, first: 1, count: 3, buffer: 4, isWritable: true, isFile: false },
    { do: 'replace', device: 1, ioas: 0 },
    { do: 'replace', device: 0, ioas: 1 },
  ];
  let failures = 0;
  for (const s of script) {
    for (let n = 1; ; n++) {
      using order = failNth(n);
      const objects = p.file.context.objects.size;
      const answer = refusal(() => perform(world, s));
      if (order.failed.length === 0) {
        assert.equal(answer, model.run(s));
        break;
      }
      failures++;
      // The answer cannot be stored: as in the kernel the map stays.
      if (order.failed.includes('iommufd:respond')) {
        assert.equal(model.run(s), 'ok');
        break;
      }
      assert(['ENOMEM', 'EFAULT', 'ENOENT'].includes(answer), `${s.do}: ${answer}, failing at ${order.failed.join()}`);
      assert.equal(p.file.context.objects.size, objects);
      compare(world, model);
    }
    compare(world, model);
  }
  assert(failures > 15, `${failures} failures were walked`);
  assert.equal(p.unmap(ioases[0]!, 0n, MAX), 4n * PAGE);
  for (const device of devices) device.unbind();
  p.end();
});
