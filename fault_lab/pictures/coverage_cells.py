"""The cells of a coverage matrix: which there are for a plan, and why some cannot be reached by nature."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.pictures.coverage import CANCELLED, NOTHING, Coverage
from fault_lab.pictures.vcpu_states import APPLYING, HOST_DOWN, NO_VCPU, STATES
from fault_lab.sim.controller import OTHERS
from host_agent.exits import DecisionKind

_KINDS: Final = {kind.name.lower().replace("_", "-"): kind.name for kind in DecisionKind}
#: Host tasks and VMMs make the calls behind these; guests of their own do not.
_TASKS: Final = ("fpstate.task.", "kvm.set_")
_CREATION: Final = frozenset({"kvm.vm.alloc", "kvm.vcpu.alloc", "fpstate.guest.alloc"})
_GROWTH: Final = "fpstate.realloc."
_ENDS_A_HOST: Final = frozenset({"node.run", "journal.write", "journal.sync"})


class Cells:
    """Rows and columns for what was counted."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._armed = _armed(coverage.plan)
        self.points = list(FAULT_POINTS)
        self.states = list(STATES)
        planned = _decisions(coverage.plan)
        seen = {decision for _, _, decision in coverage.cells}
        self.decisions = [kind.name for kind in DecisionKind if kind.name in planned | seen]
        self.decisions += [CANCELLED, NOTHING]
        #: Decisions that no policy of the plan makes.
        self.unasked = [kind.name for kind in DecisionKind if kind.name not in self.decisions]

    def count(self, point: str, state: str, decision: str) -> int:
        """How often a cell was reached."""
        return self._coverage.cells[point, state, decision]

    def why_not(self, point: str, state: str = "") -> str:
        """Why a row, or a state of it, cannot be reached with this plan; empty if it can."""
        if point.startswith(_TASKS) and not self._coverage.plan.get("workload", {}).get("tasks"):
            return "no task of this plan makes this call"
        if point not in self._armed:
            return "the plan arms no fault here"
        return _why_not_state(point, state, self._armed, self.decisions)

    def never(self, point: str) -> list[str]:
        """The states in which a point could have fired, and has not."""
        return [
            state
            for state in self.states
            if not self.why_not(point, state) and not any(self.count(point, state, each) for each in self.decisions)
        ]


def _why_not_state(point: str, state: str, armed: frozenset[str], decisions: list[str]) -> str:
    if state == "broken":
        return "a bug of ours alone breaks a vCPU, and ends the run"
    if state == APPLYING and not {"RETRY_AFTER", "MIGRATE"} & set(decisions):
        return "no decision of this plan takes time"
    if state == HOST_DOWN:
        if not armed & _ENDS_A_HOST:
            return "no fault of this plan ends a host"
        if FAULT_POINTS[point].seat is Seat.HOST or point.startswith("journal."):
            return "a host that is down asks nothing"
    if point in _CREATION and state not in {NO_VCPU, ""}:
        return "the vCPU is there already"
    if point.startswith(_GROWTH) and state in {NO_VCPU, "killed"}:
        return "nothing of it grows"
    return ""


def _armed(plan: Mapping[str, Any]) -> frozenset[str]:
    hits = plan.get("schedule", {}).get("hits", [])
    return frozenset(each["point"] for each in (*plan.get("faults", []), *hits))


def _decisions(plan: Mapping[str, Any]) -> set[str]:
    """What the policies of a plan can decide, what the deadline does, and what a contradiction may say."""
    texts = [text for each in plan.get("topology", {}).get("controllers", []) for text in each.get("policies", [])]
    words = {word for text in texts for word in re.findall(r"[a-z][a-z-]*", text)}
    found = {_KINDS[word] for word in words if word in _KINDS} | {DecisionKind.PAUSE.name}
    contradicts = any(
        each["point"] == "controller.decide" and "corrupt" in str(each) for each in plan.get("faults", [])
    )
    return found | ({each.kind.name for each in OTHERS} if contradicts else set())
