/*
 * A server made of libvfio-user, for the vfio-user bench: 64 KiB of registers in BAR 4 that keep what is written, and memory maps.
 *
 * usage: vfio-user-library SOCKET   one client after the other. Linked with -lvfio-user; the bench leaves it out where there is none.
 */
#include <errno.h>
#include <err.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <libvfio-user.h>

static char registers[65536];

static ssize_t access_registers(vfu_ctx_t *ctx, char *const bytes, size_t count, loff_t offset, const bool is_write)
{
	(void)ctx;
	if (offset < 0 || offset + count > sizeof registers) {
		errno = EINVAL;
		return -1;
	}
	if (is_write) memcpy(registers + offset, bytes, count);
	else memcpy(bytes, registers + offset, count);
	return count;
}

static void mapped(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
	(void)ctx;
	(void)info;
}

int main(int argc, char **argv)
{
	if (argc != 2) return 2;
	vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI);
	if (ctx == NULL) err(1, "vfu_create_ctx");
	if (vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0) err(1, "vfu_pci_init");
	if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR4_REGION_IDX, sizeof registers, access_registers,
			     VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0)
		err(1, "vfu_setup_region");
	if (vfu_setup_device_dma(ctx, 1024, mapped, mapped) < 0) err(1, "vfu_setup_device_dma");
	if (vfu_realize_ctx(ctx) < 0) err(1, "vfu_realize_ctx");
	for (;;) {
		while (vfu_attach_ctx(ctx) < 0)
			if (errno != EINTR) err(1, "vfu_attach_ctx");
		while (vfu_run_ctx(ctx) >= 0 || errno == EINTR) {}
		if (errno != ENOTCONN) err(1, "vfu_run_ctx");
	}
}
