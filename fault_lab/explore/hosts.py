"""Hosts by number: the real machine is asked once for each (host, request, failing hit), and remembered.

A state of the world holds its host by number. Most steps of a world find their host's step made already, by another
state with the same host: that is what makes the search quick, and why the machine need not be.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from fpstate.fault.v1 import plan_pb2

from fault_lab.explore.canon import parts_of
from fault_lab.explore.cast import Cast
from fault_lab.explore.fork import ChosenFault, forked, forked_rules
from fault_lab.explore.interned import Interned
from fault_lab.explore.menu import Menu
from fault_lab.explore.requests import Request
from fault_lab.explore.scripts import Scripts
from fault_lab.explore.turn import Turn
from fault_lab.injection.hit import Hit
from fault_lab.sim.host import host_config
from fault_lab.sim.journal import Logged
from fault_lab.sim.rules import Rules, Violation
from fault_lab.sim.wire import Answer, because, guest_outcome
from guest_agent.outcome import Refusal, Rejected
from host_agent import commands as c
from host_agent.errors import Refused
from host_agent.exits import ExitState
from host_agent.journal.outcome import pack_outcome
from host_agent.kvm.lifecycle import VcpuState
from host_agent.machine import HostMachine
from vmm_controller.policy import ExitView

if TYPE_CHECKING:
    from fault_lab.sim.world import World

#: Of a request that has no answer yet.
NO_REPLY: Final = -1
_XTILE_DATA: Final = 18
_ITS_NAME: Final = re.compile(r"vms/[a-z0-9-]+(/vcpus/\d+)?")


@dataclass(frozen=True, slots=True)
class Step:
    """What a request has led to.

    Attributes:
        host: the host afterwards.
        reply: its number; ``NO_REPLY`` where there is none yet, or where nobody reads it.
        finals: (vCPU, event, reply) of the outcomes that are final now.
        news: (vCPU, view) of the exits that have changed, by number.
        met: the hits that could have failed; ``all`` are those of every point of the host.
        violation: the check that does not hold, and what was found; None where all do.
    """

    host: int
    reply: int = NO_REPLY
    finals: tuple[tuple[int, int, int], ...] = ()
    news: tuple[tuple[int, int], ...] = ()
    met: tuple[Hit, ...] = ()
    all: tuple[Hit, ...] = ()
    violation: tuple[str, str] | None = None


class Hosts:
    """Every host that was met."""

    def __init__(self, plan: plan_pb2.Plan, people: Cast, scripts: Scripts, menu: Menu) -> None:
        self.cast = people
        self._scripts = scripts
        self._menu = menu
        self._config = host_config(people.host)
        #: Whether the host's process may end, so that commands have to be written down.
        self.ends = bool(menu.actions("node.run", people.host.name))
        self._turns: Interned[Turn] = Interned()
        #: What every (host, request, failing hit) has led to.
        self.steps: dict[tuple[int, Request, int], Step] = {}
        self._pieces: Interned[Hashable] = Interned()
        #: The parts of each host by number: the rest, those of VMs, those of vCPUs.
        self.rest: list[int] = []
        self.vms: list[tuple[int, ...]] = []
        self.vcpus: list[tuple[int, ...]] = []
        self._ended: list[set[tuple[int, int]]] = []
        self._due: list[str] = []
        self.replies: Interned[Any] = Interned()
        self.views: Interned[ExitView] = Interned()
        #: The same without the name of the VM and the vCPU that they are about.
        self.reply_pieces: list[int] = []
        self.view_pieces: list[int] = []
        self._rules = Rules(cast("World", _Court()), plan.checks.always, books=False)
        self._numbers = {vcpu.name: nr for nr, vcpu in enumerate(people.vcpus)}

    def __len__(self) -> int:
        return len(self._turns)

    # -- the first -----------------------------------------------------------------------------------------------------

    def first(self) -> int:
        """A host with its VMs and vCPUs made, before anybody has a session. Raises ``Violation``."""
        turn = Turn(self.cast, self._scripts, HostMachine(self._config), self._rules)
        turn.log = () if self.ends else None
        turn.apply(c.Boot(config=self._config))
        for nr, vm in enumerate(self.cast.vms):
            turn.apply(
                c.CreateVm(
                    vm_id=vm.name,
                    profile=vm.profile,
                    cpuid_dump=vm.cpuid_dump,
                    allocation_policy=vm.allocation_policy or "on_swap",
                    byte_limit=vm.byte_limit if vm.HasField("byte_limit") else None,
                    labels=dict(vm.labels),
                )
            )
            name = self.cast.vm_name(nr)
            if not vm.no_permission:
                turn.apply(c.RequestPermission(vm=name, feature=_XTILE_DATA, guest=True))
            for index in range(len(self.cast.vcpus_of(nr))):
                turn.apply(c.CreateVcpu(vm=name, index=index))
        return self._number(turn)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self, host: int, request: Request, fails: int = -1) -> Step:
        """Let a request arrive at a host; ``fails`` is which of the hits that it meets fails, -1 for none."""
        key = host, request, fails
        found = self.steps.get(key)
        if found is None:
            found = self.steps[key] = self._step(host, request, fails)
        return found

    def recovered(self, host: int) -> Step:
        """The host that comes back from what this one had written down: carried out again, record by record."""
        turn = self._turns[host]
        machine = HostMachine(self._config)
        records: list[tuple[Logged, int]] = []
        log = turn.log
        while log:
            records.append((log[0], log[1]))
            log = log[2]
        again = self._taken(turn, machine)
        try:
            for nr, (record, fails) in enumerate(reversed(records), 1):
                machine.state.faults = ChosenFault(self._menu.fits, fails)
                result: object
                try:
                    result = machine.apply(record.command, record.now_ns)
                except Refused as refused:
                    result = refused
                outcome = pack_outcome(record.command, result, machine.state.effects)
                machine.take_effects()
                if (outcome, machine.state.revision) != (record.outcome, record.revision):
                    again.rules.fail("recovered-same-outcomes", f"record {nr} leads to another outcome")
            machine.state.faults = turn.machine.state.faults
            if machine.digest() != turn.machine.digest():
                again.rules.fail("recovered-same-digest", f"{turn.name} is not what it was before it ended")
            again.rules.recovered(again.as_host)
        except Violation as violation:
            return Step(host, violation=(violation.check, violation.text))
        return Step(self._number(again))

    def _step(self, host: int, request: Request, fails: int) -> Step:
        before = self._turns[host]
        machine = forked(before.machine)
        machine.state.faults = faults = ChosenFault(self._menu.fits, fails)
        turn = self._taken(before, machine)
        try:
            reply = turn.carry_out(request, self.replies)
        except Violation as violation:
            told = violation.check, violation.text
            return Step(host, met=tuple(faults.met), all=tuple(faults.all), violation=told)
        finals = tuple((self._numbers[each.vcpu], each.seq, self._reply(guest_outcome(each))) for each in turn.finals)
        news = tuple(self._piece_of_news(view) for view in turn.news)
        number = NO_REPLY if reply is None else self._reply(reply)
        turn.finals, turn.news = [], []
        return Step(self._number(turn), number, finals, news, tuple(faults.met), tuple(faults.all))

    def _taken(self, before: Turn, machine: HostMachine) -> Turn:
        """A turn that begins where another has ended."""
        turn = Turn(self.cast, self._scripts, machine, forked_rules(before.rules))
        turn.sessions, turn.controls = dict(before.sessions), dict(before.controls)
        turn.changes, turn.log = dict(before.changes), before.log
        return turn

    # -- numbers -------------------------------------------------------------------------------------------------------

    def _number(self, turn: Turn) -> int:
        parts = parts_of(turn, self.cast)
        rest = self.piece(parts.rest)
        vms = tuple(map(self.piece, parts.vms))
        vcpus = tuple(map(self.piece, parts.vcpus))
        number = self._turns.number((rest, vms, vcpus), turn)
        if number == len(self.rest):
            self.rest.append(rest)
            self.vms.append(vms)
            self.vcpus.append(vcpus)
            self._ended.append(turn.ended_sessions())
            self._due.append(turn.next_due())
        return number

    def piece(self, content: Hashable) -> int:
        """The number of a part."""
        return self._pieces.number(content, content)

    def _reply(self, reply: object) -> int:
        number = self.replies.number(_sort(reply), reply)
        if number == len(self.reply_pieces):
            self.reply_pieces.append(self.piece(_ITS_NAME.sub("it", repr(_sort(reply)))))
        return number

    def _piece_of_news(self, view: ExitView) -> tuple[int, int]:
        text = repr(view)
        number = self.views.number(text, view)
        if number == len(self.view_pieces):
            self.view_pieces.append(self.piece(_ITS_NAME.sub("it", text.replace(view.vcpu_uid, "uid"))))
        return self._numbers[view.vcpu], number

    def content(self, host: int) -> tuple[Hashable, ...]:
        """The parts of a host themselves."""
        if host < 0:
            return ()
        numbers = (self.rest[host], *self.vms[host], *self.vcpus[host])
        return tuple(self._pieces[number] for number in numbers)

    def vcpu_contents(self, host: int) -> list[Any]:
        """The parts of a host's vCPUs themselves."""
        return [self._pieces[number] for number in self.vcpus[host]]

    # -- looking -------------------------------------------------------------------------------------------------------

    def turn(self, host: int) -> Turn:
        """The machine and the books of a host: to look at, and never to change."""
        return self._turns[host]

    def vcpu_number(self, name: str) -> int:
        """The number of a vCPU by its name."""
        return self._numbers[name]

    def uids(self) -> list[tuple[str, str]]:
        """The uid and the name of each vCPU: no vCPU of an explored world is made anew."""
        state = self._turns[0].machine.state
        return [(state.vcpu_uid(state.vcpu(vcpu.name)), vcpu.name) for vcpu in self.cast.vcpus]

    def expired(self) -> int:
        """The reply to a call that waits when its session's lease ends."""
        return self._reply(because("SESSION_EXPIRED", "the session has expired: open a new one to go on"))

    def listed(self, host: int, controller: int) -> tuple[tuple[int, int], ...]:
        """What a controller that lists the exits of its scope sees: (vCPU, view)."""
        turn = self._turns[host]
        seen = (self._piece_of_news(turn.view(name)) for name in turn.machine.state.exits)
        return tuple(each for each in seen if self.cast.decides_about(controller, each[0]))

    def ended_sessions(self, host: int) -> set[tuple[int, int]]:
        """(VM, life) of the sessions that are no more."""
        return self._ended[host]

    def next_due(self, host: int) -> str:
        """What the first deadline of an exit is: "retry", "deadline", or "" for none."""
        return self._due[host]

    def stuck(self, host: int) -> list[str]:
        """The exits that are open, and not paused for a person."""
        exits = self._turns[host].machine.state.exits.values()
        return [f"{each.name} is {each.state.value}" for each in exits if each.state is not ExitState.PAUSED]

    def paused(self, host: int, vcpu: int) -> bool:
        """Whether a vCPU is paused for a person."""
        name = self.cast.vcpus[vcpu].name
        return self._turns[host].machine.state.vcpu(name).state is VcpuState.PAUSED


def _sort(reply: object) -> Hashable:
    """What makes two replies the same to who reads them: a refusal its reason, whatever its text names."""
    match reply:
        case Refusal(code=code, reason=reason, retry_delay_s=delay):
            return "refused", code, reason, delay
        case Answer(outcome=Rejected(refusal=refusal), taken=taken):
            return "rejected", _sort(refusal), taken
        case Rejected(refusal=refusal):
            return "rejected", _sort(refusal)
        case _:
            return repr(reply)


class _Court:
    """What the rules take for a world: one without a history, in which no VM moves and no host has others beside it."""

    hosts: ClassVar[dict[str, Any]] = {}
    movers: ClassVar[dict[str, Any]] = {}

    def record(self, _kind: str, **_fields: object) -> int:
        """Nobody reads it."""
        return -1

    def host_of(self, _node: str) -> type[Turn]:
        """Its ``ephemeral`` is asked, which no explored host is."""
        return Turn
