"""The intercepts: XSETBV, XFD, XFD_ERR and #NM, with every validity rule, and what the guest does with registers.

A write is only judged here. How a legal one happens, when the container is too small for it, is the VM's policy's.

Sources: arch/x86/kvm/x86.c, kvm_emulate_xsetbv(), kvm_set_msr_common(), kvm_get_msr_common();
vmx/vmx.c, vmx_set_msr() and handle_nm_fault_irqoff().
"""

from __future__ import annotations

from fpu_core.cpu import Vector
from fpu_core.errors import FieldError
from fpu_core.guest import sync_guest_vmexit_xfd_state
from fpu_core.tile import TileOp
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS, XFEATURE_MASK_USER_DYNAMIC
from fpu_core.xsave_insn import XsaveInsn, xrstor_from_memory, xsave_to_memory
from host_agent.kvm.cpuid import X86_CR4_OSXSAVE
from host_agent.kvm.cr4 import cr4_error
from host_agent.kvm.growth import needs_action, update_intercepts
from host_agent.kvm.outcome import DONE, Done, Inject, Intercepted, PendingWrite, Trigger, gp
from host_agent.kvm.run import guest_window
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xcr0 import xcr0_error
from host_agent.kvm.xss import xss_error, xss_unsupported

_OSXSAVE_OFF = Inject(Vector.UD, why="CR4.OSXSAVE is 0")


class XfdSyncNeedsGrowthError(Exception):
    """A reported XFD would arm a feature the container has no room for: the caller dropped the intercept too early."""

    def __init__(self, xfd: int, missing: int) -> None:
        super().__init__(f"XFD {xfd:#x} at a VM exit needs features {missing:#x}, which the container lacks")
        self.xfd = xfd
        self.missing = missing


def handle_xsetbv(vcpu: Vcpu, *, index: int, value: int, cpl: int = 0) -> Intercepted:
    """XSETBV. #UD for CR4.OSXSAVE = 0 is the processor's, and comes before the intercept."""
    if not vcpu.cr4 & X86_CR4_OSXSAVE:
        return _OSXSAVE_OFF
    if cpl != 0:
        return gp("XSETBV is for CPL 0")
    error = xcr0_error(index & 0xFFFF_FFFF, value, vcpu.guest_supported_xcr0)
    if error is not None:
        return gp(f"XSETBV: {error}")
    return vcpu.vm.policy.execute_write(vcpu, PendingWrite(Trigger.XSETBV, value, vcpu.fpstate.xfd))


def handle_xgetbv(vcpu: Vcpu, *, index: int) -> Done | Inject:
    """XGETBV, which the processor executes by itself: XCR0, or what of it is in use (index 1).

    Source: SDM vol. 2, XGETBV.
    """
    if not vcpu.cr4 & X86_CR4_OSXSAVE:
        return _OSXSAVE_OFF
    index &= 0xFFFF_FFFF
    if index == 1 and vcpu.vm.host.config.caps.XGETBV1:
        with guest_window(vcpu) as cpu:
            return Done(value=cpu.xcr0 & cpu.xinuse)
    return Done(value=vcpu.xcr0) if index == 0 else gp(f"XGETBV: there is no XCR{index}")


def handle_write_cr4(vcpu: Vcpu, *, value: int) -> Done | Inject:
    """MOV to CR4. CPUID's OSXSAVE and OSPKE follow it."""
    error = cr4_error(vcpu.cpuid, value)
    if error is not None:
        return gp(f"CR4: {error}")
    vcpu.cr4_written = value
    return DONE


def handle_wrmsr(vcpu: Vcpu, *, msr: int, value: int) -> Intercepted:
    """WRMSR of XFD, XFD_ERR or XSS. XFD does not depend on XCR0: it may be armed before the feature is enabled."""
    if msr == MSR_IA32_XSS:
        return _write_xss(vcpu, value)
    refused = _xfd_msr_refused(vcpu, msr)
    if refused is not None:
        return refused
    if value & ~vcpu.xfd_allowed:
        return gp(f"bits {value & ~vcpu.xfd_allowed:#x} are not supported in MSR {msr:#x}")
    if msr == MSR_IA32_XFD_ERR:
        vcpu.guest.xfd_err = value
        return DONE
    return vcpu.vm.policy.execute_write(vcpu, PendingWrite(Trigger.WRMSR_XFD, vcpu.xcr0, value))


def handle_rdmsr(vcpu: Vcpu, *, msr: int) -> Intercepted:
    """RDMSR of XFD, XFD_ERR or XSS, from where their truth is."""
    if msr == MSR_IA32_XSS:
        unsupported = xss_unsupported(vcpu)
        return gp(unsupported) if unsupported else Done(value=vcpu.xss)
    refused = _xfd_msr_refused(vcpu, msr)
    if refused is not None:
        return refused
    return Done(value=vcpu.fpstate.xfd if msr == MSR_IA32_XFD else vcpu.guest.xfd_err)


def _write_xss(vcpu: Vcpu, value: int) -> Done | Inject:
    error = xss_error(vcpu, value, host_initiated=False)
    if error is not None:
        return gp(f"XSS: {error}")
    vcpu.xss = value
    return DONE


def _xfd_msr_refused(vcpu: Vcpu, msr: int) -> Inject | None:
    if msr not in (MSR_IA32_XFD, MSR_IA32_XFD_ERR):
        known = f"{MSR_IA32_XFD:#x} (XFD), {MSR_IA32_XFD_ERR:#x} (XFD_ERR) or {MSR_IA32_XSS:#x} (XSS)"
        raise FieldError("msr", known, hex(msr))
    return None if vcpu.has_xfd else gp("the guest's CPUID has no XFD")


def handle_nm(vcpu: Vcpu, *, cr0_ts: bool) -> Inject:
    """An #NM exit. It never allocates: it records XFD_ERR if XFD caused it, and the guest takes the exception.

    With CR0.TS set the #NM has another cause and XFD_ERR stays what it was (bug B32).
    """
    fpstate = vcpu.fpstate
    if fpstate.xfd and not cr0_ts:
        vcpu.guest.xfd_err = fpstate.xfd & vcpu.xcr0 & XFEATURE_MASK_USER_DYNAMIC
    return Inject(Vector.NM, xfd_err=vcpu.guest.xfd_err, why="CR0.TS" if cr0_ts else "XFD")


def handle_xfd_sync(vcpu: Vcpu, *, xfd: int) -> Done:
    """XFD as the guest left it at a VM exit, with the intercept dropped.

    Raises ``XfdSyncNeedsGrowthError`` where it would need growth and ``FieldError`` for a value no guest could write:
    both are the caller's mistake, and change nothing.
    """
    if xfd & ~vcpu.xfd_allowed:
        raise FieldError("xfd", f"a subset of {vcpu.xfd_allowed:#x}", hex(xfd))
    missing = needs_action(vcpu, xcr0=vcpu.xcr0, xfd=xfd)
    if missing:
        raise XfdSyncNeedsGrowthError(xfd, missing)
    with guest_window(vcpu) as cpu:
        cpu.xfd = xfd
        sync_guest_vmexit_xfd_state(cpu)
    update_intercepts(vcpu)
    return DONE


def write_register(vcpu: Vcpu, *, feature: int, offset: int, data: bytes) -> Done | Inject:
    """The guest loads a register: an instruction that uses ``feature``, with its #UD, #NM and #GP."""
    _check_feature(vcpu, feature)
    with guest_window(vcpu) as cpu:
        fault = cpu.register_fault(feature, vcpu.enabled_xcr0)
        if fault is None:
            fault = cpu.write_register(feature, offset, data)
    return DONE if fault is None else _inject(vcpu, fault)


def read_register(vcpu: Vcpu, *, feature: int, offset: int, length: int) -> Done | Inject:
    """The guest reads a register back; faults as for a write."""
    size = _check_feature(vcpu, feature)
    if offset < 0 or length < 1 or offset + length > size:
        raise FieldError("length", f"1..{size} bytes that end at or before byte {size} of the component", length)
    with guest_window(vcpu) as cpu:
        fault = cpu.register_fault(feature, vcpu.enabled_xcr0)
        raw = b"" if fault is not None else cpu.read_register(feature)
    return Done(data=raw[offset : offset + length]) if fault is None else _inject(vcpu, fault)


def execute_tile(vcpu: Vcpu, *, op: TileOp, tile: int, memory: bytes) -> Done | Inject:
    """A tile instruction, executed by the modelled processor on the guest's behalf."""
    with guest_window(vcpu) as cpu:
        result = cpu.tile_instruction(op, tile, memory, vcpu.enabled_xcr0)
    return _inject(vcpu, result) if isinstance(result, Vector) else Done(data=result)


def execute_xsave(vcpu: Vcpu, *, insn: XsaveInsn, rfbm: int, memory: bytes, address: int = 0) -> Done | Inject:
    """The guest executes XSAVE, XSAVEOPT, XSAVEC or XRSTOR on ``memory``; ``Done.data`` is the memory after a store.

    No VMM intercepts them. XCR0 and XFD are the guest's; ``FieldError`` where ``memory`` is too short for the image.
    """
    if not vcpu.cr4 & X86_CR4_OSXSAVE:
        return _OSXSAVE_OFF
    image = bytearray(memory)
    with guest_window(vcpu) as cpu:
        fault = (
            xsave_to_memory(cpu, insn, image, rfbm, address=address)
            if insn.stores
            else xrstor_from_memory(cpu, image, rfbm, address=address)
        )
    if fault is not None:
        return _inject(vcpu, fault)
    return Done(data=bytes(image) if insn.stores else b"")


def _check_feature(vcpu: Vcpu, feature: int) -> int:
    known = vcpu.vm.supported_xcr0 | vcpu.vm.host.config.legacy_features
    if feature < 0 or not known >> feature & 1:
        raise FieldError("feature", f"a bit of {known:#x}, what KVM can give a guest here", feature)
    return vcpu.vm.host.config.table.size_bytes(feature)


def _inject(vcpu: Vcpu, fault: Vector) -> Inject:
    return Inject(fault, error_code=0 if fault is Vector.GP else None, xfd_err=vcpu.guest.xfd_err)
