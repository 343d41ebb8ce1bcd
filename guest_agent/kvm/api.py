"""KVM's numbers and the one way this VMM makes an ioctl.

Source: include/uapi/linux/kvm.h; Documentation/virt/kvm/api.rst. Numbers are x86-64's.
"""

from __future__ import annotations

import ctypes
import os

from guest_agent.kvm.error import KvmError
from guest_agent.kvm.structs import (
    KvmEnableCap,
    KvmMsrFilter,
    KvmRegs,
    KvmSregs,
    KvmUserspaceMemoryRegion,
    KvmVcpuEvents,
    KvmXcrs,
)

KVM_API_VERSION = 12

KVM_CAP_EXT_CPUID = 7
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_XCRS = 56
KVM_CAP_SYNC_REGS = 74
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189

KVM_MSR_EXIT_REASON_FILTER = 4
KVM_MSR_FILTER_READ = 1
KVM_MSR_FILTER_WRITE = 2
KVM_SYNC_X86_REGS = 1
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30

EXIT_NAMES = {
    0: "KVM_EXIT_UNKNOWN",
    1: "KVM_EXIT_EXCEPTION",
    KVM_EXIT_IO: "KVM_EXIT_IO",
    4: "KVM_EXIT_DEBUG",
    KVM_EXIT_HLT: "KVM_EXIT_HLT",
    6: "KVM_EXIT_MMIO",
    7: "KVM_EXIT_IRQ_WINDOW_OPEN",
    KVM_EXIT_SHUTDOWN: "KVM_EXIT_SHUTDOWN",
    KVM_EXIT_FAIL_ENTRY: "KVM_EXIT_FAIL_ENTRY",
    10: "KVM_EXIT_INTR",
    KVM_EXIT_INTERNAL_ERROR: "KVM_EXIT_INTERNAL_ERROR",
    24: "KVM_EXIT_SYSTEM_EVENT",
    KVM_EXIT_X86_RDMSR: "KVM_EXIT_X86_RDMSR",
    KVM_EXIT_X86_WRMSR: "KVM_EXIT_X86_WRMSR",
}


def _request(direction: int, number: int, size: int) -> int:
    """Encode an ioctl of KVM. Source: include/uapi/asm-generic/ioctl.h; KVMIO is 0xae."""
    return direction << 30 | size << 16 | 0xAE << 8 | number


def _io(number: int) -> int:
    return _request(0, number, 0)


def _iow(number: int, struct: type[ctypes.Structure]) -> int:
    return _request(1, number, ctypes.sizeof(struct))


def _ior(number: int, struct: type[ctypes.Structure]) -> int:
    return _request(2, number, ctypes.sizeof(struct))


#: Every ioctl this VMM makes, by KVM's name. struct kvm_cpuid2 counts as its 8 bytes of header.
IOCTLS = {
    "KVM_GET_API_VERSION": _io(0x00),
    "KVM_CREATE_VM": _io(0x01),
    "KVM_CHECK_EXTENSION": _io(0x03),
    "KVM_GET_VCPU_MMAP_SIZE": _io(0x04),
    "KVM_GET_SUPPORTED_CPUID": _request(3, 0x05, 8),
    "KVM_CREATE_VCPU": _io(0x41),
    "KVM_SET_USER_MEMORY_REGION": _iow(0x46, KvmUserspaceMemoryRegion),
    "KVM_SET_TSS_ADDR": _io(0x47),
    "KVM_RUN": _io(0x80),
    "KVM_GET_REGS": _ior(0x81, KvmRegs),
    "KVM_SET_REGS": _iow(0x82, KvmRegs),
    "KVM_GET_SREGS": _ior(0x83, KvmSregs),
    "KVM_SET_SREGS": _iow(0x84, KvmSregs),
    "KVM_SET_CPUID2": _request(1, 0x90, 8),
    "KVM_GET_VCPU_EVENTS": _ior(0x9F, KvmVcpuEvents),
    "KVM_SET_VCPU_EVENTS": _iow(0xA0, KvmVcpuEvents),
    "KVM_ENABLE_CAP": _iow(0xA3, KvmEnableCap),
    "KVM_SET_XCRS": _iow(0xA7, KvmXcrs),
    "KVM_X86_SET_MSR_FILTER": _iow(0xC6, KvmMsrFilter),
}

# libc's own ioctl: fcntl.ioctl repeats on EINTR from Python 3.14 on, and a kicked KVM_RUN must come back.
# A ctypes call lets go of the interpreter lock while the guest runs.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc.ioctl.restype = ctypes.c_int


def raw_ioctl(fd: int, name: str, argument: ctypes.Structure | int = 0) -> tuple[int, int]:
    """Make the ioctl `name` and return (result, errno); errno is 0 when the result is not negative."""
    passed = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result = int(_libc.ioctl(fd, IOCTLS[name], passed))
    return result, ctypes.get_errno() if result < 0 else 0


def ioctl(fd: int, name: str, argument: ctypes.Structure | int = 0) -> int:
    """Make the ioctl `name` and return its result.

    Raises:
        KvmError: KVM refused; the message carries the errno.
    """
    result, errno = raw_ioctl(fd, name, argument)
    if result < 0:
        raise KvmError(os.strerror(errno), exit_reason=name)
    return result
