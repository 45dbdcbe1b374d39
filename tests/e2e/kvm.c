/*
 * The VFIO device of a virtual machine, as a VMM uses it: KVM_CREATE_DEVICE, FILE_ADD and FILE_DEL of a group and of a device's own
 * file, irqfd, interrupt routes, and every refusal. usage: kvm BDF GROUP-NODE [CDEV]
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int checks, wrong;

/* `result` as the kernel gives it: the value, or minus the errno. */
static void expect(const char *what, long wanted, long result)
{
	long got = result < 0 ? -errno : result;
	checks++;
	if (got == wanted) return;
	wrong++;
	printf("%s: %ld (%s), wanted %ld\n", what, got, got < 0 ? strerror(-got) : "ok", wanted);
}

static int vfio_attr(int device, uint32_t group, uint64_t attr, int fd)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)&fd };
	return ioctl(device, KVM_SET_DEVICE_ATTR, &a);
}

static int has_attr(int device, uint32_t group, uint64_t attr)
{
	struct kvm_device_attr a = { .group = group, .attr = attr };
	return ioctl(device, KVM_HAS_DEVICE_ATTR, &a);
}

static int create_device(int vm, uint32_t type)
{
	struct kvm_create_device d = { .type = type };
	return ioctl(vm, KVM_CREATE_DEVICE, &d) ? -1 : (int)d.fd;
}

static int irqfd(int vm, int fd, uint32_t gsi, uint32_t flags)
{
	struct kvm_irqfd i = { .fd = fd, .gsi = gsi, .flags = flags };
	return ioctl(vm, KVM_IRQFD, &i);
}

static int readable(int fd, int milliseconds)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	return poll(&p, 1, milliseconds);
}

int main(int argc, char **argv)
{
	if (argc < 3) return 2;
	struct stat st;
	expect("stat of the node", 0, stat("/dev/kvm", &st));
	expect("it is a character device", S_IFCHR, st.st_mode & S_IFMT);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	expect("version", KVM_API_VERSION, ioctl(kvm, KVM_GET_API_VERSION, 0));
	expect("DEVICE_CTRL", 1, ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_DEVICE_CTRL));
	expect("no such machine type", -EINVAL, ioctl(kvm, KVM_CREATE_VM, 77ul));
	int vm = ioctl(kvm, KVM_CREATE_VM, 0ul);
	expect("a machine has no processors here", -ENOTTY, ioctl(vm, KVM_CREATE_VCPU, 0ul));
	struct kvm_create_device probe = { .type = KVM_DEV_TYPE_VFIO, .flags = KVM_CREATE_DEVICE_TEST };
	expect("probe", 0, ioctl(vm, KVM_CREATE_DEVICE, &probe));
	int vfio = create_device(vm, KVM_DEV_TYPE_VFIO);
	expect("the VFIO device", 1, vfio >= 0);
	expect("K-4: a second one", -EBUSY, create_device(vm, KVM_DEV_TYPE_VFIO));
	expect("another type", -ENODEV, create_device(vm, KVM_DEV_TYPE_XICS));
	expect("has ADD", 0, has_attr(vfio, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD));
	expect("K-3: has no third", -ENXIO, has_attr(vfio, KVM_DEV_VFIO_FILE, 3));
	expect("K-3: has no second group", -ENXIO, has_attr(vfio, 2, 1));

	int group = open(argv[2], O_RDWR), container = open("/dev/vfio/vfio", O_RDWR);
	expect("container", 0, ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	expect("type1", 0, ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	expect("K-2: DEL before ADD", -ENOENT, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_DEL, group));
	expect("ADD of a closed descriptor", -EBADF, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_ADD, 999));
	expect("ADD of something else", -EINVAL, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_ADD, 0));
	expect("ADD of the container", -EINVAL, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_ADD, container));
	expect("ADD", 0, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_ADD, group));
	expect("K-1: ADD again", -EEXIST, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_ADD, group));
	int copy = dup(group);
	expect("K-1: ADD of a copy", -EEXIST, vfio_attr(vfio, 1, KVM_DEV_VFIO_FILE_ADD, copy));
	expect("K-3: another attribute", -ENXIO, vfio_attr(vfio, 1, 9, group));
	struct kvm_device_attr bad = { .group = 1, .attr = 1, .addr = 8 };
	expect("a pointer to nowhere", -EFAULT, ioctl(vfio, KVM_SET_DEVICE_ATTR, &bad));

	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]);
	expect("the device", 1, device >= 0);

	/* Interrupts: the device's eventfd is the machine's irqfd, so that KVM takes what the device signals. */
	int event = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
	expect("irqfd without controllers", -EINVAL, irqfd(vm, event, 24, 0));
	expect("controllers", 0, ioctl(vm, KVM_CREATE_IRQCHIP, 0ul));
	expect("controllers again", -EEXIST, ioctl(vm, KVM_CREATE_IRQCHIP, 0ul));
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry entry; } routes = {
		.head = { .nr = 1 },
		.entry = { .gsi = 24, .type = KVM_IRQ_ROUTING_MSI, .u.msi = { .address_lo = 0xfee00000, .data = 0x31 } },
	};
	expect("routes", 0, ioctl(vm, KVM_SET_GSI_ROUTING, &routes));
	routes.entry.gsi = 5000;
	expect("a GSI that is none", -EINVAL, ioctl(vm, KVM_SET_GSI_ROUTING, &routes));
	char buffer[sizeof(struct vfio_irq_set) + 8];
	struct vfio_irq_set *set = (void *)buffer;
	*set = (struct vfio_irq_set){ .argsz = sizeof buffer, .index = VFIO_PCI_MSI_IRQ_INDEX, .count = 2,
		.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER };
	memcpy(set->data, (int[]){ event, other }, 8);
	expect("MSI with two eventfds", 0, ioctl(device, VFIO_DEVICE_SET_IRQS, set));
	expect("irqfd", 0, irqfd(vm, event, 24, 0));
	int twin = dup(event);
	expect("the same eventfd again", -EBUSY, irqfd(vm, twin, 25, 0));
	expect("not an eventfd", -EINVAL, irqfd(vm, 0, 26, 0));
	expect("unknown flags", -EINVAL, irqfd(vm, other, 26, 8));
	*set = (struct vfio_irq_set){ .argsz = sizeof *set, .index = VFIO_PCI_MSI_IRQ_INDEX, .count = 2,
		.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER };
	expect("both are signalled", 0, ioctl(device, VFIO_DEVICE_SET_IRQS, set));
	expect("the second is the program's", 1, readable(other, 1000));
	for (int i = 0; i < 100 && readable(event, 0) > 0; i++) usleep(10000);
	expect("the first was taken by KVM", 0, readable(event, 0));
	expect("deassign", 0, irqfd(vm, event, 24, KVM_IRQFD_FLAG_DEASSIGN));
	expect("deassign of nothing", 0, irqfd(vm, event, 24, KVM_IRQFD_FLAG_DEASSIGN));
	expect("signalled again", 0, ioctl(device, VFIO_DEVICE_SET_IRQS, set));
	expect("now both are the program's", 1, readable(event, 1000));

	/* K-5: the machine may go first, the files of VFIO live on. */
	close(vm);
	close(vfio);
	struct vfio_device_info info = { .argsz = sizeof info };
	expect("the device outlives the machine", 0, ioctl(device, VFIO_DEVICE_GET_INFO, &info));
	close(device);
	close(group);
	close(copy);
	close(container);

	if (argc > 3) {
		vm = ioctl(kvm, KVM_CREATE_VM, 0ul);
		vfio = create_device(vm, KVM_DEV_TYPE_VFIO);
		int cdev = -1;
		for (int i = 0; i < 100 && cdev < 0; i++) {
			cdev = open(argv[3], O_RDWR);
			if (cdev < 0) usleep(10000);
		}
		expect("ADD of a device's own file", 0, vfio_attr(vfio, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, cdev));
		expect("DEL", 0, vfio_attr(vfio, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL, cdev));
		expect("K-2: DEL again", -ENOENT, vfio_attr(vfio, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_DEL, cdev));
		expect("ADD", 0, vfio_attr(vfio, KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, cdev));
		pid_t child = fork();
		if (child == 0) {
			_exit(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQFD) == -1 && errno == EIO ? 0 : 1);
		}
		int status = -1;
		waitpid(child, &status, 0);
		expect("a machine is of one program", 0, status);
	}
	printf("%d checks, %d wrong\n", checks, wrong);
	return wrong != 0;
}
