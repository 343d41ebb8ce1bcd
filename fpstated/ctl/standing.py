"""Where a move stands, by asking both hosts: in a sentence, and what may be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fpstate.v1 import migration_pb2 as pb
from fpstate.v1.migration_pb2_grpc import MigrationServiceStub

from fpstated.ctl.connection import Connection
from fpstated.ctl.show import word
from guest_agent.error import HostError

_BEGUN, _COMMITTED = pb.MIGRATION_STATE_BEGUN, pb.MIGRATION_STATE_COMMITTED


@dataclass(frozen=True, slots=True)
class Standing:
    """``text`` says it; whether `migrate` may be asked again, and whether it may be taken back."""

    text: str
    may_go_on: bool
    may_abort: bool

    @classmethod
    def of(cls, source: Connection, target: Connection, vm: str, goes_to: str) -> Self:
        """Ask. The source's word decides: until it has committed the VM is its own."""
        ours = _last(source, vm, pb.MIGRATION_ROLE_SOURCE, goes_to)
        if isinstance(ours, HostError):
            return cls(f"the source does not answer, so where {vm} stands is not known", may_go_on=True, may_abort=True)
        if ours is None or ours.state not in (_BEGUN, _COMMITTED):
            return cls(f"{vm} goes on at its source: nothing is open there", may_go_on=True, may_abort=False)
        theirs = _last(target, vm, pb.MIGRATION_ROLE_TARGET, goes_to, ours.name)
        there = _word(theirs)
        if ours.state == _BEGUN:
            text = (
                f"{vm} stands still at its source, whose it is: {ours.name} is BEGUN there, at the target {there}; "
                "at its migration deadline it goes on at the source by itself"
            )
            return cls(text, may_go_on=True, may_abort=True)
        if isinstance(theirs, pb.Migration) and theirs.state == _COMMITTED:
            return cls(f"{vm} has moved: {ours.name} is COMMITTED on both hosts", may_go_on=False, may_abort=False)
        text = f"nobody runs {vm}: {ours.name} is COMMITTED at its source, at the target {there}; the only way is on"
        return cls(text, may_go_on=True, may_abort=False)


def _last(
    host: Connection, vm: str, role: pb.MigrationRole.ValueType, goes_to: str, name: str = ""
) -> pb.Migration | HostError | None:
    stub = MigrationServiceStub(host.channel)
    try:
        listed = host.pages(stub.ListMigrations, pb.ListMigrationsRequest(parent=vm)).migrations
    except HostError as error:
        return error
    found = [each for each in listed if each.role == role and each.target == goes_to and name in ("", each.name)]
    return found[-1] if found else None


def _word(found: pb.Migration | HostError | None) -> str:
    if isinstance(found, HostError):
        return f"not known, as it does not answer ({found.refusal.message})"
    return word(pb.MigrationState, found.state) if found is not None else "not there yet"
