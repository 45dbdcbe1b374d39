import assert from 'node:assert/strict';
import { test } from 'node:test';
import { agree, defaultCapabilities, encodeVersion, parseVersion } from './negotiation.ts';
import { versionPayload } from './test-peer.ts';

const qemu =
  '{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}';

test('U-1 U-7: what QEMU proposes and what it is answered, byte for byte; the minor version is the lower one', () => {
  const payload = versionPayload(0, 0, qemu);
  assert.equal(payload.length + 16, 214);
  const answer = encodeVersion(agree(parseVersion(payload)));
  assert.equal(Buffer.from(answer.subarray(0, 4)).toString('hex'), '00000000');
  assert.equal(
    Buffer.from(answer.subarray(4)).toString(),
    '{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"max_dma_maps":65535,"pgsizes":4096,"write_multiple":true}}\0',
  );
  assert.equal(agree(parseVersion(versionPayload(0, 7, qemu))).minor, 1);
});

test('U-3: without a JSON text the defaults hold', () => {
  assert.deepEqual(parseVersion(versionPayload(0, 1, undefined)).capabilities, defaultCapabilities);
  assert.equal(agree(parseVersion(versionPayload(0, 1, undefined))).capabilities.write_multiple, false);
});

test('U-4: a text without its NUL is EINVAL', () => {
  assert.throws(() => parseVersion(versionPayload(0, 1, '{}').subarray(0, 6)), { code: 'EINVAL' });
});

test('U-5: unknown keys are ignored', () => {
  const { capabilities } = parseVersion(versionPayload(0, 1, '{"x": 1, "capabilities": {"y": [], "max_msg_fds": 3}}'));
  assert.equal(capabilities.max_msg_fds, 3);
});

test('another major version, bad JSON and numbers out of range are EINVAL', () => {
  assert.throws(() => agree(parseVersion(versionPayload(1, 0, '{}'))), { code: 'EINVAL' });
  for (const text of [
    '{',
    '[]',
    '3',
    '{"capabilities": 3}',
    '{"capabilities": {"max_msg_fds": -1}}',
    '{"capabilities": {"max_msg_fds": 1025}}',
    '{"capabilities": {"max_msg_fds": "8"}}',
    '{"capabilities": {"max_data_xfer_size": 0}}',
    '{"capabilities": {"max_data_xfer_size": 1.5}}',
    '{"capabilities": {"write_multiple": 1}}',
    '{"capabilities": {"twin_socket": true}}',
  ]) {
    assert.throws(() => parseVersion(versionPayload(0, 1, text)), { code: 'EINVAL' }, text);
  }
  assert.throws(() => parseVersion(new Uint8Array(3)), { code: 'EINVAL' });
});

test('a smaller transfer size of the client holds for both', () => {
  const version = parseVersion(versionPayload(0, 1, '{"capabilities": {"max_data_xfer_size": 4096}}'));
  assert.equal(agree(version).capabilities.max_data_xfer_size, 4096);
});

test('what older peers say of their bitmaps is checked and changes nothing', () => {
  const parse = (migration: unknown): unknown => {
    const text = Buffer.from(`${JSON.stringify({ capabilities: { migration } })}\0`);
    return parseVersion(Buffer.concat([Uint8Array.of(0, 0, 1, 0), text])).capabilities;
  };
  assert.deepEqual(parse({ pgsize: 4096, max_bitmap_size: 268435456 }), parse({}));
  for (const bad of ['23', 5, [], { pgsize: 'foo' }, { pgsize: 4095 }, { pgsize: 5000 }, { max_bitmap_size: -1 }]) {
    assert.throws(() => parse(bad), { code: 'EINVAL' }, JSON.stringify(bad));
  }
});
