"""Making a VM of an image, on this host's own processor, by KVM's own rules.

    a new process       arch_prctl asks for what the old one was permitted
    KVM_CREATE_VCPU, KVM_SET_CPUID2
    KVM_SET_MSRS, KVM_SET_XCRS, KVM_SET_XSAVE      the order that needs no room too early: XFD, XCR0, registers
    what no ioctl sets

What KVM or the kernel refuses is refused here with its errno, and then nothing is left of the VM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from fpu_core.alloc import AllocFailure
from fpu_core.errors import Errno, FieldError
from fpu_core.fpstate import image_offsets
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.permission import request_permission
from fpu_core.realloc import ReallocFailed, realloc_guest_image
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC, for_each_set_bit
from host_agent.commands import CreateVm
from host_agent.errors import Reason, Refused, invalid, kvm_errno, no_memory
from host_agent.events import GoneOutcome, Outcome, OutcomeKind, PendingOutcome
from host_agent.exits import ExitRecord
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.cr4 import cr4_error
from host_agent.kvm.lifecycle import VcpuEvent, VcpuState
from host_agent.kvm.msrs_ioctl import MsrEntry, set_msrs
from host_agent.kvm.outcome import PendingWrite
from host_agent.kvm.set_cpuid import set_cpuid2
from host_agent.kvm.vcpu import Vcpu, create_vcpu, destroy_vcpu
from host_agent.kvm.xcrs_ioctl import Xcr, set_xcrs
from host_agent.kvm.xsave_ioctl import set_xsave
from host_agent.state import HostState, VcpuSide, VmRecord
from host_agent.tasks import end_task
from host_agent.vm_image import ExitImage, VcpuImage, VmImage
from host_agent.vms import make_vm

T = TypeVar("T")

#: How a vCPU comes from OUTSIDE, where it is made, to where it was.
_MOVES: Final[dict[VcpuState, tuple[VcpuEvent, ...]]] = {
    VcpuState.OUTSIDE: (),
    VcpuState.PARKED: (VcpuEvent.FAILED,),
    VcpuState.PAUSED: (VcpuEvent.FAILED, VcpuEvent.PAUSE),
    VcpuState.KILLED: (VcpuEvent.KILL,),
}
_U32: Final = struct.Struct("<I")


def check_image(image: VmImage) -> None:
    """Refuse an image that contradicts itself. Raises ``FieldError``."""
    if not image.vcpus:
        raise FieldError("image.vcpus", "at least one vCPU", 0)
    if len({vcpu.index for vcpu in image.vcpus}) != len(image.vcpus):
        raise FieldError("image.vcpus", "each index once", "one twice")
    if image.requirements.vcpu_count != len(image.vcpus):
        raise FieldError("image.requirements.vcpu_count", str(len(image.vcpus)), image.requirements.vcpu_count)
    for nr, vcpu in enumerate(image.vcpus):
        _check_vcpu(f"image.vcpus[{nr}]", image, vcpu)
    if image.cpuid >= len(image.cpuids):
        raise FieldError("image.cpuid", f"0..{len(image.cpuids) - 1}", image.cpuid)


def _check_vcpu(path: str, image: VmImage, vcpu: VcpuImage) -> None:
    if vcpu.cpuid >= len(image.cpuids):
        raise FieldError(f"{path}.cpuid", f"0..{len(image.cpuids) - 1}", vcpu.cpuid)
    if vcpu.state not in _MOVES:
        raise FieldError(f"{path}.state", f"one of {', '.join(each.name for each in _MOVES)}", vcpu.state.name)
    seqs = [outcome.seq for outcome in vcpu.outcomes]
    if len(set(seqs)) != len(seqs) or any(not 1 <= seq < vcpu.next_seq for seq in seqs):
        raise FieldError(f"{path}.outcomes", f"numbers below {vcpu.next_seq}, each once", seqs[:8])
    pending = [outcome.seq for outcome in vcpu.outcomes if isinstance(outcome.kind, PendingOutcome)]
    parked = vcpu.state in (VcpuState.PARKED, VcpuState.PAUSED)
    exits = [vcpu.exit.seq] if vcpu.exit is not None else []
    if pending != exits or parked != bool(exits):
        raise FieldError(f"{path}.exit", "that of the one pending event of a parked vCPU, else none", exits or None)


# -- the VM ------------------------------------------------------------------------------------------------------------


def restore_vm(state: HostState, image: VmImage, name: str, *, uid: str) -> VmRecord:
    """Return the VM, in nobody's books. An empty ``uid`` makes it, and its vCPUs, somebody new.

    Raises ``Refused``: KVM_ERRNO, ALLOCATION_FAILED, HOST_INCOMPATIBLE; then nothing is left of it.
    """
    command = CreateVm(
        vm_id=name.removeprefix("vms/"),
        kernel_rules=image.kernel_rules,
        allocation_policy=image.allocation_policy,
        has_protected_state=image.has_protected_state,
        byte_limit=image.byte_limit,
        owner_name=image.owner_name,
        labels=image.labels,
    )
    vm = make_vm(state, command)
    state.act_for(name)
    try:
        _permit(vm, image)
        cpuids = [GuestCpuid(table, vm.kvm.caps) for table in image.cpuids]
        vm.kvm.cpuid, vm.kvm.cpuid_given = cpuids[image.cpuid], image.cpuid_given
        for each in image.vcpus:
            _Restoring(state, vm, each, anew=not uid).restore(cpuids[each.cpuid])
    except BaseException:
        discard_vm(state, vm)
        raise
    vm.hidden_at_reset = image.hidden_at_reset
    vm.uid = uid or vm.uid
    return vm


def discard_vm(state: HostState, vm: VmRecord) -> None:
    """Give back what a VM took that is in nobody's books."""
    for vcpu in list(vm.kvm.vcpus.values()):
        destroy_vcpu(vcpu)
    for task in list(vm.tasks.values()):
        end_task(state, vm, task)


def _permit(vm: VmRecord, image: VmImage) -> None:
    """The VMM's process is a new one here, and asks anew."""
    for guest, features in ((True, image.guest_permission), (False, image.host_permission)):
        for nr in for_each_set_bit(features):
            errno = request_permission(vm.kvm.leader, nr, guest=guest)
            if errno is not Errno.OK:
                raise kvm_errno(errno, f"arch_prctl for feature {nr}")


# -- a vCPU ------------------------------------------------------------------------------------------------------------


class _Restoring:
    """One vCPU on its way from its image into a VM."""

    def __init__(self, state: HostState, vm: VmRecord, image: VcpuImage, *, anew: bool) -> None:
        self.state, self.vm, self.image, self.anew = state, vm, image, anew
        self.name = f"{vm.name}/vcpus/{image.index}"

    def restore(self, cpuid: GuestCpuid) -> None:
        """Make it, by KVM's calls in the order of its selftests; then what no call sets."""
        if self.image.index >= self.state.config.max_vcpus_per_vm:
            raise invalid("image.vcpus.index", f"0..{self.state.config.max_vcpus_per_vm - 1}", self.image.index)
        self.state.act_for(self.vm.name, self.name)
        vcpu = self._create()
        errno = set_cpuid2(vcpu, cpuid)
        if errno is not Errno.OK:
            raise kvm_errno(errno, "KVM_SET_CPUID2")
        self._set_registers(vcpu)
        self._grow(vcpu)
        self._set_the_rest(vcpu)
        self._restore_side(vcpu)

    def _create(self) -> Vcpu:
        self.state.serial += 1
        created = create_vcpu(self.vm.kvm, self.image.index, serial=self.state.serial)
        if isinstance(created, AllocFailure):
            raise no_memory(f"the container of {self.name!r}", created, self.name)
        if isinstance(created, Errno):
            raise kvm_errno(created, "KVM_SET_CPUID2")
        return created

    def _set_registers(self, vcpu: Vcpu) -> None:
        """A register that has its reset value already need not be known to this host."""
        entries = [MsrEntry(*entry) for entry in self.image.msrs if entry[1]]
        msrs = self._ioctl("KVM_SET_MSRS", set_msrs, vcpu, entries)
        if msrs.processed != len(entries):
            raise self._incompatible(f"KVM_SET_MSRS refuses {entries[msrs.processed].index:#x}")
        if self.image.xcrs:
            self._ioctl("KVM_SET_XCRS", set_xcrs, vcpu, [Xcr(*entry) for entry in self.image.xcrs])
        xsave = self.image.xsave.ljust(max(vcpu.guest.uabi_size, vcpu.vm.leader.guest_perm.user_state_size), b"\0")
        self._ioctl("KVM_SET_XSAVE", set_xsave, vcpu, xsave)

    def _ioctl(self, what: str, ioctl: Callable[..., T | Errno], *arguments: object) -> T:
        done = ioctl(*arguments)
        if isinstance(done, Errno):
            raise kvm_errno(done, what)
        return done

    def _grow(self, vcpu: Vcpu) -> None:
        """A container that had grown and needs the room no more has it here too."""
        missing = self.image.xfeatures & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures
        if not missing:
            return
        grown = realloc_guest_image(vcpu.vm.leader, vcpu.guest, missing)
        if isinstance(grown, ReallocFailed):
            raise kvm_errno(grown.errno, f"the container of {self.name!r}")

    def _set_the_rest(self, vcpu: Vcpu) -> None:
        image, fpstate, config = self.image, vcpu.fpstate, vcpu.vm.host.config
        for component in image.beyond:
            offset = image_offsets(fpstate, config).get(component.xfeature)
            fits = offset is not None and len(component.content) == config.table.size_bytes(component.xfeature)
            if not fits or fpstate.xfd >> component.xfeature & 1:
                raise self._incompatible(f"its container has no component {component.xfeature} of that size")
            assert offset is not None
            fpstate.regs[offset : offset + len(component.content)] = component.content
            fpstate.xstate_bv |= 1 << component.xfeature
        if fpstate.xstate_bv != image.xstate_bv:
            raise self._incompatible(f"XSTATE_BV would be {fpstate.xstate_bv:#x}, not {image.xstate_bv:#x}")
        if image.mxcsr & ~config.mxcsr_mask or image.pkru >> 32:
            raise self._incompatible(f"MXCSR {image.mxcsr:#x} or PKRU {image.pkru:#x} cannot be")
        if config.caps.FXSR:
            _U32.pack_into(fpstate.regs, MXCSR_OFFSET, image.mxcsr)
        error = cr4_error(vcpu.cpuid, image.cr4) if image.cr4 is not None else None
        if error is not None:
            raise self._incompatible(f"CR4: {error}")
        vcpu.pkru, vcpu.cr4_written = image.pkru, image.cr4
        vcpu.has_run, vcpu.incarnation = image.has_run, image.incarnation
        vcpu.nm_intercept, vcpu.xfd_passthrough = image.nm_intercept, image.xfd_passthrough
        for event in _MOVES[image.state]:
            vcpu.move(event)

    def _incompatible(self, detail: str) -> Refused:
        text = f"{self.name!r}: {detail}"
        return Refused(Reason.HOST_INCOMPATIBLE, text, xfeatures=hex(self.image.xstate_bv), detail=detail)

    # -- what the agent keeps beside it --------------------------------------------------------------------------------

    def _restore_side(self, vcpu: Vcpu) -> None:
        """Numbers go on where they were, and outcomes can be had that nobody has received."""
        image = self.image
        uid = self.state.vcpu_uid(vcpu) if self.anew else image.uid
        side = VcpuSide(uid=uid, task=image.task, next_seq=image.next_seq)
        vcpu.agent = side
        for kept in image.outcomes:
            side.outcomes[kept.seq] = Outcome(self.name, kept.seq, self._named(kept.seq, kept.kind))
        if image.exit is not None:
            side.exit = self._exit(uid, image.exit)

    def _named(self, seq: int, kind: OutcomeKind) -> OutcomeKind:
        match kind:
            case PendingOutcome() as pending:
                return replace(pending, exit=f"{self.name}/exits/{seq}")
            case GoneOutcome(directive):
                return GoneOutcome(replace(directive, vcpu=self.name))
            case _:
                return kind

    def _exit(self, uid: str, image: ExitImage) -> ExitRecord:
        """The exit as it was. Its times count from when the VM is owned, and revisions are this host's then."""
        return ExitRecord(
            name=f"{self.name}/exits/{image.seq}",
            vm=self.vm.name,
            vcpu=self.name,
            vcpu_uid=uid,
            seq=image.seq,
            write=PendingWrite(image.trigger, image.new_xcr0, image.new_xfd),
            old_xcr0=image.old_xcr0,
            old_xfd=image.old_xfd,
            cause=image.cause,
            errno=image.errno,
            xfeatures=image.xfeatures,
            bytes_needed=image.bytes_needed,
            created_revision=0,
            updated_revision=0,
            expires_ns=image.expires_in_ns,
            attempt=image.attempt,
            generation=image.generation,
            state=image.state,
            retry_ns=image.retry_in_ns,
            decision=image.decision,
            decided_by=image.decided_by,
            winners={each.generation: (each.decided_by, each.decision, each.request_id) for each in image.winners},
        )
