"""A VM is about to leave: it stands still, and is this host's until the migration is committed.

Its vCPUs are outside the guest, its exits stay open and its clock stands: no deadline passes, no delay ends. Whatever
would change it is refused with MIGRATION_IN_PROGRESS; events are blocked. So each export of it is the same.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Final, get_args

from host_agent import commands as c
from host_agent import migration_commands as m
from host_agent import task_commands as t
from host_agent.directives import issue_directive
from host_agent.effects import MigrationChanged
from host_agent.errors import Reason, Refused, invalid
from host_agent.kvm.lifecycle import VcpuState
from host_agent.migrations import MigrationRecord, MigrationRole, MigrationState, make_proofs
from host_agent.state import HostState, VmRecord
from host_agent.tasks import leave_guest
from host_agent.vm_export import check_exportable

#: What names a VM and is not about it: faults are the host's, and so are the CPUs of the kind that it runs on.
_FREE: Final = (
    c.ArmFault,
    t.OfflineCpu,
    t.OnlineCpu,
    t.IdleCpu,
    t.SuspendHost,
    *get_args(m.MigrationCommand),
)


def _named_by() -> dict[type, str]:
    """Which field of a command says whose VM it changes."""
    found: dict[type, str] = {}
    for kind in get_args(c.Command):
        names = {field.name for field in fields(kind)}
        field = next((name for name in ("vm", "vcpu", "task", "exit") if name in names), None)
        if field is not None and kind not in _FREE:
            found[kind] = field
    return found


NAMED_BY: Final = _named_by()


def check_not_leaving(state: HostState, command: object) -> None:
    """Refuse a command that would change a VM which is leaving."""
    field = NAMED_BY.get(type(command))
    if field is None:
        return
    vm = "/".join(getattr(command, field).split("/")[:2])
    record = state.leaving.get(vm)
    if record is not None:
        raise in_progress(record)


def in_progress(record: MigrationRecord) -> Refused:
    """What hears who comes upon a migration that is open."""
    text = f"{record.vm!r} is leaving for {record.target!r}: {record.name!r} is {record.state.name}"
    if record.role is MigrationRole.TARGET:
        text = f"{record.vm!r} is on its way here: {record.name!r} is {record.state.name}"
    return Refused(Reason.MIGRATION_IN_PROGRESS, text, vm=record.vm, migration=record.name)


def begin(state: HostState, command: m.BeginMigration) -> MigrationRecord:
    """Stop every vCPU and open the migration."""
    vm = state.vm(command.vm)
    if vm.name in state.leaving:
        raise in_progress(state.leaving[vm.name])
    if not command.target:
        raise invalid("target", "a gRPC target", command.target)
    check_exportable(state, vm, stopping=True)
    return begin_leaving(state, vm, command.target)


def begin_leaving(state: HostState, vm: VmRecord, target: str) -> MigrationRecord:
    """The VM stands still from now on. It is one that can be exported, and no migration of it is open."""
    uid = state.next_id("m")
    record = MigrationRecord(
        name=f"{vm.name}/migrations/{uid}",
        uid=uid,
        vm=vm.name,
        vm_uid=vm.uid,
        role=MigrationRole.SOURCE,
        state=MigrationState.BEGUN,
        ownership_epoch=vm.ownership_epoch,
        source_host=state.config.host,
        target=target,
        proofs=make_proofs(uid, state.first_boot_id),
        begun_ns=state.now_ns,
        create_unix_ns=state.now_ns + state.config.unix_offset_ns,
        deadline_ns=state.now_ns + state.config.migration_deadline_ns,
    )
    for vcpu in vm.kvm.vcpus.values():
        if vcpu.state is VcpuState.ENTERED:
            leave_guest(vm, vcpu)
        issue_directive(state, vcpu, "PAUSE", f"the VM is leaving for {target}")
    state.leaving[vm.name] = record
    state.migrations[record.name] = record
    state.deadlines.add(record)
    state.effects.append(MigrationChanged(record.name))
    return record
