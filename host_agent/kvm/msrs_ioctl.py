"""KVM_GET_MSRS and KVM_SET_MSRS for IA32_XFD, IA32_XFD_ERR and IA32_XSS: a run that ends at the first refusal.

Both answer how many entries were done; a refusal is no error, its place is the answer. Userspace may touch XFD and
XFD_ERR whether or not the guest's CPUID has them.

Sources: arch/x86/kvm/x86.c, msr_io(), do_set_msr(), kvm_set_msr_common(), kvm_get_msr_common().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fpu_core.errors import Errno
from fpu_core.guest import update_guest_xfd
from fpu_core.realloc import Reallocated, ReallocFailed
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS
from host_agent.kvm.caps import KvmCaps
from host_agent.kvm.growth import needs_action, update_intercepts
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xss import xss_error

#: This many entries and more are E2BIG. Source: arch/x86/kvm/x86.c, MAX_IO_MSRS and msr_io().
MAX_IO_MSRS: Final = 256


@dataclass(frozen=True, slots=True)
class MsrEntry:
    """A model-specific register by its number (struct kvm_msr_entry)."""

    index: int
    value: int


@dataclass(frozen=True, slots=True)
class MsrsSet:
    """``processed`` entries were written. ``reallocated``: the container grew for one of them."""

    processed: int
    reallocated: Reallocated | None = None


def msr_index_list(caps: KvmCaps) -> tuple[int, ...]:
    """KVM_GET_MSR_INDEX_LIST, of these three: what a VMM has to save on this host.

    Source: arch/x86/kvm/x86.c, kvm_probe_msr_to_save().
    """
    xfd = (MSR_IA32_XFD, MSR_IA32_XFD_ERR) if "XFD" in caps.features else ()
    return (*xfd, MSR_IA32_XSS) if caps.supported_xss else xfd


def get_msrs(vcpu: Vcpu, indices: Sequence[int]) -> list[MsrEntry] | Errno:
    """KVM_GET_MSRS: the entries up to the first that cannot be read. E2BIG for too many."""
    if len(indices) >= MAX_IO_MSRS:
        return Errno.E2BIG
    read = []
    for index in indices:
        value = _get_msr(vcpu, index)
        if value is None:
            break
        read.append(MsrEntry(index, value))
    return read


def set_msrs(vcpu: Vcpu, entries: Sequence[MsrEntry]) -> MsrsSet | Errno:
    """KVM_SET_MSRS: writes up to the first entry that is refused. E2BIG for too many.

    What the run will need is known before it starts, so the container grows first: without memory (ENOMEM) or
    permission (EPERM) not one entry is written.
    """
    if len(entries) >= MAX_IO_MSRS:
        return Errno.E2BIG
    run = _accepted(vcpu, entries)
    missing = 0
    for entry in run:
        if entry.index == MSR_IA32_XFD:
            missing |= needs_action(vcpu, xcr0=vcpu.xcr0, xfd=entry.value)
    grown = vcpu.vm.policy.grow_for_restore(vcpu, missing)
    if isinstance(grown, ReallocFailed):
        return grown.errno
    for entry in run:
        _set_msr(vcpu, entry)
    return MsrsSet(len(run), grown)


def _get_msr(vcpu: Vcpu, index: int) -> int | None:
    if index == MSR_IA32_XFD:
        return vcpu.fpstate.xfd
    if index == MSR_IA32_XFD_ERR:
        return vcpu.guest.xfd_err
    return vcpu.xss if index == MSR_IA32_XSS else None


def _accepted(vcpu: Vcpu, entries: Sequence[MsrEntry]) -> Sequence[MsrEntry]:
    """The entries before the first that is refused. No entry changes what another may be."""
    for count, entry in enumerate(entries):
        if not _is_valid(vcpu, entry):
            return entries[:count]
    return entries


def _is_valid(vcpu: Vcpu, entry: MsrEntry) -> bool:
    if entry.index in (MSR_IA32_XFD, MSR_IA32_XFD_ERR):
        return not entry.value & ~vcpu.xfd_allowed
    return entry.index == MSR_IA32_XSS and xss_error(vcpu, entry.value, host_initiated=True) is None


def _set_msr(vcpu: Vcpu, entry: MsrEntry) -> None:
    if entry.index == MSR_IA32_XFD:
        update_guest_xfd(None, vcpu.guest, entry.value)
        update_intercepts(vcpu)
    elif entry.index == MSR_IA32_XFD_ERR:
        vcpu.guest.xfd_err = entry.value
    else:
        vcpu.xss = entry.value
