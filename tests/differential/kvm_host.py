"""The machine whose KVM answered: a Zen 4 with XCR0 0xe7, and a VM of one vCPU on it.

The recorded KVM ran nested on a host that hides PKU, so the processor here is the built-in one without it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from fpu_core.alloc import Account, Allocator
from fpu_core.config import FpuConfig, boot
from fpu_core.cpu import Cpu
from fpu_core.cpuid import builtin_profile
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, FpuHost
from fpu_core.sched import switch_to
from host_agent.kvm.policy import allocation_policy
from host_agent.kvm.run import vcpu_enter
from host_agent.kvm.set_cpuid import set_vm_cpuid
from host_agent.kvm.vcpu import KvmVm, Vcpu, create_vcpu

SUPPORTED_XCR0 = 0xE7


@cache
def zen4_without_pku() -> FpuConfig:
    """The boot configuration of the machine."""
    profile = builtin_profile("zen4")
    config = boot(replace(profile, caps_override=profile.caps._replace(OSPKE=False)))
    assert config.user.max_features == SUPPORTED_XCR0
    return config


def fresh_vcpu(*, cpuid: int | None, policy: str = "on_swap") -> Vcpu:
    """A vCPU that has never run. ``cpuid`` is CPUID.0xD.0 EDX:EAX as set, None for all that the host supports.

    Before any KVM_SET_CPUID2 a guest may use nothing, which is the same as setting 0.
    """
    allocator = Allocator()
    host = FpuHost(zen4_without_pku(), allocator)
    account = Account("vms/a", allocator.host)
    leader = Fpu(host, "vmm", account=account)
    leader.need_load = True
    vm = KvmVm(host, account, leader, allocation_policy(policy))
    if cpuid is not None:
        assert set_vm_cpuid(vm, vm.masked_cpuid(cpuid)) is Errno.OK
    vcpu = create_vcpu(vm, 0)
    assert isinstance(vcpu, Vcpu)
    return vcpu


def enter(vcpu: Vcpu) -> None:
    """KVM_RUN on the VMM's own thread, on a CPU of its own."""
    fpu = vcpu.vm.leader
    if fpu.cpu is None:
        switch_to(Cpu(0, vcpu.vm.host.config), fpu)
    vcpu_enter(vcpu, fpu)
