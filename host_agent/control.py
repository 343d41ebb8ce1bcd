"""Who may decide: a lease on the exits of one VM, or of the host for every VM that has no holder of its own."""

from __future__ import annotations

from host_agent.commands import AcquireControl, ReleaseControl, RenewControl
from host_agent.errors import Reason, Refused
from host_agent.exits import ExitRecord
from host_agent.state import ControlRecord, HostState


def acquire(state: HostState, command: AcquireControl) -> ControlRecord:
    """Take a scope. The same controller may take it again and fences its own earlier hold; another's must run out.

    The same is who has the same name and is the same principal.
    """
    if command.scope:
        state.vm(command.scope)
    held = holder(state, command.scope)
    if held is not None and (held.controller, held.principal) != (command.controller, command.principal):
        raise Refused(
            Reason.CONTROL_HELD,
            f"{held.controller!r} controls {command.scope or 'the host'}",
            scope=command.scope,
            holder=held.controller,
            remainingMillis=(held.expires_ns - state.now_ns) // 1_000_000,
        )
    if held is not None:
        del state.controls[held.name]
    lease_ns = bounded_lease(state, command.lease_ns)
    record = ControlRecord(
        id=state.next_id("c"),
        scope=command.scope,
        epoch=state.next_epoch(),
        controller=command.controller,
        principal=command.principal,
        lease_ns=lease_ns,
        expires_ns=state.now_ns + lease_ns,
    )
    state.controls[record.name] = record
    state.deadlines.add(record)
    return record


def renew(state: HostState, command: RenewControl) -> ControlRecord:
    """Start the lease anew."""
    record = current(state, command.control, command.epoch)
    record.expires_ns = state.now_ns + record.lease_ns
    return record


def release(state: HostState, command: ReleaseControl) -> None:
    """Give the scope up."""
    record = current(state, command.control, command.epoch)
    del state.controls[record.name]


def current(state: HostState, name: str, epoch: int) -> ControlRecord:
    """The control of that name and epoch; refused when it was lost or never was."""
    record = state.controls.get(name)
    if record is None or record.epoch != epoch:
        raise Refused(
            Reason.CONTROL_FENCED,
            f"control {name!r} at epoch {epoch} is not held any more",
            control=name,
            epoch=epoch,
            currentEpoch=record.epoch if record is not None else state.epoch,
        )
    return record


def holder(state: HostState, scope: str) -> ControlRecord | None:
    """Who holds exactly ``scope`` now."""
    return next((record for record in state.controls.values() if record.scope == scope), None)


def check_may_decide(state: HostState, name: str, epoch: int, record: ExitRecord) -> None:
    """A VM's holder wins over the host's; an old epoch is fenced."""
    control = current(state, name, epoch)
    own = holder(state, record.vm)
    if control.scope not in ("", record.vm) or (own is not None and own is not control):
        raise Refused(
            Reason.CONTROL_OUT_OF_SCOPE,
            f"control {name!r} does not cover {record.vm}",
            exit=record.name,
            scope=control.scope,
            holder=own.controller if own is not None else "",
        )


def bounded_lease(state: HostState, wished_ns: int) -> int:
    """The lease the host grants: the wish within bounds, its default for none."""
    if wished_ns <= 0:
        return state.config.default_lease_ns
    return min(wished_ns, state.config.max_lease_ns)
