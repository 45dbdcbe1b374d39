/* SPDX-License-Identifier: MIT */
/*
 * /dev/pasid-walkerN of a vfiobox: a device that follows linked lists in the caller's memory by the caller's own addresses
 * (shared virtual addressing). See docs/devices/pasid-walker.md.
 */
#ifndef PASID_WALKER_H
#define PASID_WALKER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define PASID_WALKER_TYPE 0xb7

struct pasid_walker_node {
	__u64 next; /* address of the next node, 0 at the end */
	__u64 value;
};

struct pasid_walker_bind {
	__u32 argsz;
	__u32 pasid; /* out */
};

struct pasid_walker_walk {
	__u32 argsz;
	__u32 flags;
#define PASID_WALKER_ADD (1 << 0) /* add 1 to the value of each node */
	__u64 head;
	__u32 limit; /* visit no more nodes than this */
	__u32 reserved;
};

struct pasid_walker_status {
	__u32 argsz;
	__u32 state;
#define PASID_WALKER_IDLE 0
#define PASID_WALKER_BUSY 1
#define PASID_WALKER_DONE 2
#define PASID_WALKER_ERROR 3
	__u32 visited;
	__u32 code; /* PASID_WALKER_ERROR: as in the device's status register */
	__u64 sum; /* of the values as they were */
	__u64 fault_address;
	__u32 page_requests; /* pages that the device had to ask for */
	__u32 reserved;
};

#define PASID_WALKER_BIND _IO(PASID_WALKER_TYPE, 0x40)
#define PASID_WALKER_UNBIND _IO(PASID_WALKER_TYPE, 0x41)
#define PASID_WALKER_WALK _IO(PASID_WALKER_TYPE, 0x42)
#define PASID_WALKER_STATUS _IO(PASID_WALKER_TYPE, 0x43)

#endif
