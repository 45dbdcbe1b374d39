import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RegisterTable, register } from './register.ts';

const read = (table: RegisterTable, offset: number, size: number): number[] => {
  const into = new Uint8Array(size).fill(0x55);
  table.read(offset, into);
  return [...into];
};
const write = (table: RegisterTable, offset: number, ...bytes: number[]): void =>
  table.write(offset, Uint8Array.from(bytes));

test('masks: read-only bits stay, ones clear, write-only bits read as zero', () => {
  const plain = register({ at: 0, reset: 0x11223344, readOnly: 0xffff0000 });
  const status = register({ at: 4, reset: 0xff, writeOneToClear: 0xf0, readOnly: 0x0f });
  const secret = register({ at: 8, writeOnly: 0xff00 });
  const fixed = register({ at: 12, reset: 7, readOnly: true });
  const table = new RegisterTable([plain, status, secret, fixed]);
  write(table, 0, 0xaa, 0xbb, 0xcc, 0xdd);
  assert.equal(plain.value, 0x1122bbaa);
  write(table, 4, 0x3f, 0xff, 0xff, 0xff);
  assert.equal(status.value, 0xffffffcf, 'bits with no mask are plain');
  write(table, 8, 1, 2, 3, 4);
  assert.deepEqual(read(table, 8, 4), [1, 0, 3, 4]);
  assert.equal(secret.value, 0x04030201);
  write(table, 12, 0xff);
  assert.equal(fixed.value, 7);
  table.reset();
  assert.deepEqual([plain.value, status.value, secret.value], [0x11223344, 0xff, 0]);
});

test('an access touches the bytes that it covers: part of a register, several of them, holes', () => {
  const calls: string[] = [];
  const spec = (at: number, width: 1 | 2 | 4 | 8) =>
    register({
      at,
      width,
      write: (self, written, before) => calls.push(`${self.name} ${written} ${before}`) && undefined,
    });
  const [a, b, c] = [spec(0, 2), spec(2, 1), spec(4, 4)];
  const table = new RegisterTable([c, a, b], { hole: 0xff });
  write(table, 0, 1, 2, 3, 4, 5, 6, 7, 8);
  assert.deepEqual(calls.splice(0), ['0x0 513 0', '0x2 3 0', '0x4 134678021 0']);
  assert.deepEqual(read(table, 0, 8), [1, 2, 3, 0xff, 5, 6, 7, 8]);
  write(table, 5, 0x60);
  assert.equal(c.value, 0x08076005);
  assert.deepEqual(calls, ['0x4 24576 134678021']);
  assert.deepEqual(read(table, 6, 4), [7, 8, 0xff, 0xff], 'beyond the last register there is a hole');
});

test('64 bits: halves, whole, hooks that compute, values up to 2^64', () => {
  const address = register({ at: 0, width: 8 });
  const computed = register({ at: 8, width: 8, read: () => 0xfedc_ba98_7654_3210n });
  const small = register({ at: 16, width: 2, read: () => 0x1234 });
  const table = new RegisterTable([address, computed, small]);
  write(table, 4, 0xff, 0xff, 0xff, 0xff);
  write(table, 0, 1, 0, 0, 0);
  assert.equal(address.wide, 0xffff_ffff_0000_0001n);
  address.value = 0x1_0000_0002;
  assert.deepEqual([address.low, address.high], [2, 1]);
  assert.deepEqual(read(table, 8, 8), [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
  assert.deepEqual(read(table, 12, 4), [0x98, 0xba, 0xdc, 0xfe]);
  assert.deepEqual(read(table, 17, 1), [0x12]);
});

test('what cannot be is refused in one line', () => {
  const refused = (make: () => unknown, why: RegExp): void =>
    assert.throws(make, (error: Error) => {
      assert.match(error.message, why);
      return !error.message.includes('\n');
    });
  refused(
    () => new RegisterTable([register({ at: 0 }), register({ at: 2, name: 'LATE' })]),
    /register LATE at 0x2 overlaps 0x0/,
  );
  refused(() => register({ at: -4 }), /cannot be at offset -4/);
  refused(() => register({ at: 0, width: 3 as never }), /cannot have 3 bytes/);
  refused(() => register({ at: 0, reset: 2 ** 32 }), /cannot hold 0x100000000/);
});

test('saved and restored: every register, through JSON, without calling hooks', () => {
  let called = 0;
  const make = () => [
    register({ at: 0, width: 8, write: () => void called++ }),
    register({ at: 8, width: 1, reset: 3 }),
  ];
  const one = make();
  const table = new RegisterTable(one);
  one[0]!.wide = 0xffff_ffff_ffff_fffen;
  one[1]!.value = 9;
  const two = make();
  new RegisterTable(two).restore(JSON.parse(JSON.stringify(table.save())));
  assert.deepEqual([two[0]!.wide, two[1]!.value, called], [0xffff_ffff_ffff_fffen, 9, 0]);
  assert.throws(() => table.restore({ '0x0': '0x1' }), /no value for register 0x8/);
  assert.throws(() => table.restore({ '0x0': 'x', '0x8': '0x1' }), /no value/);
});

test('a table of plain registers behaves as bytes, whatever the accesses', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(24), fc.uint8Array({ minLength: 1, maxLength: 8 })), { maxLength: 20 }),
      (accesses) => {
        const table = new RegisterTable([
          register({ at: 0, width: 8 }),
          register({ at: 8 }),
          register({ at: 12, width: 2 }),
          register({ at: 14, width: 1 }),
          register({ at: 15, width: 1 }),
          register({ at: 16, width: 8 }),
        ]);
        const bytes = new Uint8Array(24);
        for (const [offset, data] of accesses) {
          table.write(offset, data);
          data.forEach((byte, i) => {
            if (offset + i < 24) bytes[offset + i] = byte;
          });
        }
        const whole = new Uint8Array(24);
        table.read(0, whole);
        assert.deepEqual(whole, bytes);
      },
    ),
    { numRuns: 100 },
  );
});
