/** VERSION from the client's side: what is proposed, what of the answer is accepted, and the second socket. */
import { Errno } from '../../lib/errno.ts';
import { VFIO_USER_MAJOR, VFIO_USER_MINOR, VFIO_USER_VERSION } from '../../uapi/vfio-user.ts';
import type { Conversation } from './client-conversation.ts';
import { BadServerError } from './client-errors.ts';
import { type Capabilities, encodeVersion, ownCapabilities, parseVersion } from './negotiation.ts';

export interface Agreement {
  readonly version: { readonly major: number; readonly minor: number };
  readonly capabilities: Capabilities;
  readonly hasTwin: boolean;
}

/** Negotiates; the conversation has its second socket afterwards, if there is one. VfioUserError. */
export function negotiate(conversation: Conversation, twinSocket: boolean): Agreement {
  const proposed = { ...ownCapabilities, twin_socket: { supported: twinSocket } };
  const { payload, descriptors } = conversation.request(
    VFIO_USER_VERSION,
    encodeVersion({ major: VFIO_USER_MAJOR, minor: VFIO_USER_MINOR, capabilities: proposed }),
    { takesDescriptors: true },
  );
  try {
    const { major, minor, capabilities } = parse(payload);
    if (major !== VFIO_USER_MAJOR || minor > VFIO_USER_MINOR) {
      throw new BadServerError(`the server speaks version ${major}.${minor}`);
    }
    const twin = twinOf(capabilities, twinSocket, descriptors.length);
    if (twin !== undefined) conversation.setTwin(descriptors[twin]!);
    return { version: { major, minor }, capabilities, hasTwin: twin !== undefined };
  } catch (error) {
    conversation.drop(descriptors);
    throw error;
  }
}

function parse(payload: Uint8Array): ReturnType<typeof parseVersion> {
  try {
    return parseVersion(payload);
  } catch (error) {
    throw error instanceof Errno ? new BadServerError(`the server's version: ${error.why}`) : error;
  }
}

/** Which descriptor of VERSION's reply is the second socket; undefined: there is none. BadServerError: it does not fit together. */
function twinOf({ twin_socket }: Capabilities, isOffered: boolean, descriptors: number): number | undefined {
  const { supported, fd_index } = twin_socket;
  if (!supported) {
    if (descriptors > 0)
      throw new BadServerError('the server sent a descriptor with its version, but no second socket');
    return undefined;
  }
  if (!isOffered) throw new BadServerError('the server names a second socket that was not offered');
  if (fd_index === undefined || fd_index >= descriptors || descriptors !== 1) {
    throw new BadServerError(`the server names descriptor ${fd_index} of ${descriptors} as its second socket`);
  }
  return fd_index;
}
