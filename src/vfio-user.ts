/** `vfiobox/vfio-user`: a client for vfio-user servers. See docs/vfio-user-client.md. */
export {
  type ClientOptions,
  type DeviceInfo,
  type IrqInfo,
  type MappedRegion,
  type RegionWrite,
  VfioUserClient,
} from './doors/vfio-user/client.ts';
export type { Reply, RequestOptions } from './doors/vfio-user/client-conversation.ts';
export { ClientMemory, type DmaBacking, type DmaMap } from './doors/vfio-user/client-dma.ts';
export {
  BadServerError,
  DisconnectedError,
  RefusedError,
  TimeoutError,
  VfioUserError,
} from './doors/vfio-user/client-errors.ts';
export type { MappableArea, RegionCapability, RegionInfo, SubRegion } from './doors/vfio-user/client-regions.ts';
export { closeDescriptor, createEventfd, readEventfd, signalEventfd } from './sys/index.ts';
export * from './uapi/vfio-user.ts';
