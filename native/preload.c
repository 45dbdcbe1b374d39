/* Wrappers of calls on descriptors. The real call goes first wherever its failure is the sign of a handle. */
#include "box.h"
#include <dirent.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#undef fcntl

void say(const char *line)
{
	SYS(write, 2, line, strlen(line));
}

void *real_symbol(const char *name)
{
	void *p = dlsym(RTLD_NEXT, name);
	if (!p) {
		say("vfiobox: this C library has no function ");
		say(name);
		say("\n");
		SYS(exit_group, 127);
	}
	return p;
}

/* Handles that came over exec: every open socket is asked once. */
static void adopt_inherited(void)
{
	DIR *d = REAL(opendir)("/proc/self/fd");
	if (!d) return;
	for (struct dirent *e; (e = REAL(readdir)(d));) {
		if (e->d_name[0] < '0' || e->d_name[0] > '9') continue;
		int fd = atoi(e->d_name);
		uint64_t id;
		handle_of(fd, &id);
	}
	closedir(d);
}

__attribute__((constructor)) static void start(void)
{
	int saved = errno;
	call_init();
	if (box_active) {
		paths_init();
		adopt_inherited();
		stdin_inherited();
		trap_init();
		children_init();
	}
	errno = saved;
}

/* ---- ioctl ---- */

#define KVM_CREATE_DEVICE_ 0xc00caee0u
#define KVM_SET_DEVICE_ATTR_ 0x4018aee1u
#define KVM_HAS_DEVICE_ATTR_ 0x4018aee3u
#define KVM_TYPE_VFIO 4

/* Where in its argument a request names a descriptor, as the box has said last: the request, and above it the byte. */
static _Atomic uint64_t names_descriptor;
#define FLAG_NAMES_DESCRIPTOR 2

/* Tells the box whose the named descriptor is, which saves it from asking. Only a hint: a bad pointer is found by the call itself. */
static NOINLINE void tell_handle(struct call *c, const char *arg, size_t where)
{
	int32_t n;
	uint64_t named;
	struct iovec to = {&n, sizeof n}, from = {(char *)arg + where, sizeof n};
	if (SYS(process_vm_readv, SYS(getpid), &to, 1, &from, 1, 0) != sizeof n || n < 0 || !handle_of(n, &named)) return;
	c->q.c = named;
	c->q.d = 1ull << 32 | (uint32_t)n;
}

static int64_t forward_ioctl(uint64_t id, unsigned long request, void *arg)
{
	struct call c = {.q = {.op = OP_IOCTL, .handle = id, .a = (uint32_t)request, .b = (uintptr_t)arg}, .in = arg};
	if ((uintptr_t)arg >= 4096) {
		c.out = arg;
		c.out_length = INLINE_ARGUMENT;
		uint64_t names = atomic_load_explicit(&names_descriptor, memory_order_relaxed);
		if (unlikely((uint32_t)names == (uint32_t)request && names)) tell_handle(&c, arg, names >> 32);
	}
	int64_t r = box_call(&c);
	if (unlikely(c.r.flags & FLAG_NAMES_DESCRIPTOR) && c.r.kind == 0 && r != -EIO)
		atomic_store_explicit(&names_descriptor, (uint64_t)c.r.where << 32 | (uint32_t)request, memory_order_relaxed);
	if (c.fd < 0) return r;
	if (r < 0 && c.r.ret < 0) {
		SYS(close, c.fd);
		return r;
	}
	if (!(c.r.flags & 1)) SYS(fcntl, c.fd, F_SETFD, 0);
	any_handle = 1;
	hint_set(handle_hint, c.fd);
	if (c.r.fdoff == -1) return c.fd;
	if (c.r.fdoff >= 0) {
		int32_t n = c.fd;
		if ((size_t)c.r.fdoff + 4 <= c.got) memcpy((char *)arg + c.r.fdoff, &n, 4);
		else {
			struct iovec from = {&n, 4}, to = {(char *)arg + c.r.fdoff, 4};
			if (SYS(process_vm_writev, SYS(getpid), &from, 1, &to, 1, 0) != 4) {
				SYS(close, n);
				return -EFAULT;
			}
		}
	}
	return r;
}

/* A kvm without its VFIO device, or one that was shown a descriptor it cannot know. */
static int kvm_answer(unsigned long request, void *arg)
{
	struct {
		uint32_t flags, group;
		uint64_t attr, addr;
	} *attr = arg;
	uint64_t id;
	if (request == KVM_CREATE_DEVICE_) {
		uint32_t *device = arg;
		if (device[0] != KVM_TYPE_VFIO || (errno != ENODEV && errno != EINVAL)) return 0;
		if (!(device[2] & 1)) {
			long fd = SYS(eventfd2, 0, EFD_CLOEXEC);
			if (fd < 0) return 0;
			device[1] = (uint32_t)fd;
		}
		return 1;
	}
	if (request == KVM_HAS_DEVICE_ATTR_) return errno == ENOTTY && attr->group == 1;
	return request == KVM_SET_DEVICE_ATTR_ && attr->group == 1 && attr->addr && handle_of(*(int32_t *)(uintptr_t)attr->addr, &id);
}

static int do_ioctl(int fd, unsigned long request, void *arg)
{
	uint64_t id;
	int saved = errno;
	/* These four are the kernel's for any file, before a driver sees them. */
	int of_any_file = request == FIOCLEX || request == FIONCLEX || request == FIONBIO || request == FIOASYNC;
	if (maybe_handle(fd) && !of_any_file && handle_of(fd, &id)) return (int)finish(forward_ioctl(id, request, arg));
	int r = REAL(ioctl)(fd, request, arg);
	if (likely(r >= 0 || !box_active)) return r;
	request = (uint32_t)request;
	if (errno == ENOTTY && (request >> 8 & 0xff) != 0xae) {
		if (handle_of(fd, &id)) {
			errno = saved;
			return (int)finish(forward_ioctl(id, request, arg));
		}
		errno = ENOTTY;
	} else if ((request >> 8 & 0xff) == 0xae && arg && kvm_answer(request, arg)) {
		errno = saved;
		return 0;
	}
	return r;
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	return do_ioctl(fd, request, arg);
}

/* ---- read and write ---- */

int64_t box_read(uint64_t id, void *buffer, size_t count, uint64_t offset)
{
	if (count > 0x7ffff000) count = 0x7ffff000;
	struct call c = {.q = {.op = OP_PREAD, .handle = id, .a = offset, .b = count, .c = (uintptr_t)buffer}, .in = buffer, .in_length = count};
	return box_call(&c);
}

int64_t box_write(uint64_t id, const void *buffer, size_t count, uint64_t offset)
{
	if (count > 0x7ffff000) count = 0x7ffff000;
	struct call c = {.q = {.op = OP_PWRITE, .handle = id, .a = offset, .b = count, .c = (uintptr_t)buffer}};
	if (count <= INLINE_WRITE) {
		c.out = buffer;
		c.out_length = count;
	}
	return box_call(&c);
}

static int64_t box_vector(uint64_t id, const struct iovec *v, int n, uint64_t offset, int writing)
{
	int64_t total = 0;
	if (n < 0 || n > 1024) return -EINVAL;
	for (int i = 0; i < n; i++) {
		if (!v[i].iov_len) continue;
		int64_t r = writing ? box_write(id, v[i].iov_base, v[i].iov_len, offset) : box_read(id, v[i].iov_base, v[i].iov_len, offset);
		if (r < 0) return total ? total : r;
		total += r;
		if (offset != FILE_POSITION) offset += (uint64_t)r;
		if ((size_t)r < v[i].iov_len) break;
	}
	return total;
}

/* On a socket these would move the socket's bytes: so the hint decides, and getsockname confirms. */
#define ON_HANDLE(fd, id) (maybe_handle(fd) && handle_of(fd, &(id)))

static int64_t read_handle(int fd, uint64_t id, void *buffer, size_t count)
{
	if (IS_EVENT_QUEUE(id)) drain_wakes(fd);
	return box_read(id, buffer, count, FILE_POSITION);
}

EXPORT ssize_t read(int fd, void *buffer, size_t count)
{
	uint64_t id;
	if (ON_HANDLE(fd, id)) return finish(read_handle(fd, id, buffer, count));
	return REAL(read)(fd, buffer, count);
}

EXPORT ssize_t write(int fd, const void *buffer, size_t count)
{
	uint64_t id;
	if (ON_HANDLE(fd, id)) return finish(box_write(id, buffer, count, FILE_POSITION));
	return REAL(write)(fd, buffer, count);
}

EXPORT ssize_t readv(int fd, const struct iovec *v, int n)
{
	uint64_t id;
	if (ON_HANDLE(fd, id)) {
		if (IS_EVENT_QUEUE(id)) drain_wakes(fd);
		return finish(box_vector(id, v, n, FILE_POSITION, 0));
	}
	return REAL(readv)(fd, v, n);
}

EXPORT ssize_t writev(int fd, const struct iovec *v, int n)
{
	uint64_t id;
	if (ON_HANDLE(fd, id)) return finish(box_vector(id, v, n, FILE_POSITION, 1));
	return REAL(writev)(fd, v, n);
}

extern ssize_t __read_chk(int fd, void *buffer, size_t count, size_t room);
extern ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t room);
extern ssize_t __pread64_chk(int fd, void *buffer, size_t count, off_t offset, size_t room);

EXPORT ssize_t __read_chk(int fd, void *buffer, size_t count, size_t room)
{
	uint64_t id;
	if (count <= room && ON_HANDLE(fd, id)) return finish(read_handle(fd, id, buffer, count));
	return REAL(__read_chk)(fd, buffer, count, room);
}

/* The rest of a positional call: `real` is what failed with ESPIPE, as on any socket. */
#define POSITIONAL(real, forward)                                                                                                           \
	uint64_t id;                                                                                                                        \
	int saved = errno;                                                                                                                  \
	if (maybe_handle(fd) && handle_of(fd, &id)) return offset < 0 ? finish(-EINVAL) : finish(forward);                                    \
	ssize_t r = real;                                                                                                                   \
	if (unlikely(r < 0 && errno == ESPIPE && box_active)) {                                                                             \
		if (handle_of(fd, &id)) {                                                                                                   \
			errno = saved;                                                                                                      \
			return finish(forward);                                                                                             \
		}                                                                                                                           \
		errno = ESPIPE;                                                                                                             \
	}                                                                                                                                   \
	return r;

EXPORT ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
	POSITIONAL(REAL(pread)(fd, buffer, count, offset), box_read(id, buffer, count, (uint64_t)offset))
}
EXPORT ssize_t pread64(int fd, void *buffer, size_t count, off_t offset)
{
	POSITIONAL(REAL(pread64)(fd, buffer, count, offset), box_read(id, buffer, count, (uint64_t)offset))
}
EXPORT ssize_t __pread_chk(int fd, void *buffer, size_t count, off_t offset, size_t room)
{
	POSITIONAL(REAL(__pread_chk)(fd, buffer, count, offset, room), box_read(id, buffer, count, (uint64_t)offset))
}
EXPORT ssize_t __pread64_chk(int fd, void *buffer, size_t count, off_t offset, size_t room)
{
	POSITIONAL(REAL(__pread64_chk)(fd, buffer, count, offset, room), box_read(id, buffer, count, (uint64_t)offset))
}
EXPORT ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset)
{
	POSITIONAL(REAL(pwrite)(fd, buffer, count, offset), box_write(id, buffer, count, (uint64_t)offset))
}
EXPORT ssize_t pwrite64(int fd, const void *buffer, size_t count, off_t offset)
{
	POSITIONAL(REAL(pwrite64)(fd, buffer, count, offset), box_write(id, buffer, count, (uint64_t)offset))
}
EXPORT ssize_t preadv(int fd, const struct iovec *v, int n, off_t offset)
{
	POSITIONAL(REAL(preadv)(fd, v, n, offset), box_vector(id, v, n, (uint64_t)offset, 0))
}
EXPORT ssize_t preadv64(int fd, const struct iovec *v, int n, off_t offset)
{
	POSITIONAL(REAL(preadv64)(fd, v, n, offset), box_vector(id, v, n, (uint64_t)offset, 0))
}
EXPORT ssize_t pwritev(int fd, const struct iovec *v, int n, off_t offset)
{
	POSITIONAL(REAL(pwritev)(fd, v, n, offset), box_vector(id, v, n, (uint64_t)offset, 1))
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t offset)
{
	POSITIONAL(REAL(pwritev64)(fd, v, n, offset), box_vector(id, v, n, (uint64_t)offset, 1))
}

/* ---- the ways a handle gets a new number: the hint follows ---- */

static inline int follow(int from, int to)
{
	if (to >= 0 && unlikely(box_active)) {
		if (hint_get(handle_hint, from)) hint_set(handle_hint, to);
		if (hint_get(folder_hint, from)) hint_set(folder_hint, to);
	}
	return to;
}

EXPORT int dup(int fd)
{
	return follow(fd, (int)finish(SYS(dup, fd)));
}
/* The program puts a descriptor where one of ours is: ours goes elsewhere. */
static void make_way(int to)
{
	if (likely(!box_active) || !own_fd(to)) return;
	int n = move_high(to);
	if (n < 0) return;
	own_add(n);
	mapping_fd_moved(to, n);
	own_drop(to); /* a connection there is made anew when it is missed */
}

EXPORT int dup2(int fd, int to)
{
	if (fd != to) make_way(to);
	int r = follow(fd, REAL(dup2)(fd, to));
	if (unlikely(r == 1 && any_handle)) stdout_moved(fd);
	return r;
}
EXPORT int dup3(int fd, int to, int flags)
{
	if (fd != to) make_way(to);
	int r = follow(fd, (int)finish(SYS(dup3, fd, to, flags)));
	if (unlikely(r == 1 && any_handle)) stdout_moved(fd);
	return r;
}

/* Programs that close every number they do not know must not close ours: a mapping's dup keeps the device open. */
EXPORT int close(int fd)
{
	if (unlikely(box_active && own_fd(fd))) return (int)finish(-EBADF);
	return REAL(close)(fd);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
#ifdef SYS_close_range
	if (!box_active || (flags & 4) || first > last) return (int)finish(SYS(close_range, first, last, flags));
	unsigned end = last < HINT_FDS ? last : HINT_FDS - 1, from = first;
	for (unsigned fd = first; fd <= end; fd++) {
		if (fd % 64 == 0 && fd + 63 <= end && !own_hint[fd / 64]) {
			fd += 63;
			continue;
		}
		if (!own_fd((int)fd)) continue;
		if (fd > from) {
			long r = SYS(close_range, from, fd - 1, flags);
			if (r < 0) return (int)finish(r);
			flags &= ~2; /* CLOSE_RANGE_UNSHARE: once */
		}
		from = fd + 1;
	}
	return from > last ? 0 : (int)finish(SYS(close_range, from, last, flags));
#else
	(void)first, (void)last, (void)flags;
	return (int)finish(-ENOSYS);
#endif
}
extern void closefrom(int low);
EXPORT void closefrom(int low)
{
	if (!box_active || close_range(low < 0 ? 0 : (unsigned)low, ~0u, 0) < 0) REAL(closefrom)(low);
}

#define FCNTL(name)                                                                                                                         \
	EXPORT int name(int fd, int op, ...)                                                                                                \
	{                                                                                                                                   \
		va_list ap;                                                                                                                 \
		va_start(ap, op);                                                                                                           \
		void *arg = va_arg(ap, void *);                                                                                             \
		va_end(ap);                                                                                                                 \
		int r = REAL(name)(fd, op, arg);                                                                                            \
		return op == F_DUPFD || op == F_DUPFD_CLOEXEC ? follow(fd, r) : r;                                                          \
	}
FCNTL(fcntl)
FCNTL(fcntl64)

static void received(struct msghdr *m)
{
	if (!box_active || !m->msg_control) return;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
		size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(h) + i * sizeof fd, sizeof fd);
			hint_set(handle_hint, fd); /* asked when it is first used */
			any_handle = 1;
		}
	}
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	ssize_t r = REAL(recvmsg)(fd, m, flags);
	if (r >= 0 && unlikely(m->msg_controllen)) received(m);
	return r;
}

EXPORT int recvmmsg(int fd, struct mmsghdr *v, unsigned n, int flags, struct timespec *limit)
{
	int r = REAL(recvmmsg)(fd, v, n, flags, limit);
	for (int i = 0; i < r; i++)
		if (v[i].msg_hdr.msg_controllen) received(&v[i].msg_hdr);
	return r;
}
