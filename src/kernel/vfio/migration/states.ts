/**
 * The states of a device that migrates, and the way from one to another (the kernel's vfio_mig_get_next_state): a request for any state
 * becomes a series of arcs, of which a device carries out one at a time.
 */
import { Errno } from '../../../lib/errno.ts';
import {
  VFIO_DEVICE_STATE_ERROR as ERROR,
  VFIO_DEVICE_STATE_PRE_COPY as PRE_COPY,
  VFIO_DEVICE_STATE_PRE_COPY_P2P as PRE_COPY_P2P,
  VFIO_DEVICE_STATE_RESUMING as RESUMING,
  VFIO_DEVICE_STATE_RUNNING as RUNNING,
  VFIO_DEVICE_STATE_RUNNING_P2P as RUNNING_P2P,
  VFIO_DEVICE_STATE_STOP as STOP,
  VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY,
  VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY,
  VFIO_MIGRATION_STOP_COPY,
} from '../../../uapi/vfio.ts';

const names = ['ERROR', 'STOP', 'RUNNING', 'STOP_COPY', 'RESUMING', 'RUNNING_P2P', 'PRE_COPY', 'PRE_COPY_P2P'];

/** The state's name, for people. */
export function stateName(state: number): string {
  return names[state] ?? `state ${state}`;
}

/** Abilities (VFIO_MIGRATION_*) that a device needs for a state. */
const needs: readonly number[] = [
  /* ERROR */ 0,
  /* STOP */ VFIO_MIGRATION_STOP_COPY,
  /* RUNNING */ VFIO_MIGRATION_STOP_COPY,
  /* STOP_COPY */ VFIO_MIGRATION_STOP_COPY,
  /* RESUMING */ VFIO_MIGRATION_STOP_COPY,
  /* RUNNING_P2P */ VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P,
  /* PRE_COPY */ VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_PRE_COPY,
  /* PRE_COPY_P2P */ VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY,
];

/** The way on, by present state and target in the order of their numbers. A device without the optional states skips them. */
const next: readonly (readonly number[])[] = [
  /* ERROR */ [ERROR, ERROR, ERROR, ERROR, ERROR, ERROR, ERROR, ERROR],
  /* STOP */ [ERROR, STOP, RUNNING_P2P, STOP_COPY, RESUMING, RUNNING_P2P, RUNNING_P2P, RUNNING_P2P],
  /* RUNNING */ [ERROR, RUNNING_P2P, RUNNING, RUNNING_P2P, RUNNING_P2P, RUNNING_P2P, PRE_COPY, RUNNING_P2P],
  /* STOP_COPY */ [ERROR, STOP, STOP, STOP_COPY, STOP, STOP, ERROR, ERROR],
  /* RESUMING */ [ERROR, STOP, STOP, STOP, RESUMING, STOP, STOP, STOP],
  /* RUNNING_P2P */ [ERROR, STOP, RUNNING, STOP, STOP, RUNNING_P2P, RUNNING, PRE_COPY_P2P],
  /* PRE_COPY */ [ERROR, RUNNING, RUNNING, PRE_COPY_P2P, RUNNING, RUNNING, PRE_COPY, PRE_COPY_P2P],
  /* PRE_COPY_P2P */ [ERROR, RUNNING_P2P, RUNNING_P2P, STOP_COPY, RUNNING_P2P, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P],
];

function isSupported(state: number, flags: number): boolean {
  const needed = needs[state];
  return needed !== undefined && state !== ERROR && (flags & needed) === needed;
}

/**
 * The state to go to first on the way from `state` to `target`, for a device with these abilities. EINVAL: there is no such state, the
 * device has it not, or no way leads there.
 */
export function nextState(state: number, target: number, flags: number): number {
  if (!isSupported(target, flags)) {
    throw new Errno('EINVAL', `${stateName(target)} is not a state that the device can be brought to`);
  }
  let found = next[state]![target]!;
  while (found !== ERROR && !isSupported(found, flags)) found = next[found]![target]!;
  if (found === ERROR) throw new Errno('EINVAL', `no way leads from ${stateName(state)} to ${stateName(target)}`);
  return found;
}
