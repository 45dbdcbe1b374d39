/**
 * VFIO_DEVICE_FEATURE: what all devices check alike before a feature is probed, read or set.
 */
import { Errno } from '../../lib/errno.ts';
import {
  VFIO_DEVICE_FEATURE_GET,
  VFIO_DEVICE_FEATURE_MASK,
  VFIO_DEVICE_FEATURE_PROBE,
  VFIO_DEVICE_FEATURE_SET,
  vfio_device_feature,
} from '../../uapi/vfio.ts';
import { copyFromUser, type Task } from '../core/task.ts';

/** A checked request: which feature, what is asked, where its data lie. */
export interface FeatureRequest {
  readonly index: number;
  readonly flags: number;
  readonly data: bigint;
  /** Bytes at `data` that the caller knows of. */
  readonly length: number;
}

/** Reads and checks the header. EFAULT; EINVAL: short, unknown flags, GET and SET together. */
export function featureRequest(task: Task, argument: bigint): FeatureRequest {
  const { argsz, flags } = vfio_device_feature.read(copyFromUser(task, argument, vfio_device_feature.size));
  if (argsz < vfio_device_feature.size)
    throw new Errno('EINVAL', `argsz ${argsz} is below ${vfio_device_feature.size}`);
  const known =
    VFIO_DEVICE_FEATURE_MASK | VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PROBE;
  if (flags & ~known) throw new Errno('EINVAL', `unknown flags 0x${(flags & ~known).toString(16)}`);
  const both = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET;
  if (!(flags & VFIO_DEVICE_FEATURE_PROBE) && (flags & both) === both) {
    throw new Errno('EINVAL', 'GET and SET together are for PROBE only');
  }
  return {
    index: flags & VFIO_DEVICE_FEATURE_MASK,
    flags,
    data: argument + BigInt(vfio_device_feature.size),
    length: argsz - vfio_device_feature.size,
  };
}

/**
 * Whether the feature is to be carried out; false when it was only probed. `supported`: GET, SET or both. EINVAL: a direction
 * that is not supported, none given, or fewer than `length` bytes of data.
 */
export function checkFeature(request: FeatureRequest, supported: number, length: number): boolean {
  const asked = request.flags & (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET);
  if (asked & ~supported) {
    throw new Errno('EINVAL', `feature ${request.index} cannot be ${asked & VFIO_DEVICE_FEATURE_GET ? 'read' : 'set'}`);
  }
  if (request.flags & VFIO_DEVICE_FEATURE_PROBE) return false;
  if (asked === 0) throw new Errno('EINVAL', 'none of GET, SET and PROBE is asked');
  if (request.length < length) {
    throw new Errno('EINVAL', `feature ${request.index} takes ${length} bytes of data, argsz leaves ${request.length}`);
  }
  return true;
}
