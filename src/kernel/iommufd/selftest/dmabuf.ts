/** dma-bufs of the mock driver: zeroed memory that can be taken back. */
import { BufferBacking } from '../../../hw/memory/backing.ts';
import { Errno } from '../../../lib/errno.ts';
import { hex } from '../../../lib/pages.ts';
import { test_dmabuf_get, test_dmabuf_revoke } from '../../../uapi/iommufd-test.ts';
import { DmaBuf } from '../../core/dma-buf.ts';
import type { NewDescriptor } from '../../core/file.ts';
import type { TestCall } from './command.ts';

const LONGEST = 512 * 4096;
const O_CLOEXEC = 0o2000000;

/** Which dma-bufs are the mock driver's. */
const mockBuffers = new WeakSet<DmaBuf>();

export function dmabufGet(call: TestCall): NewDescriptor {
  const { length, open_flags } = call.members(test_dmabuf_get);
  const rounded = Math.ceil(length / 4096) * 4096;
  if (rounded === 0 || rounded > LONGEST) throw new Errno('EINVAL', `a dma-buf of ${length} bytes`);
  const { physical } = call.context.core;
  const firstPage = physical.addBlock(new BufferBacking(rounded));
  const file = new DmaBuf([{ firstPage, count: rounded / 4096 }], () => physical.removeBlock(firstPage));
  mockBuffers.add(file);
  return { file, closeOnExec: (open_flags & O_CLOEXEC) !== 0 };
}

export function dmabufRevoke(call: TestCall): void {
  const { dmabuf_fd, revoked } = call.members(test_dmabuf_revoke);
  const file = call.task.file(dmabuf_fd);
  if (!(file instanceof DmaBuf)) throw new Errno('EINVAL', `descriptor ${dmabuf_fd} (${file.path}) is no dma-buf`);
  if (!mockBuffers.has(file))
    throw new Errno('EOPNOTSUPP', `the dma-buf is another device's (revoked ${hex(revoked)})`);
  // Also giving the pages back ends the mappings that are there.
  file.revoke();
  if (revoked === 0) file.restore();
}
