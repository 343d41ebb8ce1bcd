"""Which decisions an exit takes: one row a decision. docs/exits.md shows what follows from it, and a test each cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from host_agent.exits import DecisionKind, ExitCause, ExitRecord, ExitState

_ALL: Final = frozenset(ExitCause)
#: Memory that may be there later. Permission will not be: the first vCPU has locked it.
_MEMORY: Final = frozenset({ExitCause.NO_MEMORY, ExitCause.QUOTA})


@dataclass(frozen=True, slots=True)
class Rule:
    """When a decision is allowed, and what ``docs/exits.md`` says it does.

    ``armed``: only where XFD disables the feature now, and so at an XFD write alone. ``final``: the event has its
    outcome with it; else the exit may stay open, at the next generation.
    """

    causes: frozenset[ExitCause]
    text: str
    final: bool
    armed: bool = False


RULES: Final[dict[DecisionKind, Rule]] = {
    DecisionKind.RETRY: Rule(_MEMORY, "the instruction executes again and asks again, now", final=False),
    DecisionKind.RETRY_AFTER: Rule(_MEMORY, "as RETRY, after a delay of at most an hour", final=False),
    DecisionKind.RAISE_LIMIT: Rule(
        frozenset({ExitCause.QUOTA}), "the VM's or the host's byte limit becomes this, then as RETRY", final=False
    ),
    DecisionKind.RECLAIM: Rule(_MEMORY, "containers of others shrink, then as RETRY", final=False),
    DecisionKind.INJECT_GP: Rule(_ALL, "#GP(0) at the instruction, nothing written", final=True),
    DecisionKind.INJECT_NM: Rule(_ALL, "#NM with XFD_ERR naming the feature, nothing written", final=True, armed=True),
    DecisionKind.DEFER: Rule(
        _ALL,
        "the instruction is skipped, nothing written: the next use of the feature is #NM again",
        final=True,
        armed=True,
    ),
    DecisionKind.PAUSE: Rule(_ALL, "the vCPU waits without a deadline; its VMM gets PAUSE", final=False),
    DecisionKind.KILL_VCPU: Rule(_ALL, "the vCPU stops; its VMM gets STOP", final=True),
    DecisionKind.KILL_VM: Rule(
        _ALL, "every vCPU of the VM stops, its other exits are cancelled; STOP for each", final=True
    ),
    DecisionKind.RESET_VM: Rule(
        _ALL, "every vCPU of the VM is reset, its other exits are cancelled; RESET for each", final=True
    ),
    DecisionKind.HIDE_FEATURE: Rule(
        _ALL, "as INJECT_GP; from the VM's next reset on CPUID has neither XTILE_CFG nor XTILE_DATA", final=True
    ),
    DecisionKind.MIGRATE: Rule(
        _ALL, "the VM stands still until somebody moves it; the instruction executes again there", final=True
    ),
}

#: The states in which an exit takes a decision. While one is being applied (a delay runs) it has its winner.
DECIDABLE: Final = frozenset({ExitState.OPEN, ExitState.PAUSED})
#: What a host may be told to do where nobody decides in time: what every exit allows, and needs nothing said with it.
DEFAULT_ACTIONS: Final = (
    DecisionKind.PAUSE,
    DecisionKind.INJECT_GP,
    DecisionKind.HIDE_FEATURE,
    DecisionKind.KILL_VCPU,
    DecisionKind.KILL_VM,
    DecisionKind.RESET_VM,
)


def why_not(kind: DecisionKind, cause: ExitCause, *, armed: bool) -> str:
    """Return why an exit of this cause does not take a decision; empty if it does."""
    rule = RULES[kind]
    if cause not in rule.causes:
        return f"it is for {' and '.join(sorted(each.value for each in rule.causes))}"
    if rule.armed and not armed:
        return "it is for an XFD write while XFD disables the feature"
    return ""


def allowed_decisions(record: ExitRecord) -> frozenset[DecisionKind]:
    """The decisions an exit takes now."""
    if record.state not in DECIDABLE:
        return frozenset()
    return frozenset(kind for kind in DecisionKind if not why_not(kind, record.cause, armed=record.armed))


# -- docs/exits.md -----------------------------------------------------------------------------------------------------

#: An XFD write that needs room takes a bit out of XFD, so the feature is armed; an XSETBV that needs it finds it clear.
_COLUMNS: Final = [(cause, armed) for cause in ExitCause for armed in (False, True)]


def _column(cause: ExitCause, *, armed: bool) -> str:
    return f"{cause.value}, {'WRMSR XFD' if armed else 'XSETBV'}"


def decisions_table() -> str:
    """Decision by cause and trigger, as ``why_not`` has it, and what each does."""
    heads = [_column(cause, armed=armed) for cause, armed in _COLUMNS]
    lines = [f"| decision | {' | '.join(heads)} | final | |", f"|---|{'---|' * (len(heads) + 2)}"]
    return "\n".join([*lines, *_rows()]) + "\n"


def _rows() -> Iterator[str]:
    for kind, rule in RULES.items():
        cells = ["-" if why_not(kind, cause, armed=armed) else "yes" for cause, armed in _COLUMNS]
        final = "yes" if rule.final else "where it succeeds" if kind is not DecisionKind.PAUSE else "no"
        yield f"| {kind.name} | {' | '.join(cells)} | {final} | {rule.text} |"


def refusals_table() -> str:
    """Why a decision is refused, for each cause and trigger that does not take it."""
    lines = ["| decision | exit | refused, because |", "|---|---|---|"]
    for kind in RULES:
        for cause, armed in _COLUMNS:
            why = why_not(kind, cause, armed=armed)
            lines += [f"| {kind.name} | {_column(cause, armed=armed)} | {why} |"] if why else []
    return "\n".join(lines) + "\n"
