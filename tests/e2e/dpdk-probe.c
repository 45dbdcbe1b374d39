/*
 * A DPDK program with a driver of its own for edu (1234:11e8): EAL scans, binds, maps and starts the card through VFIO; the program
 * reads its registers through the mapped BAR, moves bytes by DMA and takes an interrupt. One line per check; 0 when all hold.
 */
#define ALLOW_EXPERIMENTAL_API	/* rte_pci_set_bus_master */
#define ALLOW_INTERNAL_API	/* what drivers use */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <rte_bus_pci.h>
#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_interrupts.h>
#include <rte_io.h>
#include <rte_malloc.h>
#include <rte_pci.h>
#include <rte_vfio.h>
#include <bus_pci_driver.h>
#include <dev_driver.h>

enum { ID = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24, IRQ_RAISE = 0x60, IRQ_ACK = 0x64 };
enum { DMA_SRC = 0x80, DMA_DST = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98, BUFFER = 0x40000, TO_RAM = 2 };
enum { LOW = 0x200000, SIZE = 1 << 16 };	/* an IOVA that 28 bits reach */

static struct rte_pci_device *edu;
static volatile int interrupts;
static int checks, failures;

static void check(const char *what, uint64_t got, uint64_t wanted)
{
	checks++;
	failures += got != wanted;
	printf("%s %s: %#" PRIx64, got == wanted ? "ok" : "WRONG", what, got);
	if (got != wanted)
		printf(", not %#" PRIx64, wanted);
	printf("\n");
}

static uint32_t get(int offset) { return rte_read32((char *)edu->mem_resource[0].addr + offset); }
static void set(int offset, uint32_t value) { rte_write32(value, (char *)edu->mem_resource[0].addr + offset); }

static int probe(struct rte_pci_driver *driver, struct rte_pci_device *device)
{
	(void)driver;
	edu = device;
	return 0;
}

static int drop(struct rte_pci_device *device)
{
	(void)device;
	edu = NULL;
	return 0;
}

static const struct rte_pci_id ids[] = { { RTE_PCI_DEVICE(0x1234, 0x11e8) }, { .vendor_id = 0 } };
static struct rte_pci_driver driver = {
	.id_table = ids,
	.drv_flags = RTE_PCI_DRV_NEED_MAPPING | RTE_PCI_DRV_NEED_IOVA_AS_VA,
	.probe = probe,
	.remove = drop,
};
RTE_PMD_REGISTER_PCI(edu_probe, driver);

static int idle(int offset, uint32_t bit)
{
	for (int i = 0; i < 3000; i++) {
		if (!(get(offset) & bit))
			return 1;
		rte_delay_ms(1);
	}
	return 0;
}

static void dma(uint32_t from, uint32_t to, uint32_t length, uint32_t flags)
{
	set(DMA_SRC, from);
	set(DMA_DST, to);
	set(DMA_COUNT, length);
	set(DMA_COMMAND, flags | 1);
	check("transfer ends", idle(DMA_COMMAND, 1), 1);
}

static void registers(void)
{
	uint32_t id = 0;
	check("config read", rte_pci_read_config(edu, &id, 4, 0), 4);
	check("vendor and device", id, 0x11e81234);
	check("identification", get(ID), 0x010000ed);
	set(LIVENESS, 0x0f1e2d3c);
	check("liveness is the complement", get(LIVENESS), (uint32_t)~0x0f1e2d3c);
	set(FACTORIAL, 8);
	check("factorial ends", idle(STATUS, 1), 1);
	check("8!", get(FACTORIAL), 40320);
}

static void transfers(void)
{
	uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		check("memory", 0, 1);
		return;
	}
	for (int i = 0; i < 4096; i++)
		memory[i] = i * 5 + (i >> 8);
	check("map", rte_vfio_container_dma_map(RTE_VFIO_DEFAULT_CONTAINER_FD, (uintptr_t)memory, LOW, SIZE), 0);
	check("bus master", rte_pci_set_bus_master(edu, true), 0);
	dma(LOW, BUFFER, 4096, 0);
	dma(BUFFER, LOW + 0x8000, 4096, TO_RAM);
	check("4096 bytes to the card and back", memcmp(memory, memory + 0x8000, 4096), 0);
	check("unmap", rte_vfio_container_dma_unmap(RTE_VFIO_DEFAULT_CONTAINER_FD, (uintptr_t)memory, LOW, SIZE), 0);
	memset(memory, 0, SIZE);
	dma(BUFFER, LOW, 4096, TO_RAM);
	check("bytes written after the unmap", memory[1] | memory[4095], 0);
	munmap(memory, SIZE);
}

static void handler(void *argument)
{
	(void)argument;
	set(IRQ_ACK, get(IRQ_STATUS));
	interrupts++;
}

static void take_interrupts(void)
{
	check("handler registered", rte_intr_callback_register(edu->intr_handle, handler, NULL), 0);
	check("interrupts on", rte_intr_enable(edu->intr_handle), 0);
	for (int turn = 1; turn <= 3; turn++) {
		set(IRQ_RAISE, turn);
		for (int i = 0; i < 3000 && interrupts < turn; i++)
			rte_delay_ms(1);
		check("interrupts taken", interrupts, turn);
	}
	check("interrupts off", rte_intr_disable(edu->intr_handle), 0);
	check("handlers removed", rte_intr_callback_unregister(edu->intr_handle, handler, NULL), 1);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (rte_eal_init(argc, argv) < 0) {
		printf("WRONG EAL: %s\n", rte_strerror(rte_errno));
		return 1;
	}
	check("IOVA as VA", rte_eal_iova_mode(), RTE_IOVA_VA);
	if (edu == NULL) {
		printf("WRONG no edu was probed\n");
		return 1;
	}
	printf("ok probed %s\n", rte_dev_name(&edu->device));
	check("VFIO in use", rte_vfio_is_enabled("vfio_pci"), 1);
	check("length of BAR 0", edu->mem_resource[0].len, 0x100000);
	if (edu->mem_resource[0].addr == NULL) {
		printf("WRONG BAR 0 is not mapped\n");
		return 1;
	}
	registers();
	transfers();
	take_interrupts();
	check("cleanup", rte_eal_cleanup(), 0);
	printf("%d checks, %d wrong\n", checks, failures);
	return failures != 0;
}
