/**
 * A vfio-user server: one device for one client at a time, and the next client when that one is gone.
 *
 * While a client is served the socket that listens is left alone: a client that connects meanwhile waits.
 */
import { acceptStream, closeDescriptor } from '../../sys/index.ts';
import type { EventLoop } from '../run/event-loop.ts';
import { ownCapabilities } from './negotiation.ts';
import type { ServedDevice } from './served-device.ts';
import { Session } from './session.ts';
import type { SessionOptions, SessionReports } from './session-options.ts';
import { LINGER_MS, SocketTransport, TransportBuffers } from './transport.ts';

const limits = {
  maxMsgFds: ownCapabilities.max_msg_fds,
  maxDataXferSize: ownCapabilities.max_data_xfer_size,
};

export class VfioUserServer {
  /** Called at the end of each client. */
  onClientGone: () => void = () => {};
  readonly #device: ServedDevice;
  readonly #loop: EventLoop;
  readonly #options: SessionOptions;
  readonly #reports: SessionReports;
  readonly #stop: number;
  readonly #spin: number;
  readonly #buffers = new TransportBuffers(limits);
  #twinBuffers: TransportBuffers | undefined;
  #listener = -1;
  #listenerSlot = -1;
  #session: Session | undefined;
  /** Sources of the loop that are no reason to hurry back to it. */
  readonly #known: number;

  /** `stop`: becomes readable when nothing may be waited for any longer. `known`: sources that the loop has already. */
  constructor(
    device: ServedDevice,
    loop: EventLoop,
    options: SessionOptions & { readonly stop: number; readonly known: number; readonly spin?: number },
    reports: Omit<SessionReports, 'ended' | 'pending'> = {},
  ) {
    this.#device = device;
    this.#loop = loop;
    this.#options = options;
    this.#reports = reports;
    this.#stop = options.stop;
    this.#spin = options.spin ?? 0;
    this.#known = options.known + 1;
  }

  /** Takes a listening socket over. */
  listen(fd: number): void {
    this.#listener = fd;
    this.#await();
  }

  /** Takes a connected socket over. */
  serve(fd: number): void {
    const transport = new SocketTransport(fd, this.#buffers, this.#stop, this.#spin);
    let slot = -1;
    const session: Session = new Session(
      this.#device,
      transport,
      this.#options,
      {
        ...this.#reports,
        ended: () => {
          if (slot >= 0) this.#loop.remove(fd, slot);
          slot = -1;
          this.#session = undefined;
          // Not before what is of this client has been taken back.
          this.#loop.after(0, () => this.#clientGone());
        },
        pending: () => this.#loop.after(0, () => session.turn(mayLinger)),
      },
      (twin) => {
        this.#twinBuffers ??= new TransportBuffers(limits);
        return new SocketTransport(twin, this.#twinBuffers, this.#stop);
      },
    );
    const mayLinger = (): boolean => this.#loop.mayWait(LINGER_MS, this.#known);
    this.#session = session;
    slot = this.#loop.add(fd, { ready: () => session.turn(mayLinger) });
    if (slot < 0) session.end('the connection cannot be watched');
  }

  /** A device of the machine reaches for a page without translation. */
  miss(page: number): boolean {
    return this.#session?.dma.miss(page) ?? false;
  }

  close(): void {
    if (this.#listenerSlot >= 0) this.#loop.remove(this.#listener, this.#listenerSlot);
    this.#listenerSlot = -1;
    if (this.#listener >= 0) closeDescriptor(this.#listener);
    this.#listener = -1;
    this.#session?.end();
  }

  #clientGone(): void {
    this.#await();
    this.onClientGone();
  }

  #await(): void {
    if (this.#listener < 0 || this.#listenerSlot >= 0 || this.#session !== undefined) return;
    this.#listenerSlot = this.#loop.add(this.#listener, {
      ready: () => {
        const fd = acceptStream(this.#listener);
        if (fd < 0) return;
        this.#loop.remove(this.#listener, this.#listenerSlot);
        this.#listenerSlot = -1;
        this.serve(fd);
      },
    });
  }
}
