/**
 * Migration of a device: its state, the arcs from one to the next, and the features MIGRATION, MIG_DEVICE_STATE, MIG_DATA_SIZE and
 * MIG_PRECOPY_INFOv2. What an arc does to the device is in `MigrationHooks`.
 */
import { Errno } from '../../../lib/errno.ts';
import * as uapi from '../../../uapi/vfio.ts';
import type { IoctlResult } from '../../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../../core/task.ts';
import { checkFeature, type FeatureRequest } from '../device-feature.ts';
import { MigrationFile } from './data-file.ts';
import { type Migratable, ResumingSession, SavingSession } from './sessions.ts';
import { nextState } from './states.ts';

const {
  VFIO_DEVICE_STATE_ERROR: ERROR,
  VFIO_DEVICE_STATE_RUNNING: RUNNING,
  VFIO_DEVICE_STATE_STOP_COPY: STOP_COPY,
  VFIO_DEVICE_STATE_RESUMING: RESUMING,
  VFIO_DEVICE_STATE_RUNNING_P2P: RUNNING_P2P,
  VFIO_DEVICE_STATE_PRE_COPY: PRE_COPY,
  VFIO_DEVICE_STATE_PRE_COPY_P2P: PRE_COPY_P2P,
} = uapi;

/** How much of a device stands still. */
export type Stillness = 'runs' | 'no DMA' | 'stopped';

export interface MigrationHooks extends Migratable {
  /** EBUSY: it cannot be now. */
  setStillness(stillness: Stillness): void;
}

function stillnessOf(state: number): Stillness {
  if (state === RUNNING || state === PRE_COPY) return 'runs';
  return state === RUNNING_P2P || state === PRE_COPY_P2P ? 'no DMA' : 'stopped';
}

export class Migration {
  /** VFIO_MIGRATION_*. */
  readonly flags: number;
  readonly #device: MigrationHooks;
  #state: number = RUNNING;
  #saving: SavingSession | undefined;
  #resuming: ResumingSession | undefined;
  #file: MigrationFile | undefined;
  /** MIG_PRECOPY_INFOv2, until the device is closed. */
  tellsRenewal = false;

  constructor(device: MigrationHooks, ability: { readonly p2p?: boolean; readonly preCopy?: boolean }) {
    this.#device = device;
    this.flags =
      uapi.VFIO_MIGRATION_STOP_COPY |
      (ability.p2p === true ? uapi.VFIO_MIGRATION_P2P : 0) |
      (ability.preCopy === true ? uapi.VFIO_MIGRATION_PRE_COPY : 0);
  }

  get state(): number {
    return this.#state;
  }

  get isPreCopy(): boolean {
    return this.#state === PRE_COPY || this.#state === PRE_COPY_P2P;
  }

  /**
   * Brings the device to `target`, arc by arc. The file of the stream that the last arc has opened, if it has. After a failure it is in
   * the last state that it reached, or in ERROR.
   */
  setState(target: number): MigrationFile | undefined {
    let opened: MigrationFile | undefined;
    while (this.#state !== target) {
      const next = nextState(this.#state, target, this.flags);
      opened = this.#arc(this.#state, next);
      this.#state = next;
    }
    return opened;
  }

  /** The function was reset: it runs, sessions are over. */
  wasReset(): void {
    this.#endSession();
    this.#state = RUNNING;
    this.#device.setStillness('runs');
  }

  /** The last close. */
  close(): void {
    this.wasReset();
    this.tellsRenewal = false;
  }

  /** One arc of those that a device implements. */
  #arc(from: number, to: number): MigrationFile | undefined {
    if (from === RESUMING) {
      const session = this.#resuming!;
      this.#endSession();
      try {
        session.finish();
      } catch (error) {
        this.#state = ERROR;
        throw error;
      }
      return undefined;
    }
    this.#device.setStillness(stillnessOf(to));
    try {
      return this.#enter(to);
    } catch (error) {
      this.#device.setStillness(stillnessOf(from));
      throw error;
    }
  }

  #enter(to: number): MigrationFile | undefined {
    if (to === RESUMING) {
      this.#resuming = new ResumingSession(this.#device);
      return this.#open(this.#resuming, false);
    }
    const isSavingTo = to === STOP_COPY || to === PRE_COPY || to === PRE_COPY_P2P;
    if (!isSavingTo) {
      this.#endSession();
      return undefined;
    }
    if (this.#saving === undefined) {
      this.#saving = new SavingSession(this.#device, to !== STOP_COPY);
      return this.#open(this.#saving, true);
    }
    if (to === STOP_COPY) this.#saving.finish();
    return undefined;
  }

  #open(session: SavingSession | ResumingSession, isSaving: boolean): MigrationFile {
    this.#file = new MigrationFile(this, session, isSaving);
    return this.#file;
  }

  #endSession(): void {
    this.#file?.disable();
    this.#file = undefined;
    this.#saving = undefined;
    this.#resuming = undefined;
  }

  // ---- features ----

  /** MIGRATION. */
  getFlags(task: Task, request: FeatureRequest): number {
    const table = uapi.vfio_device_feature_migration;
    if (!checkFeature(request, uapi.VFIO_DEVICE_FEATURE_GET, table.size)) return 0;
    copyToUser(task, request.data, table.write({ flags: BigInt(this.flags) }));
    return 0;
  }

  /** MIG_DEVICE_STATE. EINVAL: no way leads there. */
  deviceState(task: Task, request: FeatureRequest): IoctlResult {
    const table = uapi.vfio_device_feature_mig_state;
    const both = uapi.VFIO_DEVICE_FEATURE_GET | uapi.VFIO_DEVICE_FEATURE_SET;
    if (!checkFeature(request, both, table.size)) return 0;
    const { device_state } = table.read(copyFromUser(task, request.data, table.size));
    const answer = (state: number): void => {
      copyToUser(task, request.data, table.write({ device_state: state, data_fd: -1 }));
    };
    if (request.flags & uapi.VFIO_DEVICE_FEATURE_GET) {
      answer(this.#state);
      return 0;
    }
    let file: MigrationFile | undefined;
    try {
      file = this.setState(device_state);
    } catch (error) {
      answer(device_state);
      throw error;
    }
    answer(device_state);
    if (file === undefined) return 0;
    const offset = uapi.vfio_device_feature.size + table.offsets.data_fd;
    return { file, closeOnExec: true, offset };
  }

  /** MIG_DATA_SIZE. */
  dataSize(task: Task, request: FeatureRequest): number {
    const table = uapi.vfio_device_feature_mig_data_size;
    if (!checkFeature(request, uapi.VFIO_DEVICE_FEATURE_GET, table.size)) return 0;
    const session = this.#saving ?? new SavingSession(this.#device, false);
    copyToUser(task, request.data, table.write({ stop_copy_length: BigInt(session.left) }));
    return 0;
  }

  /** MIG_PRECOPY_INFOv2. EINVAL: the device has no pre-copy. */
  precopyInfoV2(request: FeatureRequest): number {
    if ((this.flags & uapi.VFIO_MIGRATION_PRE_COPY) === 0) {
      throw new Errno('EINVAL', `${this.#device.name} has no pre-copy`);
    }
    if (checkFeature(request, uapi.VFIO_DEVICE_FEATURE_SET, 0)) this.tellsRenewal = true;
    return 0;
  }
}
