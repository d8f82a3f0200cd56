"""Small programs in the kernel, so that processes that know nothing of tests are stopped at an exact point of their code, and
packets are damaged on their way. Raw bpf(2) and perf_event_open(2); needs root and Linux 6.6. Standard library only."""
import contextlib
import ctypes
import os
import pathlib
import platform
import signal
import socket
import struct
import subprocess
import time

_libc = ctypes.CDLL(None, use_errno=True)
_BPF, _PERF_EVENT_OPEN = {"x86_64": (321, 298), "aarch64": (280, 241)}[platform.machine()]
# bpf(2)'s commands, program types, helpers.
_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD, _LINK_CREATE = 0, 1, 5, 28
_KPROBE, _SCHED_CLS = 2, 3
_TCX_INGRESS, _TCX_EGRESS = 46, 47
_LOOKUP_ELEM, _PRANDOM, _SKB_STORE, _SKB_LOAD, _SEND_SIGNAL = 1, 7, 9, 26, 109
_TC_NEXT, _TC_DROP = -1, 2


def _check(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 256)
    return _libc.syscall(_BPF, command, buffer, len(buffer)), buffer


class Program:
    """Instructions as they are appended; jumps go to labels."""

    def __init__(self):
        self._code, self._labels, self._jumps = [], {}, []

    def op(self, opcode, dst=0, src=0, offset=0, value=0):
        self._code.append([opcode, dst | src << 4, offset, value])

    def move(self, dst, src):
        self.op(0xbf, dst, src)

    def set(self, dst, value):
        self.op(0xb7, dst, value=value)

    def call(self, helper):
        self.op(0x85, value=helper)

    def jump(self, condition, dst, value, label):
        self._jumps.append((len(self._code), label))
        self.op(condition, dst, value=value)

    def label(self, name):
        self._labels[name] = len(self._code)

    def end(self, value):
        self.set(0, value)
        self.op(0x95)

    def counter(self, map_fd, key):
        """r0: the address of a counter; ends the program if there is none."""
        self.op(0x62, 10, offset=-4, value=key)  # *(u32*)(fp - 4) = key
        self.op(0x18, 1, 1, value=map_fd)  # r1 = the map; two slots
        self.op(0)
        self.move(2, 10)
        self.op(0x07, 2, value=-4)
        self.call(_LOOKUP_ELEM)
        self.jump(0x15, 0, 0, "end")

    def load(self, kind):
        for at, label in self._jumps:
            self._code[at][2] = self._labels[label] - at - 1
        code = b"".join(struct.pack("<BBhi", *c) for c in self._code)
        code = ctypes.create_string_buffer(code, len(code))
        log, license_ = ctypes.create_string_buffer(1 << 16), ctypes.create_string_buffer(b"Dual BSD/GPL")
        fd, _ = _bpf(_PROG_LOAD, struct.pack("<IIQQIIQ", kind, len(self._code), ctypes.addressof(code),
                                             ctypes.addressof(license_), 1, len(log), ctypes.addressof(log)))
        return _check(fd, "BPF_PROG_LOAD: " + log.value.decode()[-300:])


class _Counters:
    """A map of 64-bit counters that programs share with us."""

    def __init__(self, n):
        fd, _ = _bpf(_MAP_CREATE, struct.pack("<IIII", 2, 4, 8, n))
        self.fd = _check(fd, "BPF_MAP_CREATE")

    def __getitem__(self, i):
        key, value = ctypes.c_uint32(i), ctypes.c_uint64(0)
        result, _ = _bpf(_MAP_LOOKUP, struct.pack("<IIQQ", self.fd, 0, ctypes.addressof(key), ctypes.addressof(value)))
        _check(result, "BPF_MAP_LOOKUP_ELEM")
        return value.value

    def close(self):
        os.close(self.fd)


class Symbols:
    """Where functions lie in a binary, by the beginning of their demangled names without the namespace."""

    def __init__(self, binary):
        self.binary = os.path.realpath(binary)
        self._offsets = {}
        segments = []
        for line in subprocess.run(["readelf", "-lW", binary], check=True, capture_output=True, text=True).stdout.splitlines():
            f = line.split()
            if f and f[0] == "LOAD":
                segments.append((int(f[1], 16), int(f[2], 16), int(f[4], 16)))  # offset, address, bytes
        names = subprocess.run(["nm", "-C", "--defined-only", binary], check=True, capture_output=True, text=True).stdout
        for line in names.splitlines():
            address, kind, name = line.split(" ", 2)
            if kind not in "tTwW" or not name.startswith("switchyard::") or "[clone" in name or ")::" in name:
                continue
            at = int(address, 16)
            for offset, start, size in segments:
                if start <= at < start + size:
                    name = name.removeprefix("switchyard::").replace("(anonymous namespace)::", "")
                    self._offsets.setdefault(name.split("(")[0], []).append(at - start + offset)

    def offset(self, function):
        found = self._offsets.get(function, [])
        assert len(found) == 1, f"{function}: {len(found)} functions of that name in {self.binary}"
        return found[0]


class Trap:
    """Counts a process's calls of a function and stops the process (SIGSTOP) as it enters the nth; 0: only counts. All
    threads of the process stop; after close() it can be continued."""

    def __init__(self, symbols, pid, function, nth=1):
        self.pid, self.nth = pid, nth
        self._path = ctypes.create_string_buffer(symbols.binary.encode())
        self._counters = _Counters(1)
        program = Program()
        program.counter(self._counters.fd, 0)
        program.set(1, 1)
        program.op(0xdb, 0, 1, value=0x01)  # r1 = fetch_add(*r0, 1)
        if nth:
            program.jump(0x55, 1, nth - 1, "end")
            program.set(1, signal.SIGSTOP)
            program.call(_SEND_SIGNAL)
        program.label("end")
        program.end(0)
        self._program = program.load(_KPROBE)
        kind = int(pathlib.Path("/sys/bus/event_source/devices/uprobe/type").read_text())
        attributes = bytearray(128)
        struct.pack_into("<II", attributes, 0, kind, len(attributes))
        struct.pack_into("<QQ", attributes, 56, ctypes.addressof(self._path), symbols.offset(function))  # uprobe_path, _offset
        buffer = ctypes.create_string_buffer(bytes(attributes), len(attributes))
        self._event = _check(_libc.syscall(_PERF_EVENT_OPEN, buffer, pid, -1, -1, 8), f"perf_event_open {function}")
        _check(_libc.ioctl(self._event, 0x40042408, self._program), "PERF_EVENT_IOC_SET_BPF")
        _check(_libc.ioctl(self._event, 0x2400, 0), "PERF_EVENT_IOC_ENABLE")

    def hits(self):
        return self._counters[0]

    def stopped(self):
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt"
        return False

    def close(self):
        for fd in (self._event, self._program):
            os.close(fd)
        self._counters.close()


class Flipper:
    """Damages up to `limit` TCP packets of at least `bytes_min` on one interface, of which neither port is in `spared_ports`
    (and one is `only_port`, if given): one bit somewhere in every nth one's payload. veth computes no checksums, so
    nothing below the receiver notices. drop: they vanish instead, as where a checksum is checked."""

    def __init__(self, device, egress, spared_ports=(), only_port=0, every=3, limit=3, bytes_min=150,
                 drop=False):
        self._counters = _Counters(2)  # packets, damaged ones
        program = Program()
        program.move(6, 1)
        program.op(0x61, 7, 1, offset=0)  # r7 = skb->len
        program.jump(0xa5, 7, bytes_min, "end")
        for at, size in ((12, 2), (23, 1), (46, 1), (34, 4)):  # type, protocol, TCP's header length, ports
            program.move(1, 6)
            program.set(2, at)
            program.move(3, 10)
            program.op(0x07, 3, value=-16)
            program.set(4, size)
            program.call(_SKB_LOAD)
            program.jump(0x55, 0, 0, "end")
            if at == 12:
                program.op(0x69, 1, 10, offset=-16)
                program.jump(0x55, 1, socket.htons(0x0800), "end")
            elif at == 23:
                program.op(0x71, 1, 10, offset=-16)
                program.jump(0x55, 1, 6, "end")
            elif at == 46:
                program.op(0x71, 8, 10, offset=-16)
                program.op(0x77, 8, value=4)
                program.op(0x67, 8, value=2)
                program.op(0x07, 8, value=34)  # r8: where the payload begins
                program.op(0xbf, 1, 8)
                program.op(0x07, 1, value=bytes_min - 66)
                program.op(0x2d, 1, 7, offset=0)  # if r1 > r7: end
                program._jumps.append((len(program._code) - 1, "end"))
            else:
                program.op(0x69, 1, 10, offset=-16)
                program.op(0x69, 2, 10, offset=-14)
                for port in spared_ports:
                    program.jump(0x15, 1, socket.htons(port), "end")
                    program.jump(0x15, 2, socket.htons(port), "end")
                if only_port:
                    program.jump(0x15, 1, socket.htons(only_port), "ours")
                    program.jump(0x55, 2, socket.htons(only_port), "end")
                    program.label("ours")
        program.counter(self._counters.fd, 0)
        program.set(1, 1)
        program.op(0xdb, 0, 1, value=0x01)
        program.op(0x97, 1, value=every)  # r1 %= every
        program.jump(0x55, 1, 0, "end")
        program.counter(self._counters.fd, 1)
        program.op(0x79, 1, 0)
        program.jump(0x35, 1, limit, "end")
        program.set(1, 1)
        program.op(0xdb, 0, 1, value=0x00)
        if drop:
            program.end(_TC_DROP)
        else:
            self._flip(program)
        program.label("end")
        program.end(_TC_NEXT)
        self._program = program.load(_SCHED_CLS)
        link, _ = _bpf(_LINK_CREATE, struct.pack("<IIIIII", self._program, socket.if_nametoindex(device),
                                                 _TCX_EGRESS if egress else _TCX_INGRESS, 0, 0, 0))
        self._link = _check(link, f"tcx on {device}")

    @staticmethod
    def _flip(program):
        """r6: the packet, r7: its length, r8: where the payload begins."""
        program.call(_PRANDOM)
        program.op(0xbf, 9, 0)
        program.op(0x1f, 7, 8)  # r7 = bytes of payload
        program.op(0x57, 9, value=0x7fffffff)
        program.op(0x9f, 9, 7)  # r9 %= r7
        program.op(0x0f, 9, 8)  # r9: the byte
        for helper in (_SKB_LOAD, _SKB_STORE):
            program.move(1, 6)
            program.move(2, 9)
            program.move(3, 10)
            program.op(0x07, 3, value=-16)
            program.set(4, 1)
            program.set(5, 0)
            program.call(helper)
            program.jump(0x55, 0, 0, "end")
            program.op(0x71, 1, 10, offset=-16)
            program.op(0xa7, 1, value=0x10)  # one bit
            program.op(0x73, 10, 1, offset=-16)

    def damaged(self):
        return self._counters[1]

    def close(self):
        for fd in (self._link, self._program):
            os.close(fd)
        self._counters.close()


def wait_stopped(traps, seconds):
    """The trap that has stopped its process; None after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for trap in traps:
            if trap.hits() >= trap.nth and trap.stopped():
                return trap
        time.sleep(0.001)
    return None


def available(binary):
    """The symbols of `binary` if traps can be set here, which takes root, BPF and uprobes; None if not."""
    try:
        symbols = Symbols(binary)
        Trap(symbols, os.getpid(), "DecodeAttempts::OnOutput").close()  # never called in this process
    except OSError:
        return None
    return symbols
