"""struct kvm_run: the page a vCPU shares with KVM.

Source: include/uapi/linux/kvm.h; Documentation/virt/kvm/api.rst section 5.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from guest_agent.kvm.structs import KvmRegs


class KvmExitIo(ctypes.Structure):
    """The io member of struct kvm_run's union; the bytes lie at data_offset from the start of kvm_run (api.rst 5)."""

    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )

    direction: int
    size: int
    port: int
    count: int
    data_offset: int


class KvmExitMsr(ctypes.Structure):
    """The msr member: `error` and, for a read, `data` are userspace's answer (api.rst 5)."""

    _fields_ = (
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    )

    error: int
    reason: int
    index: int
    data: int


class KvmExitInternal(ctypes.Structure):
    """The internal member (api.rst 5)."""

    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))

    suberror: int


class KvmExitFailEntry(ctypes.Structure):
    """The fail_entry member (api.rst 5)."""

    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))

    hardware_entry_failure_reason: int


class KvmExitUnion(ctypes.Union):
    """The union of struct kvm_run, 256 bytes."""

    _fields_ = (
        ("io", KvmExitIo),
        ("msr", KvmExitMsr),
        ("internal", KvmExitInternal),
        ("fail_entry", KvmExitFailEntry),
        ("padding", c_uint8 * 256),
    )

    io: KvmExitIo
    msr: KvmExitMsr
    internal: KvmExitInternal
    fail_entry: KvmExitFailEntry


class KvmRun(ctypes.Structure):
    """struct kvm_run, the page shared with KVM, up to the registers KVM_CAP_SYNC_REGS puts there (api.rst 5)."""

    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("exit", KvmExitUnion),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("regs", KvmRegs),
    )

    immediate_exit: int
    exit_reason: int
    exit: KvmExitUnion
    kvm_valid_regs: int
    kvm_dirty_regs: int
    regs: KvmRegs
