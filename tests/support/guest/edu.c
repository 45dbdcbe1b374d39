/*
 * A guest's look at an edu device (1234:11e8), without a driver of its own: registers through the mapped BAR, DMA to and from a page
 * of this process by its physical address, level interrupts through uio_pci_generic.
 * One line per check. Exit status 0 when all hold. Wants root, and all RAM below the device's 28-bit reach.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PCI "/sys/bus/pci"

enum { ID = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24, IRQ_RAISE = 0x60, IRQ_ACK = 0x64 };
enum { DMA_SRC = 0x80, DMA_DST = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98, DMA_RUN = 1, DMA_TO_RAM = 2, DMA_IRQ = 4 };
enum { BUFFER = 0x40000, COMPUTING = 1, RAISE_WHEN_DONE = 0x80, DMA_INTERRUPT = 0x100, FACTORIAL_INTERRUPT = 1 };
enum { COMMAND = 4, MEMORY = 2, MASTER = 4, INTX_DISABLE = 1 << 10 };

static volatile uint32_t *bar;
static int config_fd, checks, failures;

static void check(int good, const char *what, uint64_t got, uint64_t wanted)
{
	printf("edu: %s %s: %#llx", good ? "ok" : "WRONG", what, (unsigned long long)got);
	if (!good)
		printf(", not %#llx", (unsigned long long)wanted);
	printf("\n");
	checks++;
	failures += !good;
}

#define CHECK(what, got, wanted) do { uint64_t g_ = (got), w_ = (wanted); check(g_ == w_, what, g_, w_); } while (0)

static void die(const char *what)
{
	printf("edu: WRONG %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint32_t reg(int offset) { return bar[offset / 4]; }
static void set(int offset, uint32_t value) { bar[offset / 4] = value; }

static uint16_t command(void)
{
	uint16_t value;
	if (pread(config_fd, &value, 2, COMMAND) != 2)
		die("config read");
	return value;
}

static void set_command(uint16_t value)
{
	if (pwrite(config_fd, &value, 2, COMMAND) != 2)
		die("config write");
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static int find_device(char *folder, size_t size)
{
	DIR *devices = opendir(PCI "/devices");
	struct dirent *entry;
	while (devices && (entry = readdir(devices))) {
		uint16_t ids[2];
		char path[512];
		snprintf(path, sizeof path, PCI "/devices/%s/config", entry->d_name);
		int fd = open(path, O_RDWR);
		if (fd < 0)
			continue;
		if (pread(fd, ids, 4, 0) == 4 && ids[0] == 0x1234 && ids[1] == 0x11e8) {
			config_fd = fd;
			snprintf(folder, size, PCI "/devices/%s", entry->d_name);
			closedir(devices);
			return 1;
		}
		close(fd);
	}
	return 0;
}

static uint64_t physical(void *page)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)page / 4096 * 8) != 8 || !(entry >> 63))
		die("pagemap");
	close(fd);
	return (entry & ((1ull << 55) - 1)) * 4096;
}

static void wait_clear(int offset, uint32_t bits, const char *what)
{
	for (int turn = 0; reg(offset) & bits; turn++) {
		if (turn == 5000) {
			printf("edu: WRONG %s does not end\n", what);
			exit(1);
		}
		usleep(1000);
	}
}

/* Registers are 64 bits wide here; two stores, the low half first, as a 32-bit driver would. */
static void set64(int offset, uint64_t value)
{
	set(offset, value);
	set(offset + 4, value >> 32);
}

static void dma(uint64_t from, uint64_t to, uint32_t length, uint32_t flags)
{
	set64(DMA_SRC, from);
	set64(DMA_DST, to);
	set64(DMA_COUNT, length);
	set(DMA_COMMAND, DMA_RUN | flags);
	wait_clear(DMA_COMMAND, DMA_RUN, "DMA");
}

static void registers(void)
{
	CHECK("identification", reg(ID), 0x010000ed);
	for (int i = 0; i < 3; i++) {
		uint32_t value = 0x12345678u * (i + 1);
		set(LIVENESS, value);
		CHECK("liveness is the complement", reg(LIVENESS), (uint32_t)~value);
	}
	set(STATUS, 0);
	set(FACTORIAL, 12);
	wait_clear(STATUS, COMPUTING, "factorial");
	CHECK("12!", reg(FACTORIAL), 479001600);
}

static uint64_t target; /* physical address of a page for further transfers */

static void transfers(void)
{
	uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (page == MAP_FAILED || mlock(page, 8192))
		die("memory");
	uint8_t *back = page + 4096;
	for (int i = 0; i < 4096; i++)
		page[i] = i * 7 + (i >> 8), back[i] = 0xee;
	uint64_t from = physical(page), to = physical(back);
	target = to;
	check(from < 1 << 28 && to < 1 << 28, "pages within 28 bits", from > to ? from : to, 0);

	set_command(command() & ~MASTER);
	dma(from, BUFFER, 64, 0);
	dma(BUFFER, to, 64, DMA_TO_RAM);
	int untouched = 1;
	for (int i = 0; i < 64; i++)
		untouched &= back[i] == 0xee;
	CHECK("memory untouched without Bus Master", untouched, 1);

	set_command(command() | MASTER);
	dma(from, BUFFER, 4096, 0);
	dma(BUFFER, to, 4096, DMA_TO_RAM);
	int same = 0;
	for (int i = 0; i < 4096; i++)
		same += page[i] == back[i];
	CHECK("bytes that came back by DMA", same, 4096);
	memset(back, 0x5a, 4096);
	dma(BUFFER + 0x10, to + 0x123, 0x77, DMA_TO_RAM);
	same = 0;
	for (int i = 0; i < 4096; i++)
		same += back[i] == (i >= 0x123 && i < 0x123 + 0x77 ? page[i - 0x123 + 0x10] : 0x5a);
	CHECK("bytes right after an unaligned piece", same, 4096);
}

static uint32_t last_count;

/* How many interrupts came within the time; 0 for none. */
static uint32_t interrupts(int uio, int milliseconds)
{
	struct pollfd poller = { .fd = uio, .events = POLLIN };
	uint32_t count;
	if (poll(&poller, 1, milliseconds) != 1)
		return 0;
	if (read(uio, &count, 4) != 4)
		die("read of uio");
	uint32_t more = count - last_count;
	last_count = count;
	return more;
}

static void unmask(void) { set_command(command() & ~INTX_DISABLE); }

static void level_interrupts(int uio)
{
	for (int i = 1; i <= 5; i++) {
		set(IRQ_RAISE, i);
		CHECK("interrupts after a raise", interrupts(uio, 3000), 1);
		CHECK("INTx masked by the handler", !!(command() & INTX_DISABLE), 1);
		CHECK("interrupt status", reg(IRQ_STATUS), i);
		set(IRQ_ACK, i);
		CHECK("interrupt status after the acknowledge", reg(IRQ_STATUS), 0);
		unmask();
	}
	CHECK("interrupts left over", interrupts(uio, 100), 0);

	set(IRQ_RAISE, 0x40);
	CHECK("interrupts of a level", interrupts(uio, 3000), 1);
	unmask();
	CHECK("interrupts again, not acknowledged", interrupts(uio, 3000), 1);
	set(IRQ_ACK, 0x40);
	unmask();
	CHECK("interrupts after the acknowledge", interrupts(uio, 100), 0);

	set(STATUS, RAISE_WHEN_DONE);
	set(FACTORIAL, 10);
	CHECK("interrupts at the end of a factorial", interrupts(uio, 3000), 1);
	CHECK("its status", reg(IRQ_STATUS), FACTORIAL_INTERRUPT);
	CHECK("10!", reg(FACTORIAL), 3628800);
	set(IRQ_ACK, FACTORIAL_INTERRUPT);
	set(STATUS, 0);
	unmask();

	dma(BUFFER, target, 16, DMA_IRQ | DMA_TO_RAM);
	CHECK("interrupts at the end of a transfer", interrupts(uio, 3000), 1);
	CHECK("its status", reg(IRQ_STATUS), DMA_INTERRUPT);
	set(IRQ_ACK, DMA_INTERRUPT);
	unmask();
	CHECK("interrupts left over", interrupts(uio, 100), 0);
}

int main(void)
{
	char folder[300], path[400];
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!find_device(folder, sizeof folder)) {
		printf("edu: WRONG no device 1234:11e8\n");
		return 1;
	}
	printf("edu: at %s\n", strrchr(folder, '/') + 1);
	put(PCI "/drivers/uio_pci_generic/new_id", "1234 11e8");
	int uio = open("/dev/uio0", O_RDWR);
	if (uio < 0)
		die("/dev/uio0");
	snprintf(path, sizeof path, "%s/resource0", folder);
	int resource = open(path, O_RDWR | O_SYNC);
	bar = resource < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
	if (bar == MAP_FAILED)
		die(path);
	set_command(command() | MEMORY | MASTER);
	unmask();
	registers();
	transfers();
	level_interrupts(uio);
	printf("edu: %d checks, %d wrong\n", checks, failures);
	return failures != 0;
}
