/** Operations on mock devices: make one, change its page table, PASIDs, page requests and events. */
import { Errno } from '../../../lib/errno.ts';
import { hex } from '../../../lib/pages.ts';
import {
  IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS,
  IOMMU_VEVENTQ_TYPE_SELFTEST,
  iommu_viommu_event_selftest,
  MOCK_DEV_CACHE_ID_MAX,
  test_check_dev_cache,
  test_mock_domain,
  test_mock_domain_replace,
  test_pasid_attach,
  test_pasid_check,
  test_pasid_detach,
  test_trigger_iopf,
  test_trigger_vevent,
} from '../../../uapi/iommufd-test.ts';
import { NO_PASID } from '../attach.ts';
import { type IommufdContext, IommufdObject } from '../context.ts';
import { bindIommu, IommufdDevice } from '../device.ts';
import { HwPagetable } from '../hw-pagetable.ts';
import type { TestCall } from './command.ts';
import { MockDevice } from './mock-device.ts';

/** What owns a mock device. */
class SelftestObject extends IommufdObject {
  readonly kind = 'selftest';
  mock: MockDevice | undefined;
  device: IommufdDevice | undefined;

  override destroy(): void {
    const { device } = this;
    if (device !== undefined) {
      // The kernel leaves PASIDs attached, which it then complains about.
      for (const pasid of [...device.igroup.attachments.keys()]) device.detach(pasid);
      device.unbind();
    }
    this.mock?.destroy();
  }
}

/** ENOENT. */
function getOwner(context: IommufdContext, id: number): { device: IommufdDevice; mock: MockDevice } {
  const object = context.get(id);
  if (!(object instanceof SelftestObject))
    throw new Errno('ENOENT', `object ${id} is a ${object.kind}, no mock device`);
  return { device: object.device!, mock: object.mock! };
}

/** ENOENT. EINVAL: not of the mock driver. */
export function getMockDevice(context: IommufdContext, id: number): { device: IommufdDevice; mock: MockDevice } {
  const device = context.get(id);
  if (!(device instanceof IommufdDevice)) throw new Errno('ENOENT', `object ${id} is a ${device.kind}, not a device`);
  const { iommu } = device;
  if (!(iommu instanceof MockDevice)) throw new Errno('EINVAL', `${iommu.name} is not a device of the mock driver`);
  return { device, mock: iommu };
}

export function mockDomain(call: TestCall): void {
  const { context } = call;
  const members = call.members(test_mock_domain);
  const owner = new SelftestObject(context);
  try {
    owner.mock = new MockDevice(context.core, call.op === IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS ? members.dev_flags : 0);
    owner.device = bindIommu(context, owner.mock);
    members.out_hwpt_id = owner.device.attach(call.id);
    members.out_stdev_id = owner.id;
    members.out_idev_id = owner.device.id;
    call.respond(test_mock_domain, members);
  } catch (error) {
    context.abort(owner);
    throw error;
  }
  context.publish(owner);
}

export function mockDomainReplace(call: TestCall): void {
  const members = call.members(test_mock_domain_replace);
  const { device } = getOwner(call.context, call.id);
  members.pt_id = device.replace(members.pt_id);
  call.respond(test_mock_domain_replace, members);
}

export function pasidAttach(call: TestCall): void {
  const members = call.members(test_pasid_attach);
  const { device } = getOwner(call.context, call.id);
  const { pasid } = members;
  members.pt_id = device.attach(members.pt_id, pasid);
  try {
    call.respond(test_pasid_attach, members);
  } catch (error) {
    device.detach(pasid);
    throw error;
  }
}

export function pasidReplace(call: TestCall): void {
  const members = call.members(test_pasid_attach);
  const { device } = getOwner(call.context, call.id);
  members.pt_id = device.replace(members.pt_id, members.pasid);
  call.respond(test_pasid_attach, members);
}

export function pasidDetach(call: TestCall): void {
  const { pasid } = call.members(test_pasid_detach);
  getOwner(call.context, call.id).device.detach(pasid);
}

export function pasidCheckHwpt(call: TestCall): void {
  const { pasid, hwpt_id } = call.members(test_pasid_check);
  const { device } = getOwner(call.context, call.id);
  const attached = device.igroup.attachments.get(pasid)?.hwpt;
  let wanted: HwPagetable | undefined;
  if (hwpt_id !== 0) {
    const object = call.context.get(hwpt_id);
    if (!(object instanceof HwPagetable)) throw new Errno('EINVAL', `object ${hwpt_id} is not a page table`);
    wanted = object;
  }
  if (attached !== wanted) throw new Errno('EINVAL', `PASID ${pasid} uses page table ${attached?.id ?? 'none'}`);
}

export function checkDevCache(call: TestCall): void {
  const { id, cache } = call.members(test_check_dev_cache);
  const { mock } = getMockDevice(call.context, call.id);
  if (id > MOCK_DEV_CACHE_ID_MAX || mock.cache[id] !== cache) {
    throw new Errno('EINVAL', `cache ${id} of ${mock.name} has ${hex(mock.cache[id] ?? 0)}, not ${hex(cache)}`);
  }
}

/** The device asks for a page. Nobody need take the request. */
export function triggerIopf(call: TestCall): void {
  const { dev_id, pasid, grpid, perm, addr } = call.members(test_trigger_iopf);
  const { device, mock } = getMockDevice(call.context, dev_id);
  mock.pageRequests.report(
    device.igroup,
    { pasid: pasid === NO_PASID ? undefined : pasid, group: grpid, perm, address: addr, isLast: true },
    () => {},
  );
}

export function triggerVevent(call: TestCall): void {
  const { dev_id } = call.members(test_trigger_vevent);
  const { mock } = getMockDevice(call.context, dev_id);
  const { viommu } = mock;
  if (viommu === undefined || viommu.virtId === 0n) {
    throw new Errno('ENOENT', `${mock.name} uses no page table of a virtual IOMMU`);
  }
  const event = iommu_viommu_event_selftest.write({ virt_id: Number(viommu.virtId & 0xffff_ffffn) });
  viommu.viommu.core.reportEvent(IOMMU_VEVENTQ_TYPE_SELFTEST, event);
}
