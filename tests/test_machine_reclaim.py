"""RECLAIM, HIDE_FEATURE and whose a decision is: what scenarios 100 to 105 do not show."""

from __future__ import annotations

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fpu_core.alloc import POINT_REALLOC_ALLOC
from fpu_core.xfeature import MSR_IA32_XFD
from host_agent.commands import (
    AcquireControl,
    ArmFault,
    CreateVcpu,
    CreateVm,
    DeleteVm,
    RenewControl,
    RequestPermission,
    ResetVm,
    ResolveExit,
    SetCpuid,
    SetHostLimit,
    UpdateVm,
)
from host_agent.errors import Reason, Refused
from host_agent.events import DoneOutcome, Enter, Leave, PendingOutcome, Rdmsr, Wrmsr, XfdSync, Xsetbv
from host_agent.exits import Decision, DecisionKind, ExitRecord, ExitState, Victim
from host_agent.kvm.shrink import Unshrinkable
from host_agent.vms import vm_etag
from tests.core.host import Host, host_config

AMX, TILE_DATA = 0x602E7, 1 << 18
IDLE_BYTES, GROWN_BYTES, FREED_BYTES = 2_624, 10_816, 8_192


def host_with(*vms: str, vcpus: int = 3) -> Host:
    """VMs that may use tiles, with vCPUs 0, 1, ..."""
    host = Host(host_config())
    for vm in vms:
        host.apply(CreateVm(vm_id=vm))
        host.apply(RequestPermission(vm=f"vms/{vm}", feature=18, guest=True))
        for index in range(vcpus):
            host.apply(CreateVcpu(vm=f"vms/{vm}", index=index))
    return host


def idle_and_grown(host: Host, vcpu: str) -> None:
    """The guest has used tiles, put them away, armed XFD and left; its VMM asks before it enters again."""
    host.session(vcpu, explicit=True)
    host.events(vcpu, Enter(), Wrmsr(MSR_IA32_XFD, TILE_DATA), Xsetbv(0, AMX), Wrmsr(MSR_IA32_XFD, 0))
    host.events(vcpu, XfdSync(TILE_DATA), Leave())
    assert host.vcpu(vcpu).fpstate.allocated_bytes == GROWN_BYTES
    assert host.vcpu(vcpu).xfd_passthrough


def parked(host: Host, vcpu: str) -> ExitRecord:
    """The guest asks for tiles, and does not get the room."""
    host.session(vcpu)
    pending = host.event(vcpu, Xsetbv(0, AMX)).kind
    assert isinstance(pending, PendingOutcome)
    return host.machine.state.exits[pending.exit]


def no_memory(host: Host, times: int = 1) -> None:
    """The next growths find none."""
    host.apply(ArmFault(point=POINT_REALLOC_ALLOC, action=FailErrno(12), attributes=FaultAttributes(times=times)))


def resolve(host: Host, record: ExitRecord, what: Decision, scope: str = "") -> object:
    """Decide; a refusal is a value."""
    control, epoch = host.control(scope)
    command = ResolveExit(
        exit=record.name, generation=record.generation, control=control, control_epoch=epoch, decision=what
    )
    return host.tried(command)


ANY = Decision(DecisionKind.RECLAIM, any_victim=True)

# -- how much, and from whom -------------------------------------------------------------------------------------------


def test_without_memory_as_much_is_freed_as_it_takes() -> None:
    """Two containers for one growth, the own VM's first, then others in the order in which the VMs were made."""
    host = host_with("a", "b", "c")
    for vcpu in ("vms/c/vcpus/0", "vms/b/vcpus/1", "vms/b/vcpus/0"):
        idle_and_grown(host, vcpu)
    idle_and_grown(host, "vms/a/vcpus/2")
    no_memory(host)
    record = parked(host, "vms/a/vcpus/0")
    resolve(host, record, ANY)
    freed = [(each.vcpu, each.freed_bytes) for each in record.reclaimed]
    assert freed == [("vms/a/vcpus/2", FREED_BYTES), ("vms/b/vcpus/0", FREED_BYTES)]
    assert record.state is ExitState.RESOLVED


def test_named_victims_count_for_what_is_enough() -> None:
    """Each once; those after it are taken only if more is needed."""
    host = host_with("a", "b")
    for vcpu in ("vms/b/vcpus/0", "vms/b/vcpus/1", "vms/b/vcpus/2"):
        idle_and_grown(host, vcpu)
    no_memory(host)
    record = parked(host, "vms/a/vcpus/0")
    named = ("vms/b/vcpus/2", "vms/b/vcpus/0", "vms/b/vcpus/2")
    resolve(host, record, Decision(DecisionKind.RECLAIM, victims=named, any_victim=True))
    assert record.reclaimed == (Victim("vms/b/vcpus/2", FREED_BYTES), Victim("vms/b/vcpus/0", FREED_BYTES))
    assert host.vcpu("vms/b/vcpus/1").fpstate.allocated_bytes == GROWN_BYTES


def test_a_vms_own_limit_is_helped_by_its_own_alone() -> None:
    """Nothing is taken from others, where it would not count; what was taken stays taken if the retry fails."""
    host = host_with("a", "b")
    idle_and_grown(host, "vms/a/vcpus/1")
    idle_and_grown(host, "vms/b/vcpus/0")
    host.apply(UpdateVm(vm="vms/a", fields=("byte_limit",), byte_limit=GROWN_BYTES + 2 * IDLE_BYTES))
    record = parked(host, "vms/a/vcpus/0")
    resolve(host, record, ANY)
    assert record.reclaimed == (Victim("vms/a/vcpus/1", FREED_BYTES),)
    assert (record.state, record.generation) == (ExitState.OPEN, 2)
    assert host.vcpu("vms/b/vcpus/0").fpstate.allocated_bytes == GROWN_BYTES


def test_nothing_is_taken_where_there_is_enough_by_now() -> None:
    """A limit that was raised meanwhile refuses no more."""
    host = host_with("a", "b")
    idle_and_grown(host, "vms/b/vcpus/0")
    host.apply(SetHostLimit(byte_limit=host.machine.state.allocator.host.used_bytes))
    record = parked(host, "vms/a/vcpus/0")
    host.apply(SetHostLimit(byte_limit=None))
    resolve(host, record, ANY)
    assert (record.reclaimed, record.state) == ((), ExitState.RESOLVED)


def test_it_says_what_it_did_even_where_the_answer_is_given_again() -> None:
    """The same decision under the same request id is the same exit, and takes nothing a second time."""
    host = host_with("a", "b")
    idle_and_grown(host, "vms/b/vcpus/0")
    no_memory(host)
    record = parked(host, "vms/a/vcpus/0")
    control, epoch = host.control()
    command = ResolveExit(
        exit=record.name,
        generation=1,
        control=control,
        control_epoch=epoch,
        decision=Decision(DecisionKind.RECLAIM, victims=("vms/b/vcpus/0",)),
        request_id="once",
    )
    assert host.apply(command) is host.apply(command)
    assert record.reclaimed == (Victim("vms/b/vcpus/0", FREED_BYTES),)
    assert len(host.machine.state.audit.decisions) == 1


# -- what the victim's VMM notices -------------------------------------------------------------------------------------


def test_the_vmm_hears_of_the_intercept_before_the_guest_runs() -> None:
    """The outcome of ENTER says that XFD is intercepted again; the guest reads the XFD it wrote."""
    host = host_with("a", "b")
    victim = "vms/b/vcpus/0"
    idle_and_grown(host, victim)
    no_memory(host)
    resolve(host, parked(host, "vms/a/vcpus/0"), Decision(DecisionKind.RECLAIM, victims=(victim,)))
    entered = host.event(victim, Enter()).kind
    assert isinstance(entered, DoneOutcome)
    assert entered.intercepts is not None
    assert (entered.intercepts.xfd_write, entered.intercepts.nm) == (True, True)
    read = host.event(victim, Rdmsr(MSR_IA32_XFD)).kind
    assert isinstance(read, DoneOutcome)
    assert read.value == TILE_DATA
    grown = host.event(victim, Wrmsr(MSR_IA32_XFD, 0)).kind
    assert isinstance(grown, DoneOutcome)
    assert grown.reallocated is not None
    assert (grown.reallocated.old_bytes, grown.reallocated.new_bytes) == (2560, 10_752)
    assert not host.vcpu(victim).xfd_passthrough or host.vcpu(victim).fpstate.xfeatures & TILE_DATA


def test_a_cpuid_that_allows_more_than_there_is_room_for_intercepts_xfd_again() -> None:
    """A life without tiles drops the intercept, since nothing could grow; the next life may have them."""
    host = host_with("a", vcpus=1)
    vcpu = "vms/a/vcpus/0"
    host.event(vcpu, Wrmsr(MSR_IA32_XFD, TILE_DATA))
    host.apply(ResetVm(vm="vms/a"))
    host.apply(SetCpuid(vm="vms/a", xcr0_mask=0x2E7))
    host.event(vcpu, Xsetbv(0, 7))
    assert host.vcpu(vcpu).xfd_passthrough
    host.apply(ResetVm(vm="vms/a"))
    host.apply(SetCpuid(vm="vms/a", xcr0_mask=AMX))
    assert not host.vcpu(vcpu).xfd_passthrough


# -- HIDE_FEATURE ------------------------------------------------------------------------------------------------------


def test_what_is_hidden_is_shown_and_changes_the_vm() -> None:
    """The mask waits with the VM, whose etag changes; several decisions hide it once."""
    host = host_with("a")
    vm = host.machine.state.vms["vms/a"]
    no_memory(host, 2)
    for vcpu in ("vms/a/vcpus/0", "vms/a/vcpus/1"):
        etag = vm_etag(vm)
        resolve(host, parked(host, vcpu), Decision(DecisionKind.HIDE_FEATURE))
        assert (vm.hidden_at_reset, vm_etag(vm) != etag) == (TILE_DATA, True)
    host.apply(ResetVm(vm="vms/a"))
    assert (vm.hidden_at_reset, vm.kvm.guest_supported_xcr0) == (0, 0x2E7)
    host.apply(ResetVm(vm="vms/a"))
    assert vm.kvm.guest_supported_xcr0 == 0x2E7


def test_a_vcpu_with_a_cpuid_of_its_own_loses_it_from_that() -> None:
    """Nothing else of its table changes."""
    host = host_with("a")
    host.apply(SetCpuid(vm="vms/a", vcpu="vms/a/vcpus/1", xcr0_mask=0x60207))
    no_memory(host)
    record = parked(host, "vms/a/vcpus/0")
    resolve(host, record, Decision(DecisionKind.HIDE_FEATURE))
    resolve_reset = parked_again(host)
    resolve(host, resolve_reset, Decision(DecisionKind.RESET_VM))
    supported = [host.vcpu(f"vms/a/vcpus/{nr}").guest_supported_xcr0 for nr in range(3)]
    assert supported == [0x2E7, 0x207, 0x2E7]
    assert host.machine.state.vms["vms/a"].kvm.guest_supported_xcr0 == 0x2E7


def parked_again(host: Host) -> ExitRecord:
    """Another vCPU's exit of the same VM: the decision RESET_VM is a reset like any other."""
    no_memory(host)
    return parked(host, "vms/a/vcpus/2")


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_a_vms_controller_takes_from_its_own_vm_alone() -> None:
    """Also by name; and where another VM has a controller, the host's takes nothing there."""
    host = host_with("a", "b", "c")
    for vcpu in ("vms/a/vcpus/1", "vms/b/vcpus/0", "vms/c/vcpus/0"):
        idle_and_grown(host, vcpu)
    no_memory(host, 2)
    record = parked(host, "vms/a/vcpus/0")
    named = ("vms/b/vcpus/0", "vms/a/vcpus/1")
    resolve(host, record, Decision(DecisionKind.RECLAIM, victims=named, any_victim=True), scope="vms/a")
    assert record.reclaimed == (
        Victim("vms/b/vcpus/0", refused=Unshrinkable.NOT_CONTROLLED),
        Victim("vms/a/vcpus/1", FREED_BYTES),
    )


def test_the_hosts_limit_is_the_hosts_controllers() -> None:
    """A VM's controller may raise its VM's limit, and not everybody's."""
    host = host_with("a")
    host.apply(SetHostLimit(byte_limit=host.machine.state.allocator.host.used_bytes))
    record = parked(host, "vms/a/vcpus/0")
    raised = Decision(DecisionKind.RAISE_LIMIT, bytes=1 << 20, scope="host")
    refused = resolve(host, record, raised, scope="vms/a")
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.metadata["scope"]) == (Reason.CONTROL_OUT_OF_SCOPE, "vms/a")
    assert host.machine.state.allocator.host.limit_bytes != 1 << 20
    assert not host.machine.state.audit.decisions


def test_nobody_takes_a_scope_over_by_calling_itself_the_same() -> None:
    """A controller is its name and its principal; its own earlier hold it fences off."""
    host = host_with("a")
    first = host.apply(AcquireControl(scope="", controller="main", principal="d/controller/one"))
    other = host.tried(AcquireControl(scope="", controller="main", principal="d/controller/two"))
    assert isinstance(other, Refused)
    assert other.reason is Reason.CONTROL_HELD
    again = host.apply(AcquireControl(scope="", controller="main", principal="d/controller/one"))
    assert again.epoch > first.epoch


def test_a_control_ends_with_its_vm() -> None:
    """A later VM of the name is another, and free to be controlled."""
    host = host_with("a", vcpus=0)
    control = host.apply(AcquireControl(scope="vms/a", controller="old"))
    host.apply(DeleteVm(vm="vms/a"))
    host.apply(CreateVm(vm_id="a"))
    refused = host.tried(RenewControl(control=control.name, epoch=control.epoch))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.CONTROL_FENCED
    assert host.apply(AcquireControl(scope="vms/a", controller="new")).epoch > control.epoch


@pytest.mark.parametrize("decisions", [300])
def test_old_winners_are_forgotten(decisions: int) -> None:
    """An exit that is retried for ever does not grow for ever; who repeats an old decision hears that it is stale."""
    host = host_with("a")
    no_memory(host, -1)
    record = parked(host, "vms/a/vcpus/0")
    for _ in range(decisions):
        resolve(host, record, Decision(DecisionKind.RETRY))
    assert (record.generation, len(record.winners)) == (decisions + 1, 256)
    control, epoch = host.control()
    late = ResolveExit(
        exit=record.name, generation=1, control=control, control_epoch=epoch, decision=Decision(DecisionKind.RETRY)
    )
    refused = host.tried(late)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.EXIT_STALE_GENERATION
