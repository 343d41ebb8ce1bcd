"""KVM_GET_XSAVE, KVM_GET_XSAVE2 and KVM_SET_XSAVE: the registers of a vCPU outside the guest, in the user format.

Sources: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave2(), kvm_vcpu_ioctl_x86_set_xsave(), kvm_arch_vcpu_ioctl().
"""

from __future__ import annotations

import struct
from typing import Final

from fpu_core.errors import Errno
from fpu_core.fpu import KVM_XSAVE_BYTES
from fpu_core.layout import XSTATE_BV_OFFSET
from fpu_core.realloc import ReallocFailed
from fpu_core.uabi import fpu_copy_guest_fpstate_to_uabi, fpu_copy_uabi_to_guest_fpstate, guest_uabi_error
from fpu_core.xfeature import XFEATURE_MASK_FPSSE
from host_agent.kvm.growth import update_intercepts
from host_agent.kvm.restore import StateSet
from host_agent.kvm.vcpu import Vcpu

_U64: Final = struct.Struct("<Q")


def get_xsave(vcpu: Vcpu) -> bytes | Errno:
    """KVM_GET_XSAVE: exactly 4,096 bytes, and EINVAL once the state is larger: it is never cut."""
    return Errno.EINVAL if vcpu.guest.uabi_size > KVM_XSAVE_BYTES else get_xsave2(vcpu)


def get_xsave2(vcpu: Vcpu) -> bytes | Errno:
    """KVM_GET_XSAVE2: ``uabi_size`` bytes, cut to the components the guest's CPUID has, x87 and SSE always among them.

    Firmware keeps a confidential vCPU's registers: zeros, or EINVAL from a VM type that says so.
    """
    if vcpu.fpstate.is_confidential:
        return Errno.EINVAL if vcpu.vm.has_protected_state else bytes(vcpu.guest.uabi_size)
    exported = vcpu.guest_supported_xcr0 | XFEATURE_MASK_FPSSE
    return fpu_copy_guest_fpstate_to_uabi(vcpu.vm.host, vcpu.guest, vcpu.guest.uabi_size, exported, vcpu.pkru)


def set_xsave(vcpu: Vcpu, buf: bytes) -> StateSet | Errno:
    """KVM_SET_XSAVE: reads ``uabi_size`` bytes. What is refused changes nothing; nothing is ever cut.

    XSTATE_BV is judged by what the host supports and not by the guest's CPUID, so that an image made elsewhere goes in;
    the exception is a dynamic feature, for which the container must have room, or get it. Bits that the guest's XFD
    disables are dropped without a word: old VMMs send them, and XRSTOR must not meet them (January 2026, bug B1).
    """
    if len(buf) < vcpu.guest.uabi_size:
        return Errno.EFAULT
    fpstate, vm = vcpu.fpstate, vcpu.vm
    if fpstate.is_confidential:
        return Errno.EINVAL if vm.has_protected_state else StateSet()
    (bv,) = _U64.unpack_from(buf, XSTATE_BV_OFFSET)
    bv &= ~fpstate.xfd
    image = buf[:XSTATE_BV_OFFSET] + _U64.pack(bv) + buf[XSTATE_BV_OFFSET + _U64.size :]
    missing = bv & vcpu.xfd_allowed & ~fpstate.xfeatures
    accepts = fpstate.user_xfeatures | missing
    errno = guest_uabi_error(vm.host.config, image, vm.supported_xcr0, accepts, fpstate.xfd)
    if errno is not Errno.OK:
        return errno
    grown = vcpu.vm.policy.grow_for_restore(vcpu, missing)
    if isinstance(grown, ReallocFailed):
        return grown.errno
    imported = fpu_copy_uabi_to_guest_fpstate(vm.host, vcpu.guest, image, vm.supported_xcr0)
    if isinstance(imported, Errno):
        return imported  # a policy that never grows here has no room for a feature it was sent
    if imported.pkru is not None:
        vcpu.pkru = imported.pkru
    update_intercepts(vcpu)
    return StateSet(grown)
