"""A whole history judged vCPU by vCPU.

That is enough: a history is linearizable exactly where that of each object is (Herlihy and Wing, 1990). What is done to
a whole VM counts as an operation on each of its vCPUs, of which each may then notice it at a moment of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fault_lab.linear.checker import STEPS, Verdict, check
from fault_lab.linear.operations import VcpuHistory, histories, records_of
from fault_lab.linear.report import shown


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict of each vCPU, by its name."""

    vcpus: dict[str, tuple[VcpuHistory, Verdict]]

    @property
    def violation(self) -> str:
        """What no order explains, for a person; empty where there is none."""
        wrong = [shown(vcpu, verdict) for vcpu, (_, verdict) in self.vcpus.items() if verdict.answer == "violation"]
        return "\n".join(wrong)

    @property
    def unknown(self) -> str:
        """The first vCPU of which nothing is known, and why; empty where there is none."""
        why = (f"{vcpu}: {verdict.why}" for vcpu, (_, verdict) in self.vcpus.items() if verdict.answer == "unknown")
        return next(why, "")

    @property
    def answer(self) -> str:
        """One violation is one; where one is not known, all are not."""
        return "violation" if self.violation else "unknown" if self.unknown else "ok"


def judge(lines: Iterable[str], limit: int = STEPS) -> Judged:
    """Check the lines of a history, with so many steps for each vCPU. Raises ``HistoryError``."""
    return Judged({vcpu: (each, _verdict(each, limit)) for vcpu, each in histories(records_of(lines)).items()})


def _verdict(history: VcpuHistory, limit: int) -> Verdict:
    if history.unmodelled:
        return Verdict("unknown", len(history.operations), 0, history.unmodelled)
    return check(history.operations, history.model, limit)
