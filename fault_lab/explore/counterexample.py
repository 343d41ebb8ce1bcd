"""A path as a plan: exactly the hits that it needs, numbered as the simulator numbers them, and proved to replay.

A hit of the host's own points has a number that the path itself says. A process that ends, a message that is lost and
one that is late have none before the simulator has come to them: so the simulator runs with what is placed so far, says
which hits it meets, and each that fits is tried in turn. What counts is that the same check fails there.

What happens out of turn is a message, or a decision, that is late: a ``delay`` at its link or at the controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.explore.moves import Move
from fault_lab.explore.people import People
from fault_lab.explore.requests import Message
from fault_lab.explore.search import Found, Space
from fault_lab.explore.state import State
from fault_lab.injection.action import Action, Delay
from fault_lab.plan.numbered import Fired
from fault_lab.sim.rules import ALWAYS, OF_BOOKS
from fault_lab.sim.run import RunResult, simulate
from fault_lab.sim.schedule import as_schedule
from fault_lab.sim.shrink import ddmin
from fault_lab.sim.watch import hits_met
from fault_lab.wire.duration import NS_PER_S, duration_ns

#: Where a plan does not say how long a controller has.
_DEADLINE_NS: Final = 30 * NS_PER_S
#: How late a message is that others overtake: a little, and longer than a call takes to be made again.
_LATE_NS: Final = (NS_PER_S // 1000, NS_PER_S, 12 * NS_PER_S)


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A plan that violates the same check by itself, and its run in the simulator. ``runs``: how many that took."""

    plan: plan_pb2.Plan
    result: RunResult
    runs: int


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A hit that has to fire: the number that the path says (0 for none), and what it may do."""

    point: str
    entity: str
    trigger: str
    number: int
    actions: tuple[Action, ...]


class Placer:
    """Turns one path into a plan, with at most ``runs_max`` runs of the simulator."""

    def __init__(self, plan: plan_pb2.Plan, check: str, *, runs_max: int = 600) -> None:
        self._plan = _asking(plan)
        self._check = check
        self._left = runs_max
        self._runs_max = runs_max

    def place(self, space: Space, people: People, found: Found) -> Counterexample | None:
        """The smallest plan that replays; None where none was found within the runs."""
        path = [*space.path(found.source), *([found.move] if found.move is not None else [])]
        wanted = list(_wanted(path))
        late = list(_late(path, self._plan, space.states[0], people))
        for each in (wanted, [*wanted, *late]):
            if each is not wanted:
                self._plan = _long_enough(self._plan)
            hits = self._try([], each)
            if hits is not None:
                small = ddmin(hits, self._fails)
                plan = as_schedule(self._plan, self._plan.seed, small)
                return Counterexample(plan, simulate(plan), self._runs_max - self._left)
        return None

    def _try(self, placed: list[Fired], wanted: Sequence[_Wanted]) -> list[Fired] | None:
        """Place the next hit wherever it fits, and all after it."""
        if not wanted:
            return placed if self._fails(placed) else None
        first, rest = wanted[0], wanted[1:]
        for number in self._numbers(placed, first):
            for action in first.actions:
                if self._left <= 0:
                    return None
                hit = Fired("", first.point, first.entity, number, action)
                found = self._try([*placed, hit], rest)
                if found is not None:
                    return found
        return None

    def _numbers(self, placed: list[Fired], wanted: _Wanted) -> Iterator[int]:
        """The numbers under which the hit may come, the likeliest first."""
        if wanted.number:
            yield wanted.number
            return
        self._left -= 1
        taken = {each.hit for each in placed if (each.point, each.entity) == (wanted.point, wanted.entity)}
        for met in hits_met(as_schedule(self._plan, self._plan.seed, placed)):
            fits = (met.point, met.entity) == (wanted.point, wanted.entity) and wanted.trigger in ("", met.trigger)
            if fits and met.number not in taken:
                yield met.number

    def _fails(self, hits: Sequence[Fired]) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        violation = simulate(as_schedule(self._plan, self._plan.seed, hits)).violation
        return violation is not None and violation.check == self._check


def _wanted(path: Sequence[Move]) -> Iterator[_Wanted]:
    """The faults of a path, in its order."""
    counts: Counter[tuple[str, str]] = Counter()
    for move in path:
        fires = move.fires
        number = 0
        if move.decides:
            counts["controller.decide", move.decides] += 1
        for hit in move.hits:
            counts[hit.point, hit.entity] += 1
            if fires is not None and (fires.point, fires.entity) == (hit.point, hit.entity) and not number:
                number = counts[hit.point, hit.entity]
        if fires is None:
            continue
        if fires.point == "controller.decide":
            number = counts[fires.point, fires.entity]
        yield _Wanted(fires.point, fires.entity, fires.trigger, number, (fires.action,))


def _asking(plan: plan_pb2.Plan) -> plan_pb2.Plan:
    """The plan with the checks that an exploration asks: another one would end the run first."""
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    if not made.checks.always:
        made.checks.always.extend(name for name in ALWAYS if name not in OF_BOOKS)
    return made


def _long_enough(plan: plan_pb2.Plan) -> plan_pb2.Plan:
    """The plan with a chaos that does not end while something is late, though everybody else has come to rest."""
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    if not made.phases.HasField("chaos"):
        made.phases.chaos.duration.FromNanoseconds(3 * _deadline_ns(plan))
    return made


def _deadline_ns(plan: plan_pb2.Plan) -> int:
    host = plan.topology.hosts[0]
    return duration_ns("exit_deadline", host.exit_deadline) if host.HasField("exit_deadline") else _DEADLINE_NS


def _late(path: Sequence[Move], plan: plan_pb2.Plan, first: State, people: People) -> Iterator[_Wanted]:
    """What has to be late: the decision whose deadline passes, and each message that others overtake."""
    beyond_ns = _deadline_ns(plan) + NS_PER_S
    beyond = Delay(beyond_ns, beyond_ns)
    sent = 0
    order: dict[Message, int] = {message: nr for nr, message in enumerate(first.flight)}
    for move in path:
        if move.deadline:
            for controller in plan.topology.controllers:
                yield _Wanted("controller.decide", controller.name, "", 0, (beyond,))
        if move.message is not None and move.message in order:
            mine = order.pop(move.message)
            if any(other < mine for other in order.values()):
                late = min(order, key=lambda each: order[each])
                link, trigger = people.link(late)
                yield _Wanted("link.message", link, trigger, 0, tuple(Delay(ns, ns) for ns in _LATE_NS))
        for message in move.state.flight if move.state is not None else ():
            if message not in order:
                sent += 1
                order[message] = len(first.flight) + sent
