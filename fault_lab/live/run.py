"""A plan on live processes: what ``fault_lab.sim.run`` does in the simulated world, in real time.

result = run_live(plan, directory, seed)

When the run is over, its history is put in order, and what must hold is asked of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fpstate.fault.v1 import plan_pb2

from fault_lab.linear.judge import judge as linearized
from fault_lab.live.history import Record
from fault_lab.live.judge import Judge, read
from fault_lab.live.runner import LiveRunner
from fault_lab.plan.canonical import plan_hash
from fault_lab.sim.history import History
from fault_lab.sim.rules import Violation
from fault_lab.sim.run import LINEARIZABLE, Found, RunResult


@dataclass(frozen=True, kw_only=True)
class LiveResult(RunResult):
    """One live run; ``steps`` are its records. ``logs`` is where its processes have said what else they had to say."""

    logs: Path

    @property
    def certificate(self) -> dict[str, object]:
        """What somebody else needs to know what was run; nobody can see the very same again."""
        return {"live": True, **super().certificate}


def run_live(plan: plan_pb2.Plan, directory: Path, seed: int | None = None, *, broken: str = "") -> LiveResult:
    """Run a checked plan that ``check_possible`` has nothing against. Raises ``NotReadyError``, ``OSError``.

    ``broken`` names the version of ``fault_lab.broken`` that the hosts are.
    """
    drawn = plan.seed if seed is None else seed
    run = LiveRunner(plan, directory, drawn, broken=broken)
    run.play()
    history = run.history.close()
    judge = Judge(plan)
    found = _judged(judge, plan, run, history)
    unknown = "the budget ended the run, nothing is known about its end" if run.cut_short else ""
    if found is None and not plan.checks.skip_linearizability:
        judged = linearized(history.lines)
        unknown = unknown or judged.unknown
        if judged.violation:
            last = read(history.lines[-1])
            found = Found(LINEARIZABLE, judged.violation, last["n"], last["t"])
    if found is not None:
        history.cause = found.step
        history.add(found.t_ns, "violation", check=found.check, text=found.text, step=found.step)
    return LiveResult(
        plan=plan.name,
        plan_hash=plan_hash(plan),
        seed=drawn,
        steps=len(history.lines),
        t_ns=read(history.lines[-1])["t"],
        violation=found,
        fired=tuple(run.faults.fired),
        seen=judge.seen,
        cut_short=run.cut_short,
        unknown=unknown,
        digest=history.digest,
        deviations=(),
        broken=broken,
        lines=history.lines,
        logs=directory,
    )


def _judged(judge: Judge, plan: plan_pb2.Plan, run: LiveRunner, history: History) -> Found | None:
    """The first check that does not hold, and the record at which that was seen."""
    record: Record = {"n": 0, "t": 0}
    try:
        for line in history.lines:
            record = read(line)
            judge.take(record)
        judge.failures()
        if not run.cut_short and not run.faults.over_budget:
            judge.eventually(plan.checks.eventually, run.unfinished)
    except Violation as violation:
        return Found(violation.check, violation.text, record["n"], record["t"])
    return None
