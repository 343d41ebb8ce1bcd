"""Figures: what the core has counted, as one value that can be subtracted: what a piece of work cost.

The operations are those of the CPUs a VM shares with others, so a difference is a VM's own only if nothing else
happened in between; the memory is what its account was charged.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from host_agent.state import VmRecord


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts; bytes are of images and registers, ``bytes_allocated`` with the containers' headers."""

    vcpu_runs: int = 0
    saves: int = 0
    restores: int = 0
    bytes_saved: int = 0
    bytes_restored: int = 0
    bytes_copied: int = 0
    xfd_writes: int = 0
    xfd_copies: int = 0
    allocations: int = 0
    bytes_allocated: int = 0
    failed_allocations: int = 0

    def __add__(self, other: Figures) -> Figures:
        """Both together."""
        return Figures(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, earlier: Figures) -> Figures:
        """What was counted since ``earlier``."""
        return Figures(*(a - b for a, b in zip(astuple(self), astuple(earlier), strict=True)))


def figures(vm: VmRecord) -> Figures:
    """Read the counters of a VM and of the CPUs it runs on."""
    counters = [cpu.counters for cpu in vm.platform.cpus]
    account = vm.kvm.account
    return Figures(
        vcpu_runs=vm.kvm.fpu_reload,
        saves=sum(each.saves for each in counters),
        restores=sum(each.restores for each in counters),
        bytes_saved=sum(each.bytes_saved for each in counters),
        bytes_restored=sum(each.bytes_restored for each in counters),
        bytes_copied=sum(each.bytes_copied for each in counters),
        xfd_writes=sum(each.xfd_writes for each in counters),
        xfd_copies=sum(each.xfd_copies for each in counters),
        allocations=account.allocations,
        bytes_allocated=account.allocated_bytes,
        failed_allocations=account.failures,
    )
