/*
 * What the parts of the library share. The protocol is docs/run-protocol.md.
 *
 *   call.c     the connection of each thread, requests and answers, descriptors by SCM_RIGHTS
 *   paths.c    which path belongs to the box, and what to give to the real call instead
 *   preload.c  wrappers of calls on descriptors
 *   files.c    wrappers of calls on paths
 *   streams.c  stdio on a handle
 *   syscalls.c syscall(2)
 *   children.c exec with an environment that lost us
 *   memory.c   mmap and its kin, the table of mappings
 *   trap.c     SIGSEGV: an access to a trapped mapping becomes TRAP_READ or TRAP_WRITE
 *   decode.c   x86-64 instructions with a memory operand
 */
#ifndef VFIOBOX_BOX_H
#define VFIOBOX_BOX_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include "sys.h"

#define EXPORT __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define NOINLINE __attribute__((noinline))

#define PROTOCOL_VERSION 1
enum { OP_HELLO = 1, OP_OPEN, OP_IOCTL, OP_PREAD, OP_PWRITE, OP_MMAP, OP_TRAP_READ, OP_TRAP_WRITE, OP_FDS, OP_STAT, OP_NAME, OP_ACCESS };
#define PASS 1
#define FILE_POSITION UINT64_MAX
#define INLINE_WRITE 4096
#define INLINE_ARGUMENT 80 /* bytes of an ioctl's argument that travel with it */

struct request {
	uint32_t op, seq;
	uint64_t handle, a, b, c, d;
};
struct reply {
	uint32_t kind, seq;
	int64_t ret;
	int32_t fdoff;
	uint32_t flags, length, where;
};
/* One exchange. `out` is sent from where it is, the answer's payload lands in `in`. */
struct call {
	struct request q;
	const void *out;
	size_t out_length;
	void *in;
	size_t in_length;
	struct reply r;
	size_t got; /* bytes of payload that arrived */
	int fd;     /* the descriptor that came, close-on-exec, or -1 */
	int keep;   /* MMAP: a second one, to be kept for as long as the mapping lives, or -1 */
};

extern int box_active; /* VFIOBOX_SOCKET is set; else nothing here does anything */

/* call.c */
void call_init(void);
int64_t box_call(struct call *c); /* the value, or minus the errno */
uint64_t process_word(void);      /* random, new after fork */
int connect_failed(void);
/* The descriptor's file becomes readable by itself: a byte in its socket says so, and goes before it is read. */
#define IS_EVENT_QUEUE(id) ((id) >> 32 & 1)
void drain_wakes(int fd);
/* The descriptor is one of the box's: its id. Remembers the answer as a hint. */
int handle_of(int fd, uint64_t *id);

/* Hints: a clear bit means surely not; a set bit means ask. Numbers beyond the table are always asked. */
#define HINT_FDS 65536
extern _Atomic uint64_t handle_hint[HINT_FDS / 64], folder_hint[HINT_FDS / 64], own_hint[HINT_FDS / 64];
static inline int hint_get(_Atomic uint64_t *map, int fd)
{
	if (unlikely((unsigned)fd >= HINT_FDS)) return fd > 0;
	return (atomic_load_explicit(&map[fd / 64], memory_order_relaxed) >> (fd % 64)) & 1;
}
static inline void hint_set(_Atomic uint64_t *map, int fd)
{
	if ((unsigned)fd < HINT_FDS) atomic_fetch_or_explicit(&map[fd / 64], 1ull << (fd % 64), memory_order_relaxed);
}
static inline void hint_clear(_Atomic uint64_t *map, int fd)
{
	if ((unsigned)fd < HINT_FDS) atomic_fetch_and_explicit(&map[fd / 64], ~(1ull << (fd % 64)), memory_order_relaxed);
}
extern int any_handle; /* a handle was ever seen in this process */
static inline int maybe_handle(int fd) { return unlikely(any_handle) && hint_get(handle_hint, fd); }
int move_high(int fd); /* the same descriptor at a number >= 512 where the limit allows, close-on-exec */
int own_fd(int fd);    /* a descriptor of the library itself */
void own_add(int fd);
void own_drop(int fd);
void mapping_fd_moved(int from, int to);

/* paths.c */
enum { PLACE_NONE, PLACE_DEV, PLACE_SYS, PLACE_OUT /* a `..` led out of the box: `real` is the real machine's */ };
struct place {
	int kind;
	char path[PATH_MAX]; /* absolute, as the program sees it */
	char real[PATH_MAX]; /* what the real call is given */
};
extern int rewrite_sysfs, cwd_near;
extern unsigned char first_letter[256];
extern char box_root[PATH_MAX];
void paths_init(void);
void cwd_changed(void);
/* Cheap: may this path be the box's? */
static inline int path_suspect(const char *p)
{
	if (!p) return 0;
	if (p[0] != '/') return cwd_near;
	if (first_letter[(unsigned char)p[1]]) return 1;
	for (; *p; p++)
		if (p[0] == '/' && (p[1] == '/' || (p[1] == '.' && (p[2] == '/' || p[2] == '.' || !p[2])))) return 1;
	return 0;
}
int place_of(int dirfd, const char *path, struct place *w);     /* w->kind; for a relative path asks the kernel where dirfd is */
static inline int place_wanted(int dirfd, const char *path)
{
	if (!box_active || !path) return 0;
	if (path[0] == '/' || dirfd == AT_FDCWD) return path_suspect(path);
	return hint_get(folder_hint, dirfd);
}
int strip_root(char *s);           /* $VFIOBOX_ROOT/sys/x -> /sys/x; 1 when it did */
int fd_in_path(const char *path);  /* N of /proc/self/fd/N, /dev/fd/N; -1 */

/* memory.c */
struct mapping {
	uintptr_t start, end;
	uint64_t offset; /* in the device file */
	uint64_t handle;
	int fd;          /* our dup of the handle */
	int prot;        /* what the program asked for */
	int trapped;
};
extern _Atomic int mapping_count;
int mapping_at(uintptr_t address, struct mapping *out); /* trapped ones only; safe in a signal handler */

/* trap.c */
void trap_init(void);
int trap_install(void); /* 0, or minus the errno when this machine cannot trap */

/* preload.c */
extern void *real_symbol(const char *name);
#define REAL(name)                                                                                                                          \
	({                                                                                                                                  \
		static __typeof__(&name) pointer;                                                                                           \
		__typeof__(&name) p_ = __atomic_load_n(&pointer, __ATOMIC_RELAXED);                                                         \
		if (unlikely(!p_)) {                                                                                                        \
			p_ = (__typeof__(&name))real_symbol(#name);                                                                         \
			__atomic_store_n(&pointer, p_, __ATOMIC_RELAXED);                                                                   \
		}                                                                                                                           \
		p_;                                                                                                                         \
	})
static inline long finish(long r) /* as a libc function returns */
{
	if (unlikely(r < 0 && r > -4096)) {
		errno = (int)-r;
		return -1;
	}
	return r;
}
int64_t open_in_box(const struct place *w, int flags, unsigned mode); /* descriptor, minus errno, or -PASSED */
#define PASSED 5000
void say(const char *line); /* on stderr, safe anywhere */
int64_t box_read(uint64_t id, void *buffer, size_t count, uint64_t offset);
int64_t box_write(uint64_t id, const void *buffer, size_t count, uint64_t offset);

/* files.c */
void stdin_inherited(void);

/* streams.c */
void stdout_moved(int from);

/* children.c */
void children_init(void);
#endif
