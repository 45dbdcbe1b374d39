/** Caches of mock devices: words that invalidations of a virtual IOMMU set to zero. */
import type { DeviceIommu } from '../device-iommu.ts';

export const cachesOf = new WeakMap<DeviceIommu, Uint32Array>();
