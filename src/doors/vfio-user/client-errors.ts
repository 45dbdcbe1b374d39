/** What can go wrong between our client and a server, by name. `code` is the errno's name where there is one. */
import { errnoName } from '../../lib/errno.ts';
import { vfioUserCommandNames } from '../../uapi/vfio-user.ts';

/** The name of a command for a message to a person. */
export function commandName(command: number): string {
  return vfioUserCommandNames[command] ?? `command ${command}`;
}

/** Everything that the client throws is one of these, except mistakes of the caller (RangeError). */
export class VfioUserError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.name = new.target.name;
    this.code = code;
  }
}

/** The server answered with an error; the conversation goes on. */
export class RefusedError extends VfioUserError {
  readonly command: string;
  /** Positive number that the server gave. */
  readonly errno: number;

  constructor(command: number, errno: number) {
    const name = commandName(command);
    super(errnoName(errno), `the server refuses ${name}: ${errnoName(errno)}`);
    this.command = name;
    this.errno = errno;
  }
}

/** No answer in time. The connection stays; an answer that comes late is dropped. */
export class TimeoutError extends VfioUserError {
  constructor(what: string, milliseconds: number) {
    super('ETIMEDOUT', `${what}: no answer within ${milliseconds} ms`);
  }
}

/** There is no connection: the server is gone, or `close` was called. */
export class DisconnectedError extends VfioUserError {
  constructor(message: string) {
    super('ENOTCONN', message);
  }
}

/** The server broke the protocol. The connection has been closed. */
export class BadServerError extends VfioUserError {
  constructor(message: string) {
    super('EPROTO', message);
  }
}
