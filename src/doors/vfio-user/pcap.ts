/**
 * A conversation as a capture file that Wireshark opens (docs/vfio-user-capture.md, tools/wireshark/vfio-user.lua). No I/O: bytes go
 * to the sink as they come to be.
 *
 * The file is a classic pcap with nanoseconds. Its link type is the first one for private use; each packet is one message behind eight
 * bytes that say what a message itself does not: who sent it, on which connection, and how many descriptors came along.
 */

/** "Who" of a message. */
export type Direction = 'from-client' | 'from-server';

/** LINKTYPE_USER0 of the pcap registry: for private use. */
export const LINK_TYPE = 147;
/** Bytes in front of each message. */
export const PSEUDO_HEADER = 8;
/** Bytes of a message that are kept by default: Wireshark refuses packets above 256 KiB. */
export const KEPT_BYTES = 65536;

const NANOSECONDS_MAGIC = 0xa1b23c4d;
const NANOSECONDS = 1_000_000_000n;

export interface PcapOptions {
  /** Bytes of a message that are kept; longer ones are marked as cut. Default 65536, at most 262136. */
  keep?: number;
  /** Nanoseconds since 1970 of the next message. */
  now?: () => bigint;
}

function wallClock(): bigint {
  return BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n;
}

/** Writes one capture file; it may hold many connections. */
export class PcapWriter {
  readonly #sink: (bytes: Uint8Array) => void;
  readonly #keep: number;
  readonly #now: () => bigint;
  #connection = 0;

  /** @param sink takes bytes of the file, in order; they are its own from then on */
  constructor(sink: (bytes: Uint8Array) => void, options: PcapOptions = {}) {
    this.#sink = sink;
    this.#keep = Math.min(options.keep ?? KEPT_BYTES, 262144 - PSEUDO_HEADER);
    this.#now = options.now ?? wallClock;
    const header = new DataView(new ArrayBuffer(24));
    header.setUint32(0, NANOSECONDS_MAGIC, true);
    header.setUint16(4, 2, true);
    header.setUint16(6, 4, true);
    // Two words of zero: time zone and accuracy, which nobody uses.
    header.setUint32(16, this.#keep + PSEUDO_HEADER, true);
    header.setUint32(20, LINK_TYPE, true);
    sink(new Uint8Array(header.buffer));
  }

  /** The next messages are of another connection; gives its number. Connections count from 0, which needs no call. */
  nextConnection(): number {
    return ++this.#connection;
  }

  /**
   * @param bytes a whole message with its header; copied
   * @param fdCount descriptors that came with it
   * @param connection which one, when several are open; the latest by default
   */
  message(direction: Direction, bytes: Uint8Array, fdCount: number, connection: number = this.#connection): void {
    const kept = Math.min(bytes.length, this.#keep);
    const packet = new Uint8Array(16 + PSEUDO_HEADER + kept);
    const view = new DataView(packet.buffer);
    const time = this.#now();
    view.setUint32(0, Number(time / NANOSECONDS), true);
    view.setUint32(4, Number(time % NANOSECONDS), true);
    view.setUint32(8, PSEUDO_HEADER + kept, true);
    view.setUint32(12, PSEUDO_HEADER + bytes.length, true);
    view.setUint8(16, 0);
    view.setUint8(17, direction === 'from-client' ? 0 : 1);
    view.setUint16(18, Math.min(fdCount, 0xffff), true);
    view.setUint32(20, connection, true);
    packet.set(bytes.subarray(0, kept), 16 + PSEUDO_HEADER);
    this.#sink(packet);
  }
}
