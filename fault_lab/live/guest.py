"""A guest agent of a live run: the process of one VM, which plays the plan's workload on a thread for each vCPU.

The client is ``guest_agent``'s own, on a real connection; what is played, how long it thinks and what it does about an
outcome is what the simulator's guest (``fault_lab.sim.guest``) does. One line of JSON on standard input says what to
do; when that ends, so does the agent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast

import grpc
from fpstate.fault.v1 import plan_pb2
from google.protobuf import json_format

from fault_lab.injection.draw import subseed
from fault_lab.live.asked import AskedFaults
from fault_lab.live.calls import recorded
from fault_lab.live.interceptors import CallFaults, client_interceptor
from fault_lab.live.said import say
from fault_lab.plan.canonical import canonical_json
from fault_lab.sim.guest import EXISTS, NOT_OURS
from fault_lab.sim.workload import Part, part_of
from fault_lab.wire.duration import NS_PER_S, duration_ns
from guest_agent.channel import connect
from guest_agent.error import EventRejected, HostError
from guest_agent.host import Host
from guest_agent.kvm import GuestProgram, install_kick_signal, kvm_available
from guest_agent.kvm_agent import KvmAgent
from guest_agent.outcome import DirectiveKind, Done, Gone, InstructionOutcome
from guest_agent.recovery import Patience, Remedy, remedy
from guest_agent.report import Outcome as Ending
from guest_agent.request import AllocationPolicy
from guest_agent.session import Session, open_session
from guest_agent.wait import EventBlocked, SessionLost

if TYPE_CHECKING:
    from fault_lab.live.points import LiveFaults

T = TypeVar("T")

#: How long an agent goes on trying, in seconds, as the simulator's does.
_RECONNECT_S: Final = 60.0
#: A VM with this label is played by real code where /dev/kvm is there: ``labels: {guest: kvm}``.
_LABEL: Final = "guest"
_KVM: Final = "kvm"
#: The status of an agent that was refused for good, or found nobody: it is started again.
GAVE_UP: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOrder:
    """What one process is to do. ``rounds`` and ``endings`` are by vCPU, and outlive the process."""

    plan: str
    seed: int
    vm: str
    host: str
    life: int
    rounds: Mapping[str, int]
    endings: Mapping[str, str]
    fault_points: str = ""

    @classmethod
    def of(
        cls,
        plan: plan_pb2.Plan,
        seed: int,
        vm: str,
        *,
        host: str,
        life: int,
        rounds: Mapping[str, int],
        endings: Mapping[str, str],
        fault_points: str,
    ) -> Self:
        """An order; the plan goes as its canonical text."""
        return cls(
            plan=canonical_json(plan),
            seed=seed,
            vm=vm,
            host=host,
            life=life,
            rounds=dict(rounds),
            endings=dict(endings),
            fault_points=fault_points,
        )

    def line(self) -> str:
        """As the process reads it."""
        return json.dumps(asdict(self))


class _Killed(Exception):  # noqa: N818 -- how a part may end
    """The vCPU is gone for good."""


class GuestProcess:
    """The agent of one VM."""

    def __init__(self, order: GuestOrder) -> None:
        self._order = order
        plan = json_format.Parse(order.plan, plan_pb2.Plan())
        self._name = f"vms/{order.vm}"
        self._vm = next(vm for vm in plan.topology.vms if vm.name == order.vm)
        self._seed = subseed(order.seed, self._name)
        vcpus = [f"{self._name}/vcpus/{index}" for index in range(self._vm.vcpus or 1)]
        self._parts = {vcpu: part_of(plan, vcpu, order.seed) for vcpu in vcpus}
        hosts = {each.name: each for each in plan.topology.hosts}
        planned = hosts[self._vm.host or plan.topology.hosts[0].name]
        lease = planned.HasField("default_lease")
        self._lease_s = duration_ns("default_lease", planned.default_lease) / NS_PER_S if lease else None
        points = [*(fault.point for fault in plan.faults), *(hit.point for hit in plan.schedule.hits)]
        self._asks = bool(order.fault_points) and any(point.startswith("rpc.client.") for point in points)
        self._over: queue.Queue[BaseException | None] = queue.Queue()

    def run(self) -> int:
        """Make what is not there, open a session, play; then keep the session until standard input ends."""
        try:
            with Host(self._channel()) as host:
                self._make_all(host)
                with self._again(lambda: self._open(host)) as session:
                    self._play_all(session)
                    sys.stdin.read()
        except (HostError, SessionLost, EventBlocked) as error:
            lost = isinstance(error, SessionLost)
            say("guest", node=self._name, state="lost its session" if lost else "gives up", why=str(error))
            return GAVE_UP
        return 0

    def _channel(self) -> grpc.Channel:
        """To the host. What goes wrong in this client comes below what is told of its calls."""
        channel = connect(self._order.host)
        if self._asks:
            asked = cast("LiveFaults", AskedFaults(self._order.fault_points))
            channel = grpc.intercept_channel(channel, client_interceptor(CallFaults(asked)))
        return recorded(channel, self._name, say)

    # -- what has to be there ------------------------------------------------------------------------------------------

    def _make_all(self, host: Host) -> None:
        vm, once = self._vm, f"{self._name}/{self._order.life}"
        self._make(
            lambda: host.create_vm(
                vm.name,
                profile=vm.profile,
                policy=AllocationPolicy[(vm.allocation_policy or "on_swap").upper()],
                byte_limit=vm.byte_limit if vm.HasField("byte_limit") else None,
                labels=dict(vm.labels),
                request_id=f"{once}/vm",
            )
        )
        if not vm.no_permission:
            self._make(lambda: host.request_permission(self._name, request_id=f"{once}/perm"), locked=True)
        for index in range(len(self._parts)):
            self._make(partial(host.create_vcpu, self._name, index=index, request_id=f"{once}/vcpu-{index}"))

    def _make(self, call: Callable[[], object], *, locked: bool = False) -> None:
        """Make something, again and again until it is there. No memory for it is a reason to wait, not to give up."""
        try:
            self._again(call, or_for=("ALLOCATION_FAILED", "KVM_ERRNO"), unless_locked=locked)
        except HostError as error:
            there = error.reason in EXISTS
            # The permission was asked for by an earlier process, and the first vCPU has locked it.
            if not there and not (locked and error.metadata.get("errnoName") == "EBUSY"):
                raise

    def _open(self, host: Host) -> Session:
        return open_session(
            host.channel,
            vcpus=tuple(self._parts),
            client_name=self._name,
            lease_s=self._lease_s,
            reconnect_s=_RECONNECT_S,
        )

    @staticmethod
    def _again(call: Callable[[], T], *, or_for: tuple[str, ...] = (), unless_locked: bool = False) -> T:
        """Call until it is answered, or refused for good."""
        patience = Patience(total_s=_RECONNECT_S)
        while True:
            try:
                return call()
            except HostError as error:
                busy = unless_locked and error.metadata.get("errnoName") == "EBUSY"
                if busy or (error.reason not in or_for and remedy(error.refusal) is Remedy.NONE):
                    raise
                pause_s = patience.pause_s(error.retry_delay_s)
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    # -- vCPUs ---------------------------------------------------------------------------------------------------------

    def _play_all(self, session: Session) -> None:
        """A thread for each vCPU; the first that gives up takes the agent with it."""
        threads = [
            threading.Thread(target=self._thread, args=(session, part), name=part.vcpu, daemon=True)
            for part in self._parts.values()
            if part is not None
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            error = self._over.get()
            if error is not None:
                raise error

    def _thread(self, session: Session, part: Part) -> None:
        try:
            self._play(session, part)
        except BaseException as error:  # noqa: BLE001 -- raised in the main thread
            self._over.put(error)
        else:
            self._over.put(None)

    def _play(self, session: Session, part: Part) -> None:
        """Play what is left of the part, round by round."""
        port = session.vcpu(part.vcpu)
        if port.pending is not None:  # an earlier process has left it
            try:
                port.wait_pending()
            except EventRejected as error:
                _check_ours(error)
        if part.vcpu in self._order.endings:
            return
        player = self._real if self._vm.labels.get(_LABEL) == _KVM and not kvm_available() else self._scripted
        sent = 0
        for nr in range(self._order.rounds.get(part.vcpu, 1), part.rounds + 1):
            try:
                state, why, events = player(session, part, nr, sent)
                sent += events
            except _Killed:
                state, why = "killed", ""
            more = {"why": why} if state in (Ending.MISMATCH.value, Ending.FAULTED.value) else {}
            say("guest", node=self._name, vcpu=part.vcpu, state=state, round=nr, **more)
            if state == "killed":
                return

    def _scripted(self, session: Session, part: Part, nr: int, sent: int) -> tuple[str, str, int]:
        """A round of a script, or of events from a seed: how it ended, why, and how many events it has sent."""
        port = session.vcpu(part.vcpu)
        events = part.round(nr)
        first = sent
        outcome: InstructionOutcome | None = None
        try:
            while True:
                try:
                    event = next(events) if outcome is None else events.send(outcome)
                except StopIteration as end:
                    return end.value.outcome.value, end.value.reason, sent - first
                sent += 1
                time.sleep(part.think(self._seed, sent) / NS_PER_S)
                try:
                    outcome = port.submit(event)
                except EventRejected as error:
                    _check_ours(error)
                    outcome = Done()
                if isinstance(outcome, Gone) and outcome.directive.kind is DirectiveKind.STOP:
                    raise _Killed
        finally:
            events.close()

    def _real(self, session: Session, part: Part, nr: int, _sent: int) -> tuple[str, str, int]:
        """A round of real code under /dev/kvm."""
        program = GuestProgram(seed=subseed(part.seed, f"round/{nr}"))
        report = KvmAgent(session, part.vcpu, program).run()
        return report.outcome.value, report.reason, 0


def _check_ours(error: EventRejected) -> None:
    """An event that was found to be a mistake: the vCPU is gone, or the numbers are not ours, or the guest goes on."""
    if error.reason in ("VCPU_KILLED", "VCPU_BROKEN"):
        raise _Killed from error
    if error.reason in NOT_OURS:
        raise error


def main() -> int:
    """Read the order, and carry it out."""
    order = GuestOrder(**json.loads(sys.stdin.readline()))
    if not kvm_available():
        install_kick_signal()
    status = GuestProcess(order).run()
    sys.stdout.flush()
    os._exit(status)  # threads of other vCPUs may wait for a decision that nobody makes


if __name__ == "__main__":
    main()
