/**
 * The iommufd of one machine.
 */
import type { Task } from '../core/task.ts';
import { IommufdContext } from './context.ts';
import { IommufdFile } from './main.ts';
import { IommufdShared } from './shared.ts';

export class IommufdCore extends IommufdShared {
  /** open("/dev/iommu") */
  open(_task: Task): IommufdFile {
    return new IommufdFile(new IommufdContext(this));
  }

  /** open("/dev/vfio/vfio") where an iommufd takes the container's place: memory is charged as the container does. */
  openContainer(_task: Task): IommufdFile {
    const context = new IommufdContext(this);
    context.accountMode = 'mm';
    return new IommufdFile(context, '/dev/vfio/vfio');
  }
}
