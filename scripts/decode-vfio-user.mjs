#!/usr/bin/env node
// Reads a vfio-user stream from standard input and prints each message: for fuzzers and for looking at dumps.
//
//   npm run build && node scripts/decode-vfio-user.mjs [--piece BYTES] < stream
//
// Whatever comes in, the exit status is 0, or 1 and one line where the stream cannot be followed; anything else is a bug of the codec.
import { readSync } from 'node:fs';
import { bufferLength, defaultLimits, MessageStream, ProtocolError } from '../dist/src/doors/vfio-user/codec.js';
import { parseVersion } from '../dist/src/doors/vfio-user/negotiation.js';
import { vfioUserCommandNames } from '../dist/src/uapi/vfio-user.js';

const at = process.argv.indexOf('--piece');
const piece = new Uint8Array(at < 0 ? 65536 : Math.max(Number(process.argv[at + 1]) || 1, 1));
const stream = new MessageStream(new Uint8Array(bufferLength(defaultLimits)), defaultLimits);

function show(message) {
  const { id, command, isReply, error, payload } = message;
  let more = '';
  if (command === 1) {
    try {
      const { major, minor } = parseVersion(payload);
      more = ` ${major}.${minor}`;
    } catch (refused) {
      if (refused.code === undefined) throw refused;
      more = ` (${refused.code}: ${refused.why})`;
    }
  }
  const kind = isReply ? (error === 0 ? 'reply' : `error ${error}`) : message.wantsReply ? 'command' : 'posted';
  console.log(`${id} ${vfioUserCommandNames[command] ?? command} ${kind} ${payload.length} bytes${more}`);
}

try {
  for (;;) {
    let n;
    try {
      n = readSync(0, piece);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      continue;
    }
    if (n === 0) break;
    stream.push(piece.subarray(0, n));
    for (let message = stream.next(); message !== undefined; message = stream.next()) show(message);
  }
  if (stream.isWithinMessage) console.log('the rest is part of a message');
} catch (error) {
  if (!(error instanceof ProtocolError)) throw error;
  console.log(`cannot be followed: ${error.message}`);
  process.exitCode = 1;
}
