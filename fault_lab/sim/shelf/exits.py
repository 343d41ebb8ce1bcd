"""Exits: that each step of one was decided or due, and has come to what was decided.

seen before --a step--> seen now        who is it by? a decision of the generation before, or the exit's own time
open, applying, paused                  the vCPU stands still in front of its write
resolved                                the write is there, or it is not, as the result says
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fault_lab.sim.shelf.book import Book, Fail
from host_agent.effects import ExitChanged, FaultChanged
from host_agent.events import DoneOutcome, InjectOutcome
from host_agent.exits import DecisionKind, ExitCause, ExitRecord, ExitResult, ExitState
from host_agent.kvm.lifecycle import VcpuState
from host_agent.migration_commands import CommitMigration
from host_agent.migrations import MigrationRole
from host_agent.state import HostState, VcpuSide

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode
    from host_agent.commands import Command
    from host_agent.kvm.vcpu import Vcpu

_RETRIES: Final = frozenset(
    {DecisionKind.RETRY, DecisionKind.RETRY_AFTER, DecisionKind.RAISE_LIMIT, DecisionKind.RECLAIM}
)
#: What a final decision comes to.
_COMES_TO: Final = dict.fromkeys(_RETRIES, ExitResult.COMMITTED) | {
    DecisionKind.INJECT_GP: ExitResult.INJECTED_GP,
    DecisionKind.HIDE_FEATURE: ExitResult.FEATURE_HIDDEN,
    DecisionKind.INJECT_NM: ExitResult.INJECTED_NM,
    DecisionKind.DEFER: ExitResult.DEFERRED,
    DecisionKind.KILL_VCPU: ExitResult.VCPU_KILLED,
    DecisionKind.KILL_VM: ExitResult.VM_KILLED,
    DecisionKind.RESET_VM: ExitResult.VM_RESET,
}
_NOT_WRITTEN: Final = frozenset(
    {ExitResult.INJECTED_GP, ExitResult.FEATURE_HIDDEN, ExitResult.INJECTED_NM, ExitResult.DEFERRED}
)
#: What the event of an exit that was resolved so has become.
_OUTCOMES: Final[dict[ExitResult, type]] = {
    ExitResult.COMMITTED: DoneOutcome,
    ExitResult.DEFERRED: DoneOutcome,
    ExitResult.INJECTED_GP: InjectOutcome,
    ExitResult.FEATURE_HIDDEN: InjectOutcome,
    ExitResult.INJECTED_NM: InjectOutcome,
}
_CAUSES: Final = {
    "fpstate.realloc.alloc": ExitCause.NO_MEMORY,
    "fpstate.realloc.perm": ExitCause.NO_PERMISSION,
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """An exit as it was after the last command that changed it; when it goes on by itself by this book's reckoning."""

    generation: int
    attempt: int
    state: ExitState
    due_ns: int | None


class ExitBook(Book):
    """``attempts-are-decided``, ``deadline-kept``, ``decision-is-done``, ``parked-stands-still``, ``cause-is-told``."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        self._seen: dict[str, dict[tuple[str, str], _Seen]] = {}
        #: The VMs that were about to leave before the command.
        self._leaving: set[str] = set()

    def before(self, host: HostNode, command: Command) -> None:  # noqa: ARG002
        """Whose clock stands."""
        self._leaving = set(host.machine.state.leaving)

    def after(self, host: HostNode, command: Command, result: object, effects: list[Any]) -> None:  # noqa: ARG002
        """Look at each exit that has changed, and at those that should have."""
        state = host.machine.state
        changed = dict.fromkeys(each.exit for each in effects if isinstance(each, ExitChanged))
        elsewhere = self._leaving ^ state.leaving.keys() | _arrived(state, command)
        for name in changed:
            record = state.exits.get(name) or state.resolved_exits.get(name)
            if record is not None and record.vm not in elsewhere:
                self._stepped(host, record)
        if elsewhere:
            self._time_goes_on(host, elsewhere)
        for record in state.exits.values():
            if record.name not in changed:
                self._overdue(host, record)
            self._stands_still(state, record)
        self._causes(state, effects)

    def recovered(self, host: HostNode) -> None:
        """Go on from what the host has."""
        there = host.machine.state.exits.values()
        self._seen[host.name] = {
            (each.vcpu_uid, each.name): _Seen(each.generation, each.attempt, each.state, each.deadline_ns)
            for each in there
        }

    def _time_goes_on(self, host: HostNode, vms: Collection[str]) -> None:
        """A VM has stopped, gone, come, or goes on where it was: what is left of its times the host says anew."""
        seen = self._seen.setdefault(host.name, {})
        for key in [key for key in seen if key[1].partition("/vcpus/")[0] in vms]:
            del seen[key]
        for each in host.machine.state.exits.values():
            if each.vm in vms:
                seen[each.vcpu_uid, each.name] = _Seen(each.generation, each.attempt, each.state, each.deadline_ns)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _stepped(self, host: HostNode, record: ExitRecord) -> None:
        seen = self._seen.setdefault(host.name, {})
        key = record.vcpu_uid, record.name
        last = seen.get(key)
        if last is not None:
            self._attempted(record, last)
            self._in_time(host.machine.state, record, last)
        if record.open:
            seen[key] = _Seen(record.generation, record.attempt, record.state, self._due_ns(host.machine.state, record))
        else:
            seen.pop(key, None)
        if record.state is ExitState.RESOLVED:
            self._came_to(host.machine.state, record)

    def _attempted(self, record: ExitRecord, last: _Seen) -> None:
        """A retry is one attempt more, and there is none without one."""
        winner = record.winners.get(last.generation)
        decided = winner[1].kind if winner is not None else None
        tried = record.attempt - last.attempt
        stepped = record.generation != last.generation or record.state is ExitState.RESOLVED
        if tried != (stepped and decided in _RETRIES):
            text = f"{record.name}: {tried} attempts more after {decided.name if decided else 'no decision'}"
            self._fail("attempts-are-decided", f"{text} of generation {last.generation}")

    def _in_time(self, state: HostState, record: ExitRecord, last: _Seen) -> None:
        """What happens by itself happens when it is due."""
        winner = record.winners.get(last.generation)
        by_itself = last.state is ExitState.APPLYING or (winner is not None and winner[0] == "deadline")
        cancelled = record.state is ExitState.CANCELLED
        if by_itself and not cancelled and (last.due_ns is None or state.now_ns < last.due_ns):
            text = f"{record.name} was {last.state.value} until {last.due_ns}, and goes on by itself at {state.now_ns}"
            self._fail("deadline-kept", text)

    @staticmethod
    def _due_ns(state: HostState, record: ExitRecord) -> int | None:
        """When an exit that has just become what it is goes on by itself."""
        if record.state is ExitState.OPEN:
            return state.now_ns + state.config.exit_deadline_ns
        winner = record.winners.get(record.generation)
        if record.state is ExitState.APPLYING and winner is not None and winner[1].kind is DecisionKind.RETRY_AFTER:
            return state.now_ns + winner[1].delay_ns
        return None

    # -- between steps -------------------------------------------------------------------------------------------------

    def _overdue(self, host: HostNode, record: ExitRecord) -> None:
        """What is due happens before the next command."""
        state = host.machine.state
        seen = self._seen.get(host.name, {}).get((record.vcpu_uid, record.name))
        if seen is not None and seen.due_ns is not None and seen.due_ns <= state.now_ns and not state.leaving:
            text = f"{record.name} is {record.state.value} at {state.now_ns}, and was to go on at {seen.due_ns}"
            self._fail("deadline-kept", text)

    def _stands_still(self, state: HostState, record: ExitRecord) -> None:
        vcpu = state.vcpu(record.vcpu)
        if vcpu.state is not VcpuState.BROKEN and not _is_before(vcpu, record):
            self._fail("parked-stands-still", f"{record.name}: {_registers(vcpu)}")

    def _came_to(self, state: HostState, record: ExitRecord) -> None:
        """A resolved exit: what was decided has been done."""
        vcpu = state.vcpu(record.vcpu)
        result, decision = record.result, record.decision
        if decision is None or result is None or vcpu.state is VcpuState.BROKEN:
            return
        wanted = _COMES_TO.get(decision)
        if wanted is not result:
            self._fail("decision-is-done", f"{record.name}: {decision.name} has come to {result.name}")
        written = (vcpu.xcr0, vcpu.fpstate.xfd) == (record.write.xcr0, record.write.xfd)
        if (result is ExitResult.COMMITTED and not written) or (
            result in _NOT_WRITTEN and not _is_before(vcpu, record)
        ):
            self._fail("decision-is-done", f"{record.name}: {result.name}, and the vCPU has {_registers(vcpu)}")
        for each in _killed(state, record):
            if each.state is not VcpuState.KILLED:
                self._fail("decision-is-done", f"{record.name}: {result.name}, and {each} is {each.state.value}")
        side = vcpu.agent
        outcome = side.outcomes.get(record.seq) if isinstance(side, VcpuSide) else None
        expected = _OUTCOMES.get(result)
        if outcome is not None and expected is not None and not isinstance(outcome.kind, expected):
            text = f"{record.name}: {result.name}, and its event has come to {type(outcome.kind).__name__}"
            self._fail("decision-is-done", text)

    def _causes(self, state: HostState, effects: list[Any]) -> None:
        """An exit says what has failed last."""
        fired = [each.hit for each in effects if isinstance(each, FaultChanged) and each.kind == "FIRED"]
        for hit in fired:
            if hit is None or hit.trigger not in ("Xsetbv", "Wrmsr") or hit.point not in _CAUSES:
                continue
            record = next((each for each in state.exits.values() if each.vcpu == hit.vcpu), None)
            if record is not None and record.cause is not _CAUSES[hit.point]:
                self._fail("cause-is-told", f"{record.name}: {record.cause.name} after {hit.point} has failed")


def _arrived(state: HostState, command: Command) -> set[str]:
    """The VM that a host owns by this command."""
    record = state.migrations.get(command.migration) if isinstance(command, CommitMigration) else None
    return {record.vm} if record is not None and record.role is MigrationRole.TARGET else set()


def _is_before(vcpu: Vcpu, record: ExitRecord) -> bool:
    return (vcpu.xcr0, vcpu.fpstate.xfd) == (record.old_xcr0, record.old_xfd)


def _registers(vcpu: Vcpu) -> str:
    return f"XCR0 {vcpu.xcr0:#x}, XFD {vcpu.fpstate.xfd:#x}"


def _killed(state: HostState, record: ExitRecord) -> Iterable[Vcpu]:
    """Whom the exit's result has stopped."""
    match record.result:
        case ExitResult.VCPU_KILLED:
            return [state.vcpu(record.vcpu)]
        case ExitResult.VM_KILLED:
            return state.vms[record.vm].kvm.vcpus.values()
        case _:
            return []
