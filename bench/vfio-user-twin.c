/*
 * The C half of the vfio-user bench: one client for every server, and a server that does the least that a server can do.
 *
 * usage: vfio-user-twin server SOCKET             64 KiB of registers in BAR 0 and a list of maps, one client after the other
 *        vfio-user-twin client SOCKET ROUNDS REGION OFFSET: `read4`, `write4`, `posted`, `map+unmap`: median and 99th percentile, ns
 *        vfio-user-twin copy SOCKET BYTES REGION  has a testdev copy so many bytes of shared memory; and memcpy here; bytes per ns
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef uint32_t u32;
typedef uint64_t u64;
struct header { uint16_t id, command; u32 size, flags, error; };
struct map { u32 argsz, flags; u64 offset, address, size; };
struct unmap { u32 argsz, flags; u64 address, size; };
struct access { u64 offset; u32 region, count; };
struct message { struct header h; unsigned char payload[4096]; };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void need(int ok, const char *what)
{
	if (ok) return;
	perror(what);
	exit(1);
}

static int receive(int sock, struct message *m, int *fd)
{
	char control[CMSG_SPACE(8 * sizeof(int))];
	struct iovec iov = { m, sizeof *m };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	ssize_t n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC);
	*fd = -1;
	if (n < (ssize_t)sizeof m->h) return 0;
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	if (c && c->cmsg_type == SCM_RIGHTS) memcpy(fd, CMSG_DATA(c), sizeof *fd);
	while (n < (ssize_t)m->h.size) {
		ssize_t more = recv(sock, (char *)m + n, m->h.size - n, 0);
		if (more <= 0) return 0;
		n += more;
	}
	return 1;
}

static struct { u64 address, size; char *at; } maps[1024];
static unsigned char registers[65536];

/* One message at a time: the client of the bench sends no more, except posted writes, which have 36 bytes. */
static void serve(int sock)
{
	static char buffer[1 << 16];
	size_t have = 0;
	int fd = -1, count = 0;
	for (;;) {
		struct message *m = (void *)buffer;
		if (have < sizeof m->h || have < m->h.size) {
			char control[CMSG_SPACE(8 * sizeof(int))];
			struct iovec iov = { buffer + have, sizeof buffer - have };
			struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
			ssize_t n = recvmsg(sock, &h, MSG_CMSG_CLOEXEC);
			if (n <= 0) break;
			have += n;
			struct cmsghdr *c = CMSG_FIRSTHDR(&h);
			if (c && c->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(c), sizeof fd);
			continue;
		}
		struct message reply = { m->h, { 0 } };
		int size = 0;
		struct access *a = (void *)m->payload;
		switch (m->h.command) {
		case 1:
			memcpy(reply.payload, "\0\0\1\0", size = 4);
			break;
		case 2: {
			struct map *map = (void *)m->payload;
			struct stat st;
			for (int i = 0; i < count; i++)
				if (map->address < maps[i].address + maps[i].size && maps[i].address < map->address + map->size) reply.h.error = 17;
			need(fd >= 0 && fstat(fd, &st) == 0 && (u64)st.st_size >= map->offset + map->size, "DMA_MAP");
			maps[count].at = mmap(NULL, map->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, map->offset);
			maps[count].address = map->address;
			maps[count++].size = map->size;
			close(fd);
			fd = -1;
			break;
		}
		case 3: {
			struct unmap *unmap = (void *)m->payload;
			for (int i = 0; i < count; i++) {
				if (maps[i].address != unmap->address || maps[i].size != unmap->size) continue;
				munmap(maps[i].at, maps[i].size);
				maps[i] = maps[--count];
			}
			memcpy(reply.payload, unmap, size = sizeof *unmap);
			break;
		}
		case 9:
			need(a->region < 9 && a->offset + a->count <= sizeof registers && a->count <= 2048, "REGION_READ");
			memcpy(reply.payload, a, sizeof *a);
			memcpy(reply.payload + sizeof *a, registers + a->offset, a->count);
			size = sizeof *a + a->count;
			break;
		case 10:
			need(a->region < 9 && a->offset + a->count <= sizeof registers, "REGION_WRITE");
			memcpy(registers + a->offset, a + 1, a->count);
			memcpy(reply.payload, a, size = sizeof *a);
			break;
		}
		if (!(m->h.flags & 0x10)) {
			reply.h.flags = 1;
			reply.h.size = sizeof reply.h + size;
			send(sock, &reply, reply.h.size, MSG_NOSIGNAL);
		}
		have -= m->h.size;
		memmove(buffer, buffer + m->h.size, have);
	}
	for (int i = 0; i < count; i++) munmap(maps[i].at, maps[i].size);
	close(sock);
}

static int server(struct sockaddr_un *name)
{
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	need(bind(listener, (void *)name, sizeof *name) == 0 && listen(listener, 8) == 0, "listen");
	for (;;) serve(accept(listener, NULL, NULL));
}

static int sock;

static void request(struct message *m, int command, int flags, const void *payload, int length, int fd)
{
	struct { struct header h; unsigned char payload[256]; } out = { { 1, command, 16 + length, flags, 0 }, { 0 } };
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &out, 16 + length };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };
	memcpy(out.payload, payload, length);
	if (fd < 0) need(send(sock, &out, 16 + length, 0) == 16 + length, "send");
	else {
		h.msg_control = control;
		h.msg_controllen = sizeof control;
		struct cmsghdr *c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof fd);
		need(sendmsg(sock, &h, 0) == 16 + length, "sendmsg");
	}
	int unused;
	if (flags & 0x10) return;
	if (!receive(sock, m, &unused) || (m->h.flags & 0x20)) {
		fprintf(stderr, "vfio-user-twin: command %d: error %u\n", command, m->h.error);
		exit(1);
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

#define MEASURE(name, rounds, statement)                                                                              \
	do {                                                                                                          \
		double *each = malloc((rounds) * sizeof *each);                                                       \
		for (long r = 0; r < (rounds) / 4; r++) { statement; }                                                \
		for (long r = 0; r < (rounds); r++) {                                                                 \
			double begin = now();                                                                         \
			statement;                                                                                    \
			each[r] = now() - begin;                                                                      \
		}                                                                                                     \
		qsort(each, (rounds), sizeof *each, by_value);                                                        \
		printf("%s %.0f\n%s-p99 %.0f\n", name, each[(rounds) / 2], name, each[(rounds) / 100 * 99]);          \
		free(each);                                                                                           \
	} while (0)

static int memory_of(size_t size)
{
	int fd = memfd_create("bench", MFD_ALLOW_SEALING);
	need(ftruncate(fd, size) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "memfd");
	return fd;
}

static int client(long rounds, u32 region, u64 offset)
{
	struct message m;
	struct { struct access a; u32 value; } access = { { offset, region, 4 }, 7 };
	int fd = memory_of(1 << 20);
	request(&m, 1, 0, "\0\0\0\0", 4, -1);
	MEASURE("read4", rounds, request(&m, 9, 0, &access, 16, -1));
	MEASURE("write4", rounds, request(&m, 10, 0, &access, 20, -1));
	double begin = now();
	for (long r = 0; r < rounds * 4; r++) request(&m, 10, 0x10, &access, 20, -1);
	request(&m, 9, 0, &access, 16, -1);
	printf("posted %.0f\n", (now() - begin) / (rounds * 4));
	struct map map = { 32, 3, 0, 0x100000, 1 << 20 };
	struct unmap unmap = { 24, 0, 0x100000, 1 << 20 };
	MEASURE("map+unmap", rounds / 4, request(&m, 2, 0, &map, 32, fd); request(&m, 3, 0, &unmap, 24, -1));
	return 0;
}

static void poke(u32 region, u64 offset, u32 count, u64 value)
{
	struct message m;
	struct { struct access a; u64 value; } access = { { offset, region, count }, value };
	request(&m, 10, 0, &access, 16 + count, -1);
}

static int copy(size_t bytes, u32 region)
{
	struct message m;
	int fd = memory_of(2 * bytes);
	char *memory = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	memset(memory, 3, 2 * bytes);
	request(&m, 1, 0, "\0\0\0\0", 4, -1);
	poke(7, 4, 2, 6);
	struct map map = { 32, 3, 0, 0x10000000, 2 * bytes };
	request(&m, 2, 0, &map, 32, fd);
	double best = 1e18, mine = 1e18;
	for (int r = 0; r < 100; r++) {
		double begin = now();
		poke(region, 0x40, 8, map.address);
		poke(region, 0x48, 8, map.address + bytes);
		poke(region, 0x50, 4, bytes);
		poke(region, 0x58, 4, 1);
		u32 status;
		do {
			struct access access = { 0x5c, region, 4 };
			request(&m, 9, 0, &access, 16, -1);
			memcpy(&status, m.payload + 16, 4);
		} while (status & 1);
		need((status & 6) == 2, "copy");
		double took = now() - begin;
		if (took < best) best = took;
		begin = now();
		memcpy(memory + bytes, memory, bytes);
		took = now() - begin;
		if (took < mine) mine = took;
	}
	printf("copy %.3f\nmemcpy %.3f\n", bytes / best, bytes / mine);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	if (argc < 3) return 2;
	strncpy(name.sun_path, argv[2], sizeof name.sun_path - 1);
	if (!strcmp(argv[1], "server")) return server(&name);
	sock = socket(AF_UNIX, SOCK_STREAM, 0);
	need(connect(sock, (void *)&name, sizeof name) == 0, "connect");
	if (!strcmp(argv[1], "client")) return client(atol(argv[3]), atoi(argv[4]), strtoul(argv[5], NULL, 0));
	return copy(strtoul(argv[3], NULL, 0), atoi(argv[4]));
}
