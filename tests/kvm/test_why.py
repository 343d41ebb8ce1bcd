"""Each refusal says which rule was broken, and of a value which bits: for whoever reads the log of a guest's #GP."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XSS
from host_agent.kvm import intercept
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.msrs_ioctl import MsrEntry, get_msrs
from host_agent.kvm.outcome import Inject
from host_agent.kvm.vcpu import Vcpu
from tests.kvm.test_xfd import entered


def _without_cpuid(vcpu: Vcpu) -> None:
    vcpu.cpuid = GuestCpuid((), vcpu.vm.caps)


@pytest.mark.parametrize(
    ("execute", "why"),
    [
        pytest.param(lambda vcpu: intercept.handle_xsetbv(vcpu, index=0, value=7, cpl=3), "CPL 0", id="XSETBV, CPL"),
        pytest.param(lambda vcpu: intercept.handle_xsetbv(vcpu, index=0, value=6), "XSETBV: ", id="XSETBV, value"),
        pytest.param(lambda vcpu: intercept.handle_xgetbv(vcpu, index=2), "no XCR2", id="XGETBV"),
        pytest.param(
            lambda vcpu: intercept.handle_wrmsr(vcpu, msr=MSR_IA32_XFD, value=1 << 18 | 1 << 17),
            "bits 0x20000 are not supported in MSR 0x1c4",
            id="XFD",
        ),
        pytest.param(
            lambda vcpu: intercept.handle_wrmsr(vcpu, msr=MSR_IA32_XSS, value=1 << 11 | 1 << 8),
            "XSS: bits 0x100 are not supported for this guest",
            id="XSS",
        ),
        pytest.param(
            lambda vcpu: intercept.handle_write_cr4(vcpu, value=1 << 31 | 1),
            "CR4: bits 0x80000000 are reserved",
            id="CR4",
        ),
    ],
)
def test_the_rule(execute: Callable[[Vcpu], object], why: str) -> None:
    """#GP(0), and why."""
    refused = execute(entered()[1].vcpu)
    assert isinstance(refused, Inject)
    assert why in refused.why


@pytest.mark.parametrize(
    ("execute", "why"),
    [
        pytest.param(lambda vcpu: intercept.handle_rdmsr(vcpu, msr=MSR_IA32_XFD), "CPUID has no XFD", id="XFD"),
        pytest.param(lambda vcpu: intercept.handle_rdmsr(vcpu, msr=MSR_IA32_XSS), "CPUID has no XSAVES", id="XSS read"),
        pytest.param(
            lambda vcpu: intercept.handle_wrmsr(vcpu, msr=MSR_IA32_XSS, value=0),
            "CPUID has no XSAVES",
            id="XSS written",
        ),
        pytest.param(lambda vcpu: intercept.handle_write_cr4(vcpu, value=1 << 18), "bit 18 needs XSAVE", id="OSXSAVE"),
        pytest.param(lambda vcpu: intercept.handle_write_cr4(vcpu, value=1 << 22), "bit 22 needs PKU", id="PKE"),
    ],
)
def test_what_the_guests_cpuid_lacks(execute: Callable[[Vcpu], object], why: str) -> None:
    """The same for a guest whose CPUID has nothing."""
    vcpu = entered("goldmont")[1].vcpu
    _without_cpuid(vcpu)
    refused = execute(vcpu)
    assert isinstance(refused, Inject)
    assert why in refused.why


def test_a_vmm_reads_xss_whatever_the_guests_cpuid_is() -> None:
    """What a guest without XSAVES may not read, KVM_GET_MSRS gives."""
    vcpu = entered()[1].vcpu
    _without_cpuid(vcpu)
    assert get_msrs(vcpu, [MSR_IA32_XSS]) == [MsrEntry(MSR_IA32_XSS, 0)]
