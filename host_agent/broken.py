"""Our bug: the vCPU it happened on stops and says so, and nobody else is touched."""

from __future__ import annotations

from fpu_core.errors import CoreBug
from host_agent.directives import finish_pending
from host_agent.errors import Reason, Refused
from host_agent.events import RejectedOutcome
from host_agent.exit_desk import close_exit
from host_agent.exits import ExitState
from host_agent.kvm.run import vcpu_abandon
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, VcpuSide


def break_vcpu(state: HostState, vcpu: Vcpu, bug: CoreBug) -> Refused:
    """Take the vCPU off its thread, settle what waits on it, and return what its reporter is to hear."""
    name = state.vcpu_name(vcpu)
    vcpu_abandon(vcpu)
    for task in state.vms[vcpu.vm.account.name].tasks.values():
        if task.vcpu is vcpu:
            task.vcpu = None
    text = f"{name!r} was stopped by a bug of the host: {bug}"
    refused = Refused(Reason.INTERNAL_INVARIANT, text, invariant=bug, vcpu=name)
    side = vcpu.agent
    if isinstance(side, VcpuSide) and side.exit is not None:
        side.exit.note = text
        close_exit(state, vcpu, side.exit, ExitState.CANCELLED)
    if isinstance(side, VcpuSide):
        finish_pending(state, vcpu, RejectedOutcome(refused.reason.name, text, "", refused.metadata))
    return refused
