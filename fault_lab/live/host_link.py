"""What a runner has to do with one live host: arm its faults, renew their leases, hear what fires and what exits do.

Each in a thread of its own, so that a host that stands still holds nobody up: one tells it what is to be armed, the
others follow its exits, its vCPUs and its faults. Each comes back when the host does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc, plan_pb2
from fpstate.v1 import (
    exit_pb2,
    exit_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    watch_pb2,
    watch_pb2_grpc,
)

from fault_lab.injection.action import Clock, FailErrno, FailStatus
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.points import FAULT_POINTS
from fault_lab.injection.table import ArmedFault
from fault_lab.live.history import LiveHistory
from fault_lab.plan.arm import arm_request, is_hosts
from fault_lab.plan.numbered import Fired
from fault_lab.plan.resolve import PlannedArm, planned_faults
from fault_lab.wire.action import action_from_proto
from fault_lab.wire.duration import duration
from vmm_controller.exit_proto import exit_from_proto
from vmm_controller.policy import ExitView

_CALL_S: Final = 5.0
_PAUSE_S: Final = 0.05
#: Who calls, in the history.
RUNNER: Final = "runner"
_UNAVAILABLE: Final = 14


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be armed: the faults of a phase. A later order has a higher number."""

    number: int
    phase: str
    read_back: bool = False


class HostLink:
    """One host of a run. ``on_fired`` hears of each fault of the plan that fires there, in a thread of the link's."""

    def __init__(
        self,
        name: str,
        channel: grpc.Channel,
        plan: plan_pb2.Plan,
        seed: int,
        *,
        history: LiveHistory,
        lease_ns: int,
        on_fired: Callable[[Fired], None],
    ) -> None:
        self.name = name
        self._channel = channel
        self._faults = fault_pb2_grpc.FaultServiceStub(channel)
        self._owner = plan.name
        self._history = history
        self._lease_ns = lease_ns
        self._on_fired = on_fired
        self._planned = [each for each in planned_faults(plan, seed) if is_hosts(each)]
        self._counting = [_counting(point, plan.name) for point in sorted({each.fault.point for each in self._planned})]
        #: By the names that the host gave them: the faults of the plan; None for those that only count.
        self._armed: dict[str, PlannedArm | None] = {}
        self._exits: dict[str, tuple[int, str, str]] = {}
        self._vcpus: dict[str, tuple[str, int, int, int]] = {}
        self._wanted = _Wanted(0, "")
        self._done = threading.Condition()
        self._served = 0
        self._closed = threading.Event()
        self._calls = 0
        self._streams: list[grpc.Call] = []
        self._threads = [
            threading.Thread(target=run, name=f"{name} {what}", daemon=True)
            for what, run in (
                ("faults", self._keep),
                ("exits", self._follow_exits),
                ("vcpus", self._follow_vcpus),
                ("fired", self._follow_faults),
            )
        ]

    # -- the runner's side ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to follow."""
        for thread in self._threads:
            thread.start()

    def enter(self, phase: str, *, read_back: bool = False) -> None:
        """Let the faults of a phase be armed, and no others; empty: none. Does not wait.

        ``read_back``: and write down what the host remembers.
        """
        with self._done:
            self._wanted = _Wanted(self._wanted.number + 1, phase, read_back)
            self._done.notify_all()

    def came_back(self) -> None:
        """The host was started again: what is armed there is looked at anew, and what it remembers is read back."""
        self.enter(self._wanted.phase, read_back=True)

    def skew(self, clock: Clock) -> None:
        """Let the host's clock jump and drift. One that has ended meanwhile comes back with a clock that is right."""
        request = fault_pb2.AdvanceClockRequest(duration=duration(clock.jump_ns), drift_ppm=clock.drift_ppm)
        with suppress(grpc.RpcError):
            self._faults.AdvanceClock(request, timeout=_CALL_S)

    def settled(self, timeout_s: float) -> bool:
        """Wait until the host has heard the last order; whether it has."""
        with self._done:
            return self._done.wait_for(lambda: self._served == self._wanted.number, timeout_s)

    def close(self) -> None:
        """Follow no longer."""
        self._closed.set()
        with self._done:
            self._done.notify_all()
        for stream in self._streams:
            stream.cancel()
        self._channel.close()
        for thread in self._threads:
            thread.join(_CALL_S)

    # -- arming --------------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Carry orders out; between them, renew leases at a third of their time."""
        while not self._closed.is_set():
            with self._done:
                due = self._lease_ns / 3e9
                self._done.wait_for(lambda: self._closed.is_set() or self._served != self._wanted.number, due)
                wanted = self._wanted
            try:
                if wanted.number != self._served:
                    self._carry_out(wanted.phase)
                    if wanted.read_back:
                        self._read_back()
                    with self._done:
                        self._served = wanted.number
                        self._done.notify_all()
                elif self._armed:
                    self._faults.RenewFaults(fault_pb2.RenewFaultsRequest(owner=self._owner), timeout=_CALL_S)
            except (grpc.RpcError, ValueError):  # it is away, or its channel was closed
                self._closed.wait(_PAUSE_S)

    def _carry_out(self, phase: str) -> None:
        """What stands in both phases goes on counting."""
        listed = self._faults.ListFaults(fault_pb2.ListFaultsRequest(owner=self._owner), timeout=_CALL_S)
        there = {fault.name for fault in listed.faults}
        events = listed.header.revision
        self._armed = {name: planned for name, planned in self._armed.items() if name in there}
        for name, planned in list(self._armed.items()):
            if not phase or (planned is not None and phase not in planned.phases):
                self._faults.DisarmFault(fault_pb2.DisarmFaultRequest(name=name), timeout=_CALL_S)
                del self._armed[name]
        if not phase:
            return
        if None not in self._armed.values():
            for counting in self._counting:
                self._arm(None, arm_request(counting, self._lease_ns))
        since_ns = time.monotonic_ns() - self._history.start_ns
        for planned in self._planned:
            if phase in planned.phases and planned not in self._armed.values():
                self._arm(planned, arm_request(planned, self._lease_ns, since_ns=since_ns, since_events=events))

    def _arm(self, planned: PlannedArm | None, request: fault_pb2.ArmFaultRequest) -> None:
        request.fault.scope.owner = self._owner
        armed = self._faults.ArmFault(request, timeout=_CALL_S)
        self._armed[armed.fault.name] = planned

    # -- following -----------------------------------------------------------------------------------------------------

    def _follow_faults(self) -> None:
        request = fault_pb2.WatchFaultsRequest(owner=self._owner)
        self._follow(lambda: self._faults.WatchFaults(request, wait_for_ready=True), self._fault)

    def _fault(self, news: fault_pb2.WatchFaultsResponse) -> None:
        if news.kind != fault_pb2.FAULT_CHANGE_KIND_FIRED:
            return
        planned = self._armed.get(news.fault.name)
        if planned is not None:
            where, action = news.hit_scope, action_from_proto("action", news.action)
            self._on_fired(Fired(planned.fault.name, news.fault.point, where.entity, news.hit, action))

    def _follow_exits(self) -> None:
        stub = exit_pb2_grpc.ExitServiceStub(self._channel)
        request = exit_pb2.WatchExitsRequest(from_revision=1)  # what has ended as well
        self._follow(lambda: stub.WatchExits(request, wait_for_ready=True), self._exit)

    def _exit(self, news: exit_pb2.WatchExitsResponse) -> None:
        if news.WhichOneof("body") != "exit":
            return
        view = exit_from_proto(news.exit)
        now = view.generation, view.state.name, view.decision.name if view.decision else ""
        if self._exits.get(view.name) != now:
            self._exits[view.name] = now
            self._history.add("exit", node=self.name, **exit_fields(view))

    def _follow_vcpus(self) -> None:
        stub = watch_pb2_grpc.WatchServiceStub(self._channel)
        request = watch_pb2.WatchRequest(filters=[watch_pb2.WatchFilter(kinds=[watch_pb2.RESOURCE_KIND_VCPU])])
        self._follow(lambda: stub.Watch(request, wait_for_ready=True), self._vcpu)

    def _vcpu(self, news: watch_pb2.WatchResponse) -> None:
        """A vCPU as the simulator writes it down, where that has changed."""
        change = news.change
        if not change.name:
            return
        vcpu, now = change.vcpu, ("gone", 0, 0, 0)
        if change.kind != watch_pb2.CHANGE_KIND_DELETED:
            state = vcpu_pb2.VcpuState.Name(vcpu.state).removeprefix("VCPU_STATE_").lower()
            now = state, vcpu.xfd, vcpu.xcr0, vcpu.fpstate.size_bytes
        if self._vcpus.get(change.name) != now:
            self._vcpus[change.name] = now
            fields = dict(zip(("state", "xfd", "xcr0", "bytes"), now, strict=True))
            self._history.add("vcpu", node=self.name, vcpu=change.name, **fields)

    def _follow(self, open_stream: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """Read a stream, and another when it ends, until the link is closed."""
        while not self._closed.is_set():
            try:
                stream = open_stream()
                self._streams.append(stream)
                for news in stream:
                    take(news)
            except (grpc.RpcError, ValueError):
                self._closed.wait(_PAUSE_S)

    # -- reading back --------------------------------------------------------------------------------------------------

    def _read_back(self) -> None:
        """Ask what the host remembers of each vCPU: what was acknowledged must be in there."""
        vms, vcpus = vm_pb2_grpc.VmServiceStub(self._channel), vcpu_pb2_grpc.VcpuServiceStub(self._channel)
        self._calls += 1
        self._record("invoke", "")
        said = []
        for vm in vms.ListVms(vm_pb2.ListVmsRequest(), timeout=_CALL_S).vms:
            listed = vcpus.ListVcpus(vcpu_pb2.ListVcpusRequest(parent=vm.name), timeout=_CALL_S)
            said += [f"{vcpu.name} next {vcpu.next_seq}" for vcpu in listed.vcpus]
        self._record("ok", ", ".join(said))

    def _record(self, kind: str, value: str) -> None:
        record = {"t": time.monotonic_ns(), "type": kind, "process": f"{RUNNER}/{self.name}", "f": "ListVcpus"}
        self._history.take(f"{RUNNER} {self.name}", record | {"call": self._calls, "value": value})


def exit_fields(view: ExitView) -> dict[str, object]:
    """An exit as the simulator writes it down."""
    return {
        "exit": view.name,
        "generation": view.generation,
        "state": view.state.name.lower(),
        "exit_cause": view.cause.name,
        "decision": view.decision.name if view.decision else None,
        "by": view.decided_by or None,
    }


def _counting(point: str, owner: str) -> PlannedArm:
    """A fault that never fires, so that every hit of the point is counted from the beginning of the run on."""
    errnos = FAULT_POINTS[point].errnos
    action = FailErrno(errnos[0]) if errnos else FailStatus(_UNAVAILABLE)
    attributes = FaultAttributes(probability_ppm=0, verbose=0)
    return PlannedArm(ArmedFault(name="", point=point, action=action, owner=owner, attributes=attributes), frozenset())
