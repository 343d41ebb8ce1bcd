"""What can happen next in a state: the one transition of a small world.

a message arrives at the host       in any order; the machine carries it out, and one hit of it may fail
a reply arrives at its agent        the guest goes on, and sends its next event at once
news arrives at a controller        its policy decides; the decision may be lost, doubled or contradicted
the first deadline of an exit comes the agents and controllers that live renew what they hold meanwhile
an agent's lease is over            it stood still, and finds out with its next call
a process ends and comes back       an agent, a controller, or the host from what was durable
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fault_lab.explore.bounds import Bounds
from fault_lab.explore.hosts import Hosts, Step
from fault_lab.explore.menu import Menu
from fault_lab.explore.people import People
from fault_lab.explore.requests import Clock, Message
from fault_lab.explore.state import State, with_controller
from fault_lab.injection.action import Action, Corrupt, Drop, Duplicate, FailErrno, Kill, Pause
from fault_lab.injection.hit import Hit

REPLIES: Final = frozenset({"opened", "answer", "held"})


@dataclass(frozen=True, slots=True)
class Fire:
    """A hit that fires: the point, whose hit, the trigger, and what happens."""

    point: str
    entity: str
    trigger: str
    action: Action
    #: The message that it is about, where it is about one.
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One transition.

    Attributes:
        text: what happens, for people.
        state: where it leads; None where a check does not hold.
        fires: the fault that fires, if one does.
        hits: the hits of the host's points on the way, in their order.
        message: what arrives, where it is a message that does.
        deadline: whether it is an exit's deadline that passes.
        decides: the controller that makes a decision, empty for none.
        violation: the check that does not hold, and what was found.
    """

    text: str
    state: State | None
    fires: Fire | None = None
    hits: tuple[Hit, ...] = ()
    message: Message | None = None
    deadline: bool = False
    decides: str = ""
    violation: tuple[str, str] | None = None


class Moves:
    """The transitions of one world within bounds."""

    def __init__(self, hosts: Hosts, people: People, menu: Menu, bounds: Bounds) -> None:
        self._hosts = hosts
        self._people = people
        self._menu = menu
        self._bounds = bounds
        self._cast = hosts.cast

    def of(self, state: State) -> list[Move]:
        """Every move of a state, or, with the reduction, those of one who concerns nobody else where there is one."""
        local = self._local(state)
        if local is not None:
            return local
        moves = [move for at in range(len(state.flight)) for move in self._arrives(state, at)]
        for nr in range(len(state.controllers)):
            moves += self._hears(state, nr)
        moves += self._time(state)
        moves += self._ends(state)
        if state.durable != state.host or any(state.unsaid):
            moves.append(Move(f"{self._cast.host.name}: commits", self._people.committed(state)))
        return [move for move in moves if move.state is None or move.state.spent.within(self._bounds)]

    def _local(self, state: State) -> list[Move] | None:
        """The moves of a reply or of news that nothing else can change or prevent, and that change nobody else's."""
        if not self._bounds.reduction or self._may_crash(state):
            return None
        for at, message in enumerate(state.flight):
            if message.kind in REPLIES and (at == 0 or self._bounds.preemptions is None):
                moves = list(self._arrives(state, at))
                return [move for move in moves if move.state is None or move.state.spent.within(self._bounds)]
        for nr, controller in enumerate(state.controllers):
            if controller.news and controller.held:
                moves = self._hears(state, nr)
                return [move for move in moves if move.state is None or move.state.spent.within(self._bounds)]
        return None

    def _may_crash(self, state: State) -> bool:
        """Whether a process may still end: then nothing is local, since it may end before or behind it."""
        spent = state.spent
        left = spent.crashes < self._bounds.crashes and spent.faults < self._bounds.faults
        return left and self._menu.may_crash

    # -- messages ------------------------------------------------------------------------------------------------------

    def _arrives(self, state: State, at: int) -> Iterator[Move]:
        message = state.flight[at]
        # With preemptions bounded the oldest is next, and every other one that comes before it is out of turn.
        spent = state.spent
        if self._bounds.preemptions is not None and at:
            spent = spent._replace(preemptions=spent.preemptions + 1)
        taken = state._replace(flight=(*state.flight[:at], *state.flight[at + 1 :]), spent=spent)
        if at and message == state.flight[at - 1]:
            return
        text = self._people.text(message)
        if message.kind in REPLIES:
            yield from self._reply_arrives(taken, message, text)
        else:
            yield from self._request_arrives(taken, message, text)
        yield from self._doubled(state, message, text)

    def _request_arrives(self, state: State, message: Message, text: str) -> Iterator[Move]:
        request = self._people.request(message)
        step = self._hosts.step(state.host, request)
        yield self._carried_out(state, message, text, step, None)
        if state.spent.faults < self._bounds.faults:
            for nr, hit in enumerate(step.met):
                failed = self._hosts.step(state.host, request, nr)
                fault = self._menu.fits(hit)
                assert fault is not None, "what was met has a fault that fits"
                action = fault.action
                fire = Fire(hit.point, hit.entity, hit.trigger, action)
                after = state._replace(spent=state.spent.and_fault())
                why = action.errno if isinstance(action, FailErrno) else 0
                yield self._carried_out(after, message, f"{text}; {hit.point} fails with {why}", failed, fire)

    def _carried_out(self, state: State, message: Message, text: str, step: Step, fire: Fire | None) -> Move:
        if step.violation is not None:
            return Move(text, None, fire, step.all, message, violation=step.violation)
        return Move(text, self._people.answered(state, message, step), fire, step.all, message)

    def _reply_arrives(self, state: State, message: Message, text: str) -> Iterator[Move]:
        heard = self._people.heard(state, message)
        if isinstance(heard, State):
            yield Move(text, heard, message=message)
        else:
            yield Move(text, None, message=message, violation=heard)
        link, trigger = self._people.link(message)
        if Drop() in self._menu.actions("link.message", link, trigger) and message.kind == "answer":
            # The call's deadline passes, and the same is asked again.
            fire = Fire("link.message", link, trigger, Drop(), message)
            lost = state._replace(spent=state.spent.and_fault(drops=1))
            yield Move(f"{text} is lost", self._people.asked_again(lost, message.who), fire)

    def _doubled(self, state: State, message: Message, text: str) -> Iterator[Move]:
        """The request stays on its way once more; the answer to the copy reaches nobody."""
        if not message.fresh or message.kind in REPLIES or state.spent.duplicates >= self._bounds.duplicates:
            return
        link, trigger = self._people.link(message)
        for action in self._menu.actions("link.message", link, trigger):
            if isinstance(action, Duplicate):
                fire = Fire("link.message", link, trigger, action, message)
                spent = state.spent.and_fault(duplicates=1)
                copy = message._replace(fresh=False)
                yield Move(f"{text} comes twice", self._people.sent(state._replace(spent=spent), copy), fire)

    # -- controllers ---------------------------------------------------------------------------------------------------

    def _hears(self, state: State, nr: int) -> list[Move]:
        controller = state.controllers[nr]
        if not controller.news or not controller.held:
            return []
        name = self._cast.controllers[nr].name
        (_, view), *rest = controller.news
        desk, decided = self._people.desks[nr].hear(controller.desk, view, self._hosts.views[view])
        at = controller._replace(desk=desk, news=tuple(rest))
        after = with_controller(state, nr, at)
        seen = self._hosts.views[view]
        text = f"{name}: sees {seen.name} generation {seen.generation} {seen.state.name}"
        if decided is None:
            return [Move(text, after)]
        kind = decided.decision.kind.name
        text = f"{text}, decides {kind}"
        first = Message("decide", nr, controller.life, self._people.decision(decided), 0, fresh=False)
        made = [Move(text, self._people.sent(after, first), decides=name)]
        for action in self._menu.actions("controller.decide", name, kind):
            fire = Fire("controller.decide", name, kind, action)
            match action:
                case Drop():
                    lost = after._replace(spent=after.spent.and_fault(drops=1))
                    made.append(Move(f"{text}, which is lost", lost, fire, decides=name))
                case Duplicate():
                    twice = after._replace(spent=after.spent.and_fault(duplicates=1))
                    copy = first._replace(more=1)
                    made.append(Move(f"{text}, twice", self._people.sent(twice, first, copy), fire, decides=name))
                case Corrupt():
                    for other in self._people.others(decided):
                        spent = after._replace(spent=after.spent.and_fault(duplicates=1))
                        against = first._replace(what=self._people.decision(other), more=2)
                        said = f"{text}, and {other.decision.kind.name}"
                        made.append(Move(said, self._people.sent(spent, first, against), fire, decides=name))
                case _:
                    pass
        return made

    # -- time ----------------------------------------------------------------------------------------------------------

    def _time(self, state: State) -> Iterator[Move]:
        due = self._hosts.next_due(state.host)
        if due:
            spent = state.spent
            if due == "deadline" and self._bounds.preemptions is not None:
                spent = spent._replace(preemptions=spent.preemptions + 1)
            text = f"{self._cast.host.name}: " + (
                "the time to try again comes" if due == "retry" else "a deadline passes"
            )
            yield from self._ticks(state._replace(spent=spent), None, text, None, deadline=due == "deadline")
        for vm, agent in enumerate(state.agents):
            name = self._cast.vm_name(vm)
            pauses = [each for each in self._menu.actions("node.run", name) if isinstance(each, Pause)]
            if pauses and agent.open and (vm, agent.life) not in self._hosts.ended_sessions(state.host):
                fire = Fire("node.run", name, "", pauses[0])
                after = state._replace(spent=state.spent.and_fault(crashes=1))
                yield from self._ticks(after, vm, f"{name}: stands still until its lease is over", fire, deadline=False)

    def _ticks(self, state: State, vm: int | None, text: str, fire: Fire | None, *, deadline: bool) -> Iterator[Move]:
        if not state.spent.within(self._bounds):
            return
        agents = tuple((nr, agent.life) for nr, agent in enumerate(state.agents) if agent.open and nr != vm)
        controllers = tuple((nr, each.life) for nr, each in enumerate(state.controllers) if each.held)
        request = Clock(vm, agents, controllers)
        step = self._hosts.step(state.host, request)
        chosen = [(-1, step, fire, state)]
        if fire is None and state.spent.faults < self._bounds.faults:
            for nr, hit in enumerate(step.met):
                fault = self._menu.fits(hit)
                assert fault is not None, "what was met has a fault that fits"
                fails = Fire(hit.point, hit.entity, hit.trigger, fault.action)
                spent = state._replace(spent=state.spent.and_fault())
                chosen.append((nr, self._hosts.step(state.host, request, nr), fails, spent))
        for nr, each, fires, before in chosen:
            said = text if nr < 0 else f"{text}; {step.met[nr].point} fails"
            if each.violation is not None:
                yield Move(said, None, fires, each.all, deadline=deadline, violation=each.violation)
            else:
                yield Move(said, self._people.answered(before, None, each), fires, each.all, deadline=deadline)

    # -- processes -----------------------------------------------------------------------------------------------------

    def _ends(self, state: State) -> Iterator[Move]:
        if not self._may_crash(state):
            return
        after = state._replace(spent=state.spent.and_fault(crashes=1))
        for vm in range(len(state.agents)):
            name = self._cast.vm_name(vm)
            for action in self._kills(name):
                fire = Fire("node.run", name, "", action)
                yield Move(f"{name}: the agent ends, and starts again", self._people.agent_starts(after, vm), fire)
        for nr, controller in enumerate(self._cast.controllers):
            for action in self._kills(controller.name):
                fire = Fire("node.run", controller.name, "", action)
                text = f"{controller.name}: ends, and starts again"
                yield Move(text, self._people.controller_starts(after, nr), fire)
        name = self._cast.host.name
        for action in self._kills(name):
            fire = Fire("node.run", name, "", action)
            step = self._hosts.recovered(state.durable)
            text = f"{name}: ends, and comes back as it was durable"
            if step.violation is not None:
                yield Move(text, None, fire, violation=step.violation)
            else:
                yield Move(text, self._people.host_starts(after, step.host), fire)

    def _kills(self, name: str) -> list[Kill]:
        return [each for each in self._menu.actions("node.run", name) if isinstance(each, Kill)][:1]
