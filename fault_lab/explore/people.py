"""What agents, guests and controllers do with what they hear: the clients' own remedies, scripts and desks.

Every function takes a state and returns the one after. Who waits for what is in the state; the machine is in ``Hosts``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.desks import Decided, Desks
from fault_lab.explore.hosts import NO_REPLY, Hosts, Step
from fault_lab.explore.mail import Mail
from fault_lab.explore.requests import Ended, Heard, Message
from fault_lab.explore.scripts import Scripts
from fault_lab.explore.state import AgentAt, ControllerAt, State, VcpuAt, with_agent, with_controller, with_vcpu
from fault_lab.sim import wire
from guest_agent.opening import VcpuResume
from guest_agent.outcome import DirectiveKind, Done, Gone, Injected, Outcome, Pending, Refusal, Rejected
from guest_agent.recovery import Remedy, remedy
from vmm_controller.policy import Decision, Defer, InjectGp, KillVcpu, Pause, Retry

#: A check that does not hold, and what was found.
Violated = tuple[str, str]
#: What a contradiction is made of. Source: fault_lab/sim/controller.py.
_OTHERS: Final[tuple[Decision, ...]] = (InjectGp(), Retry(), Pause(), KillVcpu(), Defer())
#: An event that was rejected so is not this agent's to send any more. Source: fault_lab/sim/guest.py.
_NOT_OURS: Final = frozenset({"SESSION_FENCED", "VCPU_NOT_IN_SESSION", "SEQ_GAP", "OUTCOME_FORGOTTEN"})
_KILLED: Final = frozenset({"VCPU_KILLED", "VCPU_BROKEN"})
_OVER: Final = ("ended", "idle")


class People(Mail):
    """Everybody but the host."""

    def __init__(self, hosts: Hosts, scripts: Scripts, bounds: Bounds) -> None:
        super().__init__(hosts, scripts)
        self._in_order = bounds.preemptions is not None
        self.desks = [Desks(list(each.policies)) for each in self._cast.controllers]
        self._desk_pieces: dict[tuple[int, int], tuple[int, ...]] = {}

    def first(self, host: int) -> State:
        """Everybody begins: agents open sessions, controllers acquire control."""
        vcpus = tuple(self._begins(nr) for nr in range(len(self._cast.vcpus)))
        agents = tuple(AgentAt(1, open=False) for _ in self._cast.vms)
        controllers = tuple(ControllerAt(1, held=False, desk=desks.empty) for desks in self.desks)
        state = State(host, host, vcpus, agents, controllers)
        opening = [Message("open", nr, 1) for nr in range(len(agents))]
        return self.sent(state, *opening, *(Message("control", nr, 1) for nr in range(len(controllers))))

    def _begins(self, nr: int) -> VcpuAt:
        part = self._cast.vcpus[nr].part
        return VcpuAt(self._scripts.start(part), 0, "held") if part is not None else VcpuAt(0, 0, "idle")

    # -- messages ------------------------------------------------------------------------------------------------------

    def sent(self, state: State, *messages: Message) -> State:
        """Messages are on their way."""
        flight = (*state.flight, *messages)
        return state._replace(flight=flight if self._in_order else tuple(sorted(flight)))

    # -- the host has answered -----------------------------------------------------------------------------------------

    def answered(self, state: State, message: Message | None, step: Step) -> State:
        """The host has carried a request out; it says so to whom it concerns, once that is durable."""
        vcpus = list(state.vcpus)
        said: list[Message] = []
        if message is not None and message.fresh:
            if step.reply == NO_REPLY:
                if message.kind == "wait":
                    vcpus[message.who] = vcpus[message.who]._replace(phase="parked")
            else:
                said.append(_reply(message, step.reply))
        for vcpu, seq, reply in step.finals:
            at = vcpus[vcpu]
            if at.phase == "parked" and at.seq == seq:
                vcpus[vcpu] = at._replace(phase="waits")
                said.append(Message("answer", vcpu, self._life(state, vcpu), reply, 1))
        gone = self._hosts.ended_sessions(step.host)
        for vcpu, at in enumerate(vcpus):
            if at.phase == "parked" and (self._cast.vcpus[vcpu].vm, self._life(state, vcpu)) in gone:
                vcpus[vcpu] = at._replace(phase="waits")
                said.append(Message("answer", vcpu, self._life(state, vcpu), self._hosts.expired(), 1))
        news = [
            (nr, vcpu, view)
            for vcpu, view in step.news
            for nr in range(len(state.controllers))
            if self._cast.decides_about(nr, vcpu)
        ]
        after = state._replace(host=step.host, vcpus=tuple(vcpus))
        if self._hosts.ends:
            messages, unheard = state.unsaid
            return after._replace(unsaid=((*messages, *said), (*unheard, *news)))
        return self._say(after._replace(durable=step.host), said, news)

    def _say(self, state: State, messages: list[Message], news: list[tuple[int, int, int]]) -> State:
        controllers = list(state.controllers)
        for nr, vcpu, view in news:
            at = controllers[nr]
            if at.held:
                controllers[nr] = at._replace(news=(*at.news, (vcpu, view)))
        return self.sent(state._replace(controllers=tuple(controllers)), *messages)

    def committed(self, state: State) -> State:
        """All that was done is durable: what waited for that is said."""
        messages, news = state.unsaid
        after = state._replace(durable=state.host, unsaid=((), ()))
        return self._say(after, list(messages), list(news))

    def _life(self, state: State, vcpu: int) -> int:
        return state.agents[self._cast.vcpus[vcpu].vm].life

    # -- agents --------------------------------------------------------------------------------------------------------

    def heard(self, state: State, message: Message) -> State | Violated:
        """A reply has arrived at who waits for it."""
        match message.kind:
            case "opened":
                return self._opened(state, message)
            case "held":
                return self._held(state, message)
            case _:
                return self._outcome(state, message)

    def _opened(self, state: State, message: Message) -> State | Violated:
        """The session is open: every vCPU goes on where the host stands."""
        vm = message.who
        state = with_agent(state, vm, AgentAt(message.life, open=True))
        resumes = self._hosts.replies[message.what]
        assert isinstance(resumes, tuple), "a session that an agent has asked for once is opened"
        for vcpu, resume in zip(self._cast.vcpus_of(vm), resumes, strict=True):
            assert isinstance(resume, VcpuResume), "a session says where its vCPUs are"
            at = state.vcpus[vcpu]
            if at.phase in _OVER:
                continue
            if at.phase == "held" and at.seq == 0:  # a new process
                state = self._first_call(state, vcpu, at, resume)
            elif resume.next_seq not in (at.seq, at.seq + 1):
                return "session-goes-on", f"{resume.vcpu}: the host goes on at {resume.next_seq}, the agent at {at.seq}"
            elif at.phase == "held":
                state = self._call_again(state, vcpu, at)
        return state

    def _first_call(self, state: State, vcpu: int, at: VcpuAt, resume: VcpuResume) -> State:
        life = self._life(state, vcpu)
        if resume.pending_seq is not None:
            state = with_vcpu(state, vcpu, VcpuAt(at.position, resume.pending_seq, "waits", inherited=True))
            return self.sent(state, Message("wait", vcpu, life, resume.pending_seq))
        return self._sends(state, vcpu, at.position, resume.next_seq)

    def _sends(self, state: State, vcpu: int, position: int, seq: int) -> State:
        state = with_vcpu(state, vcpu, VcpuAt(position, seq, "asks"))
        return self.sent(state, Message("submit", vcpu, self._life(state, vcpu), seq, position))

    def _call_again(self, state: State, vcpu: int, at: VcpuAt) -> State:
        """The same event again: the host knows whether it has taken it."""
        if at.inherited:
            state = with_vcpu(state, vcpu, at._replace(phase="waits"))
            return self.sent(state, Message("wait", vcpu, self._life(state, vcpu), at.seq))
        return self._sends(state, vcpu, at.position, at.seq)

    def asked_again(self, state: State, vcpu: int) -> State:
        """A call has come to nothing, and is made again."""
        at = state.vcpus[vcpu]
        if at.phase == "waits":
            return self.sent(state, Message("wait", vcpu, self._life(state, vcpu), at.seq))
        return self._call_again(state, vcpu, at)

    def _outcome(self, state: State, message: Message) -> State | Violated:
        vcpu, reply = message.who, self._hosts.replies[message.what]
        if isinstance(reply, Refusal):
            return self._refused(state, message, reply)
        at = state.vcpus[vcpu]
        outcome: Outcome = reply.outcome if isinstance(reply, wire.Answer) else reply
        if isinstance(outcome, Rejected) and outcome.refusal.reason in _NOT_OURS:
            return self.agent_starts(state, self._cast.vcpus[vcpu].vm)
        if isinstance(outcome, Pending):
            state = with_vcpu(state, vcpu, at._replace(phase="waits"))
            return self.sent(state, Message("wait", vcpu, self._life(state, vcpu), at.seq))
        step = self._hosts.step(state.host, Heard(vcpu, at.seq, message.what))
        if step.violation is not None:
            return step.violation
        free = isinstance(outcome, Rejected) and isinstance(reply, wire.Answer) and reply.taken < at.seq
        return self._goes_on(self._same(state, step), vcpu, outcome, at.seq if free else at.seq + 1)

    def _goes_on(self, state: State, vcpu: int, outcome: Outcome, seq: int) -> State | Violated:
        """The guest has the final outcome of its event, and sends the next one, which is number ``seq``."""
        at = state.vcpus[vcpu]
        if at.inherited:
            return self._sends(state, vcpu, at.position, seq)
        stops = isinstance(outcome, Gone) and outcome.directive.kind is DirectiveKind.STOP
        if stops or (isinstance(outcome, Rejected) and outcome.refusal.reason in _KILLED):
            return with_vcpu(state, vcpu, VcpuAt(at.position, at.seq, "ended"))
        heard = outcome if isinstance(outcome, Done | Injected | Gone) else Done()
        position = self._scripts.after(at.position, heard)
        if self._scripts.at(position).event is not None:
            return self._sends(state, vcpu, position, seq)
        step = self._hosts.step(state.host, Ended(vcpu, position))
        if step.violation is not None:
            return step.violation
        return with_vcpu(self._same(state, step), vcpu, VcpuAt(position, at.seq, "ended"))

    def _same(self, state: State, step: Step) -> State:
        """A line in the books makes another host, but no other machine: what is durable has the same line."""
        durable = step.host if state.durable == state.host else state.durable
        return state._replace(host=step.host, durable=durable)

    def _refused(self, state: State, message: Message, refusal: Refusal) -> State:
        vcpu = message.who
        vm = self._cast.vcpus[vcpu].vm
        at = state.vcpus[vcpu]
        match remedy(refusal):
            case Remedy.AGAIN | Remedy.LATER:
                return self.asked_again(state, vcpu)
            case Remedy.REOPEN:
                agent = state.agents[vm]
                if agent.open and message.life < agent.life:
                    return self.asked_again(state, vcpu)  # another vCPU's call has found out already
                state = with_vcpu(state, vcpu, at._replace(phase="held"))
                if not agent.open:
                    return state
                state = with_agent(state, vm, AgentAt(agent.life + 1, open=False))
                return self.sent(state, Message("open", vm, agent.life + 1))
            case _:
                if at.phase == "waits" and not at.inherited and refusal.reason in ("SEQ_GAP", "FIELD_INVALID"):
                    return self._sends(state, vcpu, at.position, at.seq)
                return self.agent_starts(state, vm)

    def agent_starts(self, state: State, vm: int) -> State:
        """A new process of an agent: it opens a session, and plays from the beginning what has not come to its end."""
        mine = self._cast.vcpus_of(vm)
        for vcpu in mine:
            if state.vcpus[vcpu].phase not in _OVER:
                state = with_vcpu(state, vcpu, self._begins(vcpu))

        def left(message: Message) -> Message | None:
            if message.kind in ("answer", "submit", "wait") and message.who in mine:
                return None if message.kind == "answer" else message._replace(fresh=False)
            if message.kind in ("open", "opened") and message.who == vm:
                return None if message.kind == "opened" else message._replace(fresh=False)
            return message

        flight = tuple(kept for each in state.flight if (kept := left(each)) is not None)
        unsaid = tuple(kept for each in state.unsaid[0] if (kept := left(each)) is not None)
        life = state.agents[vm].life + 1
        state = with_agent(state, vm, AgentAt(life, open=False))
        return self.sent(state._replace(flight=flight, unsaid=(unsaid, state.unsaid[1])), Message("open", vm, life))

    # -- controllers ---------------------------------------------------------------------------------------------------

    def _held(self, state: State, message: Message) -> State:
        """It has its control, and lists and watches from this moment on."""
        nr = message.who
        if isinstance(self._hosts.replies[message.what], Refusal):
            return self.sent(state, Message("control", nr, message.life))
        news = self._hosts.listed(state.durable, nr)
        return with_controller(state, nr, state.controllers[nr]._replace(held=True, news=news))

    def controller_starts(self, state: State, nr: int) -> State:
        """A new process of a controller: an empty desk, and a control to acquire."""
        life = state.controllers[nr].life + 1
        state = with_controller(state, nr, ControllerAt(life, held=False, desk=self.desks[nr].empty))

        def left(messages: tuple[Message, ...]) -> tuple[Message, ...]:
            return tuple(each for each in messages if each.kind not in ("control", "held") or each.who != nr)

        messages, news = state.unsaid
        news = tuple(each for each in news if each[0] != nr)
        state = state._replace(flight=left(state.flight), unsaid=(left(messages), news))
        return self.sent(state, Message("control", nr, life))

    def desk_pieces(self, nr: int, desk: int) -> tuple[int, ...]:
        """What is on a controller's desk about each vCPU, without its name."""
        found = self._desk_pieces.get((nr, desk))
        if found is None:
            lines = self.desks[nr].lines(desk)
            texts = []
            for uid, name in self._hosts.uids():
                mine = sorted(line.replace(uid, "uid").replace(name, "it") for line in lines if uid in line)
                texts.append((nr, *mine))
            found = self._desk_pieces[nr, desk] = tuple(map(self._hosts.piece, texts))
        return found

    @staticmethod
    def others(decided: Decided) -> list[Decided]:
        """The same decision with another content that the exit allows."""
        kind = decided.decision.kind
        allowed = [each for each in _OTHERS if each.kind is not kind and each.kind.name in decided.allowed]
        return [replace(decided, decision=each) for each in allowed]

    # -- the host's end ------------------------------------------------------------------------------------------------

    def host_starts(self, state: State, host: int) -> State:
        """Connections have broken: every call is made again, and controllers list and watch again."""
        state = state._replace(host=host, durable=host, flight=(), unsaid=((), ()))
        for nr, at in enumerate(state.controllers):
            if at.held:
                state = with_controller(state, nr, at._replace(news=self._hosts.listed(host, nr)))
            else:
                state = self.sent(state, Message("control", nr, at.life))
        for vm, agent in enumerate(state.agents):
            if not agent.open:
                state = self.sent(state, Message("open", vm, agent.life))
        for vcpu, vcpu_at in enumerate(state.vcpus):
            if vcpu_at.phase in ("asks", "waits", "parked"):
                again = vcpu_at._replace(phase="waits" if vcpu_at.phase == "parked" else vcpu_at.phase)
                state = self.asked_again(with_vcpu(state, vcpu, again), vcpu)
        return state


def _reply(message: Message, reply: int) -> Message:
    match message.kind:
        case "open":
            return Message("opened", message.who, message.life, reply)
        case "control":
            return Message("held", message.who, message.life, reply)
        case _:
            return Message("answer", message.who, message.life, reply, int(message.kind == "wait"))
