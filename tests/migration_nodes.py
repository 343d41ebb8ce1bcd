"""Hosts as machines that can be killed, and what must hold of a VM that moves between them, whatever a driver does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, cast

from host_agent.commands import Command, OpenSession, SubmitBatch
from host_agent.errors import Reason, Refused
from host_agent.events import EventKind, GuestEvent, Outcome
from host_agent.image_form import pack_image
from host_agent.journal.snapshot import read_snapshot, snapshot_bytes
from host_agent.log import config_line, read_log, record_line, replay
from host_agent.machine import HostMachine
from host_agent.migration_commands import (
    AbortMigration,
    BeginMigration,
    CommitMigration,
    ImportVm,
    StageMigration,
)
from host_agent.migrations import MigrationRecord, MigrationRole, MigrationState
from host_agent.state import HostConfig, HostState, VcpuSide
from host_agent.vm_export import find_export, image_of

SECOND_NS = 1_000_000_000


@dataclass
class Node:
    """One host: a machine that checks itself after every command, and the log it comes back from."""

    name: str
    now_ns: int = 0
    max_migrations: int = 10_000
    config: HostConfig = field(init=False)
    machine: HostMachine = field(init=False)
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.config = HostConfig(
            host=self.name,
            boot_id=self.name,
            check_invariants=True,
            faults=True,
            cpus=2,
            migration_deadline_ns=60 * SECOND_NS,
            max_migrations=self.max_migrations,
        )
        self.lines = [config_line(self.config)]
        self._is(HostMachine(self.config))

    def _is(self, machine: HostMachine) -> None:
        self.machine = machine
        machine.on_applied = lambda now_ns, command, _result: self.lines.append(record_line(now_ns, command))

    @property
    def state(self) -> HostState:
        """What it knows."""
        return self.machine.state

    def do(self, command: Command, *, after_ns: int = 1) -> Any:  # noqa: ANN401 -- each command has its own reply
        """The reply, or the refusal as a value: one that is a bug of ours is raised."""
        self.now_ns += after_ns
        try:
            return self.machine.apply(command, self.now_ns)
        except Refused as refused:
            assert refused.reason is not Reason.INTERNAL_INVARIANT, refused.text  # noqa: PT017 -- of every refusal
            return refused
        finally:
            self.machine.take_effects()

    def die_and_come_back(self, *, snapshot: bool = False) -> None:
        """All that is left of the machine is its log, or a snapshot."""
        before = self.machine.digest()
        if snapshot:
            self._is(read_snapshot(snapshot_bytes(self.state, 1, 0), "a snapshot").machine)
        else:
            config, records = read_log(self.lines)
            self._is(replay(config, records))
        assert self.machine.digest() == before

    # -- a guest -------------------------------------------------------------------------------------------------------

    def event(self, vcpu: str, kind: EventKind) -> Outcome | Refused:
        """The next event of a vCPU, in a session of its own if there is none."""
        found = self.state.vcpu(vcpu)
        side = found.agent
        if not isinstance(side, VcpuSide) or side.session is None:
            self.do(OpenSession(client_name="guest", vcpus=(vcpu,), lease_ns=3600 * SECOND_NS))
            side = found.agent
        assert isinstance(side, VcpuSide)
        assert side.session is not None
        session = side.session
        reply = self.do(
            SubmitBatch(session=session.name, epoch=session.epoch, events=(GuestEvent(vcpu, side.next_seq, kind),))
        )
        return reply if isinstance(reply, Refused) else reply[0]

    # -- the steps of a migration --------------------------------------------------------------------------------------

    def begin(self, vm: str, target: str) -> MigrationRecord | Refused:
        """Stop it."""
        return cast("MigrationRecord | Refused", self.do(BeginMigration(vm=vm, target=target)))

    def export(self, vm: str) -> bytes | None:
        """The image for the migration that is open; None where none is."""
        record = self.state.leaving.get(vm)
        return None if record is None else pack_image(image_of(self.state, *find_export(self.state, vm, record.name)))

    def import_image(self, migration: str, image: bytes) -> Any:  # noqa: ANN401 -- a reply or a refusal
        """Take it."""
        return self.do(ImportVm(image=image, sha256=hashlib.sha256(image).hexdigest(), migration=migration))

    def stage(self, migration: str, epoch: int) -> Any:  # noqa: ANN401
        """Take memory."""
        return self.do(StageMigration(migration=migration, ownership_epoch=epoch))

    def commit(self, migration: str, epoch: int, proof: str) -> Any:  # noqa: ANN401
        """Give up, or own."""
        return self.do(CommitMigration(migration=migration, ownership_epoch=epoch, proof=proof))

    def abort(self, migration: str, epoch: int, proof: str) -> Any:  # noqa: ANN401
        """Run again, or forget."""
        return self.do(AbortMigration(migration=migration, ownership_epoch=epoch, proof=proof))


def check_owners(nodes: list[Node], uid: str) -> None:
    """At most one host owns the VM; where none does, it was given up to one that holds it whole, and can get it."""
    owners = [node.name for node in nodes for vm in node.state.vms.values() if vm.uid == uid]
    assert len(owners) <= 1, f"{uid} has the owners {owners}"
    if owners:
        return
    records = [record for node in nodes for record in node.state.migrations.values() if record.vm_uid == uid]
    given = {
        (record.name, record.ticket)
        for record in records
        if (record.role, record.state) == (MigrationRole.SOURCE, MigrationState.COMMITTED) and record.proof
    }
    held = {(record.name, record.ticket) for record in records if record.staged is not None}
    assert len(given & held) == 1, f"{uid} has no owner, was given up by {given}, and is held by {held}"


def finish(nodes: list[Node], uid: str) -> Node:
    """What a driver does who comes back: settle every migration of the VM that is open. Returns the owner."""
    for _round in range(8):
        for node in nodes:
            for record in [each for each in node.state.migrations.values() if each.vm_uid == uid and each.state.open]:
                _settle(nodes, node, record)
    owners = [node for node in nodes for vm in node.state.vms.values() if vm.uid == uid]
    assert len(owners) == 1, f"{uid} has the owners {[node.name for node in owners]}"
    assert not any(
        record.vm_uid == uid and record.state.open for node in nodes for record in node.state.migrations.values()
    )
    return owners[0]


def _settle(nodes: list[Node], node: Node, record: MigrationRecord) -> None:
    others = [each.state.migrations.get(record.name) for each in nodes if each is not node]
    theirs = next((each for each in others if each is not None and each.role is MigrationRole.SOURCE), None)
    if record.role is MigrationRole.SOURCE:
        node.abort(record.name, record.ownership_epoch, "")
    elif theirs is not None and theirs.state is MigrationState.COMMITTED:
        node.commit(record.name, record.ownership_epoch, theirs.proof)
        node.abort(record.name, record.ownership_epoch, theirs.proof)
    elif theirs is None or theirs.state is MigrationState.ABORTED:
        node.abort(record.name, record.ownership_epoch, theirs.proof if theirs is not None else "")
