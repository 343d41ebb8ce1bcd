"""What a vCPU plays: a script, one of the built-in mix, or events drawn from a seed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from fpstate.fault.v1 import plan_pb2

import fpstated
from fault_lab.injection.draw import draw_between, subseed
from fault_lab.injection.hit import matches
from fault_lab.sim.network import latency_ns
from guest_agent.event import GuestEvent, Hlt, Nm, Preempt, Rdmsr, RegisterRead, RegisterWrite, Wrmsr, Xgetbv, Xsetbv
from guest_agent.outcome import Gone, InstructionOutcome
from guest_agent.report import Outcome
from guest_agent.script import Events, ScriptReport, play
from guest_agent.script_parser import load_script, parse_script
from guest_agent.script_syntax import Script

_XFD: Final = 0x1C4
#: What a random guest draws from: legal and illegal writes, those that need room and those that do not.
_DRAWN: Final[tuple[GuestEvent, ...]] = (
    Xsetbv(0x602E7),
    Xsetbv(0xE7),
    Xsetbv(0x7),
    Xsetbv(0x20007),
    Wrmsr(_XFD, 0x40000),
    Wrmsr(_XFD, 0),
    Wrmsr(_XFD, 0x1),
    Rdmsr(_XFD),
    Nm(),
    Xgetbv(0),
    RegisterWrite(2, 0, bytes(range(64))),
    RegisterRead(2, 0, 64),
    Preempt(),
    Preempt(1),
)


@dataclass(frozen=True, slots=True)
class Part:
    """What one vCPU plays, how often, and how long it thinks before each event, in nanoseconds."""

    vcpu: str
    script: Script | None
    drawn: int
    seed: int
    rounds: int
    think_ns: tuple[int, int]

    def round(self, nr: int) -> Events:
        """The events of a round, from 1: a generator that is sent the outcome of each."""
        if self.script is not None:
            return play(self.script)
        return _random(subseed(self.seed, f"round/{nr}"), self.drawn)

    def think(self, seed: int, nr: int) -> int:
        """How long the guest waits before its event ``nr``."""
        low, high = self.think_ns
        return draw_between(seed, "think", self.vcpu, nr, low=low, high=high) if high else 0


def part_of(plan: plan_pb2.Plan, vcpu: str, seed: int) -> Part | None:
    """What the plan has for a vCPU: the first row that fits it; None where it is idle."""
    for guest in plan.workload.guests:
        if matches(guest.vcpu or "*", vcpu):
            think = latency_ns(guest.think_time) if guest.HasField("think_time") else (0, 0)
            own = guest.random.seed if guest.random.HasField("seed") else subseed(seed, f"guest/{vcpu}")
            return Part(vcpu, _script(guest), guest.random.events, own, guest.rounds or 1, think)
    return None


def _script(guest: plan_pb2.PlannedGuest) -> Script | None:
    match guest.WhichOneof("play"):
        case "script":
            return parse_script(guest.script, name="script")
        case "mix":
            return _mix(guest.mix)
        case _:
            return None


@cache
def _mix(name: str) -> Script:
    return load_script(Path(fpstated.__file__).parent / "mix" / f"{name}.txt")


def _random(seed: int, events: int) -> Generator[GuestEvent, InstructionOutcome, ScriptReport]:
    """Events that nothing is expected of, HLT at the end."""
    sent = 0
    for event in _events(seed, events):
        outcome = yield event
        sent += 1
        if isinstance(outcome, Gone):
            return ScriptReport(Outcome.STOPPED, str(outcome.directive), (), sent, 0)
    return ScriptReport(Outcome.HALTED, "", (), sent, 0)


def _events(seed: int, events: int) -> Iterator[GuestEvent]:
    for nr in range(1, events):
        yield _DRAWN[draw_between(seed, "event", "", nr, low=0, high=len(_DRAWN) - 1)]
    yield Hlt()
