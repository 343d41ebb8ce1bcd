"""A run, and what is left of it: a verdict, a history, and a certificate by which anybody can check both.

result = simulate(plan, seed)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.broken.versions import what_is_broken
from fault_lab.linear.judge import judge
from fault_lab.plan.canonical import plan_hash
from fault_lab.plan.numbered import Fired, Watch
from fault_lab.sim.controller import DECIDED
from fault_lab.sim.history import first_divergence
from fault_lab.sim.order import Deviation
from fault_lab.sim.rules import ALWAYS, EVENTUALLY, Violation
from fault_lab.sim.world import World
from fpstated._version import __version__
from host_agent.journal.record import RULES_VERSION

#: Raised when the same plan and seed may lead to another history.
SIM_VERSION: Final = 3
_FIRED: Final = "fired:"
#: The check of what everybody heard, after the run.
LINEARIZABLE: Final = "linearizable"


@dataclass(frozen=True, slots=True)
class Found:
    """A violation: which check, at which step and moment, and what was found."""

    check: str
    text: str
    step: int
    t_ns: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run. ``seen`` are the "sometimes" that came about. ``cut_short``: the budget ended it.

    ``unknown`` says why nothing can be said although nothing was violated; empty where something can.
    ``deviations`` are the steps that were not in the order of time, where the plan has an order of its own. ``broken``
    names the version that ran, where it was one of ``fault_lab.broken``.
    """

    plan: str
    plan_hash: str
    seed: int
    steps: int
    t_ns: int
    violation: Found | None
    fired: tuple[Fired, ...]
    seen: frozenset[str]
    cut_short: bool
    unknown: str
    digest: str
    deviations: tuple[Deviation, ...]
    broken: str
    lines: Sequence[str] = field(repr=False)

    @property
    def certificate(self) -> dict[str, object]:
        """What somebody else needs to see the same."""
        return ({"broken": self.broken} if self.broken else {}) | {
            "plan": self.plan,
            "plan_sha256": self.plan_hash,
            "seed": self.seed,
            "version": __version__,
            "sim": SIM_VERSION,
            "rules": RULES_VERSION,
            "steps": self.steps,
            "faults_fired": len(self.fired),
            "verdict": self.violation.check if self.violation else "unknown" if self.unknown else "ok",
            "history_sha256": self.digest,
        }


class DivergenceError(Exception):
    """Two runs of one plan and seed were not the same: the number of the first record that differs, and both."""

    def __init__(self, n: int, one: str, other: str) -> None:
        super().__init__(f"two runs differ first in record {n}:\n  {one}\n  {other}")
        self.n = n


def simulate(plan: plan_pb2.Plan, seed: int | None = None, watch: Watch | None = None) -> RunResult:
    """Run a checked plan once. ``watch`` is told of every hit, and changes nothing."""
    drawn = plan.seed if seed is None else seed
    world = World(plan, drawn, watch)
    found: Found | None = None
    try:
        world.run()
    except Violation as violation:
        found = Found(violation.check, violation.text, world.steps, world.now_ns)
    unknown = "the budget ended the run, nothing is known about its end" if world.cut_short else ""
    if found is None and not plan.checks.skip_linearizability:
        judged = judge(world.history.lines)
        unknown = unknown or judged.unknown
        if judged.violation:
            found = Found(LINEARIZABLE, judged.violation, world.steps, world.now_ns)
    if found is not None:
        world.record("violation", check=found.check, text=found.text, step=found.step)
    fired = tuple(world.faults.fired)
    seen = {f"{_FIRED}{each.fault}" for each in fired}
    seen |= {name for name, kind in DECIDED.items() if kind in world.rules.decisions}
    return RunResult(
        plan=plan.name,
        plan_hash=plan_hash(plan),
        seed=drawn,
        steps=world.steps,
        t_ns=world.now_ns,
        violation=found,
        fired=fired,
        seen=frozenset(seen),
        cut_short=world.cut_short,
        unknown=unknown,
        digest=world.history.digest,
        deviations=tuple(world.order.taken) if world.order is not None else (),
        broken=what_is_broken(),
        lines=world.history.lines,
    )


def simulate_twice(plan: plan_pb2.Plan, seed: int | None = None) -> RunResult:
    """Run a plan twice, and raise ``DivergenceError`` where the histories are not the same."""
    one, other = simulate(plan, seed), simulate(plan, seed)
    n = first_divergence(list(one.lines), list(other.lines))
    if n is not None:
        raise DivergenceError(n, _line(one, n), _line(other, n))
    return one


def _line(result: RunResult, n: int) -> str:
    return result.lines[n] if n < len(result.lines) else "(it ends here)"


def unknown_checks(plan: plan_pb2.Plan) -> list[str]:
    """Names of checks in a plan that the simulator does not have."""
    known = {"always": ALWAYS, "eventually": EVENTUALLY, "sometimes": DECIDED}
    return [
        f"checks.{kind}: expected one of {', '.join(sorted(names))}, got {name!r}"
        for kind, names in known.items()
        for name in getattr(plan.checks, kind)
        if name not in names and not (kind == "sometimes" and name.startswith(_FIRED))
    ]
