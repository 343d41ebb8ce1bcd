"""A guest agent as a node: a session, and a port for each vCPU on which a script is played.

It does what ``guest_agent``'s blocking client does: numbers of its own, the same number again after a deadline or a
lost connection, a new session after an ended lease, WaitOutcome while an event is pending. The ledger of numbers, the
remedies and the scripts are the client's own. An agent that is refused for good ends, and is started again.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.draw import draw_between, subseed
from fault_lab.sim import wire
from fault_lab.sim.node import Node
from fault_lab.sim.services import WaitOutcome
from fault_lab.sim.task import Call, Signal, Sleep, Step, Task, Wait
from fault_lab.sim.workload import Part, part_of
from guest_agent.event import GuestEvent
from guest_agent.ledger import SeqLedger
from guest_agent.moving import refusal_in
from guest_agent.opening import Opened, SessionKey
from guest_agent.outcome import (
    Blocked,
    DirectiveKind,
    Done,
    Gone,
    Injected,
    InstructionOutcome,
    Outcome,
    Pending,
    Refusal,
    Rejected,
)
from guest_agent.recovery import Remedy, remedy
from guest_agent.report import Outcome as Ending
from guest_agent.wait import SessionLost
from host_agent import commands as c
from host_agent.events import GuestEvent as HostEvent

if TYPE_CHECKING:
    from fault_lab.sim.world import World

_S: Final = 1_000_000_000
#: The client's own deadlines. Source: guest_agent/session.py, port.py.
_CALL_NS: Final = 10 * _S
_WAIT_NS: Final = 60 * _S
_RECONNECT_NS: Final = 60 * _S
#: Pauses as guest_agent.recovery.Patience makes them.
_PAUSE_NS: Final = (_S // 10, 2 * _S)
#: A service manager starts an agent that has ended again after this.
_RESTART_NS: Final = _S
_XTILE_DATA: Final = 18
#: An event that was rejected so is not this agent's to send any more.
NOT_OURS: Final = frozenset({"SESSION_FENCED", "VCPU_NOT_IN_SESSION", "SEQ_GAP", "OUTCOME_FORGOTTEN"})
EXISTS: Final = frozenset({"VM_EXISTS", "VCPU_EXISTS"})


class GivenUpError(Exception):
    """The host refused for good, or stayed away: the agent ends."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code} {refusal.reason}: {refusal.message}")
        self.refusal = refusal


class Patience:
    """Pauses that double, with jitter, as the client's own; here time is the world's and the jitter is drawn."""

    def __init__(self, node: GuestNode) -> None:
        self._node = node
        self.reset()

    def reset(self) -> None:
        """Begin anew: somebody answered."""
        self._next_ns = _PAUSE_NS[0]
        self._until_ns: int | None = None

    def pause_ns(self, refusal: Refusal) -> int:
        """How long to wait now, in nanoseconds. Raises ``GivenUpError`` once the patience is at its end."""
        now_ns = self._node.world.now_ns
        if self._until_ns is None:
            self._until_ns = now_ns + _RECONNECT_NS
        if now_ns >= self._until_ns:
            raise GivenUpError(refusal)
        nominal, self._next_ns = self._next_ns, min(2 * self._next_ns, _PAUSE_NS[1])
        return max(self._node.draw("pause", nominal // 2, nominal), round((refusal.retry_delay_s or 0.0) * _S))


@dataclass(slots=True)
class Port:
    """One vCPU as its agent sees it. ``ended`` says how what it plays has ended; empty while it plays."""

    vcpu: str
    uid: str
    ledger: SeqLedger
    part: Part | None
    round: int = 1
    sent: int = 0
    ended: str = ""


class GuestNode(Node):
    """The agent of one VM; the node's name is the VM's."""

    def __init__(self, world: World, planned: plan_pb2.PlannedVm, plan: plan_pb2.Plan, seed: int) -> None:
        super().__init__(world, f"vms/{planned.name}")
        #: Whether it hears directives.
        self.attached = planned.HasField("attach")
        self._planned = planned
        self._plan = plan
        self._draws = 0
        self._vcpus = [f"{self.name}/vcpus/{index}" for index in range(planned.vcpus or 1)]
        self.ports: dict[str, Port] = {}
        self.reseed(seed)
        #: Rounds that are over and endings outlive the process: who starts it again knows what is still to do.
        self._rounds = dict.fromkeys(self._vcpus, 1)
        self.endings: dict[str, str] = {vcpu: "idle" for vcpu, part in self._parts.items() if part is None}
        self._forget()

    def _forget(self) -> None:
        self._key: SessionKey | None = None
        self._lease_ns = 0
        self._opening: Signal | None = None
        self.ports = {}

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on: pauses, and the events of rounds that have not begun."""
        self._seed = subseed(seed, self.name)
        self._parts = {vcpu: part_of(self._plan, vcpu, seed) for vcpu in self._vcpus}
        for port in self.ports.values():
            port.part = self._parts[port.vcpu]

    @property
    def unfinished(self) -> list[str]:
        """The vCPUs that have not come to their end."""
        return [vcpu for vcpu in self._vcpus if vcpu not in self.endings]

    def draw(self, what: str, low: int, high: int) -> int:
        """Draw a number of this agent's own."""
        self._draws += 1
        return draw_between(self._seed, what, self.name, self._draws, low=low, high=high)

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Make what is not there, open a session, play."""
        self.spawn(self._guarded(self._main()))

    def ended(self) -> None:
        """A new process knows nothing but its vCPUs' names; its scripts begin anew, wherever their vCPUs are."""
        self.world.rules.disturbs(self.name)
        self._forget()

    def _guarded(self, task: Task) -> Task:
        """A task that gives up ends the agent, which is started again."""
        try:
            yield from task
        except GivenUpError as error:
            self._gives_up(str(error))
        except SessionLost as error:
            self.world.rules.session_lost(self, str(error))
            self._gives_up(str(error))

    def _gives_up(self, why: str) -> None:
        self.world.record("guest", node=self.name, state="gives up", why=why)
        self.world.soon("", f"{self.name} ends", self.of_this_life(lambda: self.end("ended", _RESTART_NS)))

    def _main(self) -> Task:
        once = f"{self.name}/{self.life}"
        vm = self._planned
        make = c.CreateVm(
            vm_id=vm.name,
            profile=vm.profile,
            cpuid_dump=vm.cpuid_dump,
            allocation_policy=vm.allocation_policy or "on_swap",
            byte_limit=vm.byte_limit if vm.HasField("byte_limit") else None,
            labels=dict(vm.labels),
            request_id=f"{once}/vm",
        )
        yield from self._make("CreateVm", make)
        if not vm.no_permission:
            wanted = c.RequestPermission(vm=self.name, feature=_XTILE_DATA, guest=True, request_id=f"{once}/perm")
            yield from self._make("RequestPermission", wanted)
        for index in range(len(self._vcpus)):
            vcpu = c.CreateVcpu(vm=self.name, index=index, request_id=f"{once}/vcpu-{index}")
            yield from self._make("CreateVcpu", vcpu)
        yield from self._open()
        self.spawn(self._guarded(self._keep_alive()))
        for port in self.ports.values():
            self.spawn(self._guarded(self._play(port)))

    def _make(self, method: str, command: object) -> Generator[Step, Any, None]:
        """Make something, again and again until it is there. No memory for it is a reason to wait, not to give up."""
        patience = Patience(self)
        while True:
            reply = yield Call(method, command, _CALL_NS)
            if not isinstance(reply, Refusal) or reply.reason in EXISTS:
                return
            # The permission was asked for by an earlier process, and the first vCPU has locked it.
            if method == "RequestPermission" and reply.metadata.get("errnoName") == "EBUSY":
                return
            if remedy(reply) is Remedy.MOVE:
                self.world.follow(self.name, reply.metadata["target"])
                continue
            self._pauses_for(patience, reply)
            again = reply.reason in ("ALLOCATION_FAILED", "KVM_ERRNO") or remedy(reply) is not Remedy.NONE
            if not again:
                raise GivenUpError(reply)
            yield Sleep(patience.pause_ns(reply))

    # -- the session ---------------------------------------------------------------------------------------------------

    def _open(self) -> Generator[Step, Any, None]:
        """Open a session over all vCPUs; who finds another task at it waits for that."""
        if self._opening is not None:
            yield Wait(self._opening)
            return
        self._opening = Signal()
        try:
            patience = Patience(self)
            while True:
                request_id = f"{self.name}/{self.life}/session-{self.draw('session', 0, 1 << 40):x}"
                command = c.OpenSession(client_name=self.name, vcpus=tuple(self._vcpus), request_id=request_id)
                reply = yield Call("OpenSession", command, _CALL_NS)
                if isinstance(reply, Opened):
                    break
                match remedy(reply):
                    case Remedy.NONE:
                        raise GivenUpError(reply)
                    case Remedy.MOVE:
                        self.world.follow(self.name, reply.metadata["target"])
                    case _:
                        self._pauses_for(patience, reply)
                        yield Sleep(patience.pause_ns(reply))
            self._opened(reply)
        finally:
            opening, self._opening = self._opening, None
            if opening is not None:
                opening.give()

    def _opened(self, opened: Opened) -> None:
        for resume in opened.vcpus:
            port = self.ports.get(resume.vcpu)
            if port is None:
                part = self._parts[resume.vcpu]
                round_ = self._rounds[resume.vcpu]
                self.ports[resume.vcpu] = Port(resume.vcpu, resume.uid, resume.ledger(), part, round_)
            else:
                resume.check_same(port.uid, port.ledger)
        self._key, self._lease_ns = opened.key, round(opened.lease_s * _S)

    @staticmethod
    def _pauses_for(patience: Patience, refusal: Refusal) -> None:
        """Somebody is there, and will not let the VM stand still for ever."""
        if refusal.reason == "MIGRATION_IN_PROGRESS":
            patience.reset()

    def _move(self, key: SessionKey, target: str) -> Generator[Step, Any, None]:
        """Go on where the VM is, in a new session."""
        if self._key == key:
            self.world.follow(self.name, target)
            yield from self._open()

    def _reopen(self, key: SessionKey) -> Generator[Step, Any, None]:
        if self._key == key:
            yield from self._open()

    def _keep_alive(self) -> Task:
        while True:
            yield Sleep(self._lease_ns // 3)
            while True:
                key = self._held()
                reply = yield Call("KeepAlive", c.KeepAlive(session=key.name, epoch=key.epoch), _CALL_NS)
                if not isinstance(reply, Refusal) or remedy(reply) is Remedy.NONE:
                    break
                if remedy(reply) is Remedy.REOPEN:
                    yield from self._reopen(key)
                    break
                if remedy(reply) is Remedy.MOVE:
                    yield from self._move(key, reply.metadata["target"])
                    break
                yield Sleep(min(_S, self._lease_ns // 10))

    def _held(self) -> SessionKey:
        assert self._key is not None, "a session is open before anything is asked of it"
        return self._key

    # -- one vCPU ------------------------------------------------------------------------------------------------------

    def _play(self, port: Port) -> Task:
        """Play what is left of the part, round by round."""
        for seq in port.ledger.under_way:  # an earlier process has left it
            yield from self._finish(port, seq, None, port.ledger.pending(seq))
        while (part := port.part) is not None and port.vcpu not in self.endings:
            ending = yield from self._round(port, part)
            self.world.record("guest", node=self.name, vcpu=port.vcpu, state=ending, round=port.round)
            last = port.round >= part.rounds or ending == "killed"
            port.round += 1
            self._rounds[port.vcpu] = port.round
            if last:
                self.endings[port.vcpu] = ending

    def _round(self, port: Port, part: Part) -> Generator[Step, Any, str]:
        events = part.round(port.round)
        outcome: InstructionOutcome | None = None
        try:
            while True:
                try:
                    event = next(events) if outcome is None else events.send(outcome)
                except StopIteration as end:
                    self.world.rules.guest_ended(port.vcpu, end.value)
                    ending: Ending = end.value.outcome
                    return ending.value
                port.sent += 1
                think_ns = part.think(self._seed, port.sent)
                if think_ns:
                    yield Sleep(think_ns)
                found = yield from self._submit(port, event)
                if isinstance(found, Gone) and found.directive.kind is DirectiveKind.STOP:
                    return "killed"
                if isinstance(found, Rejected):
                    if found.refusal.reason in ("VCPU_KILLED", "VCPU_BROKEN"):
                        return "killed"
                    if part.script is not None and not _may_be(found.refusal):
                        self.world.rules.rejected(self, port.vcpu, found.refusal)
                    self.world.rules.disturbs(port.vcpu)
                    outcome = Done()
                else:
                    outcome = found
        finally:
            events.close()

    def _submit(self, port: Port, event: GuestEvent) -> Generator[Step, Any, InstructionOutcome | Rejected]:
        seq = port.ledger.take(event)
        outcome = yield from self._send(port, seq, event)
        return (yield from self._finish(port, seq, event, outcome))

    def _send(self, port: Port, seq: int, event: GuestEvent) -> Generator[Step, Any, Outcome]:
        """Send an event until the host has said something about it."""
        sent = HostEvent(port.vcpu, seq, wire.host_event(port.vcpu, event))
        received = ((port.vcpu, port.ledger.received_through),) if port.ledger.received_through else ()

        def call(key: SessionKey) -> Call:
            batch = c.SubmitBatch(session=key.name, epoch=key.epoch, events=(sent,), received=received)
            return Call("SubmitEvents", batch, _CALL_NS, port.vcpu)

        answer = yield from self._until_answered(call)
        if isinstance(answer.outcome, Rejected):
            if answer.taken < seq:
                port.ledger.untake(seq)
            if answer.outcome.refusal.reason in NOT_OURS:
                raise GivenUpError(answer.outcome.refusal)
        outcome: Outcome = answer.outcome
        return outcome

    def _finish(
        self, port: Port, seq: int, event: GuestEvent | None, outcome: Outcome
    ) -> Generator[Step, Any, InstructionOutcome | Rejected]:
        """Wait for the final outcome where it is not there."""
        while isinstance(outcome, Pending):
            port.ledger.note(seq, outcome)
            outcome = yield from self._wait(port, seq, event)
        if isinstance(outcome, Blocked):
            port.ledger.untake(seq)
            self.world.rules.blocked(self, port.vcpu, outcome)
            raise GivenUpError(Refusal("FAILED_PRECONDITION", f"blocked: {outcome}", "BLOCKED"))
        port.ledger.note(seq, outcome)
        self.world.rules.guest_heard(self, port.vcpu, port.uid, seq, outcome)
        assert isinstance(outcome, Done | Injected | Gone | Rejected)
        return outcome

    def _wait(self, port: Port, seq: int, event: GuestEvent | None) -> Generator[Step, Any, Outcome]:
        key = self._held()

        def call(key: SessionKey) -> Call:
            return Call("WaitOutcome", WaitOutcome(key.name, key.epoch, port.vcpu, seq), _WAIT_NS, port.vcpu)

        try:
            outcome: Outcome = yield from self._until_answered(call)
        except GivenUpError as error:
            lost = error.refusal.reason in ("SEQ_GAP", "FIELD_INVALID") and self._key != key
            if event is None or not lost:
                raise
            outcome = yield from self._send(port, seq, event)
        return outcome

    def _until_answered(self, call: Any) -> Generator[Step, Any, Any]:  # noqa: ANN401 -- each call has its own reply
        """Make a call again and again, in a new session where it must be, until the host answers or refuses it."""
        patience = Patience(self)
        while True:
            key = self._held()
            reply = yield call(key)
            if not isinstance(reply, Refusal):
                moves = refusal_in(reply.outcome if isinstance(reply, wire.Answer) else reply)
                if moves is None:
                    return reply
                reply = moves
            self._pauses_for(patience, reply)
            match remedy(reply):
                case Remedy.AGAIN:
                    patience.reset()
                case Remedy.LATER:
                    yield Sleep(patience.pause_ns(reply))
                case Remedy.REOPEN:
                    yield from self._reopen(key)
                case Remedy.MOVE:
                    yield from self._move(key, reply.metadata["target"])
                case Remedy.NONE:
                    raise GivenUpError(reply)


def _may_be(refusal: Refusal) -> bool:
    """Whether a script is refused for what it cannot know.

    An ended lease takes the vCPU out of the guest, and a Leave then finds it outside; a CPU may have gone down.
    """
    return refusal.reason == "VCPU_NOT_ENTERED" or refusal.metadata.get("expected") == "a CPU that is online"
