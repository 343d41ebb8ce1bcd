"""What a checker writes down about a run, and what must not be found in it: books without a world.

Facts come in, whoever has seen them: the simulator's rules (``rules``), which look into the machines, or a live
history, which knows what clients were told. ``fail`` is called with the name of a check and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import Self

#: What becomes of what does not hold: (check, text). It may raise.
Fail = Callable[[str, str], None]
#: One exit of one vCPU, which nothing else is ever called.
ExitKey = tuple[str, str]
#: States that an exit never leaves.
ENDED = frozenset({"resolved", "cancelled"})
#: Decisions after which the instruction executes again, as if nothing had failed. Source: host_agent/decision_rules.py.
EXECUTES_AGAIN = frozenset({"RETRY", "RETRY_AFTER", "RAISE_LIMIT", "RECLAIM", "PAUSE", "MIGRATE"})
#: Decisions that concern every vCPU of the VM.
MEANS_THE_VM = frozenset({"KILL_VM", "RESET_VM", "HIDE_FEATURE"})


@dataclass(slots=True)
class Books:
    """The books of one run."""

    fail: Fail
    #: By host: the highest epoch handed out.
    epochs: dict[str, int] = field(default_factory=dict)
    #: The number taken last by (host, uid of a vCPU), and by uid the highest that its agent knows the outcome of.
    taken: dict[tuple[str, str], int] = field(default_factory=dict)
    heard: dict[str, int] = field(default_factory=dict)
    _finals: dict[tuple[str, int], Hashable] = field(default_factory=dict)
    #: What was decided about a generation of an exit.
    decided: dict[tuple[str, str, int], str] = field(default_factory=dict)
    #: Generation and state of each exit.
    exits: dict[ExitKey, tuple[int, str]] = field(default_factory=dict)
    #: vCPUs and VMs that have met what no script expects: an exception that somebody decided on, a reset, a new agent.
    disturbed: set[str] = field(default_factory=set)
    #: The kinds of all decisions that were applied.
    decisions: set[str] = field(default_factory=set)

    def copied(self, fail: Fail) -> Self:
        """The same books, of which one copy goes on."""
        kept = {each.name: getattr(self, each.name).copy() for each in fields(self) if each.name != "fail"}
        return type(self)(fail, **kept)

    def epoch_given(self, host: str, epoch: int) -> None:
        """A host hands out an epoch."""
        last = self.epochs.get(host, 0)
        if epoch <= last:
            self.fail("epochs-rise", f"{host} hands out epoch {epoch} after {last}")
        self.epochs[host] = epoch

    def event_taken(self, where: tuple[str, str], vcpu: str, seq: int, taken_as: int) -> None:
        """A host has taken an event that it had not taken before; ``where`` is the host and the vCPU's uid."""
        last = self.taken.get(where, 0)
        if taken_as != last + 1 or seq != taken_as:
            self.fail("numbers-once", f"{vcpu}: event {seq} is taken as {taken_as} behind {last}")
        self.taken[where] = taken_as

    def outcome_heard(self, uid: str, vcpu: str, seq: int, outcome: Hashable) -> None:
        """An agent has heard the final outcome of an event."""
        self.heard[uid] = max(seq, self.heard.get(uid, 0))
        earlier = self._finals.setdefault((uid, seq), outcome)
        if earlier != outcome:
            self.fail("final-once", f"{vcpu}: event {seq} was {earlier}, and is {outcome}")

    def expects(self, where: tuple[str, str], vcpu: str, next_seq: int) -> None:
        """A host says which number a vCPU's next event has, and that it forgets what it had taken beyond that."""
        self.taken[where] = next_seq - 1
        uid = where[1]
        if next_seq <= self.heard.get(uid, 0):
            text = f"{vcpu} expects event {next_seq}, and event {self.heard[uid]} was acknowledged"
            self.fail("acknowledged-is-there", text)

    def exit_is(self, key: ExitKey, name: str, generation: int, state: str) -> None:
        """An exit was opened, or has gone on: one (vCPU, number) has one exit."""
        last = self.exits.get(key)
        if last is not None and last[1] in ENDED and state not in ENDED:
            self.fail("one-exit-a-failure", f"{name} is open again after it was {last[1]}")
        if last is not None and generation < last[0]:
            self.fail("one-exit-a-failure", f"{name} goes from generation {last[0]} back to {generation}")
        self.exits[key] = generation, state

    def decision_applied(self, key: ExitKey, name: str, generation: int, kind: str) -> None:
        """A decision was applied to an exit in this generation."""
        earlier = self.decided.get((*key, generation))
        if earlier is not None:
            self.fail("one-decision-a-generation", f"{name}, generation {generation}: {kind} after {earlier}")
        self.decided[*key, generation] = kind
        self.decisions.add(kind)

    def exit_decided(self, name: str, kind: str) -> None:
        """What was decided about an exit, by whomever: who goes on behind the instruction, or anew, is disturbed."""
        vcpu, _, _ = name.partition("/exits/")
        vm, _, _ = vcpu.partition("/vcpus/")
        if kind not in EXECUTES_AGAIN:
            self.disturbed.add(vm if kind in MEANS_THE_VM else vcpu)

    def guest_ended(self, vcpu: str, ending: str, why: str) -> None:
        """A script has come to its end, in the way ``ending`` (``guest_agent.report.Outcome``)."""
        vm, _, _ = vcpu.partition("/vcpus/")
        undisturbed = not self.disturbed.intersection((vm, vcpu))
        if ending == "mismatch" or (ending == "faulted" and undisturbed):
            self.fail("guest-sees-its-bytes", f"{vm}: {vcpu}: {why}")
