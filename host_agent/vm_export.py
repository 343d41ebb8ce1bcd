"""Making the image of a VM. Looks, and changes nothing."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Final

from fpu_core.fpstate import image_offsets
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import (
    MSR_IA32_XFD,
    MSR_IA32_XFD_ERR,
    MSR_IA32_XSS,
    XFEATURE_MASK_USER_DYNAMIC,
    for_each_set_bit,
)
from host_agent.compat import requirements_of
from host_agent.errors import Reason, Refused, invalid
from host_agent.events import GoneOutcome, Outcome, PendingOutcome
from host_agent.exits import ExitRecord
from host_agent.kvm.cpuid import CpuidTable
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.migrations import MigrationRecord, proof_digest
from host_agent.state import HostState, VcpuSide, VmRecord
from host_agent.vcpu_state import get_msrs, get_xcrs, get_xsave2
from host_agent.vm_image import (
    ComponentImage,
    ExitImage,
    KeptOutcome,
    MigrationImage,
    OutcomeImage,
    VcpuImage,
    VmImage,
    WinnerImage,
)

#: In the order in which they are restored: XFD comes before whatever it disables.
SAVED_MSRS: Final = (MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS)
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")


def check_exportable(state: HostState, vm: VmRecord, *, stopping: bool = False) -> None:
    """Refuse a VM that no image can be made of; ``stopping`` takes vCPUs out of the guest first."""
    if not vm.kvm.vcpus:
        raise invalid("name", "a VM with at least one vCPU", vm.name)
    for vcpu in vm.kvm.vcpus.values():
        name = state.vcpu_name(vcpu)
        if vcpu.fpstate.is_confidential:
            text = f"{name!r} is confidential: its registers are the firmware's"
            raise Refused(Reason.STATE_CONFIDENTIAL, text, vcpu=name)
        if vcpu.state is VcpuState.BROKEN:
            raise Refused(Reason.VCPU_BROKEN, f"{name!r} met a bug of the host and was stopped", vcpu=name)
        if vcpu.state is VcpuState.ENTERED and not stopping:
            text = f"{name!r} is in the guest: its state can be had once it has left"
            raise Refused(Reason.VCPU_ALREADY_ENTERED, text, vcpu=name)


def find_export(state: HostState, vm_name: str, migration: str) -> tuple[VmRecord, MigrationRecord | None]:
    """The VM, and the migration that the image is for; "" for a snapshot."""
    vm = state.vm(vm_name)
    record = state.leaving.get(vm.name)
    if migration and (record is None or record.name != migration):
        known = state.migrations.get(migration)
        if known is None:
            raise Refused(Reason.MIGRATION_NOT_FOUND, f"there is no migration {migration!r}", migration=migration)
        text = f"{migration!r} is {known.state.name}: there is nothing to export for it"
        raise Refused(Reason.MIGRATION_WRONG_STATE, text, migration=migration, state=known.state.name)
    check_exportable(state, vm)
    return vm, record if migration else None


def image_of(state: HostState, vm: VmRecord, record: MigrationRecord | None) -> VmImage:
    """The whole VM, whose vCPUs are outside the guest. The clock of one that is leaving stands."""
    kvm = vm.kvm
    tables: dict[CpuidTable, int] = {}
    cpuid = tables.setdefault(kvm.cpuid.table, len(tables))
    since_ns = record.begun_ns if record is not None else state.now_ns
    vcpus = tuple(_vcpu(state, vcpu, tables, since_ns) for vcpu in kvm.vcpus.values())
    return VmImage(
        vm=vm.name,
        uid=vm.uid,
        ownership_epoch=vm.ownership_epoch,
        source_host=state.config.host,
        migration=_migration(record) if record is not None else None,
        requirements=requirements_of(vm),
        kernel_rules=vm.kernel_rules,
        allocation_policy=vm.allocation_policy,
        has_protected_state=kvm.has_protected_state,
        byte_limit=kvm.account.limit_bytes,
        owner_name=vm.owner_name,
        labels=dict(vm.labels),
        guest_permission=kvm.leader.guest_perm.state_perm & XFEATURE_MASK_USER_DYNAMIC,
        host_permission=kvm.leader.perm.state_perm & XFEATURE_MASK_USER_DYNAMIC,
        hidden_at_reset=vm.hidden_at_reset,
        cpuids=tuple(tables),
        cpuid=cpuid,
        cpuid_given=kvm.cpuid_given,
        vcpus=vcpus,
    )


def _migration(record: MigrationRecord) -> MigrationImage:
    return MigrationImage(
        name=record.name,
        uid=record.uid,
        target=record.target,
        staged=record.proofs.staged,
        committed_sha256=proof_digest(record.proofs.committed),
        aborted_sha256=proof_digest(record.proofs.aborted),
    )


def _vcpu(state: HostState, vcpu: Vcpu, tables: dict[CpuidTable, int], since_ns: int) -> VcpuImage:
    name, fpstate = state.vcpu_name(vcpu), vcpu.fpstate
    side = vcpu.agent if isinstance(vcpu.agent, VcpuSide) else VcpuSide(uid=state.vcpu_uid(vcpu))
    xsave = get_xsave2(state, name)
    return VcpuImage(
        index=vcpu.index,
        uid=side.uid,
        incarnation=vcpu.incarnation,
        state=vcpu.state,
        has_run=vcpu.has_run,
        cpuid=tables.setdefault(vcpu.cpuid.table, len(tables)),
        xfeatures=fpstate.xfeatures,
        xstate_bv=fpstate.xstate_bv,
        xsave=xsave,
        xcrs=tuple((each.xcr, each.value) for each in get_xcrs(state, name)),
        msrs=tuple((each.index, each.value) for each in get_msrs(state, name, SAVED_MSRS)),
        mxcsr=_U32.unpack_from(fpstate.regs, MXCSR_OFFSET)[0],
        pkru=vcpu.pkru,
        beyond=_beyond(vcpu, _U64.unpack_from(xsave, XSTATE_BV_OFFSET)[0]),
        cr4=vcpu.cr4_written,
        nm_intercept=vcpu.nm_intercept,
        xfd_passthrough=vcpu.xfd_passthrough,
        task=side.task,
        next_seq=side.next_seq,
        outcomes=tuple(OutcomeImage(seq=seq, kind=_kept(each)) for seq, each in side.outcomes.items()),
        exit=_exit(side.exit, since_ns) if side.exit is not None else None,
    )


def _beyond(vcpu: Vcpu, exported: int) -> tuple[ComponentImage, ...]:
    """What is in use and was not exported: supervisor components, and those that the guest's CPUID does not have."""
    config, fpstate = vcpu.vm.host.config, vcpu.fpstate
    if not config.xsave:
        return ()
    offsets = image_offsets(fpstate, config)
    sizes = {nr: config.table.size_bytes(nr) for nr in for_each_set_bit(fpstate.xstate_bv & ~exported)}
    return tuple(
        ComponentImage(xfeature=nr, content=bytes(fpstate.regs[offsets[nr] : offsets[nr] + size]))
        for nr, size in sizes.items()
    )


def _kept(outcome: Outcome) -> KeptOutcome:
    """Without the names, which are those of the VM and may be others elsewhere."""
    match outcome.kind:
        case PendingOutcome() as pending:
            return replace(pending, exit="")
        case GoneOutcome(directive):
            return GoneOutcome(replace(directive, vcpu=""))
        case kind:
            assert isinstance(kind, KeptOutcome), f"{outcome} is kept"
            return kind


def _exit(record: ExitRecord, since_ns: int) -> ExitImage:
    return ExitImage(
        seq=record.seq,
        trigger=record.write.trigger,
        old_xcr0=record.old_xcr0,
        new_xcr0=record.write.xcr0,
        old_xfd=record.old_xfd,
        new_xfd=record.write.xfd,
        cause=record.cause,
        errno=record.errno,
        xfeatures=record.xfeatures,
        bytes_needed=record.bytes_needed,
        attempt=record.attempt,
        generation=record.generation,
        state=record.state,
        expires_in_ns=_left(record.expires_ns, since_ns),
        retry_in_ns=_left(record.retry_ns, since_ns),
        decision=record.decision,
        decided_by=record.decided_by,
        winners=tuple(
            WinnerImage(generation=generation, decided_by=who, decision=decision, request_id=request_id)
            for generation, (who, decision, request_id) in record.winners.items()
        ),
    )


def _left(due_ns: int | None, since_ns: int) -> int | None:
    return None if due_ns is None else max(0, due_ns - since_ns)
