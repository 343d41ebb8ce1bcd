"""IA32_XSS: who may write what, who sees it, and how long it lives.

Reference: arch/x86/kvm/x86.c, kvm_set_msr_common(), MSR_IA32_XSS; kvm_load_guest_xsave_state().
"""

from __future__ import annotations

import pytest

from fpu_core.cpu import Vector
from fpu_core.rules import KERNEL_6_12, KERNEL_6_18, KernelRules
from fpu_core.xfeature import MSR_IA32_XSS
from host_agent.kvm import intercept
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.msrs_ioctl import MsrEntry, get_msrs
from host_agent.kvm.outcome import Done, Inject
from host_agent.kvm.run import guest_window
from host_agent.kvm.vcpu import reset_vcpu
from host_agent.kvm.xss import xss_error, xss_unsupported
from tests.core.world import Guest, World

CET = 0x1800


def entered(profile: str = "sapphire-rapids", rules: KernelRules = KERNEL_6_18) -> tuple[World, Guest]:
    """A vCPU in the guest."""
    world = World.create(profile, rules=rules)
    guest = world.create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    fpu = world.tasks["a/main"].fpu
    world.run(fpu, 0)
    world.enter(guest, fpu)
    return world, guest


@pytest.mark.parametrize(
    ("profile", "rules", "value", "fine"),
    [
        pytest.param("sapphire-rapids", KERNEL_6_18, 0, True, id="0"),
        pytest.param("sapphire-rapids", KERNEL_6_18, CET, True, id="both halves of CET"),
        pytest.param("sapphire-rapids", KERNEL_6_18, 1 << 11, True, id="CET_USER alone"),
        pytest.param("sapphire-rapids", KERNEL_6_18, 1 << 8, False, id="PT, which guests save by hand - expect #GP"),
        pytest.param("sapphire-rapids", KERNEL_6_18, 1 << 10, False, id="PASID, which is the host's - expect #GP"),
        pytest.param("sapphire-rapids", KERNEL_6_18, 1 << 15, False, id="LBR, which perf saves - expect #GP"),
        pytest.param("sapphire-rapids", KERNEL_6_18, 1, False, id="a user feature - expect #GP"),
        pytest.param("sapphire-rapids", KERNEL_6_12, 0, True, id="0 under 6.12"),
        pytest.param("sapphire-rapids", KERNEL_6_12, 1 << 11, False, id="CET under 6.12, which gives guests none"),
        pytest.param("goldmont", KERNEL_6_18, 1 << 11, False, id="CET on a processor without - expect #GP"),
    ],
)
def test_wrmsr(profile: str, rules: KernelRules, value: int, fine: bool) -> None:
    """A write by the guest is committed, or #GP(0) and nothing has changed."""
    _, guest = entered(profile, rules)
    answer = intercept.handle_wrmsr(guest.vcpu, msr=MSR_IA32_XSS, value=value)
    assert isinstance(answer, Done) == fine
    if isinstance(answer, Inject):
        assert (answer.vector, answer.error_code) == (Vector.GP, 0)
    assert intercept.handle_rdmsr(guest.vcpu, msr=MSR_IA32_XSS) == Done(value=value if fine else 0)


def test_userspace_reads_what_it_may_not_write() -> None:
    """Without XSAVES in the guest's CPUID a VMM reads XSS, and since 6.18 writes 0 only: seen on a real 6.18."""
    for rules, writes in ((KERNEL_6_12, [0]), (KERNEL_6_18, [0])):
        vcpu = entered(rules=rules)[1].vcpu
        vcpu.cpuid = GuestCpuid((), vcpu.vm.caps)
        assert get_msrs(vcpu, [MSR_IA32_XSS]) == [MsrEntry(MSR_IA32_XSS, 0)]
        assert xss_unsupported(vcpu) is not None
        assert [bits for bits in (0, CET) if xss_error(vcpu, bits, host_initiated=True) is None] == writes
    vcpu = entered("goldmont")[1].vcpu
    vcpu.cpuid = GuestCpuid((), vcpu.vm.caps)
    assert xss_error(vcpu, 0, host_initiated=True) is not None, "no XSS that KVM would list"


def test_the_guest_executes_under_its_own_xss() -> None:
    """XSS is the guest's while it executes and the host's again afterwards."""
    _, guest = entered()
    intercept.handle_wrmsr(guest.vcpu, msr=MSR_IA32_XSS, value=CET)
    assert guest.vcpu.fpu is not None
    assert guest.vcpu.fpu.cpu is not None
    cpu = guest.vcpu.fpu.cpu
    before = cpu.xss
    with guest_window(guest.vcpu):
        inside = cpu.xss
    assert (inside, cpu.xss) == (CET, before)
    assert before != CET


def test_reset_clears_it() -> None:
    """RESET makes XSS 0."""
    world, guest = entered()
    intercept.handle_wrmsr(guest.vcpu, msr=MSR_IA32_XSS, value=CET)
    world.leave(guest)
    assert guest.vcpu.xss == CET
    reset_vcpu(guest.vcpu)
    assert guest.vcpu.xss == 0
