"""Reclaim: whose containers shrink for an exit, and what that gives. When one can: ``host_agent.kvm.shrink``."""

from __future__ import annotations

from collections.abc import Iterator

from host_agent.control import holder
from host_agent.errors import Refused
from host_agent.exits import Decision, ExitCause, ExitRecord, Victim
from host_agent.kvm.shrink import Unshrinkable, shrink, unshrinkable
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, VcpuSide

#: vCPUs that one Reclaim may name.
VICTIMS_MAX = 256


def reclaim(state: HostState, record: ExitRecord, decision: Decision) -> tuple[Victim, ...]:
    """Shrink the victims named, each once, then others until there is enough; say what came of each.

    Of those that nobody named only such are listed as gave something.
    """
    named = [_take(state, record, name) for name in dict.fromkeys(decision.victims)]
    return (
        *named,
        *(_take_others(state, record, sum(each.freed_bytes for each in named)) if decision.any_victim else ()),
    )


def _take(state: HostState, record: ExitRecord, name: str) -> Victim:
    try:
        vcpu = state.vcpu(name)
    except Refused:
        return Victim(name, refused=Unshrinkable.NOT_FOUND)
    refused = _refused(state, record, vcpu)
    return Victim(name, refused=refused) if refused is not None else Victim(name, freed_bytes=shrink(vcpu))


def _take_others(state: HostState, record: ExitRecord, freed_bytes: int) -> Iterator[Victim]:
    """The exit's own VM first, then the others in the order in which they were made."""
    own = state.vms[record.vm]
    for vm in (own, *(each for each in state.vms.values() if each is not own)):
        for vcpu in vm.kvm.vcpus.values():
            if _enough(state, record, freed_bytes):
                return
            if _refused(state, record, vcpu) is None:
                freed = shrink(vcpu)
                freed_bytes += freed
                yield Victim(state.vcpu_name(vcpu), freed_bytes=freed)
        if _own_limit_refuses(state, record):
            return  # what other VMs give back does not count there


def _enough(state: HostState, record: ExitRecord, freed_bytes: int) -> bool:
    """A limit has to leave room for the growth; without memory, as much has to be freed as it takes."""
    if record.cause is not ExitCause.QUOTA:
        return freed_bytes >= record.bytes_needed
    return not _own_limit_refuses(state, record) and not state.allocator.host.refuses(record.bytes_needed)


def _own_limit_refuses(state: HostState, record: ExitRecord) -> bool:
    return record.cause is ExitCause.QUOTA and state.vms[record.vm].kvm.account.refuses(record.bytes_needed)


def _refused(state: HostState, record: ExitRecord, vcpu: Vcpu) -> Unshrinkable | None:
    if not _controlled(state, record, vcpu.vm.account.name):
        return Unshrinkable.NOT_CONTROLLED
    why = unshrinkable(vcpu)
    if why is None and not _vmm_is_told(vcpu):
        return Unshrinkable.VMM_NOT_TOLD
    return why


def _controlled(state: HostState, record: ExitRecord, vm: str) -> bool:
    """Who decides about the exit also decides about ``vm``: it is the same, or the host's holder has both."""
    return vm == record.vm or (holder(state, record.vm) is None and holder(state, vm) is None)


def _vmm_is_told(vcpu: Vcpu) -> bool:
    """Whether the VMM hears that XFD is intercepted before the guest runs again.

    It does with the outcome of ENTER, or with the session that it has to open first. An IMPLICIT session enters without
    asking: there XFD, once passed through, would be written unseen.
    """
    side = vcpu.agent
    session = side.session if isinstance(side, VcpuSide) else None
    return not vcpu.xfd_passthrough or session is None or session.explicit
