/* Mappings of handles: kept in a table, because munmap and mprotect name addresses only. */
#include "box.h"
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define MAPPING_MAX 4096
static struct mapping table[MAPPING_MAX];
_Atomic int mapping_count;

/* Outside of these bounds there is none: other mappings of the program are not slowed. */
static _Atomic uintptr_t lowest = UINTPTR_MAX, highest;

static inline int concerns(uintptr_t start, size_t length)
{
	return unlikely(mapping_count) && start < highest && start + length > lowest;
}

/* Taken with all signals blocked, so the SIGSEGV handler never waits for its own thread. Free again in a forked child. */
static _Atomic int *lock_word;
static _Atomic int lock_fallback;

static _Atomic int *lock_of(void)
{
	_Atomic int *l = __atomic_load_n(&lock_word, __ATOMIC_ACQUIRE);
	if (l) return l;
	long p = SYS(mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0 && p > -4096) return &lock_fallback;
	SYS(madvise, p, 4096, MADV_WIPEONFORK);
	_Atomic int *none = 0;
	if (!__atomic_compare_exchange_n(&lock_word, &none, (_Atomic int *)p, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) SYS(munmap, p, 4096);
	return lock_word;
}

static void take(_Atomic int *l)
{
	int zero = 0;
	while (!atomic_compare_exchange_weak_explicit(l, &zero, 1, memory_order_acquire, memory_order_relaxed)) {
		zero = 0;
		SYS(sched_yield);
	}
}

static uint64_t lock(void)
{
	uint64_t all = ~0ull, old = 0;
	SYS(rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
	take(lock_of());
	return old;
}

static void unlock(uint64_t old)
{
	atomic_store_explicit(lock_of(), 0, memory_order_release);
	SYS(rt_sigprocmask, SIG_SETMASK, &old, 0, 8);
}

/* Only from the SIGSEGV handler, which runs with all signals blocked. */
int mapping_at(uintptr_t a, struct mapping *out)
{
	if (!atomic_load(&mapping_count)) return 0;
	int found = 0;
	_Atomic int *l = lock_of();
	take(l);
	for (int i = 0; i < mapping_count; i++)
		if (table[i].trapped && a >= table[i].start && a < table[i].end) {
			*out = table[i];
			found = 1;
			break;
		}
	atomic_store_explicit(l, 0, memory_order_release);
	return found;
}

void mapping_fd_moved(int from, int to)
{
	if (!mapping_count) return;
	uint64_t s = lock();
	for (int i = 0; i < mapping_count; i++)
		if (table[i].fd == from) table[i].fd = to;
	unlock(s);
}

static int in_use(int fd)
{
	for (int i = 0; i < mapping_count; i++)
		if (table[i].fd == fd) return 1;
	return 0;
}

static int insert(const struct mapping *m)
{
	if (mapping_count == MAPPING_MAX) return 0;
	if (!mapping_count) {
		lowest = UINTPTR_MAX;
		highest = 0;
	}
	if (m->end && m->start < lowest) lowest = m->start;
	if (m->end > highest) highest = m->end;
	table[mapping_count] = *m;
	mapping_count++;
	return 1;
}

static void forget(int i)
{
	int fd = table[i].fd;
	table[i] = table[mapping_count - 1];
	mapping_count--;
	if (fd >= 0 && !in_use(fd)) own_drop(fd);
}

/* [start, end) is no longer what it was: pieces outside stay. */
static void cut(uintptr_t start, uintptr_t end)
{
	for (int i = 0; i < mapping_count; i++) {
		struct mapping *m = &table[i], old = *m;
		if (old.end <= start || old.start >= end) continue;
		if (old.start < start) {
			m->end = start;
			if (old.end > end) {
				struct mapping tail = old;
				tail.start = end;
				tail.offset += end - old.start;
				insert(&tail);
			}
		} else if (old.end > end) {
			m->start = end;
			m->offset += end - old.start;
		} else {
			forget(i--);
		}
	}
}

static void cut_locked(uintptr_t start, size_t length)
{
	uint64_t s = lock();
	cut(start, start + ((length + 4095) & ~(size_t)4095));
	unlock(s);
}

static long box_mmap(int fd, uint64_t id, void *addr, size_t length, int prot, int flags, off_t offset)
{
	struct {
		uint32_t kind, zero;
		uint64_t offset;
	} how = {0, 0, 0};
	struct call c = {.q = {.op = OP_MMAP, .handle = id, .a = length, .b = (uint32_t)prot, .c = (uint32_t)flags, .d = (uint64_t)offset},
	                 .in = &how,
	                 .in_length = sizeof how};
	int64_t r = box_call(&c);
	if (c.fd < 0) return r < 0 ? r : -EIO;
	int trapped = r >= 0 && how.kind == 1;
	if (trapped) r = trap_install();
	if (r < 0) {
		SYS(close, c.fd);
		if (c.keep >= 0) SYS(close, c.keep);
		return r;
	}
	struct mapping m = {.offset = (uint64_t)offset, .handle = id, .prot = prot, .trapped = trapped};
	m.fd = move_high(c.keep >= 0 ? c.keep : fd);
	if (m.fd >= 0) own_add(m.fd);
	if (c.keep >= 0) SYS(close, c.keep);
	uint64_t s = lock();
	if (trapped) {
		flags &= ~(MAP_TYPE | MAP_POPULATE | MAP_LOCKED);
		flags |= MAP_SHARED;
		prot = PROT_NONE;
	}
	long p = SYS(mmap, addr, length, prot, flags, c.fd, how.offset);
	if (!(p < 0 && p > -4096)) {
		m.start = (uintptr_t)p;
		m.end = m.start + ((length + 4095) & ~(size_t)4095);
		cut(m.start, m.end);
		if (!insert(&m) && trapped) {
			SYS(munmap, p, length);
			p = -ENOMEM;
		}
	}
	if (p < 0 && p > -4096 && m.fd >= 0) own_drop(m.fd);
	unlock(s);
	SYS(close, c.fd);
	return p;
}

/*
 * Shared anonymous memory gets a name, a memfd's, so that its pages are known as the same ones in every process that has them, and can
 * outlive the one that gave them away for DMA. The descriptor is kept as long as the mapping. -ENOSYS: not possible here.
 */
#define NAMED_MAX 256
static long map_named(void *addr, size_t length, int prot, int flags)
{
	struct {
		uint64_t soft, hard;
	} limit;
	if (mapping_count >= NAMED_MAX || !length || (length + 4095) < length) return -ENOSYS;
	size_t rounded = (length + 4095) & ~(size_t)4095;
	/* Memory without a file has no limit of files. */
	if (SYS(prlimit64, 0, RLIMIT_FSIZE, 0, &limit) < 0 || limit.soft < rounded) return -ENOSYS;
	long f = SYS(memfd_create, "vfiobox-shared", 1 /* MFD_CLOEXEC */);
	if (f < 0) return -ENOSYS;
	struct mapping m = {.fd = move_high((int)f), .prot = prot};
	SYS(close, f);
	if (m.fd < 0) return -ENOSYS;
	if (SYS(ftruncate, m.fd, rounded) < 0) {
		SYS(close, m.fd);
		return -ENOSYS;
	}
	own_add(m.fd);
	uint64_t s = lock();
	long p = SYS(mmap, addr, length, prot, flags & ~MAP_ANONYMOUS, m.fd, 0);
	if (!(p < 0 && p > -4096)) {
		m.start = (uintptr_t)p;
		m.end = m.start + rounded;
		cut(m.start, m.end);
		if (!insert(&m)) own_drop(m.fd);
	} else own_drop(m.fd);
	unlock(s);
	return p;
}

static inline int may_be_named(int flags)
{
	return box_active && (flags & (MAP_ANONYMOUS | MAP_HUGETLB | MAP_TYPE)) == (MAP_ANONYMOUS | MAP_SHARED);
}

static long map_real(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	if (unlikely(may_be_named(flags))) {
		long r = map_named(addr, length, prot, flags);
		if (r != -ENOSYS) return r;
	}
	return SYS(mmap, addr, length, prot, flags, fd, offset);
}

/* A machine without hugepages: ordinary memory with a hugepage's alignment. */
static long without_hugepages(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	unsigned shift = (unsigned)flags >> 26 & 63;
	if (!shift) shift = 21;
	if (shift != 21 || !(flags & MAP_ANONYMOUS)) return -ENOMEM;
	size_t page = (size_t)1 << shift;
	flags &= ~(MAP_HUGETLB | 63 << 26);
	length = (length + page - 1) & ~(page - 1);
	if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
		if ((uintptr_t)addr & (page - 1)) return -EINVAL;
		return map_real(addr, length, prot, flags, fd, offset);
	}
	long p = SYS(mmap, 0, length + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p < 0 && p > -4096) return p;
	uintptr_t start = ((uintptr_t)p + page - 1) & ~(page - 1), end = (uintptr_t)p + length + page;
	long r = map_real((void *)start, length, prot, flags | MAP_FIXED, fd, offset);
	if (r < 0 && r > -4096) {
		SYS(munmap, p, length + page);
		return r;
	}
	if (start > (uintptr_t)p) SYS(munmap, p, start - (uintptr_t)p);
	if (start + length < end) SYS(munmap, start + length, end - start - length);
	return r;
}

static void *do_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	uint64_t id;
	long r;
	int file = fd >= 0 && !(flags & MAP_ANONYMOUS);
	if (unlikely(file && maybe_handle(fd) && handle_of(fd, &id))) return (void *)finish(box_mmap(fd, id, addr, length, prot, flags, offset));
	if (unlikely(may_be_named(flags)) && (r = map_named(addr, length, prot, flags)) != -ENOSYS) return (void *)finish(r);
	r = SYS(mmap, addr, length, prot, flags, fd, offset);
	if (likely(!(r < 0 && r > -4096))) {
		if (concerns((uintptr_t)r, length) && (flags & MAP_FIXED)) cut_locked((uintptr_t)r, length);
		return (void *)r;
	}
	if (!box_active) return (void *)finish(r);
	if (r == -ENODEV && file && handle_of(fd, &id)) r = box_mmap(fd, id, addr, length, prot, flags, offset);
	else if (r == -ENOMEM && (flags & MAP_HUGETLB)) {
		long p = without_hugepages(addr, length, prot, flags, fd, offset);
		if (!(p < 0 && p > -4096)) r = p;
	}
	return (void *)finish(r);
}

EXPORT void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return do_mmap(addr, length, prot, flags, fd, offset);
}
EXPORT void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return do_mmap(addr, length, prot, flags, fd, offset);
}

EXPORT int munmap(void *addr, size_t length)
{
	if (likely(!concerns((uintptr_t)addr, length))) return (int)finish(SYS(munmap, addr, length));
	uint64_t s = lock(); /* another thread must not get the range before the record is gone */
	long r = SYS(munmap, addr, length);
	if (r == 0) cut((uintptr_t)addr, (uintptr_t)addr + ((length + 4095) & ~(size_t)4095));
	unlock(s);
	return (int)finish(r);
}

EXPORT int mprotect(void *addr, size_t length, int prot)
{
	if (likely(!concerns((uintptr_t)addr, length))) return (int)finish(SYS(mprotect, addr, length, prot));
	uintptr_t start = (uintptr_t)addr, end = start + ((length + 4095) & ~(size_t)4095);
	uint64_t s = lock();
	long r = 0;
	uintptr_t at = start;
	/* A trapped page stays closed: only the wish is recorded. The rest is the kernel's. */
	while (at < end && r == 0) {
		uintptr_t next = end;
		struct mapping *hit = 0;
		for (int i = 0; i < mapping_count; i++) {
			struct mapping *m = &table[i];
			if (!m->trapped || m->end <= at) continue;
			if (m->start <= at) {
				hit = m;
				next = m->end < end ? m->end : end;
				break;
			}
			if (m->start < next) next = m->start;
		}
		if (hit) {
			struct mapping piece = *hit;
			int keep = hit->fd; /* cut must not close it */
			piece.offset += at - hit->start;
			piece.start = at;
			piece.end = next;
			piece.prot = prot;
			struct mapping hold = {.fd = keep};
			insert(&hold);
			cut(at, next);
			insert(&piece);
			for (int i = 0; i < mapping_count; i++)
				if (!table[i].end) {
					forget(i);
					break;
				}
		} else r = SYS(mprotect, at, next - at, prot);
		at = next;
	}
	unlock(s);
	return (int)finish(r);
}

EXPORT void *mremap(void *addr, size_t old_length, size_t new_length, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	void *wish = va_arg(ap, void *);
	va_end(ap);
	if (likely(!mapping_count)) return (void *)finish(SYS(mremap, addr, old_length, new_length, flags, wish));
	uintptr_t start = (uintptr_t)addr;
	size_t old_pages = (old_length + 4095) & ~(size_t)4095, new_pages = (new_length + 4095) & ~(size_t)4095;
	uint64_t s = lock();
	struct mapping moved;
	int found = 0;
	for (int i = 0; i < mapping_count; i++)
		if (start >= table[i].start && start + old_pages <= table[i].end) {
			moved = table[i];
			moved.offset += start - table[i].start;
			found = 1;
		}
	/* A device's mapping never grows (VM_DONTEXPAND). */
	long r = found && moved.handle && new_pages > old_pages ? -EFAULT : SYS(mremap, addr, old_length, new_length, flags, wish);
	if (!(r < 0 && r > -4096)) {
		struct mapping hold = {.fd = found ? moved.fd : -1};
		insert(&hold);
		cut(start, start + old_pages);
		cut((uintptr_t)r, (uintptr_t)r + new_pages);
		if (found) {
			moved.start = (uintptr_t)r;
			moved.end = moved.start + new_pages;
			insert(&moved);
		}
		for (int i = 0; i < mapping_count; i++)
			if (!table[i].end) {
				forget(i);
				break;
			}
	}
	unlock(s);
	return (void *)finish(r);
}
