"""``fpstated compare-policies``: the same guests under every allocation policy, and what it cost, counted.

One machine a policy, the guests in VMs of their own on two CPUs, in turns. No clock and no chance: the same guests give
the same figures everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count, islice
from operator import add
from pathlib import Path
from typing import Final

from fpstated.compare_guest import ComparedGuest, GuestPlan
from fpu_core.errors import Errno
from guest_agent.script_parser import load_script
from host_agent.figures import Figures
from host_agent.kvm.policy import ALLOCATION_POLICIES
from host_agent.machine import HostMachine
from host_agent.state import HostConfig

#: Events a guest has before the next one's turn, which takes the CPU away.
_TURN_EVENTS: Final = 5
_CPUS: Final = 2
#: The allocation that fails where nobody says which: the one that makes the vCPU's room larger than the default.
FAIL_NTH: Final = 2
#: The scripts of the mix.
_MIX: Final = ("never-amx", "preempted", "after-nm", "xcr0-first", "preempted-tiles")
#: The guest of the mix that meets the failure.
_FAILING: Final = "after-nm"


@dataclass(frozen=True, slots=True)
class GuestFigures:
    """What one guest came to. Bytes are all buffers that exist because of its vCPU, headers included."""

    name: str
    figures: Figures
    exits: int
    peak_bytes: int
    rest_bytes: int
    outcome: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyFigures:
    """One row of the comparison. ``failure`` says what the failed allocation did, in order."""

    policy: str
    guests: tuple[GuestFigures, ...]
    failure: tuple[str, ...]

    @property
    def total(self) -> Figures:
        """All guests together."""
        return reduce(add, (guest.figures for guest in self.guests), Figures())

    @property
    def exits(self) -> int:
        """Exits to userspace, which somebody had to decide."""
        return sum(guest.exits for guest in self.guests)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and the rows."""

    what: str
    profile: str
    fail_nth: int
    policies: tuple[PolicyFigures, ...]


def mix() -> tuple[GuestPlan, ...]:
    """The built-in guests: without AMX, with it in both orders, without permission, preempted."""
    scripts = {name: load_script(Path(__file__).with_name("mix") / f"{name}.txt") for name in _MIX}
    plans = [GuestPlan(name, script) for name, script in scripts.items()]
    return (*plans, GuestPlan("no-permission", scripts[_FAILING], permission=False))


def compare(plans: Sequence[GuestPlan], *, what: str, profile: str, fail_nth: int = FAIL_NTH) -> Comparison:
    """Run ``plans`` under every policy; ``CompareError`` where a guest does not read back what it loaded."""
    failing = next((plan for plan in plans if plan.name == _FAILING), plans[0])
    rows = tuple(
        PolicyFigures(policy, _run(plans, policy, profile), _run_failing(failing, policy, profile, fail_nth))
        for policy in ALLOCATION_POLICIES
    )
    return Comparison(what, profile, fail_nth, rows)


def _machine() -> HostMachine:
    return HostMachine(HostConfig(cpus=_CPUS, check_invariants=True))


def _run(plans: Sequence[GuestPlan], policy: str, profile: str) -> tuple[GuestFigures, ...]:
    machine = _machine()
    guests = [ComparedGuest(machine, plan, policy, profile) for plan in plans]
    for guest in guests:
        guest.set_up()
    _take_turns(guests)
    return tuple(_figures(guest) for guest in guests)


def _take_turns(guests: Sequence[ComparedGuest]) -> None:
    """Each guest in turn has a few events, until all have ended."""
    waiting = deque(guest.steps() for guest in guests)
    while waiting:
        steps = waiting.popleft()
        events = sum(1 for _event in islice(steps, _TURN_EVENTS))
        if events == _TURN_EVENTS:
            waiting.append(steps)


def _figures(guest: ComparedGuest) -> GuestFigures:
    assert guest.report is not None
    return GuestFigures(
        name=guest.plan.name,
        figures=guest.figures,
        exits=guest.exits,
        peak_bytes=guest.peak_bytes,
        rest_bytes=guest.rest_bytes,
        outcome=guest.report.outcome.value,
        notes=tuple(guest.notes),
    )


def _run_failing(plan: GuestPlan, policy: str, profile: str, nth: int) -> tuple[str, ...]:
    """Run one guest alone; its ``nth`` allocation fails, once. Returns what came of it."""
    machine = _machine()
    taken = count(1)
    machine.state.allocator.should_fail = lambda *_at: Errno.ENOMEM if next(taken) == nth else Errno.OK
    guest = ComparedGuest(machine, plan, policy, profile)
    guest.set_up()
    _take_turns([guest])
    assert guest.report is not None
    if not guest.figures.failed_allocations:
        return (f"there are only {guest.figures.allocations} allocations",)
    return (*guest.notes, f"the guest ran to its end: {guest.report.outcome.value}")
