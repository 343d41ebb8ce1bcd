"""Control planes that are wrong in what they say of a vCPU, and in nothing that any other check looks at."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from fpstate.v1 import vcpu_pb2

from fault_lab.sim.reads import READS, Registers
from host_agent.kvm.growth import commit
from host_agent.kvm.outcome import PendingWrite, Trigger
from host_agent.kvm.policy import on_swap, on_write
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, VcpuSide

Patch = pytest.MonkeyPatch
Reading = vcpu_pb2.Vcpu | Registers


def stale_replica(patch: Patch) -> None:
    """GetVcpu is answered by a copy that is brought up to date by every third look alone."""
    real, looks = READS["GetVcpu"], itertools.count()
    copies: dict[str, Reading] = {}

    def read(state: HostState, vcpu: str) -> Reading:
        now = real(state, vcpu)
        if next(looks) % 3 == 0 or vcpu not in copies:
            copies[vcpu] = now
        return copies[vcpu]

    patch.setitem(READS, "GetVcpu", read)


def torn_read(patch: Patch) -> None:
    """GetVcpu puts XFD together from the look before this one and everything else from now."""
    real = READS["GetVcpu"]
    before: dict[str, int] = {}

    def read(state: HostState, vcpu: str) -> Reading:
        now = real(state, vcpu)
        if isinstance(now, vcpu_pb2.Vcpu):
            xfd, now.xfd = now.xfd, before.get(vcpu, now.xfd)
            before[vcpu] = xfd
        return now

    patch.setitem(READS, "GetVcpu", read)


def write_not_carried_out(patch: Patch) -> None:
    """Where there is room for what a WRMSR of XFD enables, it is acknowledged, and XFD stays what it was."""

    def forgets(vcpu: Vcpu, write: PendingWrite) -> None:
        if write.trigger is not Trigger.WRMSR_XFD:
            commit(vcpu, write)

    patch.setattr(on_swap, "commit", forgets)
    patch.setattr(on_write, "commit", forgets)


def speaks_of_the_future(patch: Patch) -> None:
    """GetVcpu of a vCPU that is parked in front of a write shows the registers as they will be."""
    real = READS["GetVcpu"]

    def read(state: HostState, vcpu: str) -> Reading:
        now = real(state, vcpu)
        side = state.vcpu(vcpu).agent
        if isinstance(now, vcpu_pb2.Vcpu) and isinstance(side, VcpuSide) and side.exit is not None:
            now.xcr0, now.xfd = side.exit.write.xcr0, side.exit.write.xfd
        return now

    patch.setitem(READS, "GetVcpu", read)


#: Each with the number of runs within which it has to be found.
MUTANTS: dict[str, tuple[Callable[[Patch], None], int]] = {
    "stale-replica": (stale_replica, 5),
    "torn-read": (torn_read, 5),
    "write-not-carried-out": (write_not_carried_out, 5),
    "speaks-of-the-future": (speaks_of_the_future, 10),
}
