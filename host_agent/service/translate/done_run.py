"""Outcomes that have nothing to say, told together: `Outcomes.done_runs`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fpstate.v1 import session_pb2

from host_agent.events import DoneOutcome, Intercepts, Outcome
from host_agent.service.translate.outcome import intercepts_to_proto, outcome_to_proto


@dataclass(slots=True)
class _Run:
    """Consecutive numbers of one vCPU."""

    vcpu: str
    first_seq: int
    last_seq: int
    intercepts: Intercepts


def outcomes_in_runs(outcomes: Iterable[Outcome]) -> session_pb2.Outcomes:
    """The message of many outcomes: in runs where nothing is said, else one by one in their order."""
    said: list[Outcome] = []
    runs: list[_Run] = []
    open_runs: dict[str, _Run] = {}
    for outcome in outcomes:
        kind = outcome.kind
        if not isinstance(kind, DoneOutcome) or kind.intercepts is None or not _is_plain(kind):
            said.append(outcome)
            continue
        run = open_runs.get(outcome.vcpu)
        if run is not None and run.last_seq + 1 == outcome.seq and run.intercepts == kind.intercepts:
            run.last_seq = outcome.seq
        else:
            run = open_runs[outcome.vcpu] = _Run(outcome.vcpu, outcome.seq, outcome.seq, kind.intercepts)
            runs.append(run)
    return session_pb2.Outcomes(outcomes=map(outcome_to_proto, said), done_runs=map(_run_to_proto, runs))


def _is_plain(done: DoneOutcome) -> bool:
    return done.value is None and not done.data and done.skip_instruction and done.reallocated is None


def _run_to_proto(run: _Run) -> session_pb2.DoneRun:
    return session_pb2.DoneRun(
        vcpu=run.vcpu,
        first_seq=run.first_seq,
        last_seq=run.last_seq,
        intercepts=intercepts_to_proto(run.intercepts),
    )
