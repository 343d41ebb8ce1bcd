"""The host machine beside exits: tasks, names, faults, sessions, and the log."""

from __future__ import annotations

import dataclasses

import pytest

from fault_lab.injection.action import FailErrno
from fault_lab.injection.hit import Selector
from fpu_core.alloc import POINT_TASK_REALLOC_ALLOC
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED
from fpu_core.tile import TileOp
from fpu_core.xfeature import MSR_IA32_XFD
from host_agent import log
from host_agent.commands import (
    ArmFault,
    CloneTask,
    CreateTask,
    CreateVcpu,
    CreateVm,
    ExecTask,
    ExitTask,
    KernelFpu,
    OpenSession,
    PreemptTask,
    RequestPermission,
    ScheduleTask,
    SubmitBatch,
    Tick,
    UseFeature,
)
from host_agent.errors import Reason, Refused
from host_agent.events import (
    DoneOutcome,
    Enter,
    GuestEvent,
    Hlt,
    InjectOutcome,
    Leave,
    Preempt,
    RegisterRead,
    RegisterWrite,
    RejectedOutcome,
    Tile,
    Wrmsr,
    Xsetbv,
)
from host_agent.state import TaskRecord, VmRecord
from tests.core.host import SECOND_NS, Host, host_config

VM = "vms/a"
VCPU = f"{VM}/vcpus/0"
MAIN = f"{VM}/tasks/main"


def _host(vcpus: int = 1) -> Host:
    host = Host()
    host.apply(CreateVm(vm_id="a"))
    for guest in (False, True):
        host.apply(RequestPermission(vm=VM, feature=18, guest=guest))
    for index in range(vcpus):
        host.apply(CreateVcpu(vm=VM, index=index))
    return host


def _refused(host: Host, command: object) -> Refused:
    refused = host.tried(command)  # type: ignore[arg-type]
    assert isinstance(refused, Refused)
    return refused


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_exec_ends_threads_and_vcpus() -> None:
    """Permissions and their lock go, so nothing that needs them is left: KVM's descriptors are close-on-exec."""
    host = _host()
    host.apply(CreateTask(vm=VM, task_id="t"))
    host.event(VCPU, Hlt())
    host.apply(UseFeature(task=f"{VM}/tasks/t", feature=18, offset=0, data=b"tile"))
    vm, _ = host.apply(ExecTask(task=MAIN))
    assert isinstance(vm, VmRecord)
    assert (list(vm.tasks), dict(vm.kvm.vcpus), vm.kvm.account.used_bytes) == (["main"], {}, 0)
    assert not vm.kvm.leader.guest_perm.state_perm & FPU_GUEST_PERM_LOCKED
    with pytest.raises(Refused, match="there is no vCPU"):
        host.machine.state.vcpu(VCPU)


def test_exec_by_another_thread_is_refused() -> None:
    """Only a main thread: any other would become it, which nobody has modelled. Nothing changes."""
    host = _host()
    host.apply(CloneTask(task=MAIN, task_id="t", thread=True))
    before = list(host.machine.state.vms[VM].tasks)
    assert _refused(host, ExecTask(task=f"{VM}/tasks/t")).reason is Reason.FIELD_INVALID
    assert list(host.machine.state.vms[VM].tasks) == before


def test_exec_while_a_thread_is_in_kvm_run() -> None:
    """A thread in KVM_RUN is not pulled out of it: TASK_BUSY, and no thread has ended."""
    host = _host()
    host.apply(CreateTask(vm=VM, task_id="t"))
    host.session(VCPU, explicit=True)
    host.event(VCPU, Enter("t"))
    assert _refused(host, ExecTask(task=MAIN)).reason is Reason.TASK_BUSY
    assert "t" in host.machine.state.vms[VM].tasks


def test_child_has_the_pkru_of_its_parent() -> None:
    """PKRU of a running parent is in the register, and that is what the child starts with."""
    host = _host()
    host.apply(UseFeature(task=MAIN, feature=9, offset=0, data=b"\5\0\0\0"))
    _, child = host.apply(CloneTask(task=MAIN, task_id="c", thread=True))
    assert isinstance(child, TaskRecord)
    assert child.fpu.pkru == 5


@pytest.mark.parametrize("feature", [-1, 11, 64])
def test_feature_that_is_none(feature: int) -> None:
    """A number that no user component has is refused by name."""
    refused = _refused(_host(), UseFeature(task=MAIN, feature=feature, offset=0, data=b"x"))
    assert (refused.reason, refused.field) == (Reason.FIELD_INVALID, "feature")


def test_task_in_kvm_run_does_nothing_else() -> None:
    """A thread in KVM_RUN neither clones nor exits nor runs user code; it can be preempted, moved and interrupted."""
    host = _host()
    host.apply(CreateTask(vm=VM, task_id="t"))
    host.session(VCPU, explicit=True)
    host.event(VCPU, Enter("t"))
    task = f"{VM}/tasks/t"
    host.event(VCPU, RegisterWrite(1, 0, b"guest"))
    for command in (
        CloneTask(task=task, task_id="c", thread=True),
        ExitTask(task=task),
        UseFeature(task=task, feature=1, offset=0, data=b"user"),
    ):
        assert _refused(host, command).reason is Reason.TASK_BUSY
    host.apply(KernelFpu(task=task))
    host.apply(ScheduleTask(task=task, cpu=0))
    host.apply(PreemptTask(task=task))
    assert _refused(host, PreemptTask(task=task)).reason is Reason.TASK_NOT_RUNNING
    kind = host.event(VCPU, RegisterRead(1, 0, 5)).kind
    assert isinstance(kind, DoneOutcome)
    assert kind.data == b"guest"


def test_write_to_xfd_by_a_preempted_thread() -> None:
    """The thread that was there in between goes on under its own XFD, not under the guest's."""
    host = _host()
    task = f"{VM}/tasks/t"
    host.apply(CreateTask(vm=VM, task_id="t"))
    host.session(VCPU, explicit=True)
    host.event(VCPU, Enter("t"))
    host.apply(ScheduleTask(task=task, cpu=0))
    host.event(VCPU, RegisterWrite(1, 0, b"guest"))
    host.apply(ScheduleTask(task=MAIN, cpu=0))
    host.apply(UseFeature(task=MAIN, feature=1, offset=0, data=b"main"))
    host.apply(ScheduleTask(task=task, cpu=0))
    host.event(VCPU, Wrmsr(MSR_IA32_XFD, 0))
    host.apply(ScheduleTask(task=MAIN, cpu=0))
    host.apply(UseFeature(task=MAIN, feature=1, offset=0, data=b"main"))
    assert host.machine.state.vms[VM].platform.cpus[0].xfd == 1 << 18


# -- guests ------------------------------------------------------------------------------------------------------------


def test_any_tilecfg_a_guest_can_load() -> None:
    """A guest puts nonsense into TILECFG past LDTILECFG: tile instructions are #UD, and the vCPU lives on."""
    host = _host()
    host.events(VCPU, Xsetbv(0, 0x602E7), RegisterWrite(17, 0, b"\x09garbage"))
    kind = host.event(VCPU, Tile(TileOp.TILEZERO)).kind
    assert isinstance(kind, InjectOutcome)
    assert kind.vector == 6
    assert isinstance(host.event(VCPU, Tile(TileOp.TILERELEASE)).kind, DoneOutcome)


def test_pkru_of_one_guest_is_not_anothers() -> None:
    """Two vCPUs on one thread whose own PKRU is set: the reserved upper half does not carry bytes across."""
    host = Host()
    host.apply(CreateVm(vm_id="a"))
    for index in (0, 1):
        host.apply(CreateVcpu(vm=VM, index=index, task="main"))
    host.apply(UseFeature(task=MAIN, feature=9, offset=0, data=b"\7\0\0\0"))
    one, two = VCPU, f"{VM}/vcpus/1"
    host.session(one, two)
    host.events(two, Xsetbv(0, 0x203), RegisterWrite(9, 0, b"\2\0\0\0"))
    host.events(one, Xsetbv(0, 0x203), RegisterWrite(9, 0, b"\1\0\0\0leak"))
    kind = host.event(two, RegisterRead(9, 0, 8)).kind
    assert isinstance(kind, DoneOutcome)
    assert kind.data == b"\2" + bytes(7)


def test_implicit_takes_the_thread_and_explicit_does_not() -> None:
    """In an implicit session an instruction enters by itself; in an explicit one it is refused until ENTER."""
    host = _host()
    host.session(VCPU, explicit=True)
    for kind in (RegisterRead(1, 0, 1), Leave(), Preempt()):
        rejected = host.event(VCPU, kind).kind
        assert isinstance(rejected, RejectedOutcome)
        assert rejected.reason == "VCPU_NOT_ENTERED"
    host.session(VCPU)
    assert isinstance(host.event(VCPU, RegisterRead(1, 0, 1)).kind, DoneOutcome)


# -- names, faults, sessions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"{VM}/vcpus/00", f"{VM}/vcpus/\u0660", f"{VM}/vcpus/1", "vms/b/vcpus/0", "0", ""])
def test_name_of_no_vcpu(name: str) -> None:
    """A vCPU has one name; what merely looks like its number is nobody's."""
    assert _refused(_host(), OpenSession(client_name="x", vcpus=(name,))).reason is Reason.VCPU_NOT_FOUND


def test_fault_in_the_scope_of_another_vm() -> None:
    """A fault armed for VM b hits no task of VM a, whoever acted last."""
    host = _host()
    host.apply(CreateVm(vm_id="b"))
    host.apply(ArmFault(point=POINT_TASK_REALLOC_ALLOC, action=FailErrno(12), selector=Selector(vm="vms/b")))
    host.apply(CreateVcpu(vm="vms/b", index=0))
    assert host.apply(UseFeature(task=MAIN, feature=18, offset=0, data=b"x")).signal == ""
    host.apply(RequestPermission(vm="vms/b", feature=18, guest=False))
    assert host.apply(UseFeature(task="vms/b/tasks/main", feature=18, offset=0, data=b"x")).signal == "SIGSEGV"


def test_newest_session_of_a_vcpu_wins() -> None:
    """The older session is fenced off from that vCPU and keeps its others; numbers go on."""
    host = _host(vcpus=2)
    other = f"{VM}/vcpus/1"
    old = host.session(VCPU, other)
    host.event(VCPU, Hlt())
    new = host.session(VCPU)
    events = (GuestEvent(VCPU, 2, Hlt()), GuestEvent(other, 1, Hlt()))
    fenced, fine = host.apply(SubmitBatch(session=old.name, epoch=old.epoch, events=events))
    assert fenced.kind.reason == "SESSION_FENCED"
    assert fenced.kind.metadata["currentEpoch"] == str(new.epoch)
    assert isinstance(fine.kind, DoneOutcome)
    (taken,) = host.apply(SubmitBatch(session=new.name, epoch=new.epoch, events=events[:1]))
    assert isinstance(taken.kind, DoneOutcome)


def test_lease_runs_out() -> None:
    """Without a sign of life the session expires: its vCPU leaves the guest and stays, and the caller hears why."""
    host = _host()
    session = host.session(VCPU)
    host.event(VCPU, RegisterWrite(1, 0, b"kept"))
    host.apply(Tick(), after_ns=30 * SECOND_NS)
    refused = _refused(host, SubmitBatch(session=session.name, epoch=session.epoch, events=()))
    assert refused.reason is Reason.SESSION_EXPIRED
    assert host.vcpu(VCPU).fpu is None
    kind = host.event(VCPU, RegisterRead(1, 0, 4)).kind
    assert isinstance(kind, DoneOutcome)
    assert kind.data == b"kept"


def test_repeated_request_id() -> None:
    """The same command again gets the same answer and does nothing; another command under that id is refused."""
    host = _host()
    command = CreateTask(vm=VM, task_id="t", request_id="once")
    first = host.apply(command)
    assert host.apply(command) is first
    assert _refused(host, dataclasses.replace(command, task_id="u")).reason is Reason.REQUEST_ID_REUSED
    assert "u" not in host.machine.state.vms[VM].tasks


# -- the log -----------------------------------------------------------------------------------------------------------


def test_log_replays_to_the_same_digest() -> None:
    """Commands of every kind, refusals among them: the text of the log makes the same host."""
    host = _host()
    host.events(VCPU, Xsetbv(0, 0x602E7), RegisterWrite(2, 0, bytes(range(256))), Hlt())
    host.apply(UseFeature(task=MAIN, feature=18, offset=100, data=b"tile"))
    _refused(host, CreateVm(vm_id="a"))
    host.apply(Tick(), after_ns=SECOND_NS)
    assert host.replayed().digest() == host.machine.digest()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(RegisterWrite(2, 0, b"\1"), id="one byte of a register"),
        pytest.param(Wrmsr(MSR_IA32_XFD, 1 << 18), id="XFD"),
        pytest.param(Xsetbv(0, 0x3), id="XCR0"),
        pytest.param(Hlt(), id="an event that does nothing"),
    ],
)
def test_digest_notices(change: RegisterWrite | Wrmsr | Xsetbv | Hlt) -> None:
    """Whatever differs shows in the digest."""
    host, other = _host(), _host()
    for each in (host, other):
        each.event(VCPU, Xsetbv(0, 0x7))
    assert host.machine.digest() == other.machine.digest()
    host.event(VCPU, change)
    assert host.machine.digest() != other.machine.digest()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param([], "line 1: expected the configuration", id="empty"),
        pytest.param(["{}"], "line 1: expected the configuration", id="no configuration"),
        pytest.param(["x"], "line 1: not JSON", id="no JSON"),
        pytest.param(["CONFIG", "[]"], "line 2: expected an object", id="no object"),
        pytest.param(["CONFIG", '{"at": 1}'], "line 2: expected a command, got NoneType", id="no command"),
        pytest.param(
            ["CONFIG", '{"at": 1, "command": {"type": "Explode"}}'],
            "line 2: not a record",
            id="no such command",
        ),
    ],
)
def test_bad_log(lines: list[str], message: str) -> None:
    """A line that is no record is refused with its number."""
    config = log.config_line(host_config())
    with pytest.raises(log.LogError, match=message):
        log.read_log([config if line == "CONFIG" else line for line in lines])
