"""What decisions, and what comes without a call, make of a vCPU. Sources: as in ``host_agent.decisions``."""

from __future__ import annotations

from collections.abc import Iterator

from fault_lab.linear.state import DYNAMIC, Heard, State


def retried(state: State) -> Iterator[State]:
    """A RETRY that grows, or one that fails again, which is at a later generation."""
    parked = state.parked
    assert parked is not None
    wide = state.xfeatures and state.xfeatures | DYNAMIC
    grown = state._replace(xcr0=parked.xcr0, xfd=parked.xfd, xfeatures=wide, size=0, parked=None)
    yield grown._replace(settled=Heard("done", None, -1))


def initialised(state: State) -> State:
    """INIT keeps XCR0 and XFD; an exit that the vCPU was parked on is cancelled, a reported CR4 is 0."""
    return state._replace(parked=None, osxsave=None if state.osxsave is None else False)


def reset_state(state: State) -> State:
    """RESET: XCR0 is 1, XFD and XFD_ERR are 0; the container stays, and what pended is gone."""
    settled = Heard("gone") if state.parked is not None else state.settled
    cr4 = None if state.osxsave is None else False
    fresh = State("here", state.seq, xfeatures=state.xfeatures, size=state.size)
    return fresh._replace(osxsave=cr4, settled=settled)


def killed(state: State) -> State:
    """It stops for good; what pended is gone."""
    settled = Heard("gone") if state.parked is not None else state.settled
    return state._replace(life="killed", parked=None, settled=settled)


def decided(state: State, decision: str) -> Iterator[tuple[str, State]]:
    """Each way that a decision may go: the exit's state after it, and the vCPU's."""
    parked = state.parked
    assert parked is not None
    later = parked._replace(generation=parked.generation + 1)
    out = state._replace(parked=None)
    match decision:
        case "RETRY" | "RAISE_LIMIT" | "RECLAIM":
            yield from (("RESOLVED", each) for each in retried(state))
            yield "OPEN", state._replace(parked=later)
        case "RETRY_AFTER":
            yield "APPLYING", state._replace(parked=parked._replace(timer=True))
        case "INJECT_GP" | "HIDE_FEATURE":
            yield "RESOLVED", out._replace(settled=Heard("#GP"))
        case "INJECT_NM":
            xfd_err = parked.xcr0 & ~parked.xfd & DYNAMIC & state.xfd
            yield "RESOLVED", out._replace(xfd_err=xfd_err, settled=Heard("#NM", xfd_err))
        case "DEFER":
            yield "RESOLVED", out._replace(settled=Heard("done"))
        case "PAUSE":
            yield "PAUSED", state._replace(parked=later)
        case "KILL_VCPU" | "KILL_VM":
            yield "RESOLVED", killed(state)
        case "RESET_VM":
            yield "RESOLVED", reset_state(state)
        case _:
            raise ValueError(decision)
