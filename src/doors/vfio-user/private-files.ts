/**
 * Memory that a client offers but keeps to itself: QEMU without `share=on` sends the descriptor of a file that it has mapped privately, and
 * then neither side sees what the other writes. The client's own mappings tell, once for each file.
 */
import { type FileIdentity, howMapped, peerOf } from '../../sys/index.ts';

/** Files that are remembered. */
const MOST = 64;

export class PrivateFiles {
  readonly #socket: number;
  readonly #notice: (text: string) => void;
  /** `device:inode` → whether it is private. */
  readonly #known = new Map<string, boolean>();
  /** The client's process; undefined: not asked yet, 0: unknown. */
  #pid: number | undefined;
  #isNoticed = false;

  /** `socket`: the connection to the client. `notice` is told once what the user should change. */
  constructor(socket: number, notice: (text: string) => void) {
    this.#socket = socket;
    this.#notice = notice;
  }

  /** Whether the client keeps this file to itself; false when that cannot be known. */
  has(file: FileIdentity): boolean {
    this.#pid ??= clientOf(this.#socket);
    const pid = this.#pid;
    if (pid === 0) return false;
    const key = `${file.major}:${file.minor}:${file.inode}`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const isPrivate = howMapped(pid, file) === 'private';
    if (this.#known.size >= MOST) this.#known.clear();
    this.#known.set(key, isPrivate);
    if (isPrivate && !this.#isNoticed) {
      this.#isNoticed = true;
      this.#notice(
        `the client's memory is private to it (process ${pid}), so it cannot be mapped here: DMA goes by messages, which is slow; ` +
          'to share it, give QEMU -object memory-backend-memfd with share=on',
      );
    }
    return isPrivate;
  }
}

/** 0: it cannot be known, or is this very process, whose mappings are the server's own as well. */
function clientOf(socket: number): number {
  try {
    const { pid } = peerOf(socket);
    return pid === process.pid ? 0 : pid;
  } catch {
    return 0;
  }
}
