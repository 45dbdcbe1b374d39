/* fork, exec, dup, SCM_RIGHTS and threads on handles. usage: sharing BDF; `sharing exec FD` is its second half. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEED(x) do { if (!(x)) { printf("line %d: %s (errno %d)\n", __LINE__, #x, errno); fflush(stdout); _exit(1); } } while (0)

static int group_of(const char *bdf)
{
	char path[256], link[256];
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", bdf);
	ssize_t n = readlink(path, link, sizeof link - 1);
	if (n < 0) return -1;
	link[n] = 0;
	return atoi(strrchr(link, '/') + 1);
}

static int works(int d)
{
	uint32_t id = 0;
	return pread(d, &id, 4, 7ll << 40) == 4 && id == 0x11e81234;
}

static int wait_for(pid_t child)
{
	int status;
	return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void *many(void *fd)
{
	for (int i = 0; i < 500; i++) NEED(works((int)(long)fd));
	return NULL;
}

static int send_fd(int socket, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof fd)] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	return sendmsg(socket, &m, 0) == 1;
}

static int receive_fd(int socket)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	int fd = -1;
	if (recvmsg(socket, &m, 0) == 1 && CMSG_FIRSTHDR(&m)) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	return fd;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "exec")) return works(atoi(argv[2])) ? 0 : 1;
	if (argc != 2) return 2;
	char node[64];
	snprintf(node, sizeof node, "/dev/vfio/%d", group_of(argv[1]));
	int g = open(node, O_RDWR | O_CLOEXEC), c = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	NEED(g >= 0 && c >= 0 && ioctl(g, 0x3b68, &c) == 0 && ioctl(c, 0x3b66, 3) == 0);
	int d = ioctl(g, 0x3b6a, argv[1]);
	NEED(d >= 0 && works(d));
	NEED(fcntl(d, F_GETFD) == FD_CLOEXEC);

	/* dup: the copy is as good, and closing the first leaves it */
	int copy = dup(d);
	NEED(copy >= 0);
	close(d);
	NEED(works(copy));
	int high = dup2(copy, 200);
	close(copy);
	NEED(high == 200 && works(high));
	d = high;

	/* fork: the child's copy works and its end does not end ours; what the child maps stays */
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct { uint32_t argsz, flags; uint64_t vaddr, iova, size; } map = { 32, 3, (uint64_t)page, 0x100000, 4096 };
	struct { uint32_t argsz, flags; uint64_t iova, size; } unmap = { 24, 0, 0x100000, 4096 };
	pid_t child = fork();
	if (child == 0) {
		NEED(works(d));
		NEED(ioctl(c, 0x3b71, &map) == 0);
		_exit(0);
	}
	NEED(wait_for(child));
	NEED(works(d));
	NEED(ioctl(c, 0x3b72, &unmap) == 0 && unmap.size == 4096);

	/* vfork and exec: without close-on-exec the program finds it again */
	fcntl(d, F_SETFD, 0);
	char number[16];
	snprintf(number, sizeof number, "%d", d);
	child = vfork();
	if (child == 0) {
		execl("/proc/self/exe", "sharing", "exec", number, NULL);
		_exit(9);
	}
	NEED(wait_for(child));
	NEED(works(d));

	/* SCM_RIGHTS to another process, which keeps it after we closed ours */
	int pair[2];
	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	child = fork();
	if (child == 0) {
		close(d);
		close(g);
		close(c);
		int got = receive_fd(pair[1]);
		NEED(got >= 0 && works(got));
		char byte;
		NEED(write(pair[1], "x", 1) == 1 && read(pair[1], &byte, 1) == 1); /* until the parent has closed */
		NEED(works(got));
		_exit(0);
	}
	char byte;
	NEED(send_fd(pair[0], d) && read(pair[0], &byte, 1) == 1);
	close(d);
	close(g);
	NEED(open(node, O_RDWR) < 0 && errno == EBUSY); /* the child still has the device */
	NEED(write(pair[0], "x", 1) == 1);
	NEED(wait_for(child));
	g = open(node, O_RDWR);
	NEED(g >= 0);
	NEED(ioctl(g, 0x3b68, &c) == 0 && ioctl(c, 0x3b66, 3) == 0);
	d = ioctl(g, 0x3b6a, argv[1]);
	NEED(d >= 0);

	/* threads, each with a conversation of its own */
	pthread_t threads[8];
	for (int i = 0; i < 8; i++) NEED(pthread_create(threads + i, NULL, many, (void *)(long)d) == 0);
	for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);

	/* the second of two closes ends it */
	copy = dup(d);
	close(d);
	close(g);
	NEED(open(node, O_RDWR) < 0 && errno == EBUSY);
	close(copy);
	close(c);
	g = open(node, O_RDWR);
	NEED(g >= 0);
	puts("all shared");
	return 0;
}
