"""The runner of a live run: it starts the processes, arms faults, plays the nemesis, and hears what everybody says.

The phases are the plan's, in real time; when the workload is done and nothing hangs, chaos without a duration ends, and
so does settle.
"""

from __future__ import annotations

import queue
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import grpc
from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Action, Clock, Kill, Pause
from fault_lab.live.cluster import LOCAL, LiveCluster
from fault_lab.live.controller_lines import ControllerLines
from fault_lab.live.evaluator import Evaluator
from fault_lab.live.history import LiveHistory, Record
from fault_lab.live.host_link import HostLink
from fault_lab.live.judge import is_the_end
from fault_lab.live.nemesis import Nemesis
from fault_lab.live.points import LiveFaults
from fault_lab.live.process import LiveProcess
from fault_lab.live.said import heard
from fault_lab.live.wires import Wires
from fault_lab.plan.entities import vcpus
from fault_lab.plan.numbered import Fired
from fault_lab.plan.resolve import PHASES, PlannedArm, planned_faults
from fault_lab.sim.workload import part_of
from fault_lab.sim.world import PhaseLimit, phase_limits

_S: Final = 1_000_000_000
#: Faults of a runner that has died are gone after this, and what a plan stops for longer is waited for.
_LEASE_NS: Final = 10 * _S
_RECORDS: Final = 1_000_000
_REAL_NS: Final = 3600 * _S
#: How long hosts have to hear of a phase, in seconds: one that stands still hears of it later.
_HEAR_S: Final = 2.0
#: How often it is asked whether everything rests, in seconds.
_REST_S: Final = 0.05


class LiveRunner:
    """One run. Processes are started, and killed, by the thread that calls ``play``."""

    def __init__(self, plan: plan_pb2.Plan, directory: Path, seed: int, *, broken: str = "") -> None:
        self._plan = plan
        self._directory = directory
        self._seed = seed
        self._broken = broken
        self._is_wrong = False
        self._inbox: queue.SimpleQueue[tuple[LiveProcess, int, str | None] | Record] = queue.SimpleQueue()
        self.history = LiveHistory(self._noted)
        self.faults = LiveFaults(plan, seed, on_fired=self._fired, events=lambda: len(self.history))
        self._links: dict[str, HostLink] = {}
        self._controllers: dict[tuple[str, int], ControllerLines] = {}
        self._open_exits: dict[str, str] = {}
        self._skewed: set[str] = set()
        self._limits = phase_limits(plan)
        self._records_max = plan.budget.events if plan.budget.HasField("events") else _RECORDS
        limit = plan.budget.HasField("virtual_time")
        self._ns_max = plan.budget.virtual_time.ToNanoseconds() if limit else _REAL_NS
        self._idle = {vcpu for vcpu in vcpus(plan) if part_of(plan, vcpu, seed) is None}
        #: Whether the budget ended the run before its phases did, so that nothing can be said about liveness.
        self.cut_short = False

    @property
    def unfinished(self) -> list[str]:
        """The vCPUs that have not come to their end."""
        return [vcpu for vcpu in vcpus(self._plan) if vcpu not in self._cluster.endings and vcpu not in self._idle]

    def play(self) -> None:
        """Everything, from the first process to the last."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            points = f"unix:{self._directory.absolute()}/points.sock"
            stack.enter_context(Evaluator(self.faults, points))
            wires = stack.enter_context(Wires(self._plan, self._directory, self.faults))
            self._cluster = stack.enter_context(
                LiveCluster(
                    self._plan,
                    self._directory,
                    seed=self._seed,
                    fault_points=points,
                    route=wires.route,
                    on_line=self._said,
                    broken=self._broken,
                )
            )
            self._nemesis = Nemesis(self._cluster, self.faults, self.history, self._host_back, self._skew)
            stack.callback(self._nemesis.close)
            self._cluster.start_hosts()
            self._begin(stack)
            for phase in PHASES:
                if self._limits[phase].ns or phase == "heal":
                    self._phase(phase)
            self._let_go()

    def _begin(self, stack: ExitStack) -> None:
        """Hosts are ready: time begins."""
        self.history.start_ns = time.monotonic_ns()
        self.faults.start()
        lease_ns = _LEASE_NS + max((_stands_still_ns(each.fault.action) for each in self._planned()), default=0)
        for name, address in self._cluster.addresses.items():
            link = HostLink(
                name,
                grpc.insecure_channel(address, options=LOCAL),
                self._plan,
                self._seed,
                history=self.history,
                lease_ns=lease_ns,
                on_fired=self._host_fired,
            )
            self._links[name] = link
            stack.callback(link.close)
            link.start()

    def _planned(self) -> list[PlannedArm]:
        return planned_faults(self._plan, self._seed)

    # -- phases --------------------------------------------------------------------------------------------------------

    def _phase(self, phase: str) -> None:
        first = not self.faults.phase
        self.history.add("phase", phase=phase)
        self.faults.enter(phase)
        if phase == "heal":
            self._nemesis.heal()
            for host in self._skewed:
                self._links[host].skew(Clock())
        for link in self._links.values():
            link.enter("" if self._halted else phase)
        for link in self._links.values():
            link.settled(_HEAR_S)
        if first:
            self._nemesis.start_all()
        self._until(self._limits[phase])

    def _until(self, limit: PhaseLimit) -> None:
        """Let everything happen within the phase."""
        now_ns = time.monotonic_ns()
        last_ns = self.history.start_ns + self._ns_max
        end_ns = min(now_ns + limit.ns, last_ns)
        most = self._records_max if limit.events is None else min(len(self.history) + limit.events, self._records_max)
        while (now_ns := time.monotonic_ns()) < end_ns and len(self.history) < most:
            if self._is_wrong or (limit.until_rest and self._at_rest()):
                return
            due_s = self._nemesis.work()
            self._take(max(0.0, min(due_s, _REST_S, (end_ns - now_ns) / _S)))
        self.cut_short |= len(self.history) >= self._records_max or now_ns >= last_ns

    def _at_rest(self) -> bool:
        """Whether every guest has come to its end, or waits for a person, and no exit is open."""
        paused = {name.partition("/exits/")[0] for name, state in self._open_exits.items() if state == "paused"}
        stuck = any(state != "paused" for state in self._open_exits.values())
        return not stuck and not set(self.unfinished) - paused

    def _let_go(self) -> None:
        """Disarm everything, and read back what hosts remember, which is the last that is asked of them."""
        for link in self._links.values():
            link.enter("", read_back=True)
        for link in self._links.values():
            link.settled(_HEAR_S)
        self._nemesis.close()

    # -- what comes in -------------------------------------------------------------------------------------------------

    def _said(self, process: LiveProcess, line: str | None) -> None:
        self._inbox.put((process, process.life, line))

    def _noted(self, _source: str, record: Record) -> None:
        self._inbox.put(record)

    def _take(self, timeout_s: float) -> None:
        """Wait for something, and take everything that is there."""
        try:
            item = self._inbox.get(timeout=timeout_s)
            while True:
                self._handle(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _handle(self, item: tuple[LiveProcess, int, str | None] | Record) -> None:
        match item:
            case (process, life, None):
                if life == process.life:
                    self._nemesis.ended(process.name)
            case (process, life, str(line)):
                self._line(process.name, life, line)
            case {"type": "guest"} if is_the_end(item):
                self._is_wrong = True
            case {"type": "exit"}:
                self._open_exits[item["exit"]] = item["state"]
                if item["state"] in ("resolved", "cancelled"):
                    del self._open_exits[item["exit"]]
            case {"type": "node", "state": "killed", "node": node} if node in self._cluster.hosts:
                self._forget_exits(node)
            case dict():
                self._nemesis.heard(item)

    def _forget_exits(self, host: str) -> None:
        """A host without a journal has forgotten its exits."""
        if self._cluster.hosts[host].ephemeral:
            gone = [name for name in self._open_exits if self._cluster.host_of["/".join(name.split("/")[:2])] == host]
            for name in gone:
                del self._open_exits[name]

    def _line(self, node: str, life: int, line: str) -> None:
        source = f"{node} {life}"
        if node in self._cluster.controllers:
            lines = self._controllers.setdefault((node, life), ControllerLines(node, life))
            for record in lines.records(line):
                self.history.take(source, record)
            return
        said = heard(line)
        if said is None:
            return
        if said["type"] == "guest" and "vcpu" in said:
            self._ended(said)
        self.history.take(source, said)

    def _ended(self, said: Record) -> None:
        """A round is over; the last one ends what a vCPU plays."""
        part = part_of(self._plan, said["vcpu"], self._seed)
        assert part is not None, "who plays has a part"
        self._cluster.rounds[said["vcpu"]] = said["round"] + 1
        if said["round"] >= part.rounds or said["state"] == "killed":
            self._cluster.endings[said["vcpu"]] = said["state"]

    def _host_back(self, host: str) -> None:
        self._links[host].came_back()

    def _skew(self, host: str, clock: Clock) -> None:
        self._skewed.add(host)
        self._links[host].skew(clock)

    # -- faults --------------------------------------------------------------------------------------------------------

    @property
    def _halted(self) -> bool:
        budget = self._plan.budget
        spent = budget.HasField("faults") and len(self.faults.fired) >= budget.faults
        return spent and not budget.over_budget

    def _fired(self, fired: Fired) -> None:
        """Something has fired outside of the hosts."""
        fields = {"fault": fired.fault, "point": fired.point, "entity": fired.entity, "hit": fired.hit}
        self.history.add("fault", **fields, action=repr(fired.action))
        if self._halted:
            for link in self._links.values():
                link.enter("")

    def _host_fired(self, fired: Fired) -> None:
        self.faults.note(fired)
        self._fired(fired)


def _stands_still_ns(action: Action) -> int:
    match action:
        case Pause(for_ns=ns):
            return ns
        case Kill(restart_ns=ns):
            return ns or 0
        case _:
            return 0
