import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ConfigSpace } from './config-space.ts';

const sizes = fc.constantFrom<1 | 2 | 4>(1, 2, 4);

test('a write changes writable bits, clears W1C bits, leaves the others', () => {
  const config = new ConfigSpace(256);
  config.define(0x40, 4, 0x1234_5678, 0x0000_ff00, 0x00ff_0000);
  config.write(0x40, 4, 0xff30_ffff);
  assert.equal(config.read(0x40, 4), 0x1204_ff78);
  config.write(0x41, 1, 0x5a);
  assert.equal(config.read(0x40, 4), 0x1204_5a78);
});

test('outside its length and after removal everything reads as ones and nothing is written', () => {
  const config = new ConfigSpace(256);
  config.define(0xfc, 4, 0, 0xffffffff);
  assert.equal(config.read(0xfe, 4), 0xffffffff);
  assert.equal(config.read(0x100, 2), 0xffff);
  assert.equal(config.read(-1, 1), 0xff);
  config.write(0xfe, 4, 0xffffffff);
  assert.equal(config.read(0xfc, 4), 0);
  config.gone = true;
  config.write(0xfc, 4, 1);
  assert.equal(config.get(0xfc, 4), 0);
  assert.equal(config.read(0xfc, 1), 0xff);
});

test('every sequence of writes equals a model of bits, whatever the sizes', () => {
  const register = fc.record({ value: fc.nat(0xffff), writable: fc.nat(0xffff), clearable: fc.nat(0xffff) });
  const write = fc.record({ offset: fc.nat(15), size: sizes, value: fc.integer({ min: 0, max: 0xffffffff }) });
  fc.assert(
    fc.property(
      fc.array(register, { minLength: 8, maxLength: 8 }),
      fc.array(write, { maxLength: 20 }),
      (registers, writes) => {
        const config = new ConfigSpace(256);
        const bits: { value: boolean; writable: boolean; clearable: boolean }[] = [];
        registers.forEach((r, i) => {
          const clearable = r.clearable & ~r.writable;
          config.define(0x80 + 2 * i, 2, r.value, r.writable, clearable);
          for (let b = 0; b < 16; b++) {
            const has = (mask: number): boolean => ((mask >> b) & 1) === 1;
            bits.push({ value: has(r.value), writable: has(r.writable), clearable: has(clearable) });
          }
        });
        config.seal();
        const initial = bits.map((bit) => bit.value);
        const check = (): void => {
          bits.forEach((bit, at) => {
            assert.equal((config.read(0x80 + (at >> 3), 1) >> (at & 7)) & 1, bit.value ? 1 : 0);
          });
        };
        for (const { offset, size, value } of writes) {
          config.write(0x80 + offset, size, value);
          for (let b = 0; b < 8 * size; b++) {
            const bit = bits[offset * 8 + b];
            const isSet = ((value >>> b) & 1) === 1;
            if (bit?.writable) bit.value = isSet;
            if (bit?.clearable && isSet) bit.value = false;
          }
        }
        check();
        config.reset();
        bits.forEach((bit, at) => {
          if (bit.writable || bit.clearable) bit.value = initial[at]!;
        });
        check();
      },
    ),
    { numRuns: 50 },
  );
});

test('watchers hear writes that touch their bytes, with the value as written', () => {
  const config = new ConfigSpace(256);
  const heard: number[][] = [];
  config.watch(0x50, 2, (...args) => heard.push(args));
  config.write(0x4e, 2, 1);
  config.write(0x52, 4, 1);
  assert.deepEqual(heard, []);
  config.write(0x4e, 4, 0xaabbccdd);
  config.write(0x51, 1, 0x7f);
  assert.deepEqual(heard, [
    [0x4e, 4, 0xaabbccdd],
    [0x51, 1, 0x7f],
  ]);
  assert.equal(config.read(0x50, 2), 0, 'nothing was writable');
});

test('capabilities are linked in order; a fixed place is kept free by the others', () => {
  const config = new ConfigSpace(256);
  assert.equal(config.addCapability(0x05, 14, 0x44), 0x44);
  assert.equal(config.addCapability(0x01, 8), 0x54);
  assert.equal(config.addCapability(0x09, 4), 0x40);
  assert.equal(config.read(0x34, 1), 0x44);
  assert.equal(config.read(0x44, 2), 0x5405);
  assert.equal(config.read(0x54, 2), 0x4001);
  assert.equal(config.read(0x40, 2), 0x0009);
  assert.equal(config.read(0x06, 2) & 0x10, 0x10);
  assert.equal(config.findCapability(0x01), 0x54);
  assert.equal(config.findCapability(0x10), 0);
  assert.throws(() => config.addCapability(0x11, 12, 0x46), /cannot be at 0x46/);
  assert.throws(() => config.addCapability(0x11, 256), /No room/);
});

test('extended capabilities start at 0x100 and need 4096 bytes', () => {
  assert.throws(() => new ConfigSpace(256).addExtended(1, 1, 8), /PCI Express/);
  const config = new ConfigSpace(4096);
  assert.throws(() => config.addExtended(1, 1, 8, 0x200), /first extended capability/);
  assert.equal(config.addExtended(0x01, 2, 0x48), 0x100);
  assert.equal(config.addExtended(0x0d, 1, 8), 0x148);
  assert.equal(config.addExtended(0x10, 1, 0x40, 0x200), 0x200);
  assert.equal(config.read(0x100, 4), 0x1482_0001);
  assert.equal(config.read(0x148, 4), 0x2001_000d);
  assert.equal(config.read(0x200, 4), 0x0001_0010);
  assert.equal(config.findExtended(0x0d), 0x148);
  assert.deepEqual(
    config.extended().map((c) => c.id),
    [1, 0xd, 0x10],
  );
});
