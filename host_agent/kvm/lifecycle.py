"""The life of a vCPU as one table: (state, event) -> state. A pair that is not there is a mistake, and changes nothing.

    OUTSIDE --ENTER--> ENTERED --LEAVE--> OUTSIDE          KVM_RUN and its return
    OUTSIDE --FAILED-> PARKED                              the swap-out could not grow: an exit is open
    PARKED  --ENTER--> ENTERED                             a retry, or the run after an answer
    PARKED  --PAUSE--> PAUSED  --ENTER--> ENTERED          the same, but nobody retries by itself
    any but DESTROYED --KILL--> KILLED                     the decision, or the VM is going
    any --BUG--> BROKEN                                    our bug: this vCPU stops, and says so

A parked vCPU is outside the guest: its thread's own container is active again.
"""

from __future__ import annotations

import enum
from typing import Final


class VcpuState(enum.Enum):
    """Where a vCPU is. The names are those of the wire."""

    OUTSIDE = "outside"
    ENTERED = "entered"
    PARKED = "parked"
    PAUSED = "paused"
    KILLED = "killed"
    BROKEN = "broken"


class VcpuEvent(enum.Enum):
    """What moves a vCPU from state to state."""

    ENTER = "enter"
    LEAVE = "leave"
    FAILED = "growth failed"
    SETTLE = "settle"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    KILL = "kill"
    BUG = "bug"


_S, _E = VcpuState, VcpuEvent

TRANSITIONS: Final[dict[tuple[VcpuState, VcpuEvent], VcpuState]] = {
    (_S.OUTSIDE, _E.ENTER): _S.ENTERED,
    (_S.OUTSIDE, _E.RESET): _S.OUTSIDE,
    (_S.OUTSIDE, _E.KILL): _S.KILLED,
    (_S.ENTERED, _E.LEAVE): _S.OUTSIDE,
    (_S.OUTSIDE, _E.FAILED): _S.PARKED,
    (_S.PARKED, _E.ENTER): _S.ENTERED,
    (_S.PARKED, _E.SETTLE): _S.OUTSIDE,
    (_S.PARKED, _E.PAUSE): _S.PAUSED,
    (_S.PARKED, _E.RESET): _S.OUTSIDE,
    (_S.PARKED, _E.KILL): _S.KILLED,
    (_S.PAUSED, _E.ENTER): _S.ENTERED,
    (_S.PAUSED, _E.SETTLE): _S.OUTSIDE,
    (_S.PAUSED, _E.PAUSE): _S.PAUSED,
    (_S.PAUSED, _E.RESUME): _S.PARKED,
    (_S.PAUSED, _E.RESET): _S.OUTSIDE,
    (_S.PAUSED, _E.KILL): _S.KILLED,
    (_S.KILLED, _E.RESET): _S.OUTSIDE,
    (_S.KILLED, _E.KILL): _S.KILLED,
    (_S.BROKEN, _E.KILL): _S.KILLED,
} | {(state, _E.BUG): _S.BROKEN for state in VcpuState}


class WrongStateError(Exception):
    """The vCPU is not in a state where this can happen. Nothing has changed."""

    def __init__(self, state: VcpuState, event: VcpuEvent) -> None:
        super().__init__(f"a vCPU that is {state.value} cannot {event.value}")
        self.state = state
        self.event = event


def next_state(state: VcpuState, event: VcpuEvent) -> VcpuState:
    """Look the pair up; ``WrongStateError`` if it is not in the table."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise WrongStateError(state, event)
    return found
