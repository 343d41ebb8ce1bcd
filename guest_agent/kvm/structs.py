"""The structures KVM's ioctls take and fill, as far as this VMM uses them.

Source: arch/x86/include/uapi/asm/kvm.h and include/uapi/linux/kvm.h; what the fields mean is in
Documentation/virt/kvm/api.rst, in the section named beside each. Layouts are x86-64's. Only the fields that are read or
written by name here have an annotation.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64


class KvmRegs(ctypes.Structure):
    """struct kvm_regs (api.rst 4.11)."""

    _fields_ = (
        *((name, c_uint64) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")),
        *((f"r{n}", c_uint64) for n in range(8, 16)),
        ("rip", c_uint64),
        ("rflags", c_uint64),
    )

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    rip: int
    rflags: int

    @property
    def gprs(self) -> tuple[int, ...]:
        """The sixteen general registers in the order of their numbers in an instruction's encoding."""
        low = (self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi)
        return (*low, *(int(getattr(self, f"r{n}")) for n in range(8, 16)))


class KvmSegment(ctypes.Structure):
    """struct kvm_segment (api.rst 4.13)."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class KvmDtable(ctypes.Structure):
    """struct kvm_dtable: base and limit of the GDT or IDT (api.rst 4.13)."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))

    base: int
    limit: int


class KvmSregs(ctypes.Structure):
    """struct kvm_sregs: segments, tables and control registers (api.rst 4.13)."""

    _fields_ = (
        *((name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", KvmDtable),
        ("idt", KvmDtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )

    cs: KvmSegment
    ds: KvmSegment
    es: KvmSegment
    fs: KvmSegment
    gs: KvmSegment
    ss: KvmSegment
    tr: KvmSegment
    gdt: KvmDtable
    idt: KvmDtable
    cr0: int
    cr3: int
    cr4: int
    efer: int


class KvmException(ctypes.Structure):
    """The exception part of struct kvm_vcpu_events."""

    _fields_ = (
        ("injected", c_uint8),
        ("nr", c_uint8),
        ("has_error_code", c_uint8),
        ("pending", c_uint8),
        ("error_code", c_uint32),
    )

    injected: int
    nr: int
    has_error_code: int
    error_code: int


class KvmVcpuEvents(ctypes.Structure):
    """struct kvm_vcpu_events, its interrupt, NMI and SMI parts left as bytes (api.rst 4.31)."""

    _fields_ = (
        ("exception", KvmException),
        ("interrupt", c_uint8 * 4),
        ("nmi", c_uint8 * 4),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", c_uint8 * 4),
        ("triple_fault", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )

    exception: KvmException


class KvmXcr(ctypes.Structure):
    """struct kvm_xcr (api.rst 4.44)."""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))

    xcr: int
    value: int


class KvmXcrs(ctypes.Structure):
    """struct kvm_xcrs; KVM honours the entry of XCR0 and no other (api.rst 4.44)."""

    _fields_ = (("nr_xcrs", c_uint32), ("flags", c_uint32), ("xcrs", KvmXcr * 16), ("padding", c_uint64 * 16))

    nr_xcrs: int
    xcrs: ctypes.Array[KvmXcr]


class KvmUserspaceMemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region (api.rst 4.35)."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class KvmEnableCap(ctypes.Structure):
    """struct kvm_enable_cap (api.rst 4.37)."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))

    args: ctypes.Array[c_uint64]


class KvmMsrFilterRange(ctypes.Structure):
    """struct kvm_msr_filter_range; a 0 in the bitmap denies (api.rst 4.97)."""

    _fields_ = (("flags", c_uint32), ("nmsrs", c_uint32), ("base", c_uint32), ("bitmap", ctypes.POINTER(c_uint8)))


class KvmMsrFilter(ctypes.Structure):
    """struct kvm_msr_filter (api.rst 4.97)."""

    _fields_ = (("flags", c_uint32), ("ranges", KvmMsrFilterRange * 16))

    ranges: ctypes.Array[KvmMsrFilterRange]


class KvmCpuidEntry(ctypes.Structure):
    """struct kvm_cpuid_entry2 (api.rst 4.46)."""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    )

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


class KvmCpuid(ctypes.Structure):
    """struct kvm_cpuid2 with room for 256 entries, more than any processor has (api.rst 4.46)."""

    CAPACITY = 256
    _fields_ = (("nent", c_uint32), ("padding", c_uint32), ("entries", KvmCpuidEntry * CAPACITY))

    nent: int
    entries: ctypes.Array[KvmCpuidEntry]
