"""A virtual machine: memory, the MSR filter, and whether this computer can run one."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from types import TracebackType
from typing import Self

from guest_agent.kvm import api
from guest_agent.kvm.api import ioctl
from guest_agent.kvm.cpuid import hide_tiles
from guest_agent.kvm.error import KvmError
from guest_agent.kvm.memory import GuestMemory
from guest_agent.kvm.structs import KvmCpuid, KvmEnableCap, KvmMsrFilter, KvmUserspaceMemoryRegion
from guest_agent.kvm.vcpu import Vcpu

MSR_IA32_XFD = 0x1C4
MSR_IA32_XFD_ERR = 0x1C5

KVM_DEVICE = Path("/dev/kvm")

_NEEDED_CAPS = {
    "KVM_CAP_EXT_CPUID": api.KVM_CAP_EXT_CPUID,
    "KVM_CAP_VCPU_EVENTS": api.KVM_CAP_VCPU_EVENTS,
    "KVM_CAP_XCRS": api.KVM_CAP_XCRS,
    "KVM_CAP_SYNC_REGS": api.KVM_CAP_SYNC_REGS,
    "KVM_CAP_IMMEDIATE_EXIT": api.KVM_CAP_IMMEDIATE_EXIT,
    "KVM_CAP_X86_USER_SPACE_MSR": api.KVM_CAP_X86_USER_SPACE_MSR,
    "KVM_CAP_X86_MSR_FILTER": api.KVM_CAP_X86_MSR_FILTER,
}

# Three pages below 4 GiB, away from guest memory. Source: api.rst 4.36, needed on Intel hosts.
_TSS_ADDRESS = 0xFFFBD000


def kvm_available(device: Path = KVM_DEVICE) -> str | None:
    """Return why `KvmGuest` cannot run here, in one sentence; None if it can."""
    if platform.machine() != "x86_64":
        return f"the guest is x86-64 code, this machine is {platform.machine()}"
    try:
        with Kvm(device) as kvm:
            kvm.check()
            kvm.create_vm(memory_size=2 << 20).close()
    except OSError as error:
        return f"{device}: {error.strerror}"
    except KvmError as error:
        return f"{device}: {error}"
    return None


class Kvm:
    """The KVM device itself, open.

    Raises:
        OSError: the device is missing or may not be opened.
    """

    def __init__(self, device: Path = KVM_DEVICE) -> None:
        self._fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)

    def check(self) -> None:
        """Hold this KVM against what the VMM needs.

        Raises:
            KvmError: no KVM, another API version, or a capability missing; the message names it.
        """
        version = ioctl(self._fd, "KVM_GET_API_VERSION")
        if version != api.KVM_API_VERSION:
            expected = f"expected version {api.KVM_API_VERSION}, this is {version}"
            raise KvmError(expected, exit_reason="KVM_GET_API_VERSION")
        for name, number in _NEEDED_CAPS.items():
            if ioctl(self._fd, "KVM_CHECK_EXTENSION", number) <= 0:
                raise KvmError(f"{name} is missing", exit_reason="KVM_CHECK_EXTENSION")

    def supported_cpuid(self) -> KvmCpuid:
        """Return KVM_GET_SUPPORTED_CPUID's entries, tiles and XFD hidden."""
        cpuid = KvmCpuid(nent=KvmCpuid.CAPACITY)
        ioctl(self._fd, "KVM_GET_SUPPORTED_CPUID", cpuid)
        hide_tiles(cpuid)
        return cpuid

    def create_vm(self, *, memory_size: int) -> Vm:
        """Make a VM with `memory_size` bytes of memory at address 0, whose XFD MSRs trap to userspace."""
        mmap_size = ioctl(self._fd, "KVM_GET_VCPU_MMAP_SIZE")
        memory = GuestMemory(memory_size)
        return Vm(ioctl(self._fd, "KVM_CREATE_VM"), memory=memory, vcpu_mmap_size=mmap_size)

    def close(self) -> None:
        """Close the device; VMs made from it live on."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Vm:
    """A VM file descriptor and its memory. Close its vCPUs first, then it; `with` does.

    Attributes:
        memory: guest physical memory.
    """

    def __init__(self, fd: int, *, memory: GuestMemory, vcpu_mmap_size: int) -> None:
        self._fd = fd
        self._vcpu_mmap_size = vcpu_mmap_size
        self.memory = memory
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def create_vcpu(self, cpuid: KvmCpuid) -> Vcpu:
        """Make vCPU 0. Any thread may run it, one at a time."""
        return Vcpu(ioctl(self._fd, "KVM_CREATE_VCPU", 0), cpuid=cpuid, mmap_size=self._vcpu_mmap_size)

    def close(self) -> None:
        """Close the VM, then give its memory back: in this order, as KVM reads the memory until the end."""
        os.close(self._fd)
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _set_up(self) -> None:
        ioctl(self._fd, "KVM_SET_TSS_ADDR", _TSS_ADDRESS)
        region = KvmUserspaceMemoryRegion(memory_size=self.memory.size, userspace_addr=self.memory.host_address)
        ioctl(self._fd, "KVM_SET_USER_MEMORY_REGION", region)
        self._trap_xfd_msrs()

    def _trap_xfd_msrs(self) -> None:
        """Send every access to XFD and XFD_ERR to userspace, whether or not the processor has them.

        The filter is what makes it work: without it an MSR that KVM does not know is #GP before userspace hears of it.
        """
        enable = KvmEnableCap(cap=api.KVM_CAP_X86_USER_SPACE_MSR)
        enable.args[0] = api.KVM_MSR_EXIT_REASON_FILTER
        ioctl(self._fd, "KVM_ENABLE_CAP", enable)
        deny = (ctypes.c_uint8 * 1)(0)
        msr_filter = KvmMsrFilter()
        first = msr_filter.ranges[0]
        first.flags = api.KVM_MSR_FILTER_READ | api.KVM_MSR_FILTER_WRITE
        first.base, first.nmsrs = MSR_IA32_XFD, MSR_IA32_XFD_ERR - MSR_IA32_XFD + 1
        first.bitmap = ctypes.cast(deny, ctypes.POINTER(ctypes.c_uint8))
        ioctl(self._fd, "KVM_X86_SET_MSR_FILTER", msr_filter)
