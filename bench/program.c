/*
 * The C half of the benchmarks: the twin that the box is compared with, and the program that is measured in the box.
 *
 * usage: program twin REQUEST REPLY ROUNDS       exchange of that many bytes with another C process over a SEQPACKET pair
 *        program calls BDF ROUNDS                 what a VFIO program does, in the box
 *        program gigabyte BDF                     MAP and UNMAP of 1 GiB of 4 KiB pages, in the box
 *        program maps BDF COUNT                   COUNT mappings of one page held at once, then one more
 *        program plain ROUNDS                     system calls that have nothing to do with VFIO
 *        program readv BYTES ROUNDS               process_vm_readv of another process's memory
 *        program hold BYTES                       tells the address of that much memory, and keeps it until its input ends
 *
 * Each figure is a line `name nanoseconds`, the median of batches.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef uint32_t u32;
typedef uint64_t u64;
enum { BATCHES = 21 };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

#define MEASURE(name, rounds, statement)                                                                                                     \
	do {                                                                                                                                 \
		double batch[BATCHES];                                                                                                       \
		long each = (rounds) / BATCHES > 0 ? (rounds) / BATCHES : 1;                                                                 \
		for (int b = -2; b < BATCHES; b++) {                                                                                         \
			double begin = now();                                                                                                \
			for (long r = 0; r < each; r++) { statement; }                                                                       \
			if (b >= 0) batch[b] = (now() - begin) / each;                                                                       \
		}                                                                                                                            \
		qsort(batch, BATCHES, sizeof *batch, by_value);                                                                              \
		printf("%s %.1f\n", name, batch[BATCHES / 2]);                                                                               \
		fflush(stdout);                                                                                                              \
	} while (0)

static void need(int ok, const char *what)
{
	if (ok) return;
	fprintf(stderr, "program: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int twin(int request, int reply, long rounds)
{
	int pair[2];
	static char buffer[65536];
	need(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0, "socketpair");
	pid_t server = fork();
	if (server == 0) {
		close(pair[0]);
		while (recv(pair[1], buffer, sizeof buffer, 0) > 0) send(pair[1], buffer, reply, 0);
		_exit(0);
	}
	close(pair[1]);
	MEASURE("exchange", rounds, send(pair[0], buffer, request, 0); recv(pair[0], buffer, sizeof buffer, 0));
	close(pair[0]);
	waitpid(server, NULL, 0);
	return 0;
}

static int group_of(const char *bdf)
{
	char path[256], link[256];
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", bdf);
	ssize_t n = readlink(path, link, sizeof link - 1);
	need(n > 0, path);
	link[n] = 0;
	return atoi(strrchr(link, '/') + 1);
}

static int container, device;

static void set_up(const char *bdf)
{
	char path[256];
	snprintf(path, sizeof path, "/dev/vfio/%d", group_of(bdf));
	int group = open(path, O_RDWR);
	container = open("/dev/vfio/vfio", O_RDWR);
	need(group >= 0 && container >= 0, "open");
	need(ioctl(group, 0x3b68, &container) == 0, "SET_CONTAINER");
	need(ioctl(container, 0x3b66, 3) == 0, "SET_IOMMU");
	device = ioctl(group, 0x3b6a, bdf);
	need(device >= 0, "GET_DEVICE_FD");
	u32 command = 6;
	need(pwrite(device, &command, 2, (7ull << 40) + 4) == 2, "COMMAND");
}

struct map { u32 argsz, flags; u64 vaddr, iova, size; };
struct unmap { u32 argsz, flags; u64 iova, size; };

static int calls(const char *bdf, long rounds)
{
	set_up(bdf);
	struct { u32 argsz, flags, regions, irqs; } info = { 16, 0, 0, 0 };
	u32 value = 0;
	/* The box compiles what is called often: a steady state is what is measured. */
	for (int i = 0; i < 20000; i++) need(ioctl(device, 0x3b6b, &info) == 0, "GET_INFO");
	MEASURE("ioctl", rounds, need(ioctl(device, 0x3b6b, &info) == 0, "GET_INFO"));
	MEASURE("read4", rounds, need(pread(device, &value, 4, 0) == 4, "pread"));
	MEASURE("write4", rounds, need(pwrite(device, &value, 4, 4) == 4, "pwrite"));
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(page, 1, 4096);
	struct map map = { 32, 3, (u64)page, 0x100000, 4096 };
	struct unmap unmap = { 24, 0, 0x100000, 4096 };
	MEASURE("map+unmap", rounds, need(ioctl(container, 0x3b71, &map) == 0, "MAP"); unmap.size = 4096;
		need(ioctl(container, 0x3b72, &unmap) == 0 && unmap.size == 4096, "UNMAP"));
	volatile u32 *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
	if (bar != MAP_FAILED) {
		MEASURE("trap read4", rounds, value = bar[0]);
		MEASURE("trap write4", rounds, bar[1] = value);
	}
	MEASURE("open+close", rounds / 4, int c = open("/dev/vfio/vfio", O_RDWR); need(c >= 0, "open"); close(c));
	return 0;
}

static int gigabyte(const char *bdf)
{
	set_up(bdf);
	u64 size = 1ull << 30;
	char *memory = mmap(NULL, size + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	/* Once where both sides are aligned for large pages, once where only small ones fit. */
	for (int off = 0; off < 2; off++) {
		double batch[9];
		u64 vaddr = (((u64)memory + (2 << 20) - 1) & ~((2ull << 20) - 1)) + off * 4096;
		for (int b = 0; b < 9; b++) {
			struct map map = { 32, 3, vaddr, 0x40000000, size - off * 4096 };
			struct unmap unmap = { 24, 0, 0x40000000, map.size };
			double begin = now();
			need(ioctl(container, 0x3b71, &map) == 0, "MAP 1 GiB");
			batch[b] = now() - begin;
			need(ioctl(container, 0x3b72, &unmap) == 0 && unmap.size == map.size, "UNMAP 1 GiB");
		}
		qsort(batch, 9, sizeof *batch, by_value);
		printf("%s %.1f\n", off ? "gigabyte-small" : "gigabyte", batch[4]);
	}
	return 0;
}

static int maps(const char *bdf, long count)
{
	set_up(bdf);
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct map map = { 32, 3, (u64)page, 0, 4096 };
	double begin = now();
	for (long i = 0; i < count; i++) {
		map.iova = 0x100000000ull + 4096ull * i;
		need(ioctl(container, 0x3b71, &map) == 0, "MAP");
	}
	printf("each %.1f\n", (now() - begin) / count);
	map.iova += 4096;
	int rc = ioctl(container, 0x3b71, &map);
	printf("beyond %d\n", rc < 0 ? errno : 0);
	fflush(stdout);
	getchar(); /* held until the caller has looked */
	return 0;
}

static int plain(long rounds)
{
	static char buffer[4096];
	int file = open("/proc/self/exe", O_RDONLY), zero = open("/dev/zero", O_RDWR);
	struct stat st;
	int pair[2];
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
	MEASURE("pread", rounds, pread(file, buffer, 64, 0));
	MEASURE("read", rounds, read(zero, buffer, 64));
	MEASURE("write", rounds, write(zero, buffer, 64));
	MEASURE("socket write+read", rounds, write(pair[0], buffer, 64); read(pair[1], buffer, 64));
	MEASURE("fstat", rounds, fstat(file, &st));
	MEASURE("stat", rounds, stat("/etc/passwd", &st));
	MEASURE("open+close", rounds, close(open("/etc/passwd", O_RDONLY)));
	MEASURE("failing ioctl", rounds, ioctl(zero, 0x3b64, 0));
	MEASURE("mmap+munmap", rounds, munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096));
	return 0;
}

static int readv_other(size_t bytes, long rounds)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *into = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 3, bytes);
	memset(into, 1, bytes);
	pid_t other = fork();
	if (other == 0) {
		memset(memory, 4, bytes);
		pause();
		_exit(0);
	}
	usleep(20000);
	struct iovec local = { into, bytes }, remote = { memory, bytes };
	MEASURE("readv", rounds, need(process_vm_readv(other, &local, 1, &remote, 1, 0) == (ssize_t)bytes, "process_vm_readv"));
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	return 0;
}

static int hold(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 5, bytes);
	printf("%llu\n", (unsigned long long)memory);
	fflush(stdout);
	while (getchar() != EOF) continue;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "twin")) return twin(atoi(argv[2]), atoi(argv[3]), atol(argv[4]));
	if (argc == 4 && !strcmp(argv[1], "calls")) return calls(argv[2], atol(argv[3]));
	if (argc == 3 && !strcmp(argv[1], "gigabyte")) return gigabyte(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "maps")) return maps(argv[2], atol(argv[3]));
	if (argc == 3 && !strcmp(argv[1], "plain")) return plain(atol(argv[2]));
	if (argc == 4 && !strcmp(argv[1], "readv")) return readv_other(atol(argv[2]), atol(argv[3]));
	if (argc == 3 && !strcmp(argv[1], "hold")) return hold(atol(argv[2]));
	fprintf(stderr, "program: usage: see the head of bench/program.c\n");
	return 2;
}
