/*
 * A vfio-user client that is killed: negotiates, maps a memory file and some memory without, hands over eventfds, says "ready", and goes
 * on reading registers until it dies.
 *
 * usage: victim SOCKET
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct message { uint16_t id, command; uint32_t size, flags, error; unsigned char payload[512]; };

static int sock;

static void request(int command, const void *payload, int length, const int *fds, int count)
{
	struct message m = { 1, command, 16 + length, 0, 0, { 0 } };
	char control[CMSG_SPACE(8 * sizeof(int))] = { 0 };
	struct iovec iov = { &m, 16 + length };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1 };
	memcpy(m.payload, payload, length);
	if (count > 0) {
		h.msg_control = control;
		h.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&h);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, count * sizeof(int));
	}
	if (sendmsg(sock, &h, 0) < 0 || recv(sock, &m, 16, MSG_WAITALL) != 16) _exit(3);
	if (m.size > 16 && recv(sock, m.payload, m.size - 16, MSG_WAITALL) != (ssize_t)m.size - 16) _exit(4);
	if (m.flags & 0x20) _exit(5);
}

int main(int argc, char **argv)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	if (argc != 2) return 2;
	strncpy(name.sun_path, argv[1], sizeof name.sun_path - 1);
	sock = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(sock, (void *)&name, sizeof name) != 0) return 1;
	request(1, "\0\0\0\0", 4, NULL, 0);
	int memory = memfd_create("victim", 0), events[8];
	if (ftruncate(memory, 1 << 20) != 0) return 1;
	for (int i = 0; i < 16; i++) {
		struct { uint32_t argsz, flags; uint64_t offset, address, size; } map = { 32, 3, i * 4096, 0x100000 + i * 4096, 4096 };
		request(2, &map, 32, &memory, i % 4 != 3);
	}
	for (int i = 0; i < 8; i++) events[i] = eventfd(0, 0);
	uint32_t irqs[5] = { 20, 0x24, 2, 0, 8 };
	request(8, irqs, 20, events, 8);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct { uint64_t offset; uint32_t region, count; } access = { 0, 7, 4 };
		request(9, &access, 16, NULL, 0);
	}
}
