"""One vCPU, one operation after the other: what each may answer and what it leaves, by the rules of KVM.

What is legal is asked of ``host_agent.kvm``; what follows from it is written down here again, small, so that a machine
that does something else is not its own witness. What happens inside a host without a call (a RETRY_AFTER whose delay
is over, a deadline that pauses) may have happened before any operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fault_lab.linear.decisions import decided, initialised, killed, reset_state, retried
from fault_lab.linear.events import EVENTS, Found
from fault_lab.linear.state import DYNAMIC, Heard, State, agree, missing
from fault_lab.linear.what import (
    Create,
    Decide,
    Event,
    Gone,
    Kill,
    Look,
    LookAt,
    Reset,
    Set,
    Shrink,
    Wait,
    What,
)
from host_agent.kvm.xcr0 import xcr0_error

_REJECTED: Final = Heard("rejected")


@dataclass(frozen=True, slots=True)
class VcpuModel:
    """The rules for one vCPU. ``supported_xcr0`` is what its CPUID lets it enable; None where nobody has said."""

    supported_xcr0: int | None = None

    @property
    def initial(self) -> State:
        """There is none yet."""
        return State()

    def step(self, state: State, what: What) -> Sequence[State]:
        """Return every state that it may lead to; none where it cannot be."""
        step, supported = _STEPS[type(what)], self.supported_xcr0
        after = step(supported, state, what)
        if state.parked is not None and state.parked.timer:
            by_itself = retried(state)
            return [*after, *(each for other in by_itself for each in step(supported, other, what))]
        return after

    def unanswered(self, what: What) -> What | None:
        """What it was before anybody heard."""
        match what:
            case Event():
                return what._replace(heard=None)
            case Decide():
                return what._replace(left=None)
            case Look() | LookAt() | Wait():
                return None
            case _:
                return what


def _event(supported: int | None, state: State, what: Event) -> Sequence[State]:
    seq, kind, operands, heard = what
    turn = state.life != "absent" and seq == state.seq + 1
    refused = [state._replace(seq=seq, settled=_REJECTED)] if turn and state.parked is None else []
    if heard is not None and heard.tag == "rejected":  # whether that uses its number up depends on the reason
        return [state, *refused]
    if not turn:
        return ()
    found: Found = []
    if state.life == "here":
        if kind == "Init":
            found = [(Heard("done"), initialised(state))]
        elif state.parked is None:
            execute = EVENTS.get(kind)
            found = [(Heard("done"), state)] if execute is None else execute(supported, state, dict(operands), heard)
    return [*_told(found, seq, heard), *(refused if heard is None else ())]


def _look(_supported: int | None, state: State, what: Look) -> Sequence[State]:
    if state.life == "absent" or (what.state == "KILLED") != (state.life == "killed"):
        return ()
    if (what.state in ("PARKED", "PAUSED")) != (state.parked is not None and state.life == "here"):
        return ()
    if (what.seq, what.xcr0, what.xfd, what.xfd_err) != (state.seq, state.xcr0, state.xfd, state.xfd_err):
        return ()
    if state.size == what.size and state.xfeatures == what.xfeatures:
        return (state,)
    if (state.xfeatures or what.xfeatures) != what.xfeatures or (state.size or what.size) != what.size:
        return ()
    return (state._replace(xfeatures=what.xfeatures, size=what.size),)


def _look_at(_supported: int | None, state: State, what: LookAt) -> Sequence[State]:
    if state.life == "absent":
        return ()
    for name, value in what.read:
        if name == "xstate_bv":
            if state.xfeatures and value & DYNAMIC & ~state.xfeatures:
                return ()
        elif getattr(state, name) != value:
            return ()
    return (state,)


def _set(supported: int | None, state: State, what: Set) -> Sequence[State]:
    if state.life != "here" or state.parked is not None:
        return ()
    written: dict[str, Any] = dict(what.written)
    after = state._replace(**written)
    if supported is not None and xcr0_error(0, after.xcr0, supported) is not None:
        return ()
    if what.grown:
        return (after._replace(xfeatures=after.xfeatures and after.xfeatures | DYNAMIC, size=what.grown),)
    return () if missing(after, after.xcr0, after.xfd) else (after,)


def _decide(_supported: int | None, state: State, what: Decide) -> Sequence[State]:
    parked = state.parked
    if parked is None or state.seq != what.seq or what.generation < parked.generation:
        return ()
    at = state._replace(parked=parked._replace(generation=what.generation, timer=False))
    return [each for left, each in decided(at, what.decision) if what.left in (None, left)]


def _wait(_supported: int | None, state: State, what: Wait) -> Sequence[State]:
    if what.seq < state.seq and state.life != "absent":
        return (state,)  # an INIT came behind it: what it came to is not kept here
    if what.seq != state.seq:
        return ()
    parked = state.parked
    if parked is not None:
        generation = what.heard.value or 0
        if what.heard.tag != "pending" or generation < parked.generation:
            return ()
        later = generation > parked.generation
        return (state._replace(parked=parked._replace(generation=generation, timer=False)) if later else state,)
    return (state,) if state.settled is not None and agree(state.settled, what.heard) else ()


def _create(_supported: int | None, state: State, _what: Create) -> Sequence[State]:
    return (State("here"),) if state.life == "absent" else ()


def _gone(_supported: int | None, _state: State, _what: Gone) -> Sequence[State]:
    return (State(),)


def _reset(_supported: int | None, state: State, _what: Reset) -> Sequence[State]:
    return (state,) if state.life == "absent" else (reset_state(state),)


def _kill(_supported: int | None, state: State, _what: Kill) -> Sequence[State]:
    return (state,) if state.life == "absent" else (killed(state),)


def _shrink(_supported: int | None, state: State, _what: Shrink) -> Sequence[State]:
    """It may have taken something from this vCPU or not; the size is whatever is seen next."""
    if state.life == "absent" or not state.xfeatures & DYNAMIC or state.xcr0 & ~state.xfd & DYNAMIC:
        return (state,)
    return (state, state._replace(xfeatures=state.xfeatures & ~DYNAMIC, size=0))


def _told(found: Found, seq: int, heard: Heard | None) -> Sequence[State]:
    """Those of what may have happened that agree with what was heard."""
    return [
        state._replace(seq=seq, settled=None if state.parked else made if heard is None else heard)
        for made, state in found
        if heard is None or agree(made, heard)
    ]


_STEPS: Final[dict[type, Callable[[int | None, State, Any], Sequence[State]]]] = {
    Event: _event,
    Wait: _wait,
    Decide: _decide,
    Create: _create,
    Gone: _gone,
    Reset: _reset,
    Kill: _kill,
    Shrink: _shrink,
    Look: _look,
    LookAt: _look_at,
    Set: _set,
}
