"""Numbers and request ids: what is asked again is answered again, and done once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fault_lab.sim.shelf.book import Book, Fail
from host_agent import commands as c
from host_agent.effects import OutcomeReady
from host_agent.events import Outcome, RejectedOutcome
from host_agent.state import HostState, VcpuSide

if TYPE_CHECKING:
    from fault_lab.sim.guest import GuestNode
    from fault_lab.sim.host import HostNode


class NumberBook(Book):
    """``repeated-once``, ``heard-in-order``, and ``final-once`` as a host says it."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        #: By the uid of a vCPU and the number: the final outcome.
        self._finals: dict[str, dict[tuple[str, int], Outcome]] = {}
        #: What the host remembered of the numbers, and of the request, that a command repeats.
        self._remembered: dict[tuple[str, int], Outcome] = {}
        self._answered: tuple[object] | None = None
        self._done: dict[str, set[str]] = {}
        #: The number that an agent's process heard of last, by the uid of the vCPU and the process.
        self._told: dict[tuple[str, int], int] = {}

    def before(self, host: HostNode, command: c.Command) -> None:
        """Look up what the command repeats."""
        state = host.machine.state
        self._remembered.clear()
        if isinstance(command, c.SubmitBatch):
            for event in command.events:
                side = _side(state, event.vcpu)
                known = side.outcomes.get(event.seq) if side is not None else None
                if known is not None and known.final:
                    self._remembered[event.vcpu, event.seq] = known
        known_request = state.requests.get(getattr(command, "request_id", ""))
        self._answered = (known_request[1],) if known_request is not None else None

    def after(self, host: HostNode, command: c.Command, result: object, effects: list[Any]) -> None:
        """What was repeated was answered with what was remembered."""
        if not isinstance(result, Exception):
            self._requested(host, command, result)
            if isinstance(command, c.SubmitBatch) and isinstance(result, tuple):
                self._submitted(host, command, result)
        for effect in effects:
            if isinstance(effect, OutcomeReady) and effect.outcome.final:
                self._is_final(host, effect.outcome)

    def _submitted(self, host: HostNode, command: c.SubmitBatch, result: tuple[Outcome, ...]) -> None:
        for event, outcome in zip(command.events, result, strict=True):
            known = self._remembered.get((event.vcpu, event.seq))
            session = host.machine.state.sessions.get(command.session)
            mine = session is not None and event.vcpu in session.vcpus
            if mine and known is not None and outcome is not known:
                text = f"{event.vcpu}: event {event.seq} was sent again, and has another outcome: {outcome.kind}"
                self._fail("repeated-once", text)
            if mine and outcome.final and not _forgotten(outcome):
                self._is_final(host, outcome)

    def _is_final(self, host: HostNode, outcome: Outcome) -> None:
        side = _side(host.machine.state, outcome.vcpu)
        if side is None or outcome.seq >= side.next_seq:
            return  # its number is not taken
        finals = self._finals.setdefault(host.name, {})
        earlier = finals.setdefault((side.uid, outcome.seq), outcome)
        if earlier != outcome:
            self._fail("final-once", f"{outcome.vcpu}: event {outcome.seq} was {earlier.kind}, and is {outcome.kind}")

    def _requested(self, host: HostNode, command: c.Command, result: object) -> None:
        request_id = getattr(command, "request_id", "")
        if not request_id:
            return
        done = self._done.setdefault(host.name, set())
        kept = host.machine.state.requests.get(request_id)
        if self._answered is None and request_id in done:
            self._fail("repeated-once", f"{request_id}: {type(command).__name__} is done once more")
        if self._answered is not None and result is not self._answered[0]:
            self._fail("repeated-once", f"{request_id}: {type(command).__name__} is answered otherwise than before")
        if kept is None or kept[1] is not result:
            self._fail("repeated-once", f"{request_id}: what {type(command).__name__} was answered is not remembered")
        done.add(request_id)

    def heard(self, guest: GuestNode, vcpu: str, uid: str, seq: int) -> None:
        """A process hears of its numbers one after the other."""
        last = self._told.get((uid, guest.life))
        if last is not None and seq not in (last, last + 1):
            self._fail("heard-in-order", f"{vcpu}: event {seq} is heard of behind {last}")
        self._told[uid, guest.life] = seq

    def recovered(self, host: HostNode) -> None:
        """What was lost with the process was not said to anybody, and may come otherwise."""
        state = host.machine.state
        self._done[host.name] = set(state.requests)
        vcpus = [vcpu for vm in state.vms.values() for vcpu in vm.kvm.vcpus.values()]
        there = {side.uid: side for vcpu in vcpus if isinstance(side := vcpu.agent, VcpuSide)}
        self._finals[host.name] = {
            key: outcome
            for key, outcome in self._finals.get(host.name, {}).items()
            if _stands(there.get(key[0]), key[1])
        }


def _side(state: HostState, vcpu: str) -> VcpuSide | None:
    vm = state.vms.get(vcpu.partition("/vcpus/")[0])
    found = vm.kvm.vcpus.get(int(vcpu.rpartition("/")[2])) if vm is not None else None
    return found.agent if found is not None and isinstance(found.agent, VcpuSide) else None


def _forgotten(outcome: Outcome) -> bool:
    """Whether it only says that the outcome was received, and is not kept any more."""
    return isinstance(outcome.kind, RejectedOutcome) and outcome.kind.reason == "OUTCOME_FORGOTTEN"


def _stands(side: VcpuSide | None, seq: int) -> bool:
    """Whether a vCPU still has a final outcome of that number, or has had it."""
    if side is None or seq >= side.next_seq:
        return False
    outcome = side.outcomes.get(seq)
    return outcome is None or outcome.final
