/*
 * Carries one device's state to another, as a VMM does: pre-copy, stop-copy, resume. Both are of the same kind; the second gets what the
 * first held. usage: migrate BDF NODE BDF NODE
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { STOP = 1, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY };

static int container = -1;

static int open_device(const char *bdf, const char *node)
{
	int group = open(node, O_RDWR);
	if (container < 0) container = open("/dev/vfio/vfio", O_RDWR);
	if (ioctl(group, 0x3b68, &container)) return -1;
	ioctl(container, 0x3b66, 3);
	int device = ioctl(group, 0x3b6a, bdf);
	uint16_t command = 7;
	pwrite(device, &command, 2, (7ull << 40) + 4);
	return device;
}

/* The stream's descriptor, -1 for none; -2: refused. */
static int set_state(int device, uint32_t state)
{
	struct { uint32_t argsz, flags, state; int32_t fd; } feature = { 16, 0x20002, state, 77 };
	if (ioctl(device, 0x3b75, &feature)) return -2;
	return feature.fd;
}

static uint32_t get_state(int device)
{
	struct { uint32_t argsz, flags, state; int32_t fd; } feature = { 16, 0x10002, 0, 77 };
	return ioctl(device, 0x3b75, &feature) || feature.fd != -1 ? 99 : feature.state;
}

#define NEED(what) do { if (!(what)) { printf("WRONG: %s: %s\n", #what, strerror(errno)); return 1; } } while (0)

int main(int argc, char **argv)
{
	static char buffer[1 << 20];
	uint32_t value = 0xcafef00d, again = 0;
	size_t total = 0;
	ssize_t n;
	if (argc != 5) return 2;
	int from = open_device(argv[1], argv[2]), to = open_device(argv[3], argv[4]);
	NEED(from >= 0 && to >= 0);
	struct { uint32_t argsz, flags; uint64_t abilities; } flags = { 16, 0x10001, 0 };
	NEED(ioctl(from, 0x3b75, &flags) == 0 && flags.abilities == 7);
	NEED(get_state(from) == RUNNING);
	pwrite(from, &value, 4, (4ull << 40) + 8);
	pwrite(from, &value, 4, 0x1230);
	int out = set_state(from, PRE_COPY), in = set_state(to, RESUMING);
	NEED(out >= 0 && in >= 0);
	NEED(fcntl(out, F_GETFD) & FD_CLOEXEC);
	struct { uint32_t argsz, flags; uint64_t initial, dirty; } info = { 24, 0, 0, 0 };
	NEED(ioctl(out, 0x3b79, &info) == 0 && info.initial > 0x110000);
	while ((n = read(out, buffer, sizeof buffer)) > 0) {
		NEED(write(in, buffer, n) == n);
		total += n;
	}
	NEED(n < 0 && errno == ENOMSG);
	value = 0x12345678;
	pwrite(from, &value, 4, 0x1230);
	NEED(set_state(from, STOP_COPY) == -1 && get_state(from) == STOP_COPY);
	NEED(ioctl(out, 0x3b79, &info) < 0 && errno == EINVAL);
	size_t late = 0;
	while ((n = read(out, buffer, 1000)) > 0) {
		NEED(write(in, buffer, n) == n);
		late += n;
	}
	NEED(n == 0 && late > 4096 && late < 65536);
	NEED(set_state(to, RUNNING) == -1 && get_state(to) == RUNNING);
	NEED(write(in, buffer, 1) < 0 && errno == ENODEV);
	pread(to, &again, 4, (4ull << 40) + 8);
	NEED(again == 0xcafef00d);
	pread(to, &again, 4, 0x1230);
	NEED(again == 0x12345678);
	NEED(set_state(from, 8) == -2 && errno == EINVAL);
	printf("carried %zu and %zu bytes\n", total, late);
	return 0;
}
