"""The scripted guest: what a script says, done on a vCPU, with a result like the real guest's.

`play` is the whole interpreter, without threads, clocks or calls: it yields the events of the guest and is sent the
outcome of each. So a thread, an event loop and a simulated world can all drive the same script:

    events = play(script)
    event = next(events)
    while True:
        event = events.send(port.submit(event))     # StopIteration carries the report

An exception goes to the `else` label of its instruction (#GP), to the script's handler for it, or ends the guest as
FAULTED, with the line in place of an address. A handler that ends has the instruction executed again, as IRET does.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, assert_never

from guest_agent.event import GuestEvent, Hlt
from guest_agent.outcome import Done, Gone, Injected, InstructionOutcome
from guest_agent.report import GuestMark, Mark, Outcome, halted_outcome, said
from guest_agent.script_registers import ScriptRegisters
from guest_agent.script_syntax import EXPECTATIONS, Execute, Goto, Instruction, Retry, Say, Script, Skip, Step
from guest_agent.wait import Interrupted

#: How often one instruction is executed again before its handler is found to mend nothing.
RETRIES_MAX = 16
#: Where a handler leads, if not to an index of the main steps.
_RETRY, _SKIP = -1, -2
_VECTORS = {6: "#UD", 7: "#NM", 13: "#GP"}

Events = Generator[GuestEvent, InstructionOutcome, "ScriptReport"]
#: Where a step leads: an index into the main steps, or None for the next step.
_Flow = Generator[GuestEvent, InstructionOutcome, int | None]


@dataclass(frozen=True, slots=True)
class ScriptReport:
    """A finished run.

    Attributes:
        outcome: how it ended.
        reason: for MISMATCH, FAULTED and STOPPED: file, line and what was expected, or why it stopped; else empty.
        marks: everything the guest said, in order.
        events: how many events it sent.
        line: of the last step, from 1; 0 if there was none.
    """

    outcome: Outcome
    reason: str
    marks: tuple[GuestMark, ...]
    events: int
    line: int

    @property
    def said(self) -> str:
        """The letters alone, in order: ``"BxAxNGvV"``."""
        return said(self.marks)


class ScriptPort(Protocol):
    """What a scripted guest runs on; a `VcpuPort` is one."""

    def submit(self, event: GuestEvent) -> InstructionOutcome:
        """Let one event happen and return its final outcome."""


class ScriptedGuest:
    """One run of a script on a port, from the calling thread; `on_mark` hears each thing the guest says."""

    def __init__(self, port: ScriptPort, script: Script, on_mark: Callable[[GuestMark], None] | None = None) -> None:
        self._port = port
        self._player = _Player(script, on_mark)

    def run(self) -> ScriptReport:
        """Run the script to its end and report. An interrupted port ends it as STOPPED.

        Raises:
            HostError: the host refused a call or an event; a note names the step.
            SessionLost: the session can not go on.
        """
        events = self._player.play()
        try:
            event = next(events)
            while True:
                event = events.send(self._submit(event))
        except StopIteration as end:
            report: ScriptReport = end.value
            return report
        except Interrupted:
            return self._player.report(Outcome.STOPPED, "interrupted")
        finally:
            events.close()

    def _submit(self, event: GuestEvent) -> InstructionOutcome:
        try:
            return self._port.submit(event)
        except Exception as error:
            error.add_note(self._player.here())
            raise


def play(script: Script, on_mark: Callable[[GuestMark], None] | None = None) -> Events:
    """Play a script: yields each event, is sent its outcome, and returns the report."""
    return _Player(script, on_mark).play()


class _Ended(Exception):  # noqa: N818 -- how a script ends from within
    """The script is over."""

    def __init__(self, outcome: Outcome | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class _Player:
    """One run: where it is, what it said, and what its registers should hold."""

    def __init__(self, script: Script, on_mark: Callable[[GuestMark], None] | None) -> None:
        self._script = script
        self._on_mark = on_mark
        self._marks: list[GuestMark] = []
        self._step: Step | None = None
        self._events = 0
        self._registers = ScriptRegisters()
        self._handling: list[int] = []

    def play(self) -> Events:
        """Run the steps to the end."""
        at = 0
        try:
            while at < len(self._script.steps):
                target = yield from self._run(self._script.steps[at])
                at = at + 1 if target is None else target
        except _Ended as end:
            return self.report(end.outcome or self._halted(), end.reason)
        return self.report(self._halted())

    def report(self, outcome: Outcome, reason: str = "") -> ScriptReport:
        """Return what came of the run so far."""
        line = self._step.line if self._step else 0
        return ScriptReport(outcome, reason, tuple(self._marks), self._events, line)

    def here(self) -> str:
        """Return the present step for a message: ``xcr0-first.txt:12: xsetbv 0 602e7``."""
        step = self._step
        return f"{self._script.name}:{step.line}: {step.text}" if step else self._script.name

    def _halted(self) -> Outcome:
        return halted_outcome(tuple(self._marks)) or Outcome.HALTED

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _run(self, step: Step) -> _Flow:
        self._step = step
        match step.action:
            case Say(mark=mark, value=value):
                self._say(mark, self._registers.read if value is None else value)
            case Goto(label=label):
                return self._script.labels[label]
            case Retry() | Skip():
                raise AssertionError("a handler ends itself")
            case _:
                return (yield from self._execute(step, step.action))
        return None

    def _execute(self, step: Step, instruction: Instruction) -> _Flow:
        """Execute an instruction until it has happened, or the script goes on elsewhere."""
        for _attempt in range(RETRIES_MAX):
            self._step = step
            outcome = yield self._registers.event(instruction)
            self._events += 1
            match outcome:
                case Gone(directive=directive):
                    raise _Ended(Outcome.STOPPED, str(directive))
                case Done():
                    return self._happened(step, instruction, outcome)
                case Injected(vector=vector) if step.expect:
                    self._require(EXPECTATIONS[step.expect] == vector, step.expect, _VECTORS.get(vector, str(vector)))
                    return None
                case Injected(vector=13) if step.otherwise:
                    return self._script.labels[step.otherwise]
                case Injected(vector=vector):
                    target = yield from self._handle(step, vector)
                    if target != _RETRY:
                        return None if target == _SKIP else target
                case _:
                    assert_never(outcome)
        raise self._faulted(step, f"executed {RETRIES_MAX} times, and its handler mends nothing")

    def _happened(self, step: Step, instruction: Instruction, done: Done) -> int | None:
        if EXPECTATIONS.get(step.expect) is not None:
            self._require(False, step.expect, "that it happened")  # noqa: FBT003 -- it did not fault
        if step.expect == "grew":
            self._require(done.reallocated is not None, "grew", "the container as it was")
        difference = self._registers.check(instruction, done)
        if difference:
            self._mismatch(difference)
        if isinstance(instruction, Execute) and isinstance(instruction.event, Hlt):
            raise _Ended
        return None

    def _handle(self, step: Step, vector: int) -> _Flow:
        """Run the handler of an exception; returns where it leads, or _RETRY or _SKIP."""
        handler = self._script.handlers.get(vector)
        if handler is None or vector in self._handling:
            self._say(Mark.FAULT, vector)
            raise self._faulted(step, f"{_VECTORS.get(vector, vector)}, for which there is no handler")
        self._handling.append(vector)
        try:
            for each in handler:
                if isinstance(each.action, Retry | Skip):
                    return _SKIP if isinstance(each.action, Skip) else _RETRY
                target = yield from self._run(each)
                if target is not None:
                    return target
        finally:
            self._handling.pop()
        return _RETRY

    def _faulted(self, step: Step, why: str) -> _Ended:
        self._say(Mark.FAULT_RIP, step.line)
        self._step = step
        return _Ended(Outcome.FAULTED, f"{self.here()}: {why}")

    def _say(self, mark: Mark, value: int) -> None:
        self._marks.append(GuestMark(mark, value))
        if self._on_mark is not None:
            self._on_mark(self._marks[-1])

    def _require(self, holds: bool, expected: str, got: str) -> None:  # noqa: FBT001 -- reads as a sentence
        if not holds:
            self._mismatch(f"expected {expected}, got {got}")

    def _mismatch(self, why: str) -> None:
        here = self.here()
        self._say(Mark.MISMATCH, self._step.line if self._step else 0)
        raise _Ended(Outcome.MISMATCH, f"{here}: {why}")
