"""Which plan shows which bug of the museum, and by which checks. Data; nothing here imports the core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
#: A mutant is searched for in so many seeds, from 0 on.
SEEDS: Final = 60

_INVARIANTS: Final = frozenset({"invariants"})
_BYTES: Final = frozenset({"task-reads-its-bytes", "invariants"})


@dataclass(frozen=True, slots=True)
class Shown:
    """A plan by its name, and the checks any of which is right to notice."""

    plan: str
    checks: frozenset[str]

    @property
    def path(self) -> Path:
        """Where the plan lies."""
        return HERE / f"{self.plan}.yaml"


def _by(plan: str, *checks: str) -> Shown:
    return Shown(plan, frozenset(checks))


SHOWN: Final[dict[str, Shown]] = {
    "B1": Shown("guests", _INVARIANTS),
    "B2": Shown("signals", _INVARIANTS),
    "B3": Shown("tasks", _INVARIANTS),
    "B4": Shown("processes", _BYTES),
    "B5": Shown("processes", _INVARIANTS),
    "B6": Shown("processes", _INVARIANTS),
    "B7": Shown("processors", _INVARIANTS),
    "B8": Shown("processors", _BYTES),
    "B9": Shown("state", _INVARIANTS),
    "B10": _by("state", "get-xsave-tells-the-truth"),
    "B11": _by("state", "get-xsave-tells-the-truth"),
    "B12": _by("state", "get-xsave-tells-the-truth"),
    "B13": _by("state", "set-xsave-takes-what-it-must"),
    "B14": _by("state", "set-xsave-takes-what-it-must"),
    "B15": _by("signals", "commands-end"),
    "B16": _by("guests", "interrupt-keeps-off"),
    "B17": Shown("processors", _INVARIANTS),
    "B18": Shown("state", _INVARIANTS),
    "B19": _by("guests", "guest-sees-its-bytes"),
    "B20": Shown("guests", _INVARIANTS),
    "B21": Shown("processors", _INVARIANTS),
    "B22": _by("state", "cpuid-tells-the-truth"),
    "B23": _by("state", "cpuid-tells-the-truth"),
    "B24": Shown("tasks", _INVARIANTS),
    "B25": Shown("processes", _BYTES),
    "B26": _by("signals", "frame-tells-the-truth"),
    "B27": _by("tasks", "frame-tells-the-truth"),
    "B28": _by("signals", "frame-tells-the-truth"),
    "B29": _by("state", "set-xsave-takes-what-it-must"),
    "B30": _by("tasks", "workers-have-no-registers"),
    "B31": Shown("tasks", _INVARIANTS),
    "B32": _by("guests", "guest-sees-its-bytes"),
    "B33": Shown("tasks", _BYTES),
    "B34": _by("processors", "pkru-needs-protection-keys"),
    "B35": Shown("signals", _BYTES),
    "B36": Shown("state", _INVARIANTS),
    "B37": _by("processes", "ptrace-takes-all-or-nothing"),
    "B38": Shown("signals", _BYTES),
    "B40": Shown("guests", _INVARIANTS),
    "B41": Shown("guests", _INVARIANTS),
    "B42": Shown("processes", _BYTES),
    "B43": Shown("signals", _BYTES),
    "B44": Shown("tasks", _INVARIANTS),
    "B45": Shown("guests", _BYTES),
    "B46": Shown("state", _INVARIANTS),
}


def plans_for(name: str) -> tuple[Path, ...]:
    """The plans to search for a mutant of the museum, by its id; ``KeyError`` for none."""
    return (SHOWN[name].path,)
