/** What a session is told, and who hears of what happens in it. */
import type { DmaMode } from './dma.ts';
import type { Transport } from './transport.ts';

export interface SessionOptions {
  readonly mode: DmaMode;
  /** An unmap of anything but one exact map is refused, as libvfio-user does. */
  readonly strictUnmap: boolean;
  /** Milliseconds that a transfer by message may keep a client waiting that waits for its own answer. */
  readonly patience?: number;
}

export interface MessageRecord {
  readonly command: string;
  readonly details: string;
  /** 0, or minus the errno. */
  readonly result: number;
  readonly why: string | undefined;
}

/** Who wants to know; undefined members are not wanted. */
export interface SessionReports {
  message?: ((record: MessageRecord) => void) | undefined;
  /** Every message as it travels, header included. Valid within the call. */
  tap?: ((fromClient: boolean, message: Uint8Array, descriptors: number) => void) | undefined;
  /** Why a connection was closed by the server. */
  closed?: ((why: string) => void) | undefined;
  /** Something that the user should know: why a transfer failed that could have been. Said once. */
  notice?: ((text: string) => void) | undefined;
  /** The session is over; its socket is still open. */
  ended?: (() => void) | undefined;
  /** Something arrived while the device, on its own account, waited for the client: `turn` has to be called. */
  pending?: (() => void) | undefined;
}

/** Makes a transport of a connected socket: the server's end of a twin socket. */
export type MakeTransport = (fd: number) => Transport;
