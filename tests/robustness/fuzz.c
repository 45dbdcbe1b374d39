/*
 * Hostile calls, seeded: random requests with random sizes, flags, pointers and descriptors on every kind of file, in random order.
 *
 * usage: fuzz SEED CALLS BDF...
 *
 * Each call must come back, with a result or an errno. A second process of the same program (the witness) keeps mapping and
 * reading registers meanwhile and must never notice. At the end everything is closed and the box's counters must be zero, which the
 * caller checks. Prints one line: `calls N ok N refused N witness N`. Exit 1: the witness was disturbed; 3: set-up failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

typedef uint32_t u32;
typedef uint64_t u64;

static u64 state;
static u32 rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (u32)(state >> 16);
}
static u32 below(u32 n) { return rnd() % n; }

enum { FDS = 48, ARENA = 64 * 4096 };
static int fds[FDS];
static char *arena, *readonly_page, *last_page;

static int group_of(const char *bdf)
{
	char path[256], link[256];
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", bdf);
	ssize_t n = readlink(path, link, sizeof link - 1);
	if (n < 0) return -1;
	link[n] = 0;
	return atoi(strrchr(link, '/') + 1);
}

static int put(int fd)
{
	if (fd < 0) return fd;
	int slot = below(FDS);
	if (fds[slot] >= 0) close(fds[slot]);
	fds[slot] = fd;
	return fd;
}

static int any_fd(void)
{
	switch (below(12)) {
	case 0: return -1;
	case 1: return 9999;
	case 2: return 0x7fffffff;
	default: return fds[below(FDS)];
	}
}

static u64 any_address(void)
{
	switch (below(10)) {
	case 0: return 0;
	case 1: return 0xdead000;
	case 2: return ~0ull;
	case 3: return 1ull << 47;
	case 4: return (u64)readonly_page;
	case 5: return (u64)(last_page + 4096 - below(64));
	default: return (u64)(arena + below(ARENA / 8) * 8);
	}
}

static u64 any_u64(void)
{
	switch (below(12)) {
	case 0: return 0;
	case 1: return ~0ull;
	case 2: return 1ull << below(64);
	case 3: return (1ull << below(64)) - 1;
	case 4: return 0xfee00000ull + below(4096);
	case 5: return any_address();
	case 6: return rnd();
	default: return (u64)below(64) * 4096;
	}
}

static u32 any_u32(void)
{
	switch (below(8)) {
	case 0: return 0;
	case 1: return ~0u;
	case 2: return 1u << below(32);
	case 3: return rnd();
	case 4: return (u32)any_fd();
	default: return below(10);
	}
}

/* A structure of random words: first its size, mostly plausible. */
static void *argument(void)
{
	u32 *word = (u32 *)(arena + below(32) * 4096);
	for (int i = 0; i < 32; i += 2) {
		if (below(2)) {
			word[i] = any_u32();
			word[i + 1] = any_u32();
		} else {
			u64 wide = any_u64();
			memcpy(word + i, &wide, 8);
		}
	}
	static const u32 sizes[] = { 0, 4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 72, 128, 4096, ~0u };
	word[0] = below(16) ? sizes[below(sizeof sizes / sizeof *sizes)] : rnd();
	if (below(3)) word[1] = below(8);
	switch (below(16)) {
	case 0: return NULL;
	case 1: return (void *)0xdead000;
	case 2: return (void *)-1;
	case 3: return readonly_page;
	case 4: return last_page + 4096 - below(64);
	case 5: return (void *)(long)below(64);
	default: return word;
	}
}

static long calls, refused;
static long count(long rc)
{
	calls++;
	if (rc < 0) refused++;
	return rc;
}

static const char **bdfs;
static int nbdfs;

static void open_something(void)
{
	char path[300];
	const char *bdf = bdfs[below(nbdfs)];
	int flags = below(4) ? O_RDWR : O_RDONLY;
	switch (below(7)) {
	case 0: strcpy(path, "/dev/vfio/vfio"); break;
	case 1: strcpy(path, "/dev/iommu"); break;
	case 2: snprintf(path, sizeof path, "/dev/vfio/devices/vfio%u", below(8)); break;
	case 3: snprintf(path, sizeof path, "/dev/vfio/%u", below(16)); break;
	case 4: snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", bdf, below(2) ? "config" : "driver_override"); break;
	default: snprintf(path, sizeof path, "/dev/vfio/%d", group_of(bdf)); break;
	}
	put((int)count(open(path, flags | O_CLOEXEC)));
}

/* Half of the time a correct set-up, so that the calls behind it are reached. */
static void set_up(void)
{
	const char *bdf = bdfs[below(nbdfs)];
	char path[300];
	snprintf(path, sizeof path, "/dev/vfio/%d", group_of(bdf));
	int g = (int)count(open(path, O_RDWR));
	int c = (int)count(open(below(3) ? "/dev/vfio/vfio" : "/dev/iommu", O_RDWR));
	if (g >= 0 && c >= 0) {
		count(ioctl(g, 0x3b68, &c));
		count(ioctl(c, 0x3b66, below(2) ? 3 : 1));
		put((int)count(ioctl(g, 0x3b6a, bdf)));
	}
	put(g);
	put(c);
}

static void one_call(void)
{
	int fd = any_fd();
	switch (below(40)) {
	case 0: case 1: open_something(); return;
	case 2: set_up(); return;
	case 3: {
		int slot = below(FDS);
		if (fds[slot] >= 0) count(close(fds[slot]));
		fds[slot] = -1;
		return;
	}
	case 4: put((int)count(dup(fd))); return;
	case 5: count(pread(fd, (void *)any_address(), below(128), (off_t)(below(4) ? ((u64)below(10) << 40) + below(4096) : any_u64()))); return;
	case 6: {
		u64 from = any_address();
		count(pwrite(fd, (void *)from, below(64), (off_t)(((u64)below(10) << 40) + below(512))));
		return;
	}
	case 7: {
		void *p = mmap(NULL, 4096 * (1 + below(4)), PROT_READ | (below(2) ? PROT_WRITE : 0), below(4) ? MAP_SHARED : MAP_PRIVATE, fd,
			       (off_t)(((u64)below(10) << 40) + 4096ull * below(4)));
		count(p == MAP_FAILED ? -1 : 0);
		if (p != MAP_FAILED) munmap(p, 4096);
		return;
	}
	case 8: put(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)); return;
	case 9: put((int)syscall(319 /* memfd_create */, "fuzz", 1)); return;
	case 10: count(ioctl(fd, rnd(), argument())); return;
	}
	u32 request;
	if (below(2)) request = 0x3b64 + below(24);
	else request = 0x3b80 + below(0x24);
	long rc = count(ioctl(fd, request, argument()));
	if (rc > 2 && rc < 100000 && fcntl((int)rc, F_GETFD) >= 0 && request == 0x3b6a) put((int)rc);
}

/* An ordinary program beside the hostile one. Exit 0 while all goes as it should. */
static int witness(const char *bdf, int stop)
{
	char path[300];
	long rounds = 0;
	snprintf(path, sizeof path, "/dev/vfio/%d", group_of(bdf));
	int g = open(path, O_RDWR), c = open("/dev/vfio/vfio", O_RDWR);
	if (g < 0 || c < 0 || ioctl(g, 0x3b68, &c) || ioctl(c, 0x3b66, 3)) return 3;
	int d = ioctl(g, 0x3b6a, bdf);
	if (d < 0) return 3;
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (;;) {
		struct { u32 argsz, flags; u64 vaddr, iova, size; } map = { 32, 3, (u64)page, 0x100000, 4096 };
		struct { u32 argsz, flags; u64 iova, size; } unmap = { 24, 0, 0x100000, 4096 };
		u32 id = 0;
		if (ioctl(c, 0x3b71, &map)) return 10;
		if (ioctl(c, 0x3b71, &map) == 0 || errno != EEXIST) return 11;
		if (ioctl(c, 0x3b72, &unmap) || unmap.size != 4096) return 12;
		if (pread(d, &id, 4, (7ull << 40)) != 4 || id != 0x11e81234) return 13;
		rounds++;
		u64 end;
		if (read(stop, &end, 8) == 8) break;
		usleep(200);
	}
	printf("witness rounds %ld\n", rounds);
	fflush(stdout);
	return rounds > 0 ? 0 : 14;
}

int main(int argc, char **argv)
{
	if (argc < 5) return 2;
	state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ull + 1;
	long total = atol(argv[2]);
	const char *quiet = argv[3]; /* the witness's device */
	bdfs = (const char **)argv + 4;
	nbdfs = argc - 4;
	for (int i = 0; i < FDS; i++) fds[i] = -1;
	arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	readonly_page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	last_page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(last_page + 4096, 4096);
	int stop = eventfd(0, EFD_NONBLOCK);
	pid_t other = fork();
	if (other == 0) _exit(witness(quiet, stop));
	usleep(20000);
	for (long i = 0; calls < total; i++) one_call();
	for (int i = 0; i < FDS; i++)
		if (fds[i] >= 0) close(fds[i]);
	u64 one = 1;
	if (write(stop, &one, 8) != 8) return 3;
	int status;
	waitpid(other, &status, 0);
	int code = WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
	printf("calls %ld ok %ld refused %ld witness %d\n", calls, calls - refused, refused, code);
	return code == 0 ? 0 : code == 3 ? 3 : 1;
}
