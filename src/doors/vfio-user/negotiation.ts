/**
 * VERSION: what both sides can do, as a version and a JSON text. Pure.
 */
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  VFIO_USER_DEFAULT_MAX_DMA_MAPS,
  VFIO_USER_DEFAULT_MAX_MSG_FDS,
  VFIO_USER_DEFAULT_PGSIZES,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  vfio_user_version,
} from '../../uapi/vfio-user.ts';

/** What one side says of itself. */
export interface Capabilities {
  readonly max_msg_fds: number;
  readonly max_data_xfer_size: number;
  readonly max_dma_maps: number;
  readonly pgsizes: number;
  readonly write_multiple: boolean;
  readonly twin_socket: { readonly supported: boolean; readonly fd_index?: number };
}

/** What holds for a side that says nothing. */
export const defaultCapabilities: Capabilities = {
  max_msg_fds: VFIO_USER_DEFAULT_MAX_MSG_FDS,
  max_data_xfer_size: VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  max_dma_maps: VFIO_USER_DEFAULT_MAX_DMA_MAPS,
  pgsizes: VFIO_USER_DEFAULT_PGSIZES,
  write_multiple: false,
  twin_socket: { supported: false },
};

/** What the server can do. */
export const ownCapabilities: Capabilities = {
  max_msg_fds: 8,
  max_data_xfer_size: 1048576,
  max_dma_maps: 65535,
  pgsizes: 4096,
  write_multiple: true,
  twin_socket: { supported: true },
};

export interface Version {
  readonly major: number;
  readonly minor: number;
  readonly capabilities: Capabilities;
}

const decoder = new TextDecoder('utf-8', { fatal: true });

/** The payload of a VERSION, command or reply. EINVAL: it cannot be understood. */
export function parseVersion(payload: Uint8Array): Version {
  if (payload.length < vfio_user_version.size) {
    throw new Errno('EINVAL', `a VERSION of ${payload.length} bytes: it has ${vfio_user_version.size} at least`);
  }
  const { major, minor } = vfio_user_version.read(payload);
  const text = payload.subarray(vfio_user_version.size);
  if (text.length === 0) return { major, minor, capabilities: defaultCapabilities };
  const end = text.indexOf(0);
  if (end < 0) throw new Errno('EINVAL', 'the JSON text of VERSION does not end with a NUL');
  return { major, minor, capabilities: parseCapabilities(text.subarray(0, end)) };
}

function parseCapabilities(text: Uint8Array): Capabilities {
  let value: unknown;
  try {
    value = text.length === 0 ? {} : JSON.parse(decoder.decode(text));
  } catch {
    throw new Errno('EINVAL', 'the text of VERSION is not JSON');
  }
  const given = memberObject(requireObject(value, 'the text of VERSION'), 'capabilities') ?? {};
  const twin = memberObject(given, 'twin_socket');
  const isTwin = twin === undefined ? false : (memberBoolean(twin, 'supported') ?? false);
  const index = twin === undefined ? undefined : memberNumber(twin, 'fd_index', 0, 1023);
  checkMigration(memberObject(given, 'migration'));
  return {
    max_msg_fds: memberNumber(given, 'max_msg_fds', 0, 1024) ?? defaultCapabilities.max_msg_fds,
    max_data_xfer_size:
      memberNumber(given, 'max_data_xfer_size', 1, 2 ** 32 - 1) ?? defaultCapabilities.max_data_xfer_size,
    max_dma_maps: memberNumber(given, 'max_dma_maps', 0, 2 ** 32 - 1) ?? defaultCapabilities.max_dma_maps,
    pgsizes: memberNumber(given, 'pgsizes', 1, Number.MAX_SAFE_INTEGER) ?? defaultCapabilities.pgsizes,
    write_multiple: memberBoolean(given, 'write_multiple') ?? false,
    twin_socket: { supported: isTwin, ...(index !== undefined && { fd_index: index }) },
  };
}

/** What older peers say of their bitmaps; it changes nothing here. */
function checkMigration(given: JsonObject | undefined): void {
  if (given === undefined) return;
  memberNumber(given, 'max_bitmap_size', 0, Number.MAX_SAFE_INTEGER);
  const size = memberNumber(given, 'pgsize', 4096, 2 ** 40);
  if (size !== undefined && !Number.isInteger(Math.log2(size))) {
    throw new Errno('EINVAL', `'pgsize' of VERSION is ${size}, not a power of two`);
  }
}

type JsonObject = Record<string, unknown>;

function requireObject(value: unknown, what: string): JsonObject {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Errno('EINVAL', `${what} is not an object`);
  }
  return value as JsonObject;
}

function own(object: JsonObject, name: string): unknown {
  return Object.hasOwn(object, name) ? object[name] : undefined;
}

function memberObject(object: JsonObject, name: string): JsonObject | undefined {
  const value = own(object, name);
  return value === undefined ? undefined : requireObject(value, `'${name}' of VERSION`);
}

function memberBoolean(object: JsonObject, name: string): boolean | undefined {
  const value = own(object, name);
  if (value === undefined || typeof value === 'boolean') return value;
  throw new Errno('EINVAL', `'${name}' of VERSION is neither true nor false`);
}

function memberNumber(object: JsonObject, name: string, least: number, most: number): number | undefined {
  const value = own(object, name);
  if (value === undefined) return undefined;
  if (typeof value === 'number' && Number.isInteger(value) && value >= least && value <= most) return value;
  throw new Errno('EINVAL', `'${name}' of VERSION is ${JSON.stringify(value)}, not a number from ${least} to ${most}`);
}

/** What the server agrees on with this client. EINVAL: another major version. */
export function agree(proposed: Version, offered: Capabilities = ownCapabilities): Version {
  if (proposed.major !== VFIO_USER_MAJOR) {
    throw new Errno('EINVAL', `the client speaks version ${proposed.major}, the server ${VFIO_USER_MAJOR}`);
  }
  const { capabilities } = proposed;
  return {
    major: VFIO_USER_MAJOR,
    minor: Math.min(proposed.minor, VFIO_USER_MINOR),
    capabilities: {
      max_msg_fds: offered.max_msg_fds,
      max_data_xfer_size: Math.min(offered.max_data_xfer_size, capabilities.max_data_xfer_size),
      max_dma_maps: offered.max_dma_maps,
      pgsizes: offered.pgsizes,
      write_multiple: offered.write_multiple && capabilities.write_multiple,
      twin_socket:
        offered.twin_socket.supported && capabilities.twin_socket.supported
          ? { supported: true, fd_index: 0 }
          : { supported: false },
    },
  };
}

/** The payload of a VERSION; features that are not there are not named. */
export function encodeVersion({ major, minor, capabilities }: Version): Uint8Array {
  const { write_multiple, twin_socket, ...limits } = capabilities;
  const json = {
    capabilities: {
      ...limits,
      ...(write_multiple && { write_multiple }),
      ...(twin_socket.supported && { twin_socket }),
    },
  };
  const text = Buffer.from(`${JSON.stringify(json)}\0`);
  const payload = new Uint8Array(vfio_user_version.size + text.length);
  payload.set(vfio_user_version.write({ major, minor }));
  payload.set(text, vfio_user_version.size);
  return payload;
}
