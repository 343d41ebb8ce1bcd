"""The registry of fault points, and its rule: where a point fails, nothing has been changed, and the caller says so."""

from __future__ import annotations

import errno
import inspect
import json
import re
from contextlib import suppress
from pathlib import Path

import pytest

from fault_lab.injection.action import (
    Action,
    Clock,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    FailErrno,
    FailStatus,
    Hold,
    Kill,
    Pause,
    Reorder,
)
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector, Window
from fault_lab.injection.points import FAULT_POINTS, HOST_POINTS, ErrorClass, Seat, points_as_json
from fault_lab.plan.arm import arm_requests
from fault_lab.plan.load import load_plan
from fault_lab.plan.resolve import planned_faults
from fault_lab.wire.action import action_from_proto, action_to_proto
from fpu_core import alloc
from host_agent import commands as c
from host_agent.digest import describe
from host_agent.effects import FaultChanged
from host_agent.errors import Refused
from host_agent.events import GuestEvent, PendingOutcome, Xsetbv
from host_agent.exits import Decision, DecisionKind
from host_agent.journal.command import pack_command, unpack_command
from host_agent.log import decode, encode
from host_agent.machine import HostMachine
from host_agent.service.translate.fault import arm_fault_from_proto
from host_agent.sessions import Opened
from host_agent.state import ControlRecord, HostConfig

ROOT = Path(__file__).resolve().parent.parent
VM, VCPU = "vms/a", "vms/a/vcpus/0"
XSAVE = bytes(4096)
XTILE_DATA = 1 << 18


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULT_POINTS)
def test_a_row(name: str) -> None:
    """Dotted lower-case words; the file that asks exists and names the point; it takes at least one action."""
    point = FAULT_POINTS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", name)
    assert point.actions
    assert bool(point.errnos) is (FailErrno in point.actions)
    if point.seat is Seat.HOST:
        source = (ROOT / point.where.partition(",")[0]).read_text()
        constants = [each for each, value in vars(alloc).items() if value == name]
        assert name in source or any(constant in source for constant in constants)


def test_the_core_and_the_registry_agree() -> None:
    """Every point that the core has a name for has a row."""
    named = {value for constant, value in inspect.getmembers(alloc) if constant.startswith("POINT_")}
    assert named <= set(HOST_POINTS)


def test_the_list_for_machines() -> None:
    """Names of classes and errnos, and nothing that JSON has no word for."""
    rows = {row["name"]: row for row in points_as_json()}
    assert list(rows) == list(FAULT_POINTS)
    assert rows["journal.write"]["errnos"] == ["EIO", "ENOSPC"]
    assert rows["rpc.server.reply"]["actions"] == ["FailStatus", "Delay"]


@pytest.mark.parametrize(
    ("point", "action", "expected"),
    [
        ("fpstate.realloc.alloc", FailErrno(errno.ENOMEM), ""),
        ("fpstate.realloc.alloc", FailErrno(errno.EPERM), "12 (ENOMEM)"),
        ("fpstate.realloc.perm", FailErrno(errno.EPERM), ""),
        ("fpstate.realloc.alloc", Delay(1, 1), "FailErrno"),
        ("rpc.server.receive", FailStatus(14), ""),
        ("rpc.server.receive", Drop(), "FailStatus or Delay"),
        ("link.message", Drop(), ""),
        ("node.run", Kill(), ""),
        ("node.clock", Clock(1), ""),
        ("journal.sync", FailErrno(errno.ENOSPC), "5 (EIO)"),
    ],
)
def test_what_a_point_takes(point: str, action: Action, expected: str) -> None:
    """The error class says which kinds of action; the row, which errnos."""
    assert FAULT_POINTS[point].objection(action) == expected


# -- the host's points -------------------------------------------------------------------------------------------------


class Host:
    """A host with a VM and, unless told otherwise, a vCPU, whose faults were armed in vain."""

    def __init__(self, *, vcpus: int = 1) -> None:
        self.machine = HostMachine(HostConfig(faults=True, check_invariants=True))
        self.apply(c.CreateVm(vm_id="a", labels={"make-it-fail": "1"}))
        self.apply(c.RequestPermission(vm=VM, feature=18, guest=True))
        for index in range(vcpus):
            self.apply(c.CreateVcpu(vm=VM, index=index))

    def apply(self, command: c.Command) -> object:
        """Carry a command out."""
        return self.machine.apply(command, self.machine.state.now_ns)

    def refused(self, command: c.Command) -> Refused:
        """The refusal that a command meets."""
        with pytest.raises(Refused) as caught:
            self.apply(command)
        return caught.value

    def known(self) -> list[str]:
        """All that the host knows, but for what counts commands."""
        return [line for line in describe(self.machine.state) if not line.startswith('["host"')]

    def xsetbv(self) -> object:
        """A guest enables tiles; the outcome."""
        opened = self.apply(c.OpenSession(client_name="t", vcpus=(VCPU,)))
        assert isinstance(opened, Opened)
        session = opened.session
        event = GuestEvent(VCPU, 1, Xsetbv(0, 0x602E7, 0))
        outcomes = self.apply(c.SubmitBatch(session=session.name, epoch=session.epoch, events=(event,)))
        assert isinstance(outcomes, tuple)
        return outcomes[0].kind


@pytest.mark.parametrize(
    ("point", "number", "command", "reason"),
    [
        ("kvm.vm.alloc", errno.ENOMEM, c.CreateVm(vm_id="b", profile="zen4"), "ALLOCATION_FAILED"),
        ("kvm.vcpu.alloc", errno.ENOMEM, c.CreateVcpu(vm=VM, index=1), "ALLOCATION_FAILED"),
        ("fpstate.guest.alloc", errno.ENOMEM, c.CreateVcpu(vm=VM, index=1), "ALLOCATION_FAILED"),
        ("kvm.set_cpuid.copy", errno.EFAULT, c.SetCpuid(vm=VM, xcr0_mask=7), "KVM_ERRNO"),
        ("kvm.set_xsave.copy", errno.ENOMEM, c.SetXsave(vcpu=VCPU, xsave=XSAVE), "KVM_ERRNO"),
        ("kvm.set_xcrs.copy", errno.EFAULT, c.SetXcrs(vcpu=VCPU, xcrs=((0, 3),)), "KVM_ERRNO"),
        ("kvm.set_msrs.copy", errno.ENOMEM, c.SetMsrs(vcpu=VCPU, entries=((0x1C4, 0),)), "KVM_ERRNO"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_point_fails_before_anything_has_changed(point: str, number: int, command: c.Command, reason: str) -> None:
    """The command is refused with the errno; then the fault is gone, the host knows what it knew, and it works."""
    host = Host()
    before = host.known()
    host.apply(c.ArmFault(point=point, action=FailErrno(number)))
    refused = host.refused(command)
    assert (refused.reason.name, refused.metadata["errno"]) == (reason, str(number))
    (fault,) = host.machine.state.faults.armed.values()
    assert (fault.hits, fault.fired) == (1, 1)
    host.apply(c.ResetFaults())
    assert host.known() == before
    host.apply(command)


@pytest.mark.parametrize(
    ("point", "number", "cause"),
    [
        ("fpstate.realloc.alloc", errno.ENOMEM, "NO_MEMORY"),
        ("fpstate.realloc.perm", errno.EPERM, "NO_PERMISSION"),
    ],
)
def test_growth_that_fails_is_an_exit(point: str, number: int, cause: str) -> None:
    """The vCPU is parked in front of its instruction, with its old container; the exit says why."""
    host = Host()
    size = host.machine.state.vcpu(VCPU).fpstate.size
    host.apply(c.ArmFault(point=point, action=FailErrno(number)))
    assert isinstance(host.xsetbv(), PendingOutcome)
    (record,) = host.machine.state.exits.values()
    assert (record.cause.value, record.errno) == (cause, number)
    assert host.machine.state.vcpu(VCPU).fpstate.size == size


@pytest.mark.parametrize(("point", "number"), [("alloc", errno.ENOMEM), ("perm", errno.EPERM)])
def test_growth_of_a_task_that_fails_is_a_signal(point: str, number: int) -> None:
    """SIGSEGV where memory is missing, SIGILL where the permission is."""
    host = Host()
    host.apply(c.RequestPermission(vm=VM, feature=18, guest=False))
    host.apply(c.ArmFault(point=f"fpstate.task.realloc.{point}", action=FailErrno(number)))
    used = host.apply(c.UseFeature(task=f"{VM}/tasks/main", feature=18, offset=0, length=0))
    assert getattr(used, "signal", None) == {"alloc": "SIGSEGV", "perm": "SIGILL"}[point]


def test_a_hit_says_who_and_why() -> None:
    """vCPU, event, command and components: what selectors and the stack filter look at."""
    host = Host()
    host.apply(c.ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12)))
    host.xsetbv()
    (hit,) = [each.hit for each in host.machine.take_effects() if isinstance(each, FaultChanged) and each.hit]
    assert (hit.entity, hit.vm, hit.vcpu) == (VCPU, VM, VCPU)
    assert hit.trace == ("fpstate.realloc.alloc", "Xsetbv", "SubmitBatch")
    assert (hit.xfeatures, hit.size_bytes, hit.make_it_fail) == (XTILE_DATA, 10_816, True)


@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        ({"selector": Selector(trigger="Xsetbv")}, True),
        ({"selector": Selector(trigger="Wrmsr")}, False),
        ({"selector": Selector(xfeatures=XTILE_DATA)}, True),
        ({"attributes": FaultAttributes(require=("SubmitBatch",))}, True),
        ({"attributes": FaultAttributes(reject=("Xsetbv",))}, False),
        ({"attributes": FaultAttributes(task_filter=True)}, True),
        ({"attributes": FaultAttributes(min_order=2)}, True),
        ({"attributes": FaultAttributes(min_order=3)}, False),
        ({"gate_ppm": 0}, False),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_the_filters_in_a_host(fault: dict[str, object], fires: bool) -> None:
    """Each filter is asked with what the host knows of the hit."""
    host = Host()
    host.apply(c.ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12), **fault))  # type: ignore[arg-type]
    assert isinstance(host.xsetbv(), PendingOutcome) is fires


def test_a_log_with_faults_replays_to_the_same_digest() -> None:
    """Draws, counts and leases are all in the commands and in time."""
    digests = []
    for _ in range(2):
        host = Host(vcpus=3)
        attributes = FaultAttributes(probability_ppm=500_000, seed=9)
        host.apply(c.ArmFault(point="kvm.set_xcrs.copy", action=FailErrno(14), attributes=attributes, lease_ns=10**9))
        for nr in range(12):
            command = c.SetXcrs(vcpu=f"{VM}/vcpus/{nr % 3}", xcrs=((0, 1),))
            with suppress(Refused):
                host.apply(command)
        (fault,) = host.machine.state.faults.armed.values()
        assert 0 < fault.fired < 12
        host.machine.apply(c.Tick(), host.machine.state.now_ns + 10**9)
        assert not host.machine.state.faults.armed
        digests.append(host.machine.digest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("fault", "reason", "field"),
    [
        (c.ArmFault(point="fpstate.no.such", action=FailErrno(12)), "FAULT_POINT_UNKNOWN", "fault.point"),
        (c.ArmFault(point="kvm.no.such", action=FailErrno(12)), "FAULT_POINT_UNKNOWN", "fault.point"),
        (c.ArmFault(point="fpstate.realloc.alloc", action=FailErrno(5)), "FIELD_INVALID", "fault.action"),
        (c.ArmFault(point="rpc.server.receive", action=Drop()), "FIELD_INVALID", "fault.action"),
        (c.ArmFault(point="a", action=Drop(), gate_ppm=-1), "FIELD_INVALID", "fault.gate_ppm"),
        (c.ArmFault(point="a", action=Drop(), lease_ns=1), "FIELD_INVALID", "fault.lease"),
    ],
    ids=["no point of the core", "no point of KVM", "an errno nobody expects", "no message", "gate", "lease"],
)
def test_a_fault_that_cannot_be_armed(fault: c.ArmFault, reason: str, field: str) -> None:
    """The refusal names the field, and nothing is armed."""
    host = Host()
    refused = host.refused(fault)
    assert (refused.reason.name, refused.field) == (reason, field)
    assert not host.machine.state.faults.armed


def test_error_classes_are_all_in_use() -> None:
    """No class without a point."""
    assert {point.error for point in FAULT_POINTS.values()} == set(ErrorClass)


def test_a_retry_hits_with_the_event_it_repeats() -> None:
    """The trace of a retry by the clock says so: the event, then Tick."""
    host = Host()
    host.apply(c.ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12), attributes=FaultAttributes(times=2)))
    assert isinstance(host.xsetbv(), PendingOutcome)
    (record,) = host.machine.state.exits.values()
    control = host.apply(c.AcquireControl(scope="", controller="me"))
    assert isinstance(control, ControlRecord)
    decide = c.ResolveExit(
        exit=record.name,
        generation=1,
        control=control.name,
        control_epoch=control.epoch,
        decision=Decision(DecisionKind.RETRY_AFTER, delay_ns=1000),
    )
    host.machine.take_effects()
    host.apply(decide)
    host.machine.apply(c.Tick(), host.machine.state.now_ns + 1000)
    (hit,) = [each.hit for each in host.machine.take_effects() if isinstance(each, FaultChanged) and each.hit]
    assert hit.trace == ("fpstate.realloc.alloc", "Xsetbv", "Tick")


@pytest.mark.parametrize(
    "action",
    [
        *(FailErrno(5), FailStatus(14, "gone"), Delay(1, 2), Drop(), Duplicate(2), Reorder(3)),
        *(Corrupt(4), Hold(5), Hold(), Kill(6), Kill(), Pause(7), Clock(-8, 9)),
    ],
    ids=lambda action: type(action).__name__,
)
def test_every_action_goes_into_a_log_and_over_the_wire(action: Action) -> None:
    """A command with it is written down and read back the same, and so is its message."""
    command = c.ArmFault(
        point="mine.step",
        action=action,
        owner="me",
        selector=Selector(entity="a*", among=("ab", "ac"), xfeatures=3),
        attributes=FaultAttributes(require=("x",), probability_ppm=5),
        window=Window(after_ns=1, until_events=9),
        gate_ppm=10,
        lease_ns=10**9,
    )
    assert decode(json.loads(json.dumps(encode(command)))) == command
    assert unpack_command(pack_command(command)) == command
    assert action_from_proto("a", action_to_proto(action)) == action


def test_a_plan_arms_a_host_as_it_arms_a_run() -> None:
    """The requests for a live host hold the seeds, picks and windows that a run of the same seed has."""
    plan = load_plan(
        "api-version: fpstate.fault.v1\nname: small\nseed: 4\n"
        "topology: {hosts: [{name: host}], vms: [{name: a, vcpus: 4}]}\n"
        "faults:\n"
        "  - {name: f, point: fpstate.realloc.alloc, pick: one, window: {after: 1s}, attributes: {probability: 50}}\n"
        "  - {name: g, point: link.message, action: drop}\n"
        "  - {name: h, point: kvm.vcpu.alloc, phases: [warm]}\n"
    )
    requests = arm_requests(plan, lease_ns=10**9)
    assert list(requests) == ["f"]
    command = arm_fault_from_proto(requests["f"])
    planned = planned_faults(plan, 4)[0].fault
    assert (command.selector, command.attributes, command.window) == (
        planned.selector,
        planned.attributes,
        planned.window,
    )
    assert (command.owner, command.lease_ns) == ("small", 10**9)
    assert list(arm_requests(plan, phase="warm")) == ["h"]
