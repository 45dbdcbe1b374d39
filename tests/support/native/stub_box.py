#!/usr/bin/env python3
"""A minimal box for testing native/ alone: speaks docs/run-protocol.md, knows no VFIO.

    stub_box.py [--sysfs mount|rewrite] [--preload LIB] [--launch PLAN] [--timeout S] -- PROGRAM ARGS...

Makes a small tree in a temporary folder, runs PROGRAM under the library, exits with its status (128 + signal).
Its devices answer the ioctls T_* that exercise.c lists.
"""
import argparse, array, ctypes, errno, os, select, shutil, signal, socket, stat, struct, subprocess, sys, tempfile, threading, time

HELLO, OPEN, IOCTL, PREAD, PWRITE, MMAP, TRAP_READ, TRAP_WRITE, FDS, STAT, NAME, ACCESS = range(1, 13)
REQUEST, REPLY = struct.Struct('<IIQQQQQ'), struct.Struct('<IIqiIII')
REGISTERS = 0x10000  # device offsets from here on are trapped
DEAD = 0x1f000  # registers from here on do not answer
libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]


def remote(pid, address, data=None, size=0):
    """Reads or writes another process's memory; an OSError as the kernel says."""
    buffer = ctypes.create_string_buffer(data if data is not None else b'', size or len(data or b''))
    here = Iovec(ctypes.cast(buffer, ctypes.c_void_p), size or len(data or b''))
    there = Iovec(address, here.len)
    call = libc.process_vm_writev if data is not None else libc.process_vm_readv
    n = call(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    if n < here.len:  # a part is not there
        raise OSError(errno.EFAULT, 'memory')
    return buffer.raw[:n]


class Handle:
    def __init__(self, box, kind, id, name):
        self.box, self.kind, self.id, self.name, self.position = box, kind, id, name, 0
        self.mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.bind(b'\0vfiobox:%s:%s:%016x' % (box.id, kind.encode(), id))
        self.mine.send(b'0')
        self.theirs = theirs
        self.messages = []


class Box:
    def __init__(self, root, path):
        self.root, self.path, self.id = root, path, os.urandom(8).hex().encode()
        self.handles, self.next, self.lock = {}, 1, threading.Lock()
        self.memory = os.memfd_create('bar')
        os.ftruncate(self.memory, 0x10000)
        self.registers = bytearray(0x10000)
        self.log, self.process_words = [], set()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(128)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            s, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def make(self, kind, name):
        with self.lock:
            h = Handle(self, kind, self.next, name)
            self.handles[h.id] = h
            self.next += 1
        return h

    def live(self):
        """Handles whose last descriptor is not gone."""
        for h in list(self.handles.values()):
            while select.select([h.mine], [], [], 0)[0]:
                try:
                    b = h.mine.recv(65536)
                except ConnectionError:
                    b = b''
                if not b:
                    del self.handles[h.id]
                    break
                h.messages.append(b)
        return len(self.handles)

    def serve(self, s):
        pid = struct.unpack('iII', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        while True:
            try:
                message = s.recv(1 << 17)
            except ConnectionError:
                return
            if not message:
                return
            op, seq, handle, a, b, c, d = REQUEST.unpack_from(message)
            payload = message[REQUEST.size:]
            if op == HELLO:
                self.process_words.add(a)
                continue
            try:
                answer = self.answer(s, pid, op, seq, handle, a, b, c, d, payload)
            except OSError as e:
                answer = (-(e.errno or errno.EIO),)
            except Exception:
                import traceback
                traceback.print_exc()
                answer = (-errno.EIO,)
            ret, data, fd, fdoff, flags = (tuple(answer) + (0, b'', None, -2, 0)[len(answer):])[:5]
            out = REPLY.pack(0, seq, ret, fdoff, flags, len(data), 0)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))] if fd is not None else []
            try:
                s.sendmsg([out, data], rights)
            except OSError:
                return
            if op in (OPEN, IOCTL) and fd is not None:
                h = next((x for x in self.handles.values() if x.theirs and x.theirs.fileno() == fd), None)
                if h:
                    h.theirs.close()
                    h.theirs = None

    def ask(self, s, seq, number):
        """The program's descriptor, or None when it is not open."""
        s.sendmsg([REPLY.pack(1, seq, number, -2, 0, 0, 0)])
        message, control, _, _ = s.recvmsg(1 << 12, socket.CMSG_SPACE(4))
        assert REQUEST.unpack_from(message)[:2] == (FDS, seq)
        state = struct.unpack('<i', message[REQUEST.size:])[0]
        assert state in (0, errno.EBADF) and len(control) == (state == 0)
        return struct.unpack('<i', control[0][2])[0] if control else None

    def answer(self, s, pid, op, seq, handle, a, b, c, d, payload):
        if op in (OPEN, STAT, ACCESS) and not handle:
            path = payload[:-1].decode()
            assert payload.endswith(b'\0') and path.startswith('/') and '//' not in path, path
            self.log.append((op, path))
        if op == OPEN:
            self.live()
            if path in ('/dev/vfio/vfio', '/dev/vfio/7', '/dev/iommu', '/dev/vfio/devices/vfio0'):
                h = self.make('node', path)
                return 0, b'', h.theirs.fileno(), -1
            if path.startswith('/dev/') and os.path.isdir(self.root + path):
                return 1,
            if path.startswith('/dev/'):
                return -errno.ENOENT,
            if path.endswith('/live'):
                fd = os.memfd_create('live')
                os.write(fd, b'live text\n')
                os.lseek(fd, 0, 0)
                return 0, b'', fd, -1
            if a & 3:
                h = self.make('attribute', path)
                return 0, b'', h.theirs.fileno(), -1
            return 1,
        if op in (STAT, ACCESS) and not handle:
            if not path.startswith('/dev/'):
                return 1,
            if os.path.isdir(self.root + path):
                return 1,
            if not os.path.exists(self.root + path):
                return -errno.ENOENT,
            if op == ACCESS:
                return -errno.EACCES if a & 1 else 0,
            return 0, struct.pack('<6IQQ', stat.S_IFCHR | 0o600, 0, 0, 511, 7, 1, 4711, 0)
        h = self.handles.get(handle)
        if op == STAT and h:
            return 0, struct.pack('<6IQQ', stat.S_IFCHR | 0o600, 0, 0, 511, 7, 1, 4711, 0)
        if h is None:
            return -errno.EBADF,
        if op == NAME:
            return 0, h.name.encode()
        if op == IOCTL:
            return self.ioctl(s, pid, seq, h, a, b, payload)
        if op == PREAD:
            if h.kind == 'attribute':
                at = h.position if a == 0xffffffffffffffff else a
                data = b'value\n'[at:at + b]
                if a == 0xffffffffffffffff:
                    h.position += len(data)
                return len(data), data
            at = h.position if a == 0xffffffffffffffff else a
            if at >= 0x10000:
                return -errno.EINVAL,
            data = os.pread(self.memory, b, at)
            if a == 0xffffffffffffffff:
                h.position += len(data)
            if len(data) > 4096:
                remote(pid, c, data)
                return len(data), b''
            return len(data), data
        if op == PWRITE:
            data = payload if payload or not b else remote(pid, c, size=b)
            if h.kind == 'attribute':
                self.log.append((op, h.name, data))
                return (-errno.EINVAL,) if data.startswith(b'bad') else (len(data),)
            at = h.position if a == 0xffffffffffffffff else a
            n = os.pwrite(self.memory, data[:max(0, 0x10000 - at)], at) if at < 0x10000 else 0
            if a == 0xffffffffffffffff:
                h.position += n
            return n,
        if op == MMAP:
            if d < REGISTERS:
                return 0, struct.pack('<IIQ', 0, 0, d), self.memory, 0
            return 0, struct.pack('<IIQ', 1, 0, 0), self.memory, 0
        at = a - REGISTERS
        if a >= DEAD and self.dead:
            return -errno.EIO,
        if op == TRAP_READ:
            return b, bytes(self.registers[at:at + b])
        if op == TRAP_WRITE:
            self.registers[at:at + b] = payload
            return b,
        return -errno.ENOTTY,

    dead = True

    def ioctl(self, s, pid, seq, h, request, arg, payload):
        n = request & 0xff
        if n == 1:  # T_VALUE: the argument by value
            return arg & 0x7fffffff,
        if n == 2:  # T_INVERT 64 bytes
            data = payload or remote(pid, arg, size=64)
            return 5, bytes(x ^ 0xff for x in data)
        if n == 3:  # T_BIG: 8192 bytes back
            return 0, bytes(i & 0xff for i in range(8192))
        if n == 4:  # T_ASK: u32 count, then numbers: each gets write(8) if open
            count = struct.unpack_from('<I', payload)[0]
            numbers = struct.unpack('<%di' % count, remote(pid, arg + 4, size=4 * count))
            result = 1000
            for fd in (self.ask(s, seq, n) for n in numbers):
                result += 1 if fd is not None else -100
                if fd is not None:
                    os.write(fd, struct.pack('<Q', 1))
                    os.close(fd)
            return result,
        if n == 5:  # T_NEW: a descriptor as the return value, close-on-exec
            x = self.make('device', 'anon_inode:[vfio-device]')
            return 0, b'', x.theirs.fileno(), -1, 1
        if n == 6:  # T_NEW_AT: stored at offset 8
            x = self.make('device', 'anon_inode:[vfio-device]')
            return 0, payload[:16], x.theirs.fileno(), 8, 0
        if n == 7:  # T_SLEEP milliseconds
            time.sleep(arg / 1000)
            return 0,
        if n == 8:  # T_ERROR
            return -(arg & 0xff),
        if n == 9:  # T_DIE
            os.kill(os.getpid(), signal.SIGKILL)
        if n == 10:  # T_LIVE handles
            time.sleep(0.01)
            return self.live(),
        if n == 11:  # T_REVIVE: the dead registers answer
            self.dead = not arg
            return 0,
        if n == 12:  # T_PROCESSES that said hello
            return len(self.process_words),
        if n == 13:  # T_HANDLE_ID
            return h.id,
        if n == 14:  # T_PLAIN: bytes that came by a plain write on this handle
            self.live()
            return sum(len(m) for m in h.messages),
        if n == 15:  # T_PEEK_REGISTER: u32 at offset
            return struct.unpack_from('<i', self.registers, arg)[0] & 0x7fffffff,
        return -errno.ENOTTY,


def make_tree(root):
    def put(path, text):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, 'w') as f:
            f.write(text)
    device = '/sys/devices/pci0000:00/0000:00:04.0'
    put(device + '/vendor', '0x1234\n')
    put(device + '/live', '')
    put(device + '/driver_override', '(null)\n')
    put('/sys/kernel/iommu_groups/7/type', 'DMA\n')
    os.makedirs(root + '/sys/bus/pci/devices')
    os.makedirs(root + '/sys/bus/pci/drivers/vfio-pci')
    put('/sys/bus/pci/drivers/vfio-pci/bind', '')
    os.symlink('../../../devices/pci0000:00/0000:00:04.0', root + '/sys/bus/pci/devices/0000:00:04.0')
    os.symlink('../../../kernel/iommu_groups/7', root + device + '/iommu_group')
    os.makedirs(root + '/dev/vfio/devices')
    for node in ('vfio/vfio', 'vfio/7', 'vfio/devices/vfio0', 'iommu'):
        s = socket.socket(socket.AF_UNIX)
        s.bind(root + '/dev/' + node)
        s.close()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    top = os.path.abspath(os.path.join(here, '../../..'))
    p = argparse.ArgumentParser()
    p.add_argument('--sysfs', default='rewrite')
    p.add_argument('--preload', default=os.path.join(top, 'build/libvfiobox.so'))
    p.add_argument('--launch', help='run through vfiobox-launch: `auto` binds the tree, `-` rewrites')
    p.add_argument('--timeout', type=float, default=60)
    p.add_argument('command', nargs=argparse.REMAINDER)
    o = p.parse_args()
    command = o.command[1:] if o.command[:1] == ['--'] else o.command
    folder = tempfile.mkdtemp(prefix='stub-box-')
    try:
        root = folder + '/root'
        os.mkdir(root)
        make_tree(root)
        os.chmod(folder, 0o755)
        socket_path = folder + '/box'
        ready_r, ready_w = os.pipe()
        box_pid = os.fork()
        if box_pid == 0:
            Box(root, socket_path)
            os.chmod(socket_path, 0o777)
            os.write(ready_w, b'1')
            while True:
                time.sleep(3600)
        os.read(ready_r, 1)
        env = dict(os.environ, VFIOBOX_SOCKET=socket_path, VFIOBOX_ROOT=root, VFIOBOX_SYSFS=o.sysfs,
                   VFIOBOX_PATHS='/sys/devices/pci0000:00:/sys/kernel/iommu_groups:/sys/bus/pci', STUB_BOX_PID=str(box_pid))
        if o.launch:
            plan = '-'
            if o.launch != '-':
                plan = folder + '/plan'
                with open(plan, 'w') as f:
                    f.write('bind %s/sys/bus/pci /sys/bus/pci\nbind %s/sys/devices/pci0000:00 /sys/devices/pci0000:00\n' % (root, root))
                    f.write('bind %s/sys/kernel/iommu_groups /sys/kernel/iommu_groups\n' % root)
            env['VFIOBOX_PRELOAD'] = o.preload
            command = [os.path.join(top, 'build/vfiobox-launch'), plan, '--'] + command
        else:
            env['LD_PRELOAD'] = o.preload
        status = 124
        try:
            status = subprocess.run(command, env=env, timeout=o.timeout).returncode
        except subprocess.TimeoutExpired:
            print('stub_box: timed out', file=sys.stderr)
        try:
            os.kill(box_pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(box_pid, 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status if status >= 0 else 128 - status)


main()
