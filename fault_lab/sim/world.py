"""The world of one run: nodes, network, faults, rules and phases, made from a plan and a seed and nothing else.

``step`` is the one transition: an entry of the agenda happens, everything that must hold is looked at. A run takes the
entries in the order of their time (``first``), or as the plan's ``order`` has it; a search may take any that is to come
(``Agenda.entries``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.action import Clock as ClockAction
from fault_lab.injection.action import Kill, Pause
from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from fault_lab.plan.numbered import Fired, Watch
from fault_lab.plan.resolve import PHASES, named_points
from fault_lab.sim.agenda import Agenda, Entry
from fault_lab.sim.attached_guest import AttachedGuest
from fault_lab.sim.brief import brief
from fault_lab.sim.controller import ControllerNode
from fault_lab.sim.faults import WorldFaults
from fault_lab.sim.guest import GuestNode
from fault_lab.sim.history import History
from fault_lab.sim.host import HostNode
from fault_lab.sim.mover import MoverNode
from fault_lab.sim.network import Network
from fault_lab.sim.node import Node
from fault_lab.sim.operands import operation, result
from fault_lab.sim.order import Order
from fault_lab.sim.reader import ReaderNode
from fault_lab.sim.rpc import Exchange
from fault_lab.sim.rules import Rules
from fault_lab.sim.services import METHODS
from fault_lab.wire.duration import NS_PER_S, duration_ns

#: Where the plan does not say.
_EVENTS: Final = 1_000_000
_VIRTUAL_NS: Final = 3600 * NS_PER_S
_SETTLE_NS: Final = 60 * NS_PER_S
#: Chaos without a limit of its own ends with the workload, and after this where that does not end.
_CHAOS_NS: Final = 600 * NS_PER_S
_LONG_NS: Final = 10_000 * 24 * 3600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class PhaseLimit:
    """How long a phase takes: until a moment, or until so many steps, or, without either, until the world rests."""

    ns: int
    events: int | None
    until_rest: bool


class World:
    """Everything there is in one run."""

    def __init__(self, plan: plan_pb2.Plan, seed: int, watch: Watch | None = None) -> None:
        self.plan = plan
        self.seed = seed
        self.now_ns = 0
        self.steps = 0
        self.agenda = Agenda()
        self.history = History()
        self.faults = WorldFaults(plan, seed, watch)
        self.rules = Rules(self, plan.checks.always)
        self.network = Network(self, plan.topology, seed)
        self.network.on_reset.append(self._reset)
        self.open_calls: dict[int, Exchange] = {}
        self._calls = 0
        named = named_points(plan)
        self._held: list[tuple[str, Callable[[], None]]] = []
        #: The points of the services that the plan speaks of: where none does, no host is asked.
        self.rpc_points: Final = frozenset(name for name in named if name.startswith("rpc."))
        self._process_points = frozenset(name for name in named if name.startswith("node."))
        there = plan.topology
        self.hosts = {each.name: HostNode(self, each, seed) for each in there.hosts}
        self.guests: dict[str, GuestNode] = {
            f"vms/{each.name}": (AttachedGuest if each.HasField("attach") else GuestNode)(self, each, plan, seed)
            for each in there.vms
        }
        self.controllers = {each.name: ControllerNode(self, each, seed) for each in there.controllers}
        self.order: Final = Order(plan.order, seed) if plan.HasField("order") else None
        self._branches = list(plan.branches)
        first = there.hosts[0].name
        self.readers = {
            each.name: ReaderNode(self, each, self._vcpus_of(each.host or first), seed)
            for each in plan.workload.readers
        }
        first_host = {each.name: each.host or first for each in there.vms}
        self.movers = {each.name: MoverNode(self, each, first_host[each.vm], seed) for each in plan.workload.migrations}
        self.nodes: dict[str, Node] = {
            **self.hosts,
            **self.controllers,
            **self.guests,
            **self.readers,
            **self.movers,
        }
        self._host_of = {f"vms/{each.name}": self.hosts[each.host or first] for each in there.vms}
        self._host_of |= {each.name: self.hosts[each.host or first] for each in there.controllers}
        self._host_of |= {each.name: self.hosts[each.host or first] for each in plan.workload.readers}
        self._limits = phase_limits(plan)
        self._steps_max = plan.budget.events if plan.budget.HasField("events") else _EVENTS
        virtual = plan.budget.HasField("virtual_time")
        self._ns_max = duration_ns("budget", plan.budget.virtual_time, most=_LONG_NS) if virtual else _VIRTUAL_NS
        #: Whether the budget ended the run before its phases did, so that nothing can be said about liveness.
        self.cut_short = False

    def _vcpus_of(self, host: str) -> list[str]:
        """The vCPUs of a host's VMs."""
        there = self.plan.topology
        mine = [vm for vm in there.vms if (vm.host or there.hosts[0].name) == host]
        return [f"vms/{vm.name}/vcpus/{index}" for vm in mine for index in range(vm.vcpus or 1)]

    def host_of(self, node: str) -> HostNode:
        """The host that a guest or a controller talks to."""
        return self._host_of[node]

    def follow(self, node: str, host: str) -> None:
        """A guest goes to where its VM is."""
        self._host_of[node] = self.hosts[host]
        self.record("guest", node=node, state="follows", host=host)

    def next_call(self) -> int:
        """Number a call."""
        self._calls += 1
        return self._calls

    # -- the agenda ----------------------------------------------------------------------------------------------------

    def at(self, at_ns: int, node: str, what: str, run: Callable[[], None], lane: str = "") -> Entry:
        """Let something happen at a moment of the world's time."""
        return self.agenda.add(max(at_ns, self.now_ns), node, what, run, self.history.cause, lane)

    def after(self, ns: int, node: str, what: str, run: Callable[[], None], lane: str = "") -> Entry:
        """Let something happen ``ns`` nanoseconds from now."""
        return self.at(self.now_ns + ns, node, what, run, lane)

    def soon(self, node: str, what: str, run: Callable[[], None]) -> Entry:
        """Let something happen behind what happens now."""
        return self.at(self.now_ns, node, what, run)

    def step(self, entry: Entry) -> None:
        """Let an entry happen: time goes on to it, its node may die of a fault before, or stand still."""
        run = entry.run
        entry.cancel()
        if run is None:
            return
        self.now_ns = max(self.now_ns, entry.at_ns)
        self.steps += 1
        self.history.cause = entry.cause
        node = self.nodes.get(entry.node)
        if node is not None and not self._gets_to_run(node, entry, run):
            return
        run()

    def _gets_to_run(self, node: Node, entry: Entry, run: Callable[[], None]) -> bool:
        """Ask at the points of processes, between two events of a node that is up."""
        if not node.up:
            return True  # what arrives at a process that is not there is refused by the system
        if node.paused_until_ns > self.now_ns:
            self.at(node.paused_until_ns, entry.node, entry.what, run, entry.lane)
            return False
        if not self._process_points:
            return True
        found = self.hit("node.clock", node.name, entry.what)
        if found is not None and isinstance(found[0].action, ClockAction):
            jump = found[0].action
            node.clock.set(node.now_ns + jump.jump_ns, jump.drift_ppm)
            if isinstance(node, HostNode):
                node.clock_changed()
        found = self.hit("node.run", node.name, entry.what)
        match found[0].action if found is not None else None:
            case Kill(restart_ns=restart_ns):
                node.end("killed", restart_ns)
                return True  # the event finds nobody: a message is refused, a timer is of another life
            case Pause(for_ns=ns):
                node.paused_until_ns = self.now_ns + ns
                self.record("node", node=node.name, state="paused", until=node.paused_until_ns)
                self.at(node.paused_until_ns, entry.node, entry.what, run, entry.lane)
                return False
            case _:
                return True

    # -- faults --------------------------------------------------------------------------------------------------------

    def hit(self, point: str, entity: str, trigger: str) -> tuple[Fired, ArmedFault, Hit] | None:
        """A point of the world was reached."""
        found = self.faults.hit(point, entity, trigger, self.now_ns, self.steps)
        if found is not None:
            self.record_fired(found[0])
        return found

    def hold(self, fault: str, go_on: Callable[[], None]) -> None:
        """Do it when a fault does not stand any more."""
        if self.faults.stands(fault):
            self._held.append((fault, go_on))
        else:
            self.after(0, "", f"{fault} lets go", go_on)

    @staticmethod
    def path_of(method: str) -> str:
        """A method as gRPC has it."""
        return METHODS[method].path

    def record_fired(self, fired: Fired) -> None:
        """Write down that a fault has fired."""
        fields = {"fault": fired.fault, "point": fired.point, "entity": fired.entity, "hit": fired.hit}
        self.record("fault", **fields, action=repr(fired.action))

    @staticmethod
    def brief(value: object) -> str:
        """A request or a reply in a few words."""
        return brief(value)

    @staticmethod
    def operation(request: object) -> dict[str, Any]:
        """A request for the checks of histories."""
        return operation(request)

    @staticmethod
    def result(request: object, reply: object) -> dict[str, Any]:
        """A reply for the checks of histories."""
        return result(request, reply)

    def caused(self, run: Callable[[], None]) -> Callable[[], None]:
        """Do it later, as caused by what causes things now."""
        cause = self.history.cause

        def later() -> None:
            self.history.cause = cause
            run()

        return later

    def record(self, kind: str, /, **fields: object) -> int:
        """Write a record into the history."""
        return self.history.add(self.now_ns, kind, **fields)

    def _reset(self, node: str) -> None:
        for exchange in list(self.open_calls.values()):
            exchange.reset(node)

    # -- phases --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start every node, go through the phases, and look at what is left. Raises ``Violation``."""
        for nr, phase in enumerate(PHASES):
            limit = self._limits[phase]
            if not limit.ns and phase != "heal":
                continue
            self._enter(phase)
            if not nr or not any(node.up for node in self.hosts.values()):
                self._start_all()
            self._until(limit)
        if not self.cut_short and not self.faults.over_budget:
            self.rules.eventually(self.plan.checks.eventually)

    def _start_all(self) -> None:
        for node in self.nodes.values():
            node.start()

    def _enter(self, phase: str) -> None:
        self.history.cause = -1
        self.record("phase", phase=phase)
        self.faults.enter(phase)
        self.network.let_go(self.faults.stands)
        held, self._held = self._held, []
        for fault, go_on in held:
            self.hold(fault, go_on)
        for host in self.hosts.values():
            if host.up:
                self.faults.arm(host)
        if phase == "heal":
            for node in self.nodes.values():
                node.paused_until_ns = 0
                node.clock.set(node.now_ns, 0)
                if isinstance(node, HostNode) and node.up:
                    node.clock_changed()
                node.start()

    def _until(self, limit: PhaseLimit) -> None:
        """Let everything happen that is due within the phase."""
        end_ns = min(self.now_ns + limit.ns, self._ns_max)
        last = self._steps_max if limit.events is None else min(self.steps + limit.events, self._steps_max)
        while (entry := self.agenda.first()) is not None:
            if limit.until_rest and self.steps % 4 == 0 and self.rules.at_rest():
                return
            if entry.at_ns > end_ns or self.steps >= last:
                break
            if self.order is not None:
                entry = self.order.choose(self.agenda, entry, self.steps + 1, end_ns)
            self.step(entry)
            if self._branches and len(self.history.lines) > self._branches[0].record:
                self._leave_the_way(self._branches.pop(0))
        if entry is not None and (self.steps >= self._steps_max or (entry.at_ns > self._ns_max)):
            self.cut_short = True
        self.now_ns = max(self.now_ns, min(end_ns, self._ns_max)) if self.steps < last else self.now_ns

    def _leave_the_way(self, branch: plan_pb2.Branch) -> None:
        """A branch begins: everything that is drawn from now on is drawn from its seed."""
        if not branch.HasField("seed"):
            return
        self.network.reseed(branch.seed)
        self.faults.reseed(branch.seed)
        if self.order is not None:
            self.order.reseed(branch.seed)
        for guest in self.guests.values():
            guest.reseed(branch.seed)
        for controller in self.controllers.values():
            controller.reseed(branch.seed)
        for reader in self.readers.values():
            reader.reseed(branch.seed)
        for mover in self.movers.values():
            mover.reseed(branch.seed)
        for host in self.hosts.values():
            host.journal.reseed(branch.seed)
            if host.up:
                self.faults.arm(host)


def phase_limits(plan: plan_pb2.Plan) -> dict[str, PhaseLimit]:
    """How long each phase of a plan takes."""
    phases = plan.phases
    return {
        "warm": _limit(phases.warm if phases.HasField("warm") else None, 0),
        "chaos": _limit(phases.chaos if phases.HasField("chaos") else None, _CHAOS_NS, rests=True),
        "heal": _limit(phases.heal if phases.HasField("heal") else None, 0),
        "settle": replace(_limit(phases.settle if phases.HasField("settle") else None, _SETTLE_NS), until_rest=True),
    }


def _limit(phase: plan_pb2.Phase | None, absent_ns: int, *, rests: bool = False) -> PhaseLimit:
    """How long a phase takes; ``rests``: where it says nothing itself, it ends when the world rests."""
    timed = phase is not None and phase.HasField("duration")
    events = phase.events if phase is not None and phase.HasField("events") else None
    if phase is not None and timed:
        ns = duration_ns("duration", phase.duration, most=_LONG_NS)
    else:
        ns = absent_ns if events is None else _LONG_NS
    return PhaseLimit(ns, events, rests and not timed and events is None)
