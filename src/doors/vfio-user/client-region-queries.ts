/** The two questions about regions whose answers may be longer than was asked for, and come with descriptors. */
import { VFIO_REGION_INFO_FLAG_MMAP, vfio_region_info } from '../../uapi/vfio.ts';
import {
  VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  vfio_user_region_io_fds,
} from '../../uapi/vfio-user.ts';
import type { Conversation, Reply } from './client-conversation.ts';
import { BadServerError } from './client-errors.ts';
import { parseIoFds, parseRegionInfo, type RegionInfo, type SubRegion } from './client-regions.ts';

const MOST_IO_FDS = 4096;

/** A region with its file, -1 if it has none; the descriptor is the caller's. VfioUserError. */
export function queryRegion(conversation: Conversation, index: number): { info: RegionInfo; fd: number } {
  const ask = (argsz: number): Reply =>
    conversation.request(
      VFIO_USER_DEVICE_GET_REGION_INFO,
      vfio_region_info.write({ argsz, flags: 0, index, cap_offset: 0, size: 0n, offset: 0n }),
      { takesDescriptors: true },
    );
  let reply = ask(vfio_region_info.size);
  const needed = reply.payload.length < vfio_region_info.size ? 0 : vfio_region_info.read(reply.payload).argsz;
  if (needed > vfio_region_info.size && needed <= VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE) {
    conversation.drop(reply.descriptors);
    reply = ask(needed);
  }
  const { payload, descriptors } = reply;
  return closingOnError(conversation, descriptors, () => {
    if (payload.length < vfio_region_info.size) {
      throw new BadServerError(`the server sent a region info of ${payload.length} bytes`);
    }
    const info = parseRegionInfo(payload);
    const isMappable = (info.flags & VFIO_REGION_INFO_FLAG_MMAP) !== 0;
    if (descriptors.length > 1 || (descriptors.length === 1 && !isMappable)) {
      throw new BadServerError(`the server sent ${descriptors.length} descriptors with region ${index}`);
    }
    return { info, fd: descriptors[0] ?? -1 };
  });
}

/** Sub-regions with their descriptors, which are the caller's. VfioUserError. */
export function queryIoFds(
  conversation: Conversation,
  index: number,
): { subRegions: readonly SubRegion[]; descriptors: readonly number[] } {
  const ask = (argsz: number): Reply =>
    conversation.request(
      VFIO_USER_DEVICE_GET_REGION_IO_FDS,
      vfio_user_region_io_fds.write({ argsz, flags: 0, index, count: 0 }),
      { takesDescriptors: true },
    );
  let reply = ask(vfio_user_region_io_fds.size);
  const { argsz } = vfio_user_region_io_fds.read(reply.payload);
  if (argsz > vfio_user_region_io_fds.size && reply.payload.length < argsz) {
    conversation.drop(reply.descriptors);
    if (argsz > MOST_IO_FDS * 48) {
      throw closing(conversation, new BadServerError(`the server wants ${argsz} bytes for sub-regions`));
    }
    reply = ask(argsz);
  }
  const { payload, descriptors } = reply;
  return closingOnError(conversation, descriptors, () => ({
    subRegions: parseIoFds(payload, descriptors.length),
    descriptors,
  }));
}

function closingOnError<T>(conversation: Conversation, descriptors: readonly number[], parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    conversation.drop(descriptors);
    throw closing(conversation, error);
  }
}

/** A server that said what it may not say has no connection any more. */
function closing(conversation: Conversation, error: unknown): unknown {
  if (error instanceof BadServerError) conversation.close(error);
  return error;
}
