"""The machine's real KVM, as far as its answers are compared: plain ioctls on bytearrays, errno as a value.

Source: Documentation/virt/kvm/api.rst, the sections of the ioctls' names; include/uapi/linux/kvm.h,
arch/x86/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ctypes import CDLL, Structure, addressof, c_char, c_uint64, c_ulong, get_errno
from pathlib import Path
from typing import Final, Self

from guest_agent.kvm.long_mode import kernel_sregs, user_sregs, write_tables
from guest_agent.kvm.memory import GuestMemory
from guest_agent.kvm.structs import KvmRegs, KvmSregs, KvmUserspaceMemoryRegion
from host_agent.kvm.cpuid import CpuidEntry, CpuidTable

DEVICE: Final = Path("/dev/kvm")
KVM_CAP_XSAVE2: Final = 208
_KVM_EXIT_IO: Final = 2
#: Where struct kvm_run has exit_reason, and io.port.
_EXIT_REASON_AT: Final = 8
_IO_PORT_AT: Final = 34
_USER_STACK: Final = 0x22000
_SYS_ARCH_PRCTL: Final = 158
_libc: Final = CDLL(None, use_errno=True)
#: Three pages away from guest memory, in what fcntl.ioctl takes for a C int. Source: api.rst 4.36, for Intel hosts.
_TSS_ADDRESS: Final = 0x7FFB_D000
_XCRS: Final = struct.Struct("<II256s128s")
_XCR: Final = struct.Struct("<IIQ")
_MSR: Final = struct.Struct("<IIQ")
_ENTRY: Final = struct.Struct("<7I12x")
_COUNT: Final = struct.Struct("<II")


def _request(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | 0xAE << 8 | number


_CREATE_VM: Final = _request(0, 0x01, 0)
_GET_MSR_INDEX_LIST: Final = _request(3, 0x02, 4)
_CHECK_EXTENSION: Final = _request(0, 0x03, 0)
_GET_VCPU_MMAP_SIZE: Final = _request(0, 0x04, 0)
_GET_SUPPORTED_CPUID: Final = _request(3, 0x05, 8)
_CREATE_VCPU: Final = _request(0, 0x41, 0)
_SET_USER_MEMORY_REGION: Final = _request(1, 0x46, 32)
_SET_TSS_ADDR: Final = _request(0, 0x47, 0)
_RUN: Final = _request(0, 0x80, 0)
_SET_REGS: Final = _request(1, 0x82, 144)
_GET_SREGS: Final = _request(2, 0x83, 312)
_SET_SREGS: Final = _request(1, 0x84, 312)
_GET_MSRS: Final = _request(3, 0x88, 8)
_SET_MSRS: Final = _request(1, 0x89, 8)
_SET_CPUID2: Final = _request(1, 0x90, 8)
_GET_CPUID2: Final = _request(3, 0x91, 8)
_SET_XSAVE: Final = _request(1, 0xA5, 4096)
_GET_XCRS: Final = _request(2, 0xA6, 392)
_SET_XCRS: Final = _request(1, 0xA7, 392)
_GET_XSAVE2: Final = _request(2, 0xCF, 4096)
_GET_DEVICE_ATTR: Final = _request(1, 0xE2, 24)


class KvmUnusableError(Exception):
    """There is no KVM here, or not one that this can use; the message says why."""


def _ioctl(fd: int, request: int, argument: bytearray | Structure | int = 0) -> int:
    """The ioctl's result, or minus its errno."""
    try:
        if isinstance(argument, int):
            return int(fcntl.ioctl(fd, request, argument))
        return int(fcntl.ioctl(fd, request, argument, True))  # noqa: FBT003 -- fcntl's own: fill in place
    except OSError as error:
        return -(error.errno or errno.EIO)


def _errno(result: int) -> int:
    return -result if result < 0 else 0


def _table_bytes(table: CpuidTable, room: int = 0) -> bytearray:
    raw = bytearray(_COUNT.size + max(room, len(table), 1) * _ENTRY.size)
    _COUNT.pack_into(raw, 0, len(table) or room, 0)
    for nr, entry in enumerate(table):
        values = (entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
        _ENTRY.pack_into(raw, _COUNT.size + nr * _ENTRY.size, *values)
    return raw


def _table_of(raw: bytearray) -> CpuidTable:
    (count, _) = _COUNT.unpack_from(raw)
    found = [_ENTRY.unpack_from(raw, _COUNT.size + nr * _ENTRY.size) for nr in range(count)]
    names = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")
    return tuple(CpuidEntry(**dict(zip(names, values, strict=True))) for values in found)


class RealKvm:
    """The device. Raises ``KvmUnusableError`` where there is none."""

    def __init__(self) -> None:
        device = DEVICE
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise KvmUnusableError(f"{device}: {error.strerror}") from error
        if self.check_extension(KVM_CAP_XSAVE2) <= 0:
            os.close(self.fd)
            raise KvmUnusableError(f"{device}: no KVM_CAP_XSAVE2 (kernels from 5.17 on)")

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION."""
        return _ioctl(self.fd, _CHECK_EXTENSION, cap)

    def guest_supp(self) -> int:
        """KVM_X86_XCOMP_GUEST_SUPP: attribute 0 of group 0 of the system device."""
        value = bytearray(8)
        view = (c_char * 8).from_buffer(value)
        result = _ioctl(self.fd, _GET_DEVICE_ATTR, bytearray(struct.pack("<IIQQ", 0, 0, 0, addressof(view))))
        del view
        if result < 0:
            raise KvmUnusableError(f"KVM_X86_XCOMP_GUEST_SUPP: {os.strerror(-result)}")
        return int.from_bytes(value, "little")

    def supported_cpuid(self) -> CpuidTable:
        """KVM_GET_SUPPORTED_CPUID."""
        raw = _table_bytes((), room=256)
        if _ioctl(self.fd, _GET_SUPPORTED_CPUID, raw) < 0:
            raise KvmUnusableError("KVM_GET_SUPPORTED_CPUID fails")
        return _table_of(raw)

    def msr_index_list(self) -> set[int]:
        """KVM_GET_MSR_INDEX_LIST."""
        raw = bytearray(4 + 4 * 1024)
        struct.pack_into("<I", raw, 0, 1024)
        _ioctl(self.fd, _GET_MSR_INDEX_LIST, raw)
        (count,) = struct.unpack_from("<I", raw)
        return set(struct.unpack_from(f"<{count}I", raw, 4))

    def close(self) -> None:
        """Close the device; its vCPUs have gone before."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class RealVcpu:
    """A VM with one vCPU, 2 MiB of memory, and the long mode of the guest agent's program."""

    def __init__(self, kvm: RealKvm, image: bytes, *, image_at: int, gates: Mapping[int, int], stack: int) -> None:
        with ExitStack() as undo:
            self._vm = self._made(_ioctl(kvm.fd, _CREATE_VM), undo)
            self.memory = GuestMemory(2 << 20)
            undo.callback(self.memory.close)
            _ioctl(self._vm, _SET_TSS_ADDR, _TSS_ADDRESS)
            region = KvmUserspaceMemoryRegion(memory_size=self.memory.size, userspace_addr=self.memory.host_address)
            _ioctl(self._vm, _SET_USER_MEMORY_REGION, region)
            write_tables(self.memory, entries=gates, kernel_stack=stack)
            self.memory.write(image_at, image)
            self._fd = self._made(_ioctl(self._vm, _CREATE_VCPU, 0), undo)
            self._page = mmap.mmap(self._fd, _ioctl(kvm.fd, _GET_VCPU_MMAP_SIZE))
            self._kernel_stack = stack
            self._kernel_sregs = kernel_sregs(self._get_sregs())
            self._user_sregs = user_sregs(kernel_sregs(self._get_sregs()))
            undo.pop_all()

    def _get_sregs(self) -> KvmSregs:
        sregs = KvmSregs()
        _ioctl(self._fd, _GET_SREGS, sregs)
        return sregs

    @staticmethod
    def _made(fd: int, undo: ExitStack) -> int:
        if fd < 0:
            raise KvmUnusableError(f"no VM: {os.strerror(-fd)}")
        undo.callback(os.close, fd)
        return fd

    def set_cpuid2(self, table: CpuidTable) -> int:
        """KVM_SET_CPUID2; errno."""
        return _errno(_ioctl(self._fd, _SET_CPUID2, _table_bytes(table)))

    def get_cpuid2(self) -> CpuidTable:
        """KVM_GET_CPUID2."""
        raw = _table_bytes((), room=256)
        _ioctl(self._fd, _GET_CPUID2, raw)
        return _table_of(raw)

    def get_xcrs(self) -> list[tuple[int, int]]:
        """KVM_GET_XCRS."""
        raw = bytearray(_XCRS.size)
        _ioctl(self._fd, _GET_XCRS, raw)
        (count, _) = _COUNT.unpack_from(raw)
        found = [_XCR.unpack_from(raw, _COUNT.size + nr * _XCR.size) for nr in range(count)]
        return [(xcr, value) for xcr, _, value in found]

    def set_xcrs(self, xcrs: Sequence[tuple[int, int]], *, flags: int = 0, nr_xcrs: int | None = None) -> int:
        """KVM_SET_XCRS; errno. ``nr_xcrs`` may say more entries than the table has room for."""
        raw = bytearray(_XCRS.size)
        _COUNT.pack_into(raw, 0, len(xcrs) if nr_xcrs is None else nr_xcrs, flags)
        for nr, (xcr, value) in enumerate(xcrs[:16]):
            _XCR.pack_into(raw, _COUNT.size + nr * _XCR.size, xcr, 0, value)
        return _errno(_ioctl(self._fd, _SET_XCRS, raw))

    def get_xsave2(self, size: int) -> bytes:
        """KVM_GET_XSAVE2 into a buffer of ``size`` bytes, filled with 0xAA before."""
        raw = bytearray(b"\xaa" * size)
        result = _ioctl(self._fd, _GET_XSAVE2, raw)
        return bytes(raw) if result == 0 else b""

    def set_xsave(self, buf: bytes | bytearray) -> int:
        """KVM_SET_XSAVE; errno."""
        return _errno(_ioctl(self._fd, _SET_XSAVE, bytearray(buf)))

    def get_msrs(self, indices: Sequence[int]) -> list[int]:
        """KVM_GET_MSRS: the values that could be read."""
        raw = self._msrs([(index, 0) for index in indices])
        count = _ioctl(self._fd, _GET_MSRS, raw)
        return [_MSR.unpack_from(raw, _COUNT.size + nr * _MSR.size)[2] for nr in range(max(count, 0))]

    def set_msrs(self, entries: Sequence[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were set, or minus an errno."""
        return _ioctl(self._fd, _SET_MSRS, self._msrs(entries))

    @staticmethod
    def _msrs(entries: Sequence[tuple[int, int]]) -> bytearray:
        raw = bytearray(_COUNT.size + max(len(entries), 1) * _MSR.size)
        _COUNT.pack_into(raw, 0, len(entries), 0)
        for nr, (index, value) in enumerate(entries):
            _MSR.pack_into(raw, _COUNT.size + nr * _MSR.size, index, 0, value)
        return raw

    @property
    def cr4(self) -> int:
        """CR4 as the guest runs with it."""
        return self._user_sregs.cr4

    def run_ring0(self, rip: int, *, rdi: int, rsi: int) -> int:
        """Run ring-0 code at ``rip`` until its OUT; returns the port."""
        return self._run(self._kernel_sregs, KvmRegs(rip=rip, rdi=rdi, rsi=rsi, rsp=self._kernel_stack, rflags=2))

    def run_ring3(self, rip: int, *, rdi: int) -> int:
        """Run ring-3 code at ``rip`` until it comes out through a gate; returns the port."""
        return self._run(self._user_sregs, KvmRegs(rip=rip, rdi=rdi, rsp=_USER_STACK, rflags=2))

    def _run(self, sregs: KvmSregs, regs: KvmRegs) -> int:
        """``KvmUnusableError`` where the guest does not come out by an OUT."""
        set_up = [_ioctl(self._fd, _SET_SREGS, sregs), _ioctl(self._fd, _SET_REGS, regs)]
        result = _ioctl(self._fd, _RUN)
        (reason,) = struct.unpack_from("<I", self._page, _EXIT_REASON_AT)
        if any(set_up) or result < 0 or reason != _KVM_EXIT_IO:
            said = f"KVM_SET_SREGS, KVM_SET_REGS = {set_up}, KVM_RUN = {result}, exit reason {reason}"
            raise KvmUnusableError(f"the guest did not come out: {said}")
        (port,) = struct.unpack_from("<H", self._page, _IO_PORT_AT)
        return int(port)

    def close(self) -> None:
        """The vCPU, the VM, then its memory."""
        self._page.close()
        os.close(self._fd)
        os.close(self._vm)
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def arch_prctl(op: int, argument: int | None) -> tuple[int, int]:
    """arch_prctl(2) of this process: (errno, value); ``argument`` None is for operations that give a value."""
    value = c_uint64()
    given = addressof(value) if argument is None else argument
    result = _libc.syscall(_SYS_ARCH_PRCTL, c_ulong(op), c_ulong(given))
    return (get_errno() if result < 0 else 0), value.value
