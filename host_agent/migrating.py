"""Committing and aborting a migration, on whichever of its hosts: the source's side is here, the target's next door.

The source's commit is the decisive record. It asks for the target's proof that it has staged, and hands out, with that
record, the proof that the target asks for. A call that was carried out before is answered with what is.
"""

from __future__ import annotations

from host_agent import arriving
from host_agent.decisions import next_generation
from host_agent.directives import finish_pending, issue_directive
from host_agent.effects import MigrationChanged
from host_agent.errors import Reason, Refused
from host_agent.events import GoneOutcome
from host_agent.exit_desk import cancel_exit
from host_agent.exits import DecisionKind, ExitResult, ExitState
from host_agent.kvm.vcpu import Vcpu, destroy_vcpu
from host_agent.migration_commands import AbortMigration, CommitMigration, StageMigration
from host_agent.migrations import MigrationRecord, MigrationRole, MigrationState, Moved, ticket_of
from host_agent.state import HostState, VcpuSide
from host_agent.tasks import end_task


def find_migration(state: HostState, name: str) -> MigrationRecord:
    """The migration, or a refusal that names it."""
    record = state.migrations.get(name)
    if record is None:
        raise Refused(Reason.MIGRATION_NOT_FOUND, f"there is no migration {name!r}", migration=name)
    return record


def _find(state: HostState, name: str, epoch: int) -> MigrationRecord:
    record = find_migration(state, name)
    if record.ownership_epoch != epoch:
        text = f"{name!r} is of ownership epoch {record.ownership_epoch}, not {epoch}"
        raise Refused(Reason.MIGRATION_FENCED, text, vm=record.vm, epoch=epoch, currentEpoch=record.ownership_epoch)
    return record


def stage(state: HostState, command: StageMigration) -> MigrationRecord:
    """The target takes permission and memory."""
    record = _find(state, command.migration, command.ownership_epoch)
    if record.role is MigrationRole.SOURCE:
        raise arriving.wrong_state(record, "its target stages it")
    return arriving.stage(state, record)


def commit(state: HostState, command: CommitMigration) -> MigrationRecord:
    """The source gives the VM up; the target owns it."""
    record = _find(state, command.migration, command.ownership_epoch)
    if record.state is MigrationState.COMMITTED:
        return record
    if record.role is MigrationRole.TARGET:
        arriving.commit(state, record, command)
    else:
        _commit_source(state, record, command)
    _over(state, record, MigrationState.COMMITTED)
    return record


def abort(state: HostState, command: AbortMigration) -> MigrationRecord:
    """The source runs the VM again; the target forgets what it has of it."""
    record = _find(state, command.migration, command.ownership_epoch)
    if record.state is MigrationState.ABORTED:
        return record
    if record.role is MigrationRole.TARGET:
        arriving.abort(state, record, command)
    else:
        if record.state is not MigrationState.BEGUN:
            raise arriving.wrong_state(record, "there is no way back")
        _run_again(state, record)
    record.reason = command.reason
    _over(state, record, MigrationState.ABORTED)
    return record


def deadline_passed(state: HostState, record: MigrationRecord) -> None:
    """Nobody has come to commit: the VM goes on here. It is the source's alone to decide, until it has committed."""
    _run_again(state, record)
    record.reason = "deadline"
    _over(state, record, MigrationState.ABORTED)


def _over(state: HostState, record: MigrationRecord, final: MigrationState) -> None:
    """Settle the record; of those that are over, the oldest are forgotten beyond a number."""
    record.state, record.deadline_ns = final, None
    over = [each for each in state.migrations.values() if not each.state.open]
    for each in over[: max(0, len(over) - state.config.max_migrations)]:
        del state.migrations[each.name]
    state.effects.append(MigrationChanged(record.name))


# -- the source --------------------------------------------------------------------------------------------------------


def _commit_source(state: HostState, record: MigrationRecord, command: CommitMigration) -> None:
    if record.state is not MigrationState.BEGUN:
        raise arriving.wrong_state(record, "the VM runs on here")
    staged, ticket = command.proof.partition(".")[0], ticket_of(command.proof)
    if not command.force and (staged != record.proofs.staged or not ticket):
        raise arriving.wrong_state(record, "its target has not shown that it has staged")
    record.ticket = ticket
    vm = state.vms[record.vm]
    state.serial += 1
    moved = Moved(vm.name, vm.uid, record.target, record.ownership_epoch, record.name, state.serial)
    for vcpu in list(vm.kvm.vcpus.values()):
        _move_away(state, vcpu, record.target)
    for task in list(vm.tasks.values()):
        end_task(state, vm, task)
    del state.leaving[vm.name], state.vms[vm.name]
    state.permissions.pop(vm.name, None)
    for control in [each for each in state.controls.values() if each.scope == vm.name]:
        del state.controls[control.name]
    state.moved[vm.name] = moved
    while len(state.moved) > state.config.max_migrations:
        del state.moved[next(iter(state.moved))]


def _move_away(state: HostState, vcpu: Vcpu, target: str) -> None:
    """Its VMM is told where it is; what is pending here goes on there, and so does the exit it is parked on."""
    why = f"the VM lives at {target} now"
    directive = issue_directive(state, vcpu, "MOVED", why, target)
    cancel_exit(state, vcpu, directive, why, ExitResult.MIGRATED)
    side = vcpu.agent
    if isinstance(side, VcpuSide):
        finish_pending(state, vcpu, GoneOutcome(directive))
        if side.session is not None:
            side.session.vcpus.pop(state.vcpu_name(vcpu), None)
    destroy_vcpu(vcpu)


def _run_again(state: HostState, record: MigrationRecord) -> None:
    """The VM's clock goes on where it stood. An exit whose decision was to migrate asks anew."""
    vm = state.vms[record.vm]
    del state.leaving[vm.name]
    stood_ns = state.now_ns - record.begun_ns
    for vcpu in vm.kvm.vcpus.values():
        side = vcpu.agent
        exit_record = side.exit if isinstance(side, VcpuSide) else None
        if exit_record is None or exit_record.state is not ExitState.PAUSED:
            issue_directive(state, vcpu, "RESUME", f"the migration to {record.target} was aborted")
        if exit_record is None:
            continue
        if exit_record.expires_ns is not None:
            exit_record.expires_ns += stood_ns
        if exit_record.retry_ns is not None:
            exit_record.retry_ns += stood_ns
        state.deadlines.add(exit_record)
        if exit_record.decision is DecisionKind.MIGRATE and exit_record.state is ExitState.APPLYING:
            next_generation(state, vcpu, exit_record, ExitState.OPEN)
