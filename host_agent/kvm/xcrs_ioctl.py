"""KVM_GET_XCRS and KVM_SET_XCRS: XCR0, the one extended control register that KVM knows.

Sources: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xcrs(), kvm_vcpu_ioctl_x86_set_xcrs(), __kvm_set_xcr().
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from fpu_core.errors import Errno
from fpu_core.realloc import ReallocFailed
from host_agent.kvm.growth import needs_action, update_intercepts
from host_agent.kvm.restore import StateSet
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xcr0 import xcr0_error

#: The size of the table in struct kvm_xcrs. Source: arch/x86/include/uapi/asm/kvm.h, KVM_MAX_XCRS.
KVM_MAX_XCRS: Final = 16
_XCR0: Final = 0


class Xcr(NamedTuple):
    """An extended control register by its number (struct kvm_xcr)."""

    xcr: int
    value: int


def get_xcrs(vcpu: Vcpu) -> list[Xcr] | Errno:
    """KVM_GET_XCRS: XCR0; an empty table on a host without XSAVE."""
    if _is_protected(vcpu):
        return Errno.EINVAL
    return [Xcr(_XCR0, vcpu.xcr0)] if vcpu.vm.host.config.xsave else []


def set_xcrs(vcpu: Vcpu, xcrs: Sequence[Xcr], flags: int = 0) -> StateSet | Errno:
    """KVM_SET_XCRS: the first entry that is XCR0 counts, by XSETBV's rules; other registers are ignored.

    Every refusal is EINVAL and changes nothing: a host without XSAVE, more than 16 entries, flags, a value that a guest
    could not write. Where XFD does not disable a feature that XCR0 enables, the container grows first.
    """
    if _is_protected(vcpu) or not vcpu.vm.host.config.xsave or len(xcrs) > KVM_MAX_XCRS or flags:
        return Errno.EINVAL
    value = next((entry.value for entry in xcrs if entry.xcr == _XCR0), None)
    if value is None:
        return StateSet()
    if xcr0_error(_XCR0, value, vcpu.guest_supported_xcr0) is not None:
        return Errno.EINVAL
    grown = vcpu.vm.policy.grow_for_restore(vcpu, needs_action(vcpu, xcr0=value, xfd=vcpu.fpstate.xfd))
    if isinstance(grown, ReallocFailed):
        return grown.errno
    vcpu.xcr0 = value
    update_intercepts(vcpu)
    return StateSet(grown)


def _is_protected(vcpu: Vcpu) -> bool:
    return vcpu.vm.has_protected_state and vcpu.fpstate.is_confidential
