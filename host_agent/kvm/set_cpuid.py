"""KVM_SET_CPUID2: the checks, in KVM's order, and then the table is the vCPU's.

Source: arch/x86/kvm/cpuid.c, kvm_vcpu_ioctl_set_cpuid2(), kvm_set_cpuid(), kvm_check_cpuid(), kvm_cpuid_check_equal().
"""

from __future__ import annotations

from typing import Final

from fpu_core.cpuid import CpuidRegs
from fpu_core.errors import Errno
from host_agent.kvm.cpuid import (
    KVM_MAX_CPUID_ENTRIES,
    CpuidTable,
    GuestCpuid,
    execute_cpuid,
    find_entry,
    with_runtime,
    xcr0_of,
)
from host_agent.kvm.vcpu import KvmVm, Vcpu

#: The widths of a virtual address that the kernel's address checks know; 0 is "not said".
_VIRTUAL_ADDRESS_BITS: Final = (0, 48, 57)


def set_cpuid2(vcpu: Vcpu, cpuid: GuestCpuid) -> Errno:
    """Give a vCPU its CPUID, or return why not: E2BIG, EINVAL. On failure nothing has changed.

    A vCPU that has run takes the table it has, and no other. Where the new one allows a dynamic feature for which the
    container has no room, XFD is intercepted again, if it was passed through in a life before.
    """
    errno = cpuid_refused(vcpu, cpuid)
    if errno is Errno.OK and not vcpu.has_run:
        vcpu.cpuid = cpuid
        vcpu.xfd_passthrough = vcpu.xfd_passthrough and not vcpu.xfd_allowed & ~vcpu.fpstate.xfeatures
    return errno


def set_vm_cpuid(vm: KvmVm, cpuid: GuestCpuid) -> Errno:
    """KVM_SET_CPUID2 for every vCPU of a VM, and for those to come. All are asked before any takes it.

    A container that grew for it before another could not stays as large as it is: the kernel has no way back either,
    and nothing but its size shows it.
    """
    for vcpu in vm.vcpus.values():
        errno = cpuid_refused(vcpu, cpuid)
        if errno is not Errno.OK:
            return errno
    for vcpu in vm.vcpus.values():
        set_cpuid2(vcpu, cpuid)
    vm.cpuid, vm.cpuid_given = cpuid, True
    return Errno.OK


def cpuid_refused(vcpu: Vcpu, cpuid: GuestCpuid) -> Errno:
    """Return what KVM_SET_CPUID2 would, without doing it."""
    if len(cpuid.table) > KVM_MAX_CPUID_ENTRIES:
        return Errno.E2BIG
    if vcpu.has_run:
        return Errno.OK if runtime_cpuid(vcpu, cpuid.table) == runtime_cpuid(vcpu) else Errno.EINVAL
    return check_cpuid(vcpu, cpuid)


def check_cpuid(vcpu: Vcpu, cpuid: GuestCpuid) -> Errno:
    """kvm_check_cpuid(): last comes the memory for dynamic features, of those policies that take it here.

    The policy is asked about the mask as it was given, not about what KVM supports of it: so bit 18 is EPERM without
    permission on a host without AMX too. Seen on a real KVM.
    """
    address = find_entry(cpuid.table, 0x8000_0008, None)
    if address is not None and address.eax >> 8 & 0xFF not in _VIRTUAL_ADDRESS_BITS:
        return Errno.EINVAL
    return vcpu.vm.policy.check_cpuid(vcpu, xcr0_of(cpuid.table))


def runtime_cpuid(vcpu: Vcpu, table: CpuidTable | None = None) -> CpuidTable:
    """The vCPU's table, or another, with the values that follow its registers: what KVM_GET_CPUID2 gives."""
    components = vcpu.vm.host.config.table
    found = vcpu.cpuid.table if table is None else table
    return with_runtime(found, components, xcr0=vcpu.xcr0, xss=vcpu.xss, cr4=vcpu.cr4)


def guest_cpuid(vcpu: Vcpu, leaf: int, subleaf: int = 0) -> CpuidRegs:
    """What CPUID gives the guest for a leaf. No exit to userspace, and no event: KVM answers by itself."""
    return execute_cpuid(runtime_cpuid(vcpu), leaf, subleaf)
