"""One turn of a host: what has arrived is carried out by the real machine, and the simulator's rules look on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fault_lab.explore.cast import Cast
from fault_lab.explore.fork import ChosenFault
from fault_lab.explore.requests import Acquire, Clock, Decide, Ended, Heard, Open, Recover, Request, Submit, Wait
from fault_lab.sim import wire
from fault_lab.sim.journal import Logged
from fault_lab.sim.rules import Rules
from fpu_core.errors import CoreBug
from guest_agent.outcome import Done, Gone, Injected, Pending, Rejected
from host_agent import commands as c
from host_agent.effects import ExitChanged, OutcomeReady
from host_agent.errors import Refused
from host_agent.events import GuestEvent
from host_agent.events import Outcome as HostOutcome
from host_agent.journal.outcome import pack_outcome
from host_agent.machine import HostMachine
from host_agent.sessions import find_outcome
from vmm_controller.policy import ExitView

if TYPE_CHECKING:
    from fault_lab.explore.scripts import Scripts
    from fault_lab.sim.guest import GuestNode
    from fault_lab.sim.host import HostNode

_CREDITS = 256


#: Records, newest first, each with which of its hits failed: the rest is the log before it.
Log = tuple[()] | tuple[Logged, int, "Log"]


class Turn:
    """A machine, the rules' books, and who holds what, while one request is carried out.

    It is what the rules take for a host: ``name``, ``machine``, ``ephemeral``, and a journal with ``durable`` records.
    """

    ephemeral = False

    def __init__(self, cast_: Cast, scripts: Scripts, machine: HostMachine, rules: Rules) -> None:
        self.name = cast_.host.name
        self.machine = machine
        self.rules = rules
        self.journal = self
        self.durable = 1 << 62
        #: (name, epoch) of each session and control by (VM or controller, life).
        self.sessions: dict[tuple[int, int], tuple[str, int]] = {}
        self.controls: dict[tuple[int, int], tuple[str, int]] = {}
        #: How often each exit has changed: what the revisions of its views are made of.
        self.changes: dict[str, int] = {}
        #: What was carried out, newest first; None where no host ever ends.
        self.log: Log | None = None
        self.finals: list[HostOutcome] = []
        self.news: list[ExitView] = []
        self._cast = cast_
        self._scripts = scripts

    @property
    def as_host(self) -> HostNode:
        """Itself, as the rules name it."""
        return cast("HostNode", self)

    def carry_out(self, request: Request, replies: Any) -> object:  # noqa: ANN401 -- replies by number
        """Do what a request asks for; returns the reply as its sender reads it. Raises ``Violation``."""
        match request:
            case Heard() | Ended():
                self._note(request, replies)
                return None
            case Clock():
                self._clock(request)
                return None
            case Recover():
                return None
        try:
            return self._call(request)
        except Refused as refused:
            refusal = wire.refusal_of(refused)
            assert refusal is not None, "a refusal is one on the wire too"
            return refusal

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _call(self, request: Request) -> object:
        match request:
            case Open(vm=vm, life=life):
                return self._open(vm, life)
            case Submit():
                return self._submit(request)
            case Wait(vcpu=vcpu, life=life, seq=seq):
                return self._wait(vcpu, life, seq)
            case Acquire(controller=controller, life=life):
                return self._acquire(controller, life)
            case Decide():
                return self._decide(request)
            case _:
                raise AssertionError(f"{request} is no call")

    def _open(self, vm: int, life: int) -> object:
        name = self._cast.vm_name(vm)
        vcpus = tuple(self._cast.vcpus[nr].name for nr in self._cast.vcpus_of(vm))
        opened = self.apply(c.OpenSession(client_name=name, vcpus=vcpus, request_id=f"{name}/session-{life}"))
        self.sessions[vm, life] = opened.session.name, opened.session.epoch
        if life > 1:  # what it plays may begin anew, wherever its vCPUs are
            self.rules.disturbs(name)
        reply = wire.guest_opened(opened, _CREDITS)
        self.rules.acknowledged(self.as_host, "OpenSession", reply)
        return reply.vcpus

    def _submit(self, request: Submit) -> object:
        vcpu = self._cast.vcpus[request.vcpu]
        event = self._scripts.at(request.position).event
        assert event is not None, "a position whose event was sent has one"
        sent = GuestEvent(vcpu.name, request.seq, wire.host_event(vcpu.name, event))
        received = ((vcpu.name, request.seq - 1),) if request.seq > 1 else ()
        session, epoch = self.sessions[vcpu.vm, request.life]
        batch = c.SubmitBatch(session=session, epoch=epoch, events=(sent,), received=received)
        (outcome,) = self.apply(batch)
        there = self.machine.state.sessions.get(session)
        real = there.vcpus.get(vcpu.name) if there is not None else None
        taken = self.machine.state.side(real).next_seq - 1 if real is not None else outcome.seq
        return wire.Answer(wire.guest_outcome(outcome), taken)

    def _wait(self, vcpu: int, life: int, seq: int) -> object:
        """The final outcome; None where there is none yet, and the caller waits at the host."""
        name = self._cast.vcpus[vcpu].name
        session, epoch = self.sessions[self._cast.vcpus[vcpu].vm, life]
        state = self.machine.state
        self.apply(c.KeepAlive(session=session, epoch=epoch))
        found = state.sessions[session].vcpus.get(name)
        if found is not None and seq >= state.side(found).next_seq:
            return wire.because("SEQ_GAP", f"number {seq} of {name!r} was never submitted")
        outcome = find_outcome(state, session, epoch, name, seq)
        return wire.guest_outcome(outcome) if outcome.final else None

    def _acquire(self, controller: int, life: int) -> object:
        planned = self._cast.controllers[controller]
        scope = f"vms/{planned.vm}" if planned.vm else ""
        held = self.apply(c.AcquireControl(scope=scope, controller=planned.name))
        self.controls[controller, life] = held.name, held.epoch
        self.rules.acknowledged(self.as_host, "AcquireControl", held)
        return "held"

    def _decide(self, request: Decide) -> object:
        control, epoch = self.controls[request.controller, request.life]
        decided = request.decided
        command = c.ResolveExit(
            exit=decided.exit,
            generation=decided.generation,
            control=control,
            control_epoch=epoch,
            decision=wire.host_decision(decided.decision),
            decided_by=self._cast.controllers[request.controller].name,
            request_id=f"{decided.exit}/{decided.generation}/{request.controller}/{request.life}/{request.copy}",
        )
        self.apply(command)
        return None

    # -- time, and what is heard ---------------------------------------------------------------------------------------

    def _clock(self, request: Clock) -> None:
        state = self.machine.state
        if request.vm is None:
            until_ns = min(each.deadline_ns for each in state.exits.values() if each.deadline_ns is not None)
        else:
            newest = max(life for vm, life in self.sessions if vm == request.vm)
            until_ns = state.sessions[self.sessions[request.vm, newest][0]].expires_ns
        step_ns = state.config.default_lease_ns // 3
        now_ns = state.now_ns
        while True:
            now_ns = min(until_ns, now_ns + step_ns)
            held = [self.sessions[each] for each in request.agents if each in self.sessions]
            renewals: list[c.Command] = [c.KeepAlive(session=name, epoch=epoch) for name, epoch in held]
            controls = [self.controls[each] for each in request.controllers if each in self.controls]
            renewals += [c.RenewControl(control=name, epoch=epoch) for name, epoch in controls]
            if now_ns == until_ns:
                self.apply(c.Tick(), now_ns)
                return
            for command in renewals:
                try:
                    self.apply(command, now_ns)
                except Refused:
                    continue  # its holder will hear of it with its next call

    def _note(self, request: Heard | Ended, replies: Any) -> None:  # noqa: ANN401
        vcpu = self._cast.vcpus[request.vcpu]
        guest = cast("GuestNode", _Guest(self._cast.vm_name(vcpu.vm)))
        if isinstance(request, Ended):
            report = self._scripts.at(request.position).report
            assert report is not None, "an end has a report"
            self.rules.guest_ended(vcpu.name, report)
            return
        outcome = replies[request.reply]
        outcome = outcome.outcome if isinstance(outcome, wire.Answer) else outcome
        assert isinstance(outcome, Done | Injected | Gone | Rejected | Pending)
        uid = self.machine.state.vcpu_uid(self.machine.state.vcpu(vcpu.name))
        self.rules.guest_heard(guest, vcpu.name, uid, request.seq, outcome)
        if isinstance(outcome, Rejected):
            lost = ("VCPU_KILLED", "VCPU_BROKEN", "VCPU_NOT_ENTERED")
            if vcpu.part is not None and vcpu.part.script is not None and outcome.refusal.reason not in lost:
                self.rules.rejected(guest, vcpu.name, outcome.refusal)
            self.rules.disturbs(vcpu.name)

    # -- the machine ---------------------------------------------------------------------------------------------------

    def apply(self, command: c.Command, at_ns: int | None = None) -> Any:  # noqa: ANN401 -- each has its own reply
        """Carry a command out, a nanosecond after the last one where no time is given. Raises ``Refused``."""
        machine = self.machine
        now_ns = machine.state.now_ns + 1 if at_ns is None else at_ns
        self.rules.before(self.as_host, command)
        faults = machine.state.faults
        met = len(faults.met) if isinstance(faults, ChosenFault) else 0
        result: object
        try:
            result = machine.apply(command, now_ns)
        except Refused as refused:
            result = refused
        except CoreBug as bug:
            self.rules.fail("invariants", str(bug))
            raise
        effects = machine.state.effects
        if self.log is not None:
            outcome = pack_outcome(command, result, effects)
            fails = faults.failed_since(met) if isinstance(faults, ChosenFault) else -1
            self.log = Logged(now_ns, command, machine.state.revision, outcome), fails, self.log
        machine.state.effects = []
        self.rules.after(self.as_host, command, result, effects)
        for effect in effects:
            match effect:
                case OutcomeReady(outcome=ready) if ready.final:
                    self.finals.append(ready)
                case ExitChanged(exit=name):
                    self._exit_changed(name)
        if isinstance(result, Refused):
            raise result
        return result

    def _exit_changed(self, name: str) -> None:
        self.rules.exit_changed(self.as_host, name)
        self.changes[name] = self.changes.get(name, 0) + 1
        state = self.machine.state
        if name in state.exits or name in state.resolved_exits:
            self.news.append(self.view(name))

    def view(self, name: str) -> ExitView:
        """An exit as a controller sees it, without the host's revision and time."""
        state = self.machine.state
        record = state.exits.get(name) or state.resolved_exits[name]
        return replace(wire.exit_view(state, record), update_revision=self.changes.get(name, 0), expires_in_s=None)

    def next_due(self) -> str:
        """What the first deadline of an exit is: "retry", "deadline", or "" for none."""
        exits = [each for each in self.machine.state.exits.values() if each.deadline_ns is not None]
        if not exits:
            return ""
        first = min(exits, key=lambda each: each.deadline_ns or 0)
        return "retry" if first.retry_ns is not None else "deadline"

    def ended_sessions(self) -> set[tuple[int, int]]:
        """(VM, life) of the sessions that are no more."""
        there = self.machine.state.sessions
        return {key for key, (name, _) in self.sessions.items() if name not in there}


class _Guest:
    """What the rules take for an agent."""

    def __init__(self, name: str) -> None:
        self.name = name
