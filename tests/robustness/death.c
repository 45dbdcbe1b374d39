/*
 * kill -9 at any point, seeded: a child makes a random sequence of good calls, the parent kills it after a random time and then
 * demands that nothing of it is left.
 *
 * usage: death SEED POINTS BDF BDF2
 *
 * After each death: the counters of the box (/sys/module/vfiobox/counters) are zero, both groups can be opened and are viable, and an
 * eventfd that the child had given to the device and that the parent still holds gets no more signals. Prints
 * `points N`, exit 0; or what was left and exit 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
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

static int group_of(const char *bdf)
{
	char path[256], link[256];
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", bdf);
	ssize_t n = readlink(path, link, sizeof link - 1);
	if (n < 0) return -1;
	link[n] = 0;
	return atoi(strrchr(link, '/') + 1);
}

static void cdev_of(const char *bdf, char *node, size_t size)
{
	for (int i = 0; i < 64; i++) {
		char path[256];
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev/vfio%d", bdf, i);
		if (access(path, F_OK) == 0) {
			snprintf(node, size, "/dev/vfio/devices/vfio%d", i);
			return;
		}
	}
	node[0] = 0;
}

static void arm(int d, int event)
{
	struct { u32 argsz, flags, index, start, count; int fd; } irq = { 24, 4 | 32, below(2), 0, 1, event };
	ioctl(d, 0x3b6e, &irq);
}

static void poke(int d, char *memory)
{
	u64 command = 7;
	u32 id;
	pwrite(d, &command, 2, (7ull << 40) + 4);
	pread(d, &id, 4, 0);
	u64 iova = 0x100000, inside = 0x40000, size = 64, start = 1 | 4;
	memset(memory, 0x5a, 64);
	pwrite(d, &iova, 8, 0x80);
	pwrite(d, &inside, 8, 0x88);
	pwrite(d, &size, 8, 0x90);
	pwrite(d, &start, 8, 0x98);
	u32 raise = 1;
	pwrite(d, &raise, 4, 0x60);
}

static void *spinner(void *fd)
{
	u32 id;
	for (;;) pread((int)(long)fd, &id, 4, 0);
	return NULL;
}

static void by_group(const char *bdf, const char *bdf2, int event)
{
	char path[300];
	char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	snprintf(path, sizeof path, "/dev/vfio/%d", group_of(bdf));
	int g = open(path, O_RDWR), c = open(below(4) ? "/dev/vfio/vfio" : "/dev/iommu", O_RDWR);
	ioctl(g, 0x3b68, &c);
	ioctl(c, 0x3b66, below(2) ? 3 : 1);
	struct { u32 argsz, flags; u64 vaddr, iova, size; } map = { 32, 3, (u64)memory, 0x100000, 4096 };
	ioctl(c, 0x3b71, &map);
	int d = ioctl(g, 0x3b6a, bdf);
	if (below(2)) {
		snprintf(path, sizeof path, "/dev/vfio/%d", group_of(bdf2));
		int g2 = open(path, O_RDWR);
		ioctl(g2, 0x3b68, &c);
		ioctl(g2, 0x3b6a, bdf2);
	}
	arm(d, event);
	pthread_t thread;
	if (below(3) == 0) pthread_create(&thread, NULL, spinner, (void *)(long)d);
	if (below(4) == 0 && fork() == 0) { /* a grandchild that holds everything a little longer, then dies too */
		usleep(below(300));
		_exit(0);
	}
	for (;;) {
		map.iova = 0x100000 + 4096ull * (1 + below(200));
		map.vaddr = (u64)memory + 4096ull * below(200);
		map.size = 4096ull * (1 + below(40));
		ioctl(c, 0x3b71, &map);
		poke(d, memory);
		struct { u32 argsz, flags; u64 iova, size; } unmap = { 24, 0, map.iova, map.size };
		if (below(2)) ioctl(c, 0x3b72, &unmap);
		if (below(10) == 0) arm(d, event);
		if (below(20) == 0) close(dup(d));
		void *bar = mmap(NULL, 4096, PROT_READ, MAP_SHARED, d, 0);
		if (bar != MAP_FAILED && below(2)) munmap(bar, 4096);
	}
}

static void by_cdev(const char *bdf, int event)
{
	char node[64];
	char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cdev_of(bdf, node, sizeof node);
	int d = open(node, O_RDWR), i = open("/dev/iommu", O_RDWR);
	struct { u32 argsz, flags; int fd; u32 id; } bind = { 16, 0, i, 0 };
	ioctl(d, 0x3b76, &bind);
	struct { u32 size, flags, id; } ioas = { 12, 0, 0 };
	ioctl(i, 0x3b81, &ioas);
	struct { u32 argsz, flags, pt; } attach = { 12, 0, ioas.id };
	ioctl(d, 0x3b77, &attach);
	arm(d, event);
	for (;;) {
		struct { u32 size, flags, id, zero; u64 va, length, iova; } map = { 40, 7, ioas.id, 0, (u64)memory, 4096ull * (1 + below(40)), 0x100000 };
		ioctl(i, 0x3b85, &map);
		poke(d, memory);
		struct { u32 size, id; u64 iova, length; } unmap = { 24, ioas.id, 0x100000, map.length };
		if (below(2)) ioctl(i, 0x3b86, &unmap);
		if (below(5) == 0) {
			struct { u32 argsz, flags; } detach = { 8, 0 };
			ioctl(d, 0x3b78, &detach);
			ioctl(d, 0x3b77, &attach);
		}
	}
}

static long counter(const char *name)
{
	char path[128], text[32];
	snprintf(path, sizeof path, "/sys/module/vfiobox/counters/%s", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0) return -1;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0) return -1;
	text[n] = 0;
	return atol(text);
}

static int clean(const char *when, const char *bdf, const char *bdf2)
{
	static const char *const names[] = { "pins", "maps", "objects", "files", "blocks" };
	/* A grandchild may live for some hundred microseconds more. */
	for (int patience = 0; ; patience++) {
		const char *left = NULL;
		for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
			if (counter(names[i]) != 0) left = names[i];
		if (left == NULL) break;
		if (patience == 200) {
			printf("%s: %s %ld left\n", when, left, counter(left));
			return 0;
		}
		usleep(500);
	}
	for (int k = 0; k < 2; k++) {
		char path[300];
		struct { u32 argsz, flags; } status = { 8, 0 };
		snprintf(path, sizeof path, "/dev/vfio/%d", group_of(k ? bdf2 : bdf));
		int g = open(path, O_RDWR);
		if (g < 0 || ioctl(g, 0x3b67, &status) || status.flags != 1) {
			printf("%s: %s: open %d errno %d flags %u\n", when, path, g, errno, status.flags);
			return 0;
		}
		close(g);
	}
	return 1;
}

int main(int argc, char **argv)
{
	if (argc != 5) return 2;
	state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ull + 1;
	long points = atol(argv[2]);
	const char *bdf = argv[3], *bdf2 = argv[4];
	if (!clean("before the first death", bdf, bdf2)) return 1;
	for (long i = 0; i < points; i++) {
		int event = eventfd(0, EFD_NONBLOCK);
		u64 seed = ((u64)rnd() << 32) | rnd();
		int through = below(3);
		pid_t child = fork();
		if (child == 0) {
			state = seed | 1;
			if (through == 0) by_cdev(bdf, event);
			by_group(bdf, bdf2, event);
			_exit(0);
		}
		struct timespec wait = { 0, (long)below(3000) * 1000 };
		nanosleep(&wait, NULL);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		char when[64];
		snprintf(when, sizeof when, "point %ld (seed %llu)", i, (unsigned long long)seed);
		if (!clean(when, bdf, bdf2)) return 1;
		u64 value;
		while (read(event, &value, 8) == 8) continue;
		usleep(100);
		if (read(event, &value, 8) == 8) {
			printf("%s: an interrupt after death\n", when);
			return 1;
		}
		close(event);
	}
	printf("points %ld\n", points);
	return 0;
}
