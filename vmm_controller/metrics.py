"""The metrics of a controller: its timeline, counted.

One table of what there is; docs/metrics.md is made from it. Labels are states, causes and reasons of the contract, so
their number is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fpstated.link.http import Answer
from vmm_controller.timeline import Event


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric: which event counts, and which of its keys are the labels."""

    name: str
    event: str
    labels: dict[str, str]
    help: str
    kind: Literal["counter", "gauge"] = "counter"


_PREFIX: Final = "fpstated_controller"
METRICS: Final = (
    Spec(f"{_PREFIX}_exit_changes_total", "exit", {"state": "state", "cause": "cause"}, "Exits heard of, each change."),
    Spec(f"{_PREFIX}_decisions_total", "decision", {"decision": "decision"}, "Decisions that were made."),
    Spec(
        f"{_PREFIX}_results_total", "result", {"state": "state"}, "Decisions that the host took, by the exit's state."
    ),
    Spec(f"{_PREFIX}_refusals_total", "refused", {"reason": "reason"}, "Decisions that the host did not take."),
    Spec(f"{_PREFIX}_left_total", "left", {}, "Exits that were left to their deadline."),
    Spec(f"{_PREFIX}_control_total", "control", {"what": "what"}, "What happened to the control."),
    Spec(f"{_PREFIX}_disconnects_total", "disconnected", {"code": "code"}, "Times that the host could not be reached."),
    Spec(f"{_PREFIX}_watching", "", {}, "1 while the exits are known and followed, else 0.", "gauge"),
    Spec(f"{_PREFIX}_exits_open", "watching", {}, "Exits that were open when they were listed last.", "gauge"),
)


class ControllerMetrics:
    """Call it with each event of a controller's timeline."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._counters = {
            spec.event: (Counter(spec.name, spec.help, tuple(spec.labels), registry=self.registry), spec.labels)
            for spec in METRICS
            if spec.kind == "counter"
        }
        self._watching, self._open = (
            Gauge(spec.name, spec.help, registry=self.registry) for spec in METRICS if spec.kind == "gauge"
        )
        self.watching = False

    def __call__(self, event: Event) -> None:
        """Count it."""
        kind = str(event["event"])
        if kind in self._counters:
            counter, labels = self._counters[kind]
            named = {label: str(event[key]) for label, key in labels.items()}
            (counter.labels(**named) if named else counter).inc()
        if kind == "watching":
            self._open.set(int(str(event["open"])))
        if kind in ("watching", "disconnected") or event.get("what") in ("lost", "released", "not-released"):
            self.watching = kind == "watching"
            self._watching.set(self.watching)

    def page(self) -> Answer:
        """The page /metrics."""
        return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.registry)


def metrics_table() -> str:
    """The controller's table of docs/metrics.md."""
    lines = ["| metric | type | labels | |", "|---|---|---|---|"]
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(lines) + "\n"
