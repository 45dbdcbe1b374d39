import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { INVALID_IOASID, type IoasidAllocatorOps, IoasidError, IoasidSet, Ioasids } from './ioasid.ts';
import { refuses } from './test-machine.ts';

interface Value {
  readonly name: string;
}

const ops = (alloc: IoasidAllocatorOps['alloc'], free: IoasidAllocatorOps['free'] = () => {}): IoasidAllocatorOps => ({
  alloc,
  free,
});

/** A custom allocator that counts up from `next`. */
function counting(next: number): IoasidAllocatorOps & { freed: number[] } {
  const freed: number[] = [];
  let at = next;
  return { alloc: () => at++, free: (id) => freed.push(id), freed };
}

function code(found: unknown): string {
  return found instanceof IoasidError ? found.code : 'found';
}

test('A-1 A-10 A-11: the lowest free id of the range, exactly one of a range of one, INVALID when the range is used up', () => {
  const ids = new Ioasids();
  const set = new IoasidSet();
  assert.deepEqual(
    [5, 6, 7, INVALID_IOASID],
    [0, 0, 0, 0].map(() => ids.alloc(set, 5, 7, null)),
  );
  ids.free(6);
  assert.equal(ids.alloc(set, 0, 6, null), 0);
  assert.equal(ids.alloc(set, 1, 1, null), 1);
  assert.equal(ids.alloc(set, 1, 1, null), INVALID_IOASID);
  assert.equal(ids.alloc(set, 5, 9, null), 6);
  assert.equal(ids.alloc(set, 9, 8, null), INVALID_IOASID);
  assert.equal(ids.used, 5);
});

test('A-2 A-4 A-9: allocators are registered before the first allocation, once, and not over ids of the default one', () => {
  const ids = new Ioasids();
  const custom = counting(100);
  ids.registerAllocator(custom);
  refuses('EEXIST', () => ids.registerAllocator(custom));
  refuses('EINVAL', () => ids.registerAllocator({ alloc: () => 1 } as unknown as IoasidAllocatorOps));
  refuses('EINVAL', () => ids.registerAllocator(null as unknown as IoasidAllocatorOps));
  ids.unregisterAllocator(custom);
  const id = ids.alloc(null, 0, 9, null);
  refuses('EAGAIN', () => ids.registerAllocator(custom), /1 ids out/);
  assert.equal(ids.hasCustomAllocator, false);
  ids.free(id);
  ids.registerAllocator(custom);
  assert.equal(ids.hasCustomAllocator, true);
});

test('A-3 A-7 A-8: the custom allocator serves; a different one waits for its end; then the default one serves again', () => {
  const ids = new Ioasids();
  const a = counting(100);
  const b = counting(200);
  ids.registerAllocator(a);
  ids.registerAllocator(b);
  const first = ids.alloc(null, 0, 999, null);
  assert.equal(first, 100);
  ids.free(first);
  assert.deepEqual(a.freed, [100]);
  ids.unregisterAllocator(a);
  const second = ids.alloc(null, 0, 999, null);
  assert.equal(second, 200);
  ids.free(second);
  ids.unregisterAllocator(b);
  assert.equal(ids.alloc(null, 7, 999, null), 7);
  assert.equal(ids.warnings, 0);
});

test('A-5 A-6: sharers have one table, which ends with the last of them', () => {
  const ids = new Ioasids();
  const freed: unknown[] = [];
  const alloc: IoasidAllocatorOps['alloc'] = (_min, _max, pdata) => (pdata as { next: number }).next++;
  const free: IoasidAllocatorOps['free'] = (id) => freed.push(id);
  const first = { alloc, free, pdata: { next: 10 } };
  const second = { alloc, free, pdata: { next: 20 } };
  ids.registerAllocator(first);
  ids.registerAllocator(second);
  const set = new IoasidSet<Value>();
  const value = { name: 'kept' };
  const id = ids.alloc(set, 0, 99, value);
  ids.unregisterAllocator(first);
  assert.equal(ids.find(set, id), value);
  assert.equal(ids.alloc(set, 0, 99, value), 20, 'the other one serves');
  assert.equal(ids.warnings, 0);
  ids.unregisterAllocator(second);
  assert.equal(code(ids.find(set, id)), 'ENOENT');
  assert.equal(ids.warnings, 1);
  assert.equal(ids.put(id), false);
  assert.deepEqual(freed, [], 'lost ids are not given back to an allocator that has gone');
  ids.unregisterAllocator(second);
  assert.match(ids.log.at(-1)!, /not registered/);
});

test('A-12 A-13: data that come late; the old value is disposable when those who read before have ended', () => {
  const ids = new Ioasids();
  const set = new IoasidSet<Value>();
  const id = ids.alloc(set, 1, 9, null);
  assert.equal(ids.find(set, id), null);
  const old = { name: 'old' };
  ids.setData(id, old);
  const events: string[] = [];
  const before = ids.readers.begin();
  assert.equal(ids.find(set, id), old);
  ids.setData(id, { name: 'new' }, () => events.push('disposed'));
  const after = ids.readers.begin();
  assert.equal((ids.find(set, id) as Value).name, 'new', 'published at once');
  assert.equal(events.length, 0);
  before.end();
  assert.deepEqual([...events], ['disposed'], 'a reader that began later does not delay it');
  ids.setData(id, null, () => events.push('second'));
  assert.equal(ids.readers.waiting, 1);
  after.end();
  assert.deepEqual(events, ['disposed', 'second']);
  refuses('ENOENT', () => ids.setData(77, null));
});

test('A-14 A-15 A-20 A-21: what a lookup finds by set, without one, and with a getter', () => {
  const ids = new Ioasids();
  const processes = new IoasidSet<Value>('sva');
  const drivers = new IoasidSet<{ queue: number }>('driver');
  const mm = { name: 'mm' };
  const shared = ids.alloc(processes, 1, 99, mm);
  const own = ids.alloc(drivers, 1, 99, { queue: 3 });
  const nobodys = ids.alloc(null, 1, 99, mm);
  assert.equal(ids.find(processes, shared), mm);
  assert.equal(code(ids.find(processes, own)), 'EACCES', "a page fault on a driver's own id finds no process");
  assert.deepEqual(ids.find(null, own), { queue: 3 });
  assert.equal(code(ids.find(processes, nobodys)), 'EACCES');
  assert.equal(ids.find(null, nobodys), mm);
  assert.equal(code(ids.find(null, 98)), 'ENOENT');
  const asked: Value[] = [];
  assert.equal(
    ids.find(processes, shared, (value) => asked.push(value) < 0),
    null,
  );
  assert.deepEqual(asked, [mm]);
  ids.setData(shared, null);
  assert.equal(
    ids.find(processes, shared, () => assert.fail('there is nothing to take')),
    null,
  );
});

test('A-16 A-17: references are counted, and the id is free with the last one', () => {
  const ids = new Ioasids();
  const set = new IoasidSet<Value>();
  const value = { name: 'x' };
  const id = ids.alloc(set, 1, 1, value);
  ids.get(id);
  assert.equal(ids.put(id), false);
  assert.equal(ids.alloc(set, 1, 1, value), INVALID_IOASID);
  assert.equal(ids.find(set, id), value);
  assert.equal(ids.put(id), true);
  assert.equal(ids.put(id), false, 'a double free');
  ids.get(id);
  assert.equal(ids.warnings, 2);
  assert.equal(ids.alloc(set, 1, 1, value), 1);
  ids.get(id);
  ids.free(id);
  assert.equal(ids.find(set, id), value, 'free puts the reference of the allocation only');
});

test('A-18: an id that the custom allocator gives twice is given back once and nobody gets it', () => {
  const ids = new Ioasids();
  const freed: number[] = [];
  ids.registerAllocator(
    ops(
      () => 5,
      (id) => freed.push(id),
    ),
  );
  const set = new IoasidSet<Value>();
  const value = { name: 'first' };
  assert.equal(ids.alloc(set, 0, 9, value), 5);
  assert.equal(ids.alloc(set, 0, 9, { name: 'second' }), INVALID_IOASID);
  assert.deepEqual(freed, [5]);
  assert.equal(ids.find(set, 5), value);
});

test('an id outside of the range asked for is kept with a warning, or given back when the registry is strict', () => {
  for (const strictRange of [false, true]) {
    const ids = new Ioasids({ strictRange });
    const custom = counting(50);
    ids.registerAllocator(custom);
    assert.equal(ids.alloc(null, 0, 9, null), strictRange ? INVALID_IOASID : 50);
    assert.equal(ids.warnings, 1);
    assert.deepEqual(custom.freed, strictRange ? [50] : []);
    assert.equal(ids.used, strictRange ? 0 : 1);
  }
});

test('A-19: forEach visits the set in ascending order, stops at the first error, and the set changes afterwards', () => {
  const ids = new Ioasids();
  const set = new IoasidSet<Value>();
  const other = new IoasidSet<Value>();
  for (const id of [40, 10, 1030, 20]) ids.alloc(set, id, id, { name: `${id}` });
  ids.alloc(other, 15, 15, { name: 'other' });
  const seen: number[] = [];
  const result = ids.forEach(set, (id, value) => {
    assert.equal(value?.name, `${id}`);
    seen.push(id);
    ids.free(1030);
    if (id === 10) assert.equal(ids.alloc(set, 11, 11, null), 11);
    return id === 1030 ? 7 : 0;
  });
  assert.equal(result, 7);
  assert.deepEqual(seen, [10, 20, 40, 1030]);
  assert.equal(ids.refsOf(1030), 0);
  assert.equal(
    ids.forEach(set, (id) => (id > 10 ? id : 0)),
    11,
  );
});

test('A-70 A-71: a quota bounds the ids of one set; sets of the same name are different', () => {
  const ids = new Ioasids();
  const small = new IoasidSet<Value>('vm', { quota: 2 });
  const same = new IoasidSet<Value>('vm', { quota: 2 });
  const first = ids.alloc(small, 1, 99, null);
  ids.alloc(small, 1, 99, null);
  assert.equal(ids.alloc(small, 1, 99, null), INVALID_IOASID);
  const id = ids.alloc(same, 1, 99, null);
  assert.equal(id, 3);
  assert.equal(code(ids.find(small, id)), 'EACCES');
  ids.free(first);
  assert.equal(ids.alloc(small, 1, 99, null), first);
});

test('A-80: a getter keeps what was found over the reuse of its id; without one the id means somebody else', () => {
  const ids = new Ioasids();
  class Space {
    refs = 1;
    readonly name: string;
    constructor(name: string) {
      this.name = name;
    }
    get isGone(): boolean {
      return this.refs === 0;
    }
    /** As mmget_not_zero. */
    take = (): boolean => this.refs > 0 && this.refs++ > 0;
  }
  const set = new IoasidSet<Space>();
  const old = new Space('old');
  const id = ids.alloc(set, 1, 1, old);
  const taken = ids.find(set, id, (space) => space.take()) as Space;
  ids.free(id);
  old.refs--;
  const fresh = new Space('new');
  assert.equal(ids.alloc(set, 1, 1, fresh), id, 'used again at once');
  assert.equal(taken.name, 'old');
  assert.equal(taken.isGone, false, 'alive by the reference that was taken');
  assert.notEqual(taken, ids.find(set, id), 'and recognised as stale');
  taken.refs--;
  assert.equal(taken.isGone, true);
  // The hazard: an id that was looked at before, and the object only now.
  assert.equal((ids.find(set, id) as Space).name, 'new');
  fresh.refs--;
  assert.equal(
    ids.find(set, id, (space) => space.take()),
    null,
    'what is ending is not found',
  );
});

test('A-81: what comes while an allocation is under way waits for it', () => {
  const ids = new Ioasids();
  const answers: ((id: number) => void)[] = [];
  const custom = {
    ...counting(0),
    allocLater: (_a: number, _b: number, _p: unknown, done: (id: number) => void) => void answers.push(done),
  };
  ids.registerAllocator(custom);
  const given: number[] = [];
  ids.allocLater(null, 0, 99, null, (id) => given.push(id));
  ids.unregisterAllocator(custom);
  ids.allocLater(null, 30, 99, null, (id) => given.push(id));
  refuses('EBUSY', () => ids.alloc(null, 0, 99, null));
  refuses('EBUSY', () => ids.registerAllocator(counting(1)));
  assert.equal(ids.hasCustomAllocator, true);
  answers[0]!(42);
  assert.deepEqual(given, [30, 42], 'the second is served by the default allocator, after the change');
  assert.equal(ids.hasCustomAllocator, false);
  assert.equal(ids.warnings, 1, 'id 42 was lost with its allocator');
  const within = ops(() => {
    ids.unregisterAllocator(within);
    assert.equal(ids.hasCustomAllocator, true);
    return 60;
  });
  ids.free(30);
  ids.registerAllocator(within);
  assert.equal(ids.alloc(null, 0, 99, null), 60);
  assert.equal(ids.hasCustomAllocator, false);
});

test('A-17: an entry is reclaimed when its readers have ended, its id is free at once', () => {
  const ids = new Ioasids();
  const id = ids.alloc(null, 1, 9, { name: 'x' });
  ids.readers.run(() => {
    ids.free(id);
    assert.equal(ids.reclaiming, 1);
    assert.equal(ids.used, 0);
  });
  assert.equal(ids.reclaiming, 0);
});

test('two modules with different data in one space: each finds its own, whatever happens', () => {
  interface Mm {
    readonly pgd: number;
  }
  interface AuxiliaryDomain {
    readonly did: number;
  }
  const step = fc.record({
    module: fc.boolean(),
    what: fc.constantFrom('alloc', 'free', 'find', 'set'),
    pick: fc.nat(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 150 }), (steps) => {
      const ids = new Ioasids();
      const mms = new IoasidSet<Mm>('sva');
      const domains = new IoasidSet<AuxiliaryDomain>('aux');
      const model = new Map<number, Mm | AuxiliaryDomain>();
      const is = (value: object, module: boolean): boolean => 'pgd' in value === module;
      for (const { module, what, pick } of steps) {
        const value = module ? { pgd: pick } : { did: pick };
        const known = [...model.keys()];
        const id = known.length === 0 ? 0 : known[pick % known.length]!;
        if (what === 'alloc') {
          const set = module ? mms : domains;
          const given = ids.alloc(set as IoasidSet, 1, 40, value);
          assert.equal(given === INVALID_IOASID, model.size === 40);
          if (given !== INVALID_IOASID) {
            assert.equal(model.has(given), false);
            model.set(given, value);
          }
        } else if (what === 'free') {
          assert.equal(ids.put(id), model.delete(id));
        } else if (what === 'set' && model.has(id) && is(model.get(id)!, module)) {
          ids.setData(id, value);
          model.set(id, value);
        } else {
          const found = module ? ids.find(mms, id) : ids.find(domains, id);
          const expected = model.get(id);
          if (expected === undefined) assert.equal(code(found), 'ENOENT');
          else if (is(expected, module)) assert.equal(found, expected);
          else assert.equal(code(found), 'EACCES');
        }
        assert.equal(ids.used, model.size);
      }
    }),
    { numRuns: 60 },
  );
});
