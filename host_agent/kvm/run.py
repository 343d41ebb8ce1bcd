"""KVM_RUN: entering, leaving, and the window in which guest code executes.

    vcpu_enter   kvm_load_guest_fpu(): swap in
      guest_window   XCR0, XSS, PKRU and XFD_ERR are the guest's for as long as it executes
    vcpu_leave   kvm_put_guest_fpu(): swap out, where a pending growth is honoured

Source: arch/x86/kvm/x86.c, vcpu_enter_guest(), kvm_load_guest_xsave_state(), kvm_load_guest_fpu().
"""

from __future__ import annotations

from fpu_core.alloc import AllocFailure
from fpu_core.context import running_cpu
from fpu_core.cpu import Cpu
from fpu_core.errors import CoreBug, core_assert
from fpu_core.fpu import Fpu
from fpu_core.sched import read_pkru, switch_fpu_return, write_pkru
from fpu_core.swap import SwapResult
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.kvm.cpuid import X86_CR4_OSXSAVE
from host_agent.kvm.lifecycle import VcpuEvent, next_state
from host_agent.kvm.vcpu import Vcpu


def vcpu_enter(vcpu: Vcpu, fpu: Fpu) -> AllocFailure | None:
    """Start KVM_RUN on the thread ``fpu``, which must be running. It need not be the one that created the vCPU.

    Not None only under ``three_buffer``, where the thread's own image may have to grow first: then KVM_RUN returns
    -ENOMEM and nothing has changed.
    """
    state = next_state(vcpu.state, VcpuEvent.ENTER)
    failure = vcpu.vm.policy.swap_in(fpu, vcpu.guest)
    if failure is not None:
        return failure
    fpu.host.counts.swaps += 1
    vcpu.state = state
    vcpu.fpu = fpu
    vcpu.has_run = True
    check_entry(vcpu)
    return None


def check_entry(vcpu: Vcpu) -> None:
    """The invariant of every guest entry: the container holds every dynamic feature that is enabled and not armed."""
    live = vcpu.xcr0 & ~vcpu.fpstate.xfd & XFEATURE_MASK_USER_DYNAMIC
    core_assert(not live & ~vcpu.fpstate.xfeatures, "{} enters with {:#x} enabled and no room for it", vcpu, live)


def vcpu_leave(vcpu: Vcpu) -> SwapResult:
    """End KVM_RUN. Returns how a pending growth went, None where there was none."""
    fpu = _runner(vcpu)
    result = vcpu.vm.policy.swap_out(fpu, vcpu.guest)
    fpu.host.counts.swaps += 1
    vcpu.fpu = None
    vcpu.vm.fpu_reload += 1
    vcpu.move(VcpuEvent.LEAVE)
    return result


def vcpu_abandon(vcpu: Vcpu) -> None:
    """A bug of ours stops this vCPU: its thread goes on without it, from any state of either."""
    if vcpu.fpu is not None:
        vcpu.vm.policy.abandon(vcpu.fpu, vcpu.guest)
        vcpu.fpu = None
    vcpu.move(VcpuEvent.BUG)


def _runner(vcpu: Vcpu) -> Fpu:
    if vcpu.fpu is None:
        raise CoreBug(f"{vcpu} is not in KVM_RUN")
    return vcpu.fpu


class guest_window:  # noqa: N801 -- reads as a statement: ``with guest_window(vcpu) as cpu:``
    """The guest executes: its XCR0, XSS, PKRU and XFD_ERR are in the registers, and the host's are back afterwards.

    Order as in KVM: before entry, load the registers if they are not ours, then XFD_ERR if it is not zero. After the
    exit, XFD_ERR is read only for an #NM that XFD caused, and zero is written back before anybody else can look.
    """

    __slots__ = ("_cpu", "_host_pkru", "_host_xcr0", "_host_xss", "_vcpu")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def __enter__(self) -> Cpu:
        vcpu = self._vcpu
        fpu = _runner(vcpu)
        self._cpu = cpu = running_cpu(fpu)
        switch_fpu_return(fpu)
        self._host_xcr0, self._host_xss, self._host_pkru = cpu.xcr0, cpu.xss, read_pkru(cpu)
        if vcpu.cr4 & X86_CR4_OSXSAVE:
            cpu.xcr0 = vcpu.xcr0
            if "XSAVES" in vcpu.cpuid.features:
                cpu.xss = vcpu.xss
        write_pkru(cpu, vcpu.pkru)
        if vcpu.guest.xfd_err:
            cpu.xfd_err = vcpu.guest.xfd_err
        return cpu

    def __exit__(self, *_error: object) -> None:
        cpu, vcpu = self._cpu, self._vcpu
        if cpu.xfd_err and vcpu.fpstate.xfd:
            vcpu.guest.xfd_err = cpu.xfd_err
        if vcpu.guest.xfd_err:
            cpu.xfd_err = 0
        cpu.xcr0, cpu.xss = self._host_xcr0, self._host_xss
        vcpu.pkru = read_pkru(cpu)
        write_pkru(cpu, self._host_pkru)
