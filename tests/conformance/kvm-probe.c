/* What KVM answers to the calls by which VFIO and KVM meet: one line a call, for comparing a real kernel's with the box's. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SAY(what, call) say(what, (errno = 0, (long)(call)))

static void say(const char *what, long result)
{
	if (result < 0) printf("%s: %s\n", what, strerrorname_np(errno));
	else printf("%s: %ld\n", what, result);
}

static int attr(int device, unsigned long request, uint32_t group, uint64_t attr, int *fd)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)fd };
	return ioctl(device, request, &a);
}

static int device_of(int vm, uint32_t type, uint32_t flags, int *fd)
{
	struct kvm_create_device d = { .type = type, .flags = flags };
	int r = ioctl(vm, KVM_CREATE_DEVICE, &d);
	if (fd) *fd = (int)d.fd;
	return r;
}

static int irqfd(int vm, int fd, uint32_t gsi, uint32_t flags, int resample)
{
	struct kvm_irqfd i = { .fd = fd, .gsi = gsi, .flags = flags, .resamplefd = resample };
	return ioctl(vm, KVM_IRQFD, &i);
}

static int route(int vm, int count, struct kvm_irq_routing_entry a, struct kvm_irq_routing_entry b, uint32_t flags)
{
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entries[2]; } r = {
		.head = { .nr = count, .flags = flags }, .entries = { a, b },
	};
	return ioctl(vm, KVM_SET_GSI_ROUTING, &r);
}

static struct kvm_irq_routing_entry msi(uint32_t gsi, uint32_t flags)
{
	return (struct kvm_irq_routing_entry){ .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI, .flags = flags,
		.u.msi = { .address_lo = 0xfee00000, .data = 0x31 } };
}

static struct kvm_irq_routing_entry pin(uint32_t gsi, uint32_t chip, uint32_t number)
{
	return (struct kvm_irq_routing_entry){ .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = { .irqchip = chip, .pin = number } };
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vfio = -1, stdin_fd = 0, closed = 999;
	if (kvm < 0) return 3;
	int vm = ioctl(kvm, KVM_CREATE_VM, 0ul);
	if (vm < 0) return 3;
	SAY("version", ioctl(kvm, KVM_GET_API_VERSION, 0));
	SAY("version with an argument", ioctl(kvm, KVM_GET_API_VERSION, 1ul));
	SAY("machine type 77", ioctl(kvm, KVM_CREATE_VM, 77ul));
	SAY("unknown request of /dev/kvm", ioctl(kvm, 0xae99, 0));
	SAY("unknown request of a machine", ioctl(vm, 0xae99, 0));
	SAY("extension IRQCHIP", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP));
	SAY("extension IRQFD", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQFD));
	SAY("extension IRQFD_RESAMPLE", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQFD_RESAMPLE));
	SAY("extension DEVICE_CTRL", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_DEVICE_CTRL));
	SAY("extension IRQ_ROUTING", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQ_ROUTING));
	SAY("extension SIGNAL_MSI", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_SIGNAL_MSI));

	SAY("device probe", device_of(vm, KVM_DEV_TYPE_VFIO, KVM_CREATE_DEVICE_TEST, NULL));
	SAY("device of type XICS", device_of(vm, KVM_DEV_TYPE_XICS, 0, NULL));
	SAY("device of type 1000", device_of(vm, 1000, 0, NULL));
	SAY("VFIO device", device_of(vm, KVM_DEV_TYPE_VFIO, 0, &vfio));
	SAY("second VFIO device", device_of(vm, KVM_DEV_TYPE_VFIO, 0, NULL));
	SAY("probe while there is one", device_of(vm, KVM_DEV_TYPE_VFIO, KVM_CREATE_DEVICE_TEST, NULL));
	SAY("create with a bad pointer", ioctl(vm, KVM_CREATE_DEVICE, 8ul));
	for (uint32_t group = 0; group < 3; group++)
		for (uint64_t a = 0; a < 5; a++) {
			char name[40];
			snprintf(name, sizeof name, "has %u/%lu", group, (unsigned long)a);
			SAY(name, attr(vfio, KVM_HAS_DEVICE_ATTR, group, a, NULL));
			snprintf(name, sizeof name, "set %u/%lu of stdin", group, (unsigned long)a);
			SAY(name, attr(vfio, KVM_SET_DEVICE_ATTR, group, a, &stdin_fd));
			snprintf(name, sizeof name, "set %u/%lu of nothing", group, (unsigned long)a);
			SAY(name, attr(vfio, KVM_SET_DEVICE_ATTR, group, a, &closed));
			snprintf(name, sizeof name, "set %u/%lu with a bad pointer", group, (unsigned long)a);
			SAY(name, attr(vfio, KVM_SET_DEVICE_ATTR, group, a, (int *)8));
		}
	SAY("get", attr(vfio, KVM_GET_DEVICE_ATTR, 1, 1, &stdin_fd));
	SAY("set with a bad argument", ioctl(vfio, KVM_SET_DEVICE_ATTR, 8ul));
	SAY("unknown request of the device", ioctl(vfio, 0xae99, 0));

	int event = eventfd(0, EFD_NONBLOCK), twin = dup(event), resample = eventfd(0, EFD_NONBLOCK);
	struct kvm_msi m = { .address_lo = 0xfee00000, .data = 0x31 };
	SAY("irqfd without controllers", irqfd(vm, event, 24, 0, 0));
	SAY("unknown flags without controllers", irqfd(vm, event, 24, 8, 0));
	SAY("deassign without controllers", irqfd(vm, event, 24, KVM_IRQFD_FLAG_DEASSIGN, 0));
	SAY("message without controllers", ioctl(vm, KVM_SIGNAL_MSI, &m));
	SAY("routes without controllers", route(vm, 1, msi(24, 0), msi(25, 0), 0));
	SAY("controllers", ioctl(vm, KVM_CREATE_IRQCHIP, 0ul));
	SAY("controllers again", ioctl(vm, KVM_CREATE_IRQCHIP, 0ul));
	SAY("message without processors", ioctl(vm, KVM_SIGNAL_MSI, &m));
	m.flags = 2;
	SAY("message with unknown flags", ioctl(vm, KVM_SIGNAL_MSI, &m));

	SAY("routes: one message", route(vm, 1, msi(24, 0), msi(25, 0), 0));
	SAY("routes: a device id", route(vm, 1, msi(24, KVM_MSI_VALID_DEVID), msi(25, 0), 0));
	SAY("routes: unknown entry flags", route(vm, 1, msi(24, 2), msi(25, 0), 0));
	SAY("routes: unknown flags", route(vm, 1, msi(24, 0), msi(25, 0), 1));
	SAY("routes: the last GSI", route(vm, 1, msi(4095, 0), msi(25, 0), 0));
	SAY("routes: a GSI that is none", route(vm, 1, msi(4096, 0), msi(25, 0), 0));
	SAY("routes: twice the same GSI", route(vm, 2, msi(24, 0), msi(24, 0), 0));
	SAY("routes: message and pin of a GSI", route(vm, 2, msi(9, 0), pin(9, KVM_IRQCHIP_IOAPIC, 9), 0));
	SAY("routes: two controllers of a GSI", route(vm, 2, pin(9, KVM_IRQCHIP_IOAPIC, 9), pin(9, KVM_IRQCHIP_PIC_SLAVE, 1), 0));
	SAY("routes: twice the same controller", route(vm, 2, pin(9, KVM_IRQCHIP_IOAPIC, 9), pin(9, KVM_IRQCHIP_IOAPIC, 8), 0));
	SAY("routes: pin 24", route(vm, 1, pin(9, KVM_IRQCHIP_IOAPIC, 24), msi(25, 0), 0));
	SAY("routes: pin 8 of a PIC", route(vm, 1, pin(9, KVM_IRQCHIP_PIC_MASTER, 8), msi(25, 0), 0));
	SAY("routes: controller 3", route(vm, 1, pin(9, 3, 0), msi(25, 0), 0));
	SAY("routes: none", route(vm, 0, msi(24, 0), msi(25, 0), 0));
	SAY("routes: too many", route(vm, 4097, msi(24, 0), msi(25, 0), 0));

	SAY("irqfd", irqfd(vm, event, 24, 0, 0));
	SAY("irqfd of the same eventfd", irqfd(vm, twin, 25, 0, 0));
	SAY("irqfd of stdin", irqfd(vm, 0, 25, 0, 0));
	SAY("irqfd of nothing", irqfd(vm, closed, 25, 0, 0));
	SAY("irqfd with unknown flags", irqfd(vm, resample, 25, 8, 0));
	SAY("irqfd with a bad pointer", ioctl(vm, KVM_IRQFD, 8ul));
	uint64_t one = 1;
	SAY("signal", write(event, &one, 8));
	/* The kernel takes it within write(); somebody else may need a moment. */
	struct pollfd p = { .fd = event, .events = POLLIN };
	for (int i = 0; i < 2000 && poll(&p, 1, 0) == 1; i++) usleep(1000);
	SAY("taken by KVM", read(event, &one, 8));
	SAY("deassign of another GSI", irqfd(vm, event, 25, KVM_IRQFD_FLAG_DEASSIGN, 0));
	SAY("deassign", irqfd(vm, event, 24, KVM_IRQFD_FLAG_DEASSIGN, 0));
	SAY("deassign again", irqfd(vm, event, 24, KVM_IRQFD_FLAG_DEASSIGN, 0));
	SAY("deassign of stdin", irqfd(vm, 0, 24, KVM_IRQFD_FLAG_DEASSIGN, 0));
	SAY("deassign of nothing", irqfd(vm, closed, 24, KVM_IRQFD_FLAG_DEASSIGN, 0));
	SAY("signal", write(event, &one, 8));
	SAY("left to the program", read(event, &one, 8));
	SAY("resampling", irqfd(vm, event, 10, KVM_IRQFD_FLAG_RESAMPLE, resample));
	SAY("resampling to stdin", irqfd(vm, resample, 11, KVM_IRQFD_FLAG_RESAMPLE, 0));
	SAY("resampling to nothing", irqfd(vm, resample, 11, KVM_IRQFD_FLAG_RESAMPLE, closed));
	SAY("end of resampling", irqfd(vm, event, 10, KVM_IRQFD_FLAG_DEASSIGN, 0));
	close(vm);
	SAY("the device outlives the machine's file", attr(vfio, KVM_HAS_DEVICE_ATTR, 1, 1, NULL));
	return 0;
}
