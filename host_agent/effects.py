"""What a command makes known beyond its reply: the shells deliver it, tests and the timeline read it."""

from __future__ import annotations

from dataclasses import dataclass

from fault_lab.injection.hit import Hit
from fault_lab.injection.table import ArmedFault
from host_agent.events import Directive, Outcome


@dataclass(frozen=True, slots=True)
class OutcomeReady:
    """An event that was pending has its final outcome."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ExitChanged:
    """An exit was opened, decided, retried, paused, resolved or cancelled. ``exit`` is its name."""

    exit: str


@dataclass(frozen=True, slots=True)
class DirectiveIssued:
    """The VMM must act. ``session`` is the one that has the vCPU now, empty for none."""

    session: str
    directive: Directive


@dataclass(frozen=True, slots=True)
class VcpusTaken:
    """A session has these vCPUs from now on; whoever had them is fenced off from them."""

    session: str
    epoch: int
    vcpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drained:
    """The host takes no new work."""


@dataclass(frozen=True, slots=True)
class FaultChanged:
    """A fault was armed, disarmed or expired, or it fired at ``hit``."""

    kind: str
    fault: ArmedFault
    hit: Hit | None = None


@dataclass(frozen=True, slots=True)
class MigrationChanged:
    """A migration was begun, imported, staged, committed or aborted here. ``migration`` is its name."""

    migration: str


Effect = OutcomeReady | ExitChanged | DirectiveIssued | VcpusTaken | Drained | FaultChanged | MigrationChanged
