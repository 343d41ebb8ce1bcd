"""A state of a small world, in numbers: where everybody is, what is on its way, and what the path has used up.

The host is a number of ``Hosts``, a guest's position one of ``Scripts``, a desk one of ``Desks``: so a state is small,
and two are equal where nothing that follows can tell them apart.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from fault_lab.explore.bounds import Spent
from fault_lab.explore.requests import Message

#: Where a vCPU's call is: SubmitEvents under way, WaitOutcome under way, that one waiting at the host, none before
#: there is a session again, none since the part is over, none since nothing is played.
Phase = Literal["asks", "waits", "parked", "held", "ended", "idle"]


class VcpuAt(NamedTuple):
    """A vCPU as its agent has it.

    Attributes:
        position: in what it plays.
        seq: the number of the event that is under way, or was last.
        phase: where its call is.
        inherited: whether the event is one of an earlier process, of which this one knows only that it pends.
    """

    position: int
    seq: int
    phase: Phase
    inherited: bool = False


class AgentAt(NamedTuple):
    """A VM's agent: its newest session, and whether that is open as far as the agent knows."""

    life: int
    open: bool


class ControllerAt(NamedTuple):
    """A controller: its newest control, whether it has it, its desk, and the news on their way to it, in order."""

    life: int
    held: bool
    desk: int
    news: tuple[tuple[int, int], ...] = ()


class State(NamedTuple):
    """One state.

    Attributes:
        host: the host, by number.
        durable: what of it is on the disk; the host itself where no host ever ends.
        vcpus, agents, controllers: in the order of the plan.
        flight: messages on their way; in the order in which they were sent where preemptions are bounded, else sorted.
        unsaid: what the host will say once all it has done is durable: messages, and news by controller.
        spent: what the path has used up.
    """

    host: int
    durable: int
    vcpus: tuple[VcpuAt, ...]
    agents: tuple[AgentAt, ...]
    controllers: tuple[ControllerAt, ...]
    flight: tuple[Message, ...] = ()
    unsaid: tuple[tuple[Message, ...], tuple[tuple[int, int, int], ...]] = ((), ())
    spent: Spent = Spent()


def with_vcpu(state: State, vcpu: int, at: VcpuAt) -> State:
    """Return the state with one vCPU elsewhere."""
    return state._replace(vcpus=(*state.vcpus[:vcpu], at, *state.vcpus[vcpu + 1 :]))


def with_agent(state: State, vm: int, at: AgentAt) -> State:
    """Return the state with one agent elsewhere."""
    return state._replace(agents=(*state.agents[:vm], at, *state.agents[vm + 1 :]))


def with_controller(state: State, nr: int, at: ControllerAt) -> State:
    """Return the state with one controller elsewhere."""
    return state._replace(controllers=(*state.controllers[:nr], at, *state.controllers[nr + 1 :]))
