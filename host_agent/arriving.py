"""A VM comes here from another host: its image, its memory, and at last the VM itself.

    import     the image is read, judged and kept; nothing is taken for it yet
    stage      the VM is made of it, by KVM's own rules: permission, containers, registers; it is in nobody's books
    commit     it is entered into the books, which cannot fail

The commit asks for the source's proof that it has committed; once staged, the abort asks for its proof that it has
aborted: what is staged may be the only copy there is.
"""

from __future__ import annotations

import hashlib

from fpu_core.errors import FieldError
from host_agent.compat import check_compat
from host_agent.directives import issue_directive
from host_agent.effects import ExitChanged, MigrationChanged
from host_agent.errors import Reason, Refused, invalid, limit_reached
from host_agent.exits import DecisionKind, ExitRecord, ExitState
from host_agent.ids import check_id
from host_agent.image_form import IMAGE_BYTES_MAX, unpack_image
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.leaving import in_progress
from host_agent.migration_commands import AbortMigration, CommitMigration, ImportVm
from host_agent.migrations import MigrationRecord, MigrationRole, MigrationState, Proofs, proof_digest, ticket_of
from host_agent.state import HostState, VcpuSide, VmRecord
from host_agent.vm_image import VmImage
from host_agent.vm_restore import check_image, discard_vm, restore_vm
from host_agent.vms import enter_vm

_PREFIX = "vms/"


def import_vm(state: HostState, command: ImportVm) -> MigrationRecord | VmRecord:
    """Take an image: of a migration it is kept until it is staged, of none it becomes a VM of its own at once."""
    known = state.migrations.get(command.migration) if command.migration else None
    if known is not None and known.role is MigrationRole.TARGET:
        return _imported_before(known, command)
    image = _read(command)
    _check_for_migration(image, command)
    name = command.name or image.vm
    _check_name(state, name)
    _check_epoch(state, image)
    _check_compatible(state, image)
    if not command.migration:
        return _snapshot(state, image, name)
    assert image.migration is not None
    record = MigrationRecord(
        name=image.migration.name,
        uid=image.migration.uid,
        vm=image.vm,
        vm_uid=image.uid,
        role=MigrationRole.TARGET,
        state=MigrationState.IMPORTED,
        ownership_epoch=image.ownership_epoch,
        source_host=image.source_host,
        target=image.migration.target,
        proofs=Proofs(image.migration.staged, image.migration.committed_sha256, image.migration.aborted_sha256),
        begun_ns=state.now_ns,
        create_unix_ns=state.now_ns + state.config.unix_offset_ns,
        ticket=state.next_id("ticket"),
        image=command.image,
        sha256=command.sha256,
    )
    state.migrations[record.name] = state.coming[record.vm] = record
    state.effects.append(MigrationChanged(record.name))
    return record


def _imported_before(known: MigrationRecord, command: ImportVm) -> MigrationRecord:
    if known.sha256 != command.sha256:
        text = f"{known.name!r} was imported before, with other bytes"
        raise Refused(Reason.SNAPSHOT_CORRUPT, text, expected=known.sha256, actual=command.sha256)
    return known


def _read(command: ImportVm) -> VmImage:
    if len(command.image) > IMAGE_BYTES_MAX:
        raise limit_reached("bytes of an image", "image_bytes_max", IMAGE_BYTES_MAX)
    actual = hashlib.sha256(command.image).hexdigest()
    if actual != command.sha256:
        text = "the image's SHA-256 is not the one that was announced"
        raise Refused(Reason.SNAPSHOT_CORRUPT, text, expected=command.sha256, actual=actual)
    image = unpack_image(command.image)
    check_image(image)
    return image


def _check_for_migration(image: VmImage, command: ImportVm) -> None:
    """An image is of one migration, and its VM keeps its name."""
    if not command.migration:
        return
    of = image.migration.name if image.migration is not None else "a snapshot"
    if of != command.migration or not of.startswith(f"{image.vm}/migrations/"):
        raise invalid("start.migration", f"what the image is of, {of!r}", command.migration)
    if command.name not in ("", image.vm):
        raise invalid("start.name", f"the name that the VM has, {image.vm!r}", command.name)


def _check_name(state: HostState, name: str) -> None:
    if not name.startswith(_PREFIX):
        raise invalid("start.name", "a name vms/{vm}", name)
    check_id("start.name", name.removeprefix(_PREFIX))
    if name in state.coming:
        raise in_progress(state.coming[name])
    if name in state.vms:
        raise Refused(Reason.VM_EXISTS, f"VM {name!r} exists", vm=name)
    if state.draining:
        raise Refused(Reason.HOST_DRAINING, "the host is draining and takes no new VM")
    if len(state.vms) + len(state.coming) >= state.config.max_vms:
        raise limit_reached("VMs of the host", "vms_max", state.config.max_vms)


def _check_epoch(state: HostState, image: VmImage) -> None:
    """A VM that has left here comes back under a later epoch: an image from before is of no use."""
    moved = state.moved.get(image.vm)
    if image.migration is None or moved is None or moved.uid != image.uid:
        return
    if image.ownership_epoch <= moved.ownership_epoch:
        text = (
            f"{image.vm!r} left here under epoch {moved.ownership_epoch}: the image is of epoch {image.ownership_epoch}"
        )
        raise Refused(
            Reason.MIGRATION_FENCED,
            text,
            vm=image.vm,
            epoch=image.ownership_epoch,
            currentEpoch=moved.ownership_epoch + 1,
        )


def _check_compatible(state: HostState, image: VmImage) -> None:
    found = check_compat(state, image.requirements)
    if found:
        detail = "; ".join(each.description for each in found)
        missing = 0
        for each in found:
            missing |= each.xfeatures
        raise Refused(Reason.HOST_INCOMPATIBLE, f"{image.vm!r}: {detail}", xfeatures=hex(missing), detail=detail)


def _snapshot(state: HostState, image: VmImage, name: str) -> VmRecord:
    vm = restore_vm(state, image, name, uid="")
    _own(state, vm)
    return vm


# -- stage, commit, abort ----------------------------------------------------------------------------------------------


def stage(state: HostState, record: MigrationRecord) -> MigrationRecord:
    """Make the VM. What cannot be had is refused, and the image stays."""
    if record.state in (MigrationState.STAGED, MigrationState.COMMITTED):
        return record
    if record.state is not MigrationState.IMPORTED:
        raise wrong_state(record, "there is no image")
    try:
        image = unpack_image(record.image)
    except FieldError as error:  # it was read when it came
        raise AssertionError(f"{record.name}: {error}") from error
    vm = restore_vm(state, image, record.vm, uid=record.vm_uid)
    vm.ownership_epoch = record.ownership_epoch + 1
    record.staged, record.reserved_bytes, record.image = vm, vm.kvm.account.used_bytes, b""
    record.state = MigrationState.STAGED
    state.effects.append(MigrationChanged(record.name))
    return record


def commit(state: HostState, record: MigrationRecord, command: CommitMigration) -> None:
    """The VM is this host's."""
    if record.state is not MigrationState.STAGED:
        raise wrong_state(record, "it is not staged")
    if not command.force:
        _check_committed(record, command.proof)
    vm, record.staged = record.staged, None
    assert vm is not None
    del state.coming[vm.name]
    state.moved.pop(vm.name, None)
    _own(state, vm)


def _check_committed(record: MigrationRecord, proof: str) -> None:
    if proof_digest(proof) != record.proofs.committed:
        raise wrong_state(record, "its source has not shown that it has committed")
    if ticket_of(proof) != record.ticket:
        raise wrong_state(record, "its source has committed to another copy of it")


def _may_forget(record: MigrationRecord, proof: str) -> bool:
    """Whether a copy that is staged is of no use: the source has aborted, or has committed to another one."""
    if proof_digest(proof) == record.proofs.committed:
        return ticket_of(proof) != record.ticket
    return proof_digest(proof) == record.proofs.aborted


def _own(state: HostState, vm: VmRecord) -> None:
    """Enter the VM and its exits into the books: from here on time passes for it. Migrated exits try again at once."""
    enter_vm(state, vm)
    for vcpu in vm.kvm.vcpus.values():
        side = vcpu.agent
        exit_record = side.exit if isinstance(side, VcpuSide) else None
        issue_directive(state, vcpu, _directive(vcpu, exit_record), "the VM has come from another host")
        if exit_record is None:
            continue
        state.resolved_exits.pop(exit_record.name, None)
        state.exits[exit_record.name] = exit_record
        exit_record.created_revision = exit_record.updated_revision = state.revision
        if exit_record.expires_ns is not None:
            exit_record.expires_ns += state.now_ns
        if exit_record.retry_ns is not None:
            exit_record.retry_ns += state.now_ns
        if exit_record.decision is DecisionKind.MIGRATE and exit_record.state is ExitState.APPLYING:
            exit_record.retry_ns = state.now_ns
        state.deadlines.add(exit_record)
        state.effects.append(ExitChanged(exit_record.name))


def _directive(vcpu: Vcpu, exit_record: ExitRecord | None) -> str:
    """What its VMM, which had to pause it, does now: the first session here hears it."""
    if vcpu.state is VcpuState.KILLED:
        return "STOP"
    return "PAUSE" if exit_record is not None and exit_record.state is ExitState.PAUSED else "RESUME"


def abort(state: HostState, record: MigrationRecord, command: AbortMigration) -> None:
    """Forget the image, or give the memory back."""
    if record.state is MigrationState.COMMITTED:
        raise wrong_state(record, "the VM is this host's")
    if record.state is MigrationState.STAGED:
        if not command.force and not _may_forget(record, command.proof):
            raise wrong_state(record, "its source has not shown that it has aborted")
        assert record.staged is not None
        discard_vm(state, record.staged)
    record.staged, record.image = None, b""
    del state.coming[record.vm]


def wrong_state(record: MigrationRecord, why: str) -> Refused:
    """The migration is not where the call needs it."""
    text = f"{record.name!r} is {record.state.name} here: {why}"
    return Refused(Reason.MIGRATION_WRONG_STATE, text, migration=record.name, state=record.state.name)
