/**
 * The requests of /dev/pasid-walkerN, by which a program lets that device use its addresses: include/pasid-walker.h. The box's own;
 * Linux has such interfaces for each driver (uacce, idxd), and none for all.
 */
import { struct, type TypeOf, u32, u64 } from '../lib/struct.ts';

const request = (n: number): number => (0xb7 << 8) | n;

/** Lets the device use the caller's address space; `pasid` tells its number. */
export const PASID_WALKER_BIND = request(0x40);
/** Ends that, and what the device does for this descriptor. */
export const PASID_WALKER_UNBIND = request(0x41);
/** Starts to follow the list at `head`. */
export const PASID_WALKER_WALK = request(0x42);
/** How far it is. */
export const PASID_WALKER_STATUS = request(0x43);

/** Add 1 to the value of each node. */
export const PASID_WALKER_ADD = 1;

export const PASID_WALKER_IDLE = 0;
export const PASID_WALKER_BUSY = 1;
export const PASID_WALKER_DONE = 2;
export const PASID_WALKER_ERROR = 3;

export const pasid_walker_bind = struct('pasid_walker_bind', { argsz: u32, pasid: u32 });
export type pasid_walker_bind = TypeOf<typeof pasid_walker_bind>;

export const pasid_walker_walk = struct('pasid_walker_walk', {
  argsz: u32,
  flags: u32,
  head: u64,
  limit: u32,
  reserved: u32,
});
export type pasid_walker_walk = TypeOf<typeof pasid_walker_walk>;

export const pasid_walker_status = struct('pasid_walker_status', {
  argsz: u32,
  state: u32,
  visited: u32,
  code: u32,
  sum: u64,
  fault_address: u64,
  page_requests: u32,
  reserved: u32,
});
export type pasid_walker_status = TypeOf<typeof pasid_walker_status>;
