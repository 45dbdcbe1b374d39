/** The file through which a program reads or writes a device's state. It lives as long as its session, and fails after that. */
import { Errno } from '../../../lib/errno.ts';
import { VFIO_MIG_GET_PRECOPY_INFO, VFIO_PRECOPY_INFO_REINIT, vfio_precopy_info } from '../../../uapi/vfio.ts';
import { File, POLLIN, POLLOUT } from '../../core/file.ts';
import { copyFromUser, copyToUser, type Task } from '../../core/task.ts';
import type { ResumingSession, SavingSession } from './sessions.ts';

const POLLERR = 0x8;

/** What the file must know of the device. */
export interface DataFileOwner {
  /** Whether the device runs while it is read. */
  readonly isPreCopy: boolean;
  /** Whether the program has asked to be told of new initial data. */
  readonly tellsRenewal: boolean;
}

export class MigrationFile extends File {
  readonly kind = 'migration';
  readonly path: string;
  readonly #owner: DataFileOwner;
  #session: SavingSession | ResumingSession | undefined;
  readonly #isSaving: boolean;

  constructor(owner: DataFileOwner, session: SavingSession | ResumingSession, isSaving: boolean) {
    super();
    this.#owner = owner;
    this.#session = session;
    this.#isSaving = isSaving;
    this.path = isSaving ? 'anon_inode:[vfio-migration-saving]' : 'anon_inode:[vfio-migration-resuming]';
  }

  /** Ends the session: every call on the file fails from now on. */
  disable(): void {
    this.#session = undefined;
  }

  override read(_task: Task, into: Uint8Array, _position: number): number {
    return this.#saving().read(into);
  }

  override write(_task: Task, from: Uint8Array, _position: number): number {
    const session = this.#session;
    if (session === undefined) throw this.#over();
    if (this.#isSaving) throw new Errno('EINVAL', 'a state that is saved cannot be written');
    return (session as ResumingSession).write(from);
  }

  override ioctl(task: Task, request: number, argument: bigint): number {
    if (request !== VFIO_MIG_GET_PRECOPY_INFO) throw new Errno('ENOTTY', `a device's state has no such ioctl`);
    const session = this.#saving();
    const table = vfio_precopy_info;
    const info = table.read(copyFromUser(task, argument, table.size));
    if (info.argsz < table.size) throw new Errno('EINVAL', `argsz ${info.argsz} is below ${table.size}`);
    if (!this.#owner.isPreCopy) throw new Errno('EINVAL', 'the device is not in a state of pre-copy');
    const { initial, dirty, isRenewed } = session.precopy;
    info.initial_bytes = BigInt(initial);
    info.dirty_bytes = BigInt(dirty);
    if (this.#owner.tellsRenewal) info.flags = isRenewed ? VFIO_PRECOPY_INFO_REINIT : 0;
    copyToUser(task, argument, table.write(info));
    return 0;
  }

  override poll(): number {
    const session = this.#session;
    if (session === undefined) return POLLIN | POLLERR;
    if (!this.#isSaving) return POLLOUT;
    return (session as SavingSession).isReadable ? POLLIN : 0;
  }

  #saving(): SavingSession {
    const session = this.#session;
    if (session === undefined) throw this.#over();
    if (!this.#isSaving) throw new Errno('EINVAL', 'a state that is restored cannot be read');
    return session as SavingSession;
  }

  #over(): Errno {
    return new Errno('ENODEV', 'this session of the migration is over');
  }
}
