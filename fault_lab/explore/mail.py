"""What messages mean: as a request of the host, as a link and a trigger of the simulator, and in words."""

from __future__ import annotations

from typing import Final

from fault_lab.explore.desks import Decided
from fault_lab.explore.hosts import Hosts
from fault_lab.explore.interned import Interned
from fault_lab.explore.requests import Acquire, Decide, Message, Open, Request, Submit, Wait
from fault_lab.explore.scripts import Scripts
from fault_lab.sim.brief import brief
from guest_agent.outcome import Refusal

_METHODS: Final = {
    "open": "OpenSession",
    "submit": "SubmitEvents",
    "wait": "WaitOutcome",
    "control": "AcquireControl",
    "decide": "ResolveExit",
}


class Mail:
    """The messages of one world, and the decisions that some of them carry, by number."""

    def __init__(self, hosts: Hosts, scripts: Scripts) -> None:
        self._hosts = hosts
        self._scripts = scripts
        self._cast = hosts.cast
        self._decisions: Interned[Decided] = Interned()
        self._decision_pieces: dict[int, tuple[int, int]] = {}
        #: What messages mean, as it is asked for again and again.
        self._texts: dict[Message, str] = {}
        self._links: dict[Message, tuple[str, str]] = {}
        self._requests: dict[Message, Request] = {}

    def link(self, message: Message) -> tuple[str, str]:
        """The link of a message and its trigger there, as the simulator names them."""
        found = self._links.get(message)
        if found is None:
            found = self._links[message] = self._link(message)
        return found

    def _link(self, message: Message) -> tuple[str, str]:
        host = self._cast.host.name
        match message.kind:
            case "submit" | "wait":
                return f"{self._agent(message)}->{host}", f"{_METHODS[message.kind]} request"
            case "open":
                return f"{self._cast.vm_name(message.who)}->{host}", "OpenSession request"
            case "control" | "decide":
                return f"{self._cast.controllers[message.who].name}->{host}", f"{_METHODS[message.kind]} request"
            case "answer":
                return f"{host}->{self._agent(message)}", f"{_METHODS['wait' if message.more else 'submit']} reply"
            case "opened":
                return f"{host}->{self._cast.vm_name(message.who)}", "OpenSession reply"
            case "held":
                return f"{host}->{self._cast.controllers[message.who].name}", "AcquireControl reply"

    def _agent(self, message: Message) -> str:
        return self._cast.vm_name(self._cast.vcpus[message.who].vm)

    def text(self, message: Message) -> str:
        """What arrives, for people: who it arrives at, and what it says."""
        found = self._texts.get(message)
        if found is None:
            found = self._texts[message] = self._text(message)
        return found

    def _text(self, message: Message) -> str:
        host = self._cast.host.name
        late = "" if message.fresh or message.kind == "decide" else " (a late copy)"
        match message.kind:
            case "submit":
                event = self._scripts.at(message.more).event
                name = self._cast.vcpus[message.who].name
                return f"{host}: {name} sends {message.what} {type(event).__name__}{late}"
            case "wait":
                return f"{host}: {self._cast.vcpus[message.who].name} waits for {message.what}{late}"
            case "open":
                return f"{host}: {self._cast.vm_name(message.who)} opens session {message.life}{late}"
            case "control":
                return f"{host}: {self._cast.controllers[message.who].name} acquires control {message.life}"
            case "decide":
                decided = self._decisions[message.what]
                kind, name = decided.decision.kind.name, self._cast.controllers[message.who].name
                return f"{host}: {name} decides {kind} for {decided.exit} generation {decided.generation}"
            case "answer":
                return f"{self._cast.vcpus[message.who].name}: hears {_brief(self._hosts.replies[message.what])}"
            case "opened":
                return f"{self._cast.vm_name(message.who)}: has session {message.life}"
            case "held":
                return f"{self._cast.controllers[message.who].name}: has control {message.life}"

    def request(self, message: Message) -> Request:
        """What a message to the host asks for."""
        message = message._replace(fresh=True)
        found = self._requests.get(message)
        if found is None:
            found = self._requests[message] = self._request(message)
        return found

    def _request(self, message: Message) -> Request:
        match message.kind:
            case "open":
                return Open(message.who, message.life)
            case "submit":
                return Submit(message.who, message.life, message.what, message.more)
            case "wait":
                return Wait(message.who, message.life, message.what)
            case "control":
                return Acquire(message.who, message.life)
            case "decide":
                return Decide(message.who, message.life, self._decisions[message.what], message.more)
            case _:
                raise AssertionError(f"{message} does not go to the host")

    def decision(self, decided: Decided) -> int:
        """The number of a decision."""
        return self._decisions.number(repr(decided), decided)

    def decided(self, number: int) -> Decided:
        """A decision by its number."""
        return self._decisions[number]

    def decision_piece(self, number: int) -> tuple[int, int]:
        """The vCPU that a decision is about, and the decision without its name."""
        found = self._decision_pieces.get(number)
        if found is None:
            decided = self._decisions[number]
            text = repr(decided).replace(decided.vcpu, "it")
            found = self._hosts.vcpu_number(decided.vcpu), self._hosts.piece(text)
            self._decision_pieces[number] = found
        return found


def _brief(reply: object) -> str:
    return f"{reply.reason or reply.code}" if isinstance(reply, Refusal) else brief(reply)
