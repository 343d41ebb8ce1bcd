"""Opening and closing exits. What a decision does is decisions.py's."""

from __future__ import annotations

from host_agent.directives import finish_pending
from host_agent.effects import ExitChanged
from host_agent.events import Directive, GoneOutcome
from host_agent.exits import ExitRecord, ExitResult, ExitState, cause_and_errno
from host_agent.kvm.outcome import ReallocExit
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, VcpuSide


def open_exit(state: HostState, vcpu: Vcpu, seq: int, exited: ReallocExit) -> ExitRecord:
    """One exit per (vCPU, number). Its deadline starts now."""
    vcpu_name = state.vcpu_name(vcpu)
    side = state.side(vcpu)
    cause, errno = cause_and_errno(exited)
    name = f"{vcpu_name}/exits/{seq}"
    # A vCPU that was deleted and made again counts from 1 again; a decision meant for its predecessor must not fit.
    earlier = state.resolved_exits.pop(name, None)
    record = ExitRecord(
        name=name,
        vm=vcpu.vm.account.name,
        vcpu=vcpu_name,
        vcpu_uid=side.uid,
        seq=seq,
        write=exited.write,
        old_xcr0=exited.old_xcr0,
        old_xfd=exited.old_xfd,
        cause=cause,
        errno=errno,
        xfeatures=exited.failed.xfeatures,
        bytes_needed=exited.failed.size_bytes,
        created_revision=state.revision,
        updated_revision=state.revision,
        expires_ns=state.now_ns + state.config.exit_deadline_ns,
        generation=earlier.generation + 1 if earlier is not None else 1,
    )
    side.exit = record
    state.exits[record.name] = record
    changed(state, record)
    return record


def changed(state: HostState, record: ExitRecord) -> None:
    """Note the revision, the deadline, and what the last decision came to; let the watchers know."""
    record.updated_revision = state.revision
    state.deadlines.add(record)
    state.audit.came_to(record)
    state.effects.append(ExitChanged(record.name))


def close_exit(state: HostState, vcpu: Vcpu, record: ExitRecord, final: ExitState) -> None:
    """Move a settled exit to the archive, which is bounded."""
    record.state = final
    record.expires_ns = record.retry_ns = None
    state.side(vcpu).exit = None
    state.exits.pop(record.name, None)
    state.resolved_exits[record.name] = record
    while len(state.resolved_exits) > state.config.max_resolved_exits:
        del state.resolved_exits[next(iter(state.resolved_exits))]
    changed(state, record)


def cancel_exit(state: HostState, vcpu: Vcpu, directive: Directive, why: str, result: ExitResult) -> None:
    """INIT, RESET, kill and removal cancel the exit of a vCPU; its event is gone. Nothing to do where none is open."""
    side = vcpu.agent
    if not isinstance(side, VcpuSide) or side.exit is None:
        return
    record = side.exit
    record.note = why
    record.result = result
    close_exit(state, vcpu, record, ExitState.CANCELLED)
    finish_pending(state, vcpu, GoneOutcome(directive))
