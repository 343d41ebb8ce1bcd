"""Swarm: each run draws its own plan from its seed, besides everything that the plan leaves to chance.

A run that has every fault at its usual rate is an average one, and averages hide: a fault that ends everything early
keeps the others from being seen. So each run leaves some faults out and turns what is left up or down.

    faults          each is there or not; at least one is
    probabilities   from a sixteenth to eight times as likely
    times           up to four times as many
    latencies       an eighth to eight times as long, each link by itself
    limits          bytes as they are, twice, or four times as many
    leases, deadlines of exits    as long, half, or a quarter, and a second at least
    think times     none, as long, or four times as long

Gates are gone: whether a fault is there has been drawn. The plan that ran is what comes out, with figures in place of
chances of chances. Source: Groce, Zhang, Eide, Chen, Regehr 2012 (doi 10.1145/2338965.2336763).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final, TypeVar

from fpstate.fault.v1 import plan_pb2
from google.protobuf.duration_pb2 import Duration

from fault_lab.injection.draw import PPM, draw_between, subseed
from fault_lab.search.tried import SEEDS, Runs, tried
from fault_lab.wire.duration import DAY_NS, NS_PER_S, duration, duration_ns

T = TypeVar("T")

#: Factors as (numerator, denominator).
_RARER: Final = ((1, 16), (1, 8), (1, 4), (1, 2), (1, 1), (2, 1), (4, 1), (8, 1))
_LONGER: Final = ((1, 8), (1, 2), (1, 1), (2, 1), (8, 1))
_WIDER: Final = (1, 2, 4)
_SHORTER: Final = ((1, 1), (1, 2), (1, 4))
_THINK: Final = ((0, 1), (1, 1), (4, 1))
_MORE_TIMES: Final = 4
#: Where the plan does not say. Source: fault_lab/sim/network.py, host_agent/state.py.
_LATENCY: Final = plan_pb2.Latency(min=duration(50_000), max=duration(200_000))
_HALF_A_MINUTE_NS: Final = 30 * NS_PER_S


def swarm_runs(plan: plan_pb2.Plan, seed: int) -> Runs:
    """The plan drawn from ``seed``, from the next one, and so on; it never ends by itself."""
    for nr in count(seed):
        drawn = swarm_plan(plan, nr % SEEDS)
        there = [fault.name for fault in drawn.faults]
        yield tried(drawn, drawn.seed, f"seed {drawn.seed} with {', '.join(there) or 'no fault'}")


def swarm_plan(plan: plan_pb2.Plan, seed: int) -> plan_pb2.Plan:
    """Draw the plan of one seed."""
    made = plan_pb2.Plan()
    made.CopyFrom(plan)
    made.seed = seed
    made.ClearField("search")
    knobs = _Knobs(seed)
    _faults(made, knobs)
    there = made.topology
    if not there.HasField("link_default"):
        there.link_default.CopyFrom(_LATENCY)
    _scale(there.link_default, *knobs.one_of("link", "", _LONGER))
    for link in there.links:
        _scale(link.latency, *knobs.one_of("link", f"{getattr(link, 'from')}->{link.to}", _LONGER))
    for host in there.hosts:
        for name in ("exit_deadline", "default_lease"):
            _shorten(host, name, *knobs.one_of(name, host.name, _SHORTER))
        if host.HasField("byte_limit"):
            host.byte_limit *= knobs.one_of("bytes", host.name, _WIDER)
    for vm in there.vms:
        if vm.HasField("byte_limit"):
            vm.byte_limit *= knobs.one_of("bytes", f"vms/{vm.name}", _WIDER)
    for nr, guest in enumerate(made.workload.guests):
        _scale(guest.think_time, *knobs.one_of("think", str(nr), _THINK))
    return made


class _Knobs:
    """What one seed draws."""

    def __init__(self, seed: int) -> None:
        self._seed = subseed(seed, "swarm")

    def between(self, what: str, name: str, low: int, high: int) -> int:
        return draw_between(self._seed, what, name, 0, low=low, high=high)

    def one_of(self, what: str, name: str, choice: Sequence[T]) -> T:
        return choice[self.between(what, name, 0, len(choice) - 1)]


def _faults(plan: plan_pb2.Plan, knobs: _Knobs) -> None:
    """Which faults there are, how likely each is, and how often it fires at most."""
    there = [fault for fault in plan.faults if knobs.between("there", fault.name, 0, 1)]
    if not there and plan.faults:
        there = [plan.faults[knobs.between("there", "", 0, len(plan.faults) - 1)]]
    kept = [plan_pb2.PlannedFault.FromString(fault.SerializeToString()) for fault in there]
    for fault in kept:
        fault.ClearField("gate_ppm")
        attributes = fault.attributes
        if attributes.fail_nth:
            continue
        above, below = knobs.one_of("probability", fault.name, _RARER)
        likely = attributes.probability_ppm if attributes.HasField("probability_ppm") else PPM
        attributes.probability_ppm = min(-(-likely * above // below), PPM)
        if attributes.times > 0:
            attributes.times = knobs.between("times", fault.name, 1, _MORE_TIMES * attributes.times)
    del plan.faults[:]
    plan.faults.extend(kept)
    names = {f"fired:{fault.name}" for fault in kept}
    sometimes = [name for name in plan.checks.sometimes if name in names or not name.startswith("fired:")]
    del plan.checks.sometimes[:]
    plan.checks.sometimes.extend(sometimes)


def _scale(latency: plan_pb2.Latency, above: int, below: int) -> None:
    for name in ("min", "max"):
        if latency.HasField(name):
            _set(getattr(latency, name), min(duration_ns(name, getattr(latency, name)) * above // below, DAY_NS))


def _shorten(host: plan_pb2.PlannedHost, name: str, above: int, below: int) -> None:
    """A second is enough for anybody to renew a lease, unless the plan itself has less."""
    field: Duration = getattr(host, name)
    was_ns = duration_ns(name, field) if host.HasField(name) else _HALF_A_MINUTE_NS  # type: ignore[arg-type]
    _set(field, max(was_ns * above // below, min(was_ns, NS_PER_S)))


def _set(field: Duration, ns: int) -> None:
    field.CopyFrom(duration(ns))
