"""The invariants above the core: vCPUs, tasks, exits and sessions agree with each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fpu_core.errors import CoreBug
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC
from host_agent.events import PendingOutcome
from host_agent.kvm.lifecycle import VcpuState
from host_agent.migrations import MigrationRole, MigrationState
from host_agent.state import HostState, VcpuSide

Violations = Iterable[str]


def room_for_what_is_enabled(state: HostState) -> Violations:
    """(xcr0 & ~xfd & DYNAMIC) is within the container of every vCPU that could enter."""
    for vm in state.vms.values():
        for vcpu in vm.kvm.vcpus.values():
            fpstate = vcpu.fpstate
            missing = vcpu.xcr0 & ~fpstate.xfd & XFEATURE_MASK_USER_DYNAMIC & ~fpstate.xfeatures
            if missing:
                has = f"xcr0={vcpu.xcr0:#x} xfd={fpstate.xfd:#x} and {fpstate.size:,} bytes"
                yield f"{vm.name}/vcpus/{vcpu.index} is {vcpu.state.value} with {has}, no room for {missing:#x}"


def growth_is_seen(state: HostState) -> Violations:
    """XFD is passed through only where no write of it could need room that the container has not got."""
    for vm in state.vms.values():
        for vcpu in vm.kvm.vcpus.values():
            if vcpu.xfd_passthrough and vcpu.xfd_allowed & ~vcpu.fpstate.xfeatures:
                yield f"{vcpu}: XFD is passed through, and may ask for {vcpu.xfd_allowed:#x}"


def no_guest_feature_without_permission(state: HostState) -> Violations:
    """A guest's container holds a dynamic feature only if its VMM's process may give it to guests."""
    for vm in state.vms.values():
        permitted = vm.kvm.leader.guest_perm.state_perm
        for vcpu in vm.kvm.vcpus.values():
            dynamic = vcpu.fpstate.xfeatures & XFEATURE_MASK_USER_DYNAMIC
            if dynamic & ~permitted:
                yield f"{vcpu} holds {dynamic:#x}, permitted {permitted:#x}"


def entered_means_a_thread(state: HostState) -> Violations:
    """A vCPU is entered exactly while one task is in its KVM_RUN, and its container is that task's active one."""
    for vm in state.vms.values():
        running = {id(task.vcpu): task for task in vm.tasks.values() if task.vcpu is not None}
        for vcpu in vm.kvm.vcpus.values():
            task = running.get(id(vcpu))
            if vcpu.state is VcpuState.BROKEN:
                continue
            if (vcpu.state is VcpuState.ENTERED) != (task is not None):
                yield f"{vcpu} and {task}"
            elif task is not None and task.fpu.fpstate is not vcpu.fpstate:
                yield f"{vcpu}: its thread has {task.fpu.fpstate}"


def parked_means_an_exit(state: HostState) -> Violations:
    """A vCPU is parked or paused exactly while an exit of its is open, and its last outcome is pending on that."""
    for vm in state.vms.values():
        for vcpu in vm.kvm.vcpus.values():
            side = vcpu.agent
            record = side.exit if isinstance(side, VcpuSide) else None
            parked = vcpu.state in (VcpuState.PARKED, VcpuState.PAUSED)
            if parked != (record is not None):
                yield f"{vcpu}: exit {record}"
            elif record is not None and isinstance(side, VcpuSide):
                last = side.outcomes.get(record.seq)
                if last is None or last.kind != PendingOutcome(record.name, record.generation):
                    yield f"{vcpu}: last outcome {last}, exit {record.name} at generation {record.generation}"


def pending_means_an_exit(state: HostState) -> Violations:
    """No event is pending on a vCPU that has no exit open: its final outcome would never come."""
    for vm in state.vms.values():
        for vcpu in vm.kvm.vcpus.values():
            side = vcpu.agent
            if not isinstance(side, VcpuSide) or side.exit is not None:
                continue
            for seq in (side.next_seq - 1, side.next_seq - 2):  # INIT takes a number behind a pending one
                outcome = side.outcomes.get(seq)
                if outcome is not None and not outcome.final:
                    yield f"{vcpu}: {outcome}"


def exits_are_of_vcpus(state: HostState) -> Violations:
    """Every open exit is the one exit of a vCPU there is, with at most one decision a generation."""
    for record in state.exits.values():
        side = state.vcpu(record.vcpu).agent
        if not isinstance(side, VcpuSide) or side.exit is not record:
            yield f"{record.name} is nobody's"
        if set(record.winners) - set(range(1, record.generation + 1)):
            yield f"{record.name}: decided {sorted(record.winners)} at generation {record.generation}"


def sessions_and_vcpus_agree(state: HostState) -> Violations:
    """A session has a vCPU exactly if the vCPU says so."""
    for session in state.sessions.values():
        for name, vcpu in session.vcpus.items():
            side = vcpu.agent
            if not isinstance(side, VcpuSide) or side.session is not session:
                yield f"{session.name} claims {name}"


def host_ledger_is_the_sum(state: HostState) -> Violations:
    """The host's account is the sum of its VMs', of those too that are staged here and not its own yet."""
    total = sum(vm.kvm.account.used_bytes for vm in state.every_vm())
    if state.allocator.host.used_bytes != total:
        yield f"host {state.allocator.host.used_bytes} bytes, VMs {total}"


def permissions_only_grow(state: HostState) -> Violations:
    """No process loses a permission or its lock, short of exec."""
    for name, vm in state.vms.items():
        try:
            state.permissions[name].check(task.fpu for task in vm.tasks.values())
        except CoreBug as bug:
            yield str(bug)


def migrations_are_in_the_books(state: HostState) -> Violations:
    """A migration that is open is in its books, and holds what its state says: an image, or a VM."""
    for record in state.migrations.values():
        books = state.leaving if record.role is MigrationRole.SOURCE else state.coming
        if (books.get(record.vm) is record) != record.state.open:
            yield f"{record.name} is {record.state.name}"
        if (record.staged is not None) != (record.state is MigrationState.STAGED):
            yield f"{record.name} is {record.state.name}: {record.staged}"
        if bool(record.image) != (record.state is MigrationState.IMPORTED):
            yield f"{record.name} is {record.state.name} with {len(record.image)} bytes"


def what_leaves_stands_still(state: HostState) -> Violations:
    """A VM that is leaving is here, and none of its vCPUs is in the guest."""
    for name, record in state.leaving.items():
        vm = state.vms.get(name)
        if vm is None or vm.uid != record.vm_uid:
            yield f"{record.name}: its VM is not here"
        elif any(vcpu.state is VcpuState.ENTERED for vcpu in vm.kvm.vcpus.values()):
            yield f"{record.name}: a vCPU is in the guest"


def what_is_elsewhere_is_not_here(state: HostState) -> Violations:
    """A VM that is on its way here, or has gone, is none of this host's."""
    for name in state.coming.keys() & state.vms.keys():
        yield f"{name} is on its way here and is here"
    for name, moved in state.moved.items():
        vm = state.vms.get(name)
        if vm is not None and vm.uid == moved.uid:
            yield f"{name} has gone to {moved.target} and is here"


def deadlines_are_indexed(state: HostState) -> Violations:
    """What the index says is due next is the earliest deadline that there is."""
    first = min((each.deadline_ns for each in state.timed() if each.deadline_ns is not None), default=None)
    if first is not None and not state.deadlines.may_be_due(first):  # before it puts itself in order
        yield f"the index does not see that something is due at {first}"
    if state.deadlines.first_ns() != first:
        yield f"the index says {state.deadlines.first_ns()}, the records {first}"


INVARIANTS: tuple[Callable[[HostState], Violations], ...] = (
    room_for_what_is_enabled,
    growth_is_seen,
    no_guest_feature_without_permission,
    entered_means_a_thread,
    parked_means_an_exit,
    pending_means_an_exit,
    exits_are_of_vcpus,
    sessions_and_vcpus_agree,
    host_ledger_is_the_sum,
    permissions_only_grow,
    migrations_are_in_the_books,
    what_leaves_stands_still,
    what_is_elsewhere_is_not_here,
    deadlines_are_indexed,
)


def check_host(state: HostState) -> None:
    """Raise ``CoreBug`` naming the first invariant that does not hold."""
    for invariant in INVARIANTS:
        for violation in invariant(state):
            raise CoreBug(f"{invariant.__name__}: {violation}")
