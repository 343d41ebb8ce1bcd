"""What a controller tells about itself: one flat dict per event, which JSON can hold.

| event        | when                                          | further keys                                   |
|--------------|-----------------------------------------------|------------------------------------------------|
| control      | the scope was acquired, is held by another, was lost, was released | what, scope, control, ... |
| watching     | the exits are known and followed              | open: how many are not resolved                |
| disconnected | the host cannot be reached                    | code, message, delay_s until the next try      |
| exit         | an exit was raised or has changed             | which, and all of it: see `exit_event`         |
| decision     | a decision is on its way                      | which, decision, and its parameters            |
| result       | the host has taken it                         | which, state, result, decided_by               |
| refused      | the host has not                              | which, decision, reason, message, metadata     |
| left         | no decision of ours: the deadline decides     | which, why                                     |

"Which" is exit, vm, vcpu, generation, attempt, revision.

Sizes in bytes, masks as numbers, delays in seconds. `revision`, where there is one, is the host's: it puts what several
processes tell about one host in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vmm_controller.error import CallError
from vmm_controller.policy import Decision, ExitView

Event = dict[str, object]
OnEvent = Callable[[Event], None]


def exit_event(view: ExitView) -> Event:
    """An exit as it is now."""
    return {
        "event": "exit",
        **_which(view),
        "state": view.state.name,
        "cause": view.cause.name,
        "trigger": view.trigger.name,
        "errno": view.errno,
        "errno_name": view.errno_name,
        "bytes_needed": view.bytes_needed,
        "xfeatures": view.xfeatures,
        "old_xcr0": view.old_xcr0,
        "new_xcr0": view.new_xcr0,
        "old_xfd": view.old_xfd,
        "new_xfd": view.new_xfd,
        "allowed": sorted(kind.name for kind in view.allowed_decisions),
        **_outcome(view),
    }


def decision_event(view: ExitView, decision: Decision) -> Event:
    """What was decided about an exit."""
    return {"event": "decision", **_which(view), "decision": decision.kind.name, **dataclasses.asdict(decision)}


def result_event(view: ExitView, *, trace_id: str = "", event_trace_id: str = "") -> Event:
    """What a decision came to: the exit after it. The traces are the decision's, and that of the guest's event."""
    traces = {"trace_id": trace_id, "event_trace_id": event_trace_id}
    return {"event": "result", **_which(view), "state": view.state.name, **_outcome(view), **traces}


def refused_event(view: ExitView, decision: Decision, error: CallError) -> Event:
    """A decision that the host did not take."""
    return {"event": "refused", **_which(view), "decision": decision.kind.name, **_error(error)}


def left_event(view: ExitView, why: str) -> Event:
    """An exit that is left to its deadline."""
    return {"event": "left", **_which(view), "why": why}


def control_event(what: str, scope: str, **more: object) -> Event:
    """What happened to the control: acquired, held-by-another, lost, released."""
    return {"event": "control", "what": what, "scope": scope, **more}


def disconnected_event(error: CallError, delay_s: float) -> Event:
    """The host cannot be reached, and is tried again after `delay_s`."""
    return {"event": "disconnected", "code": error.code.name, "message": error.message, "delay_s": delay_s}


def watching_event(*, open_exits: int, revision: int) -> Event:
    """The exits are known as of `revision`, and followed from there."""
    return {"event": "watching", "open": open_exits, "revision": revision}


def _which(view: ExitView) -> Event:
    return {
        "exit": view.name,
        "vm": view.vm,
        "vcpu": view.vcpu,
        "generation": view.generation,
        "attempt": view.attempt,
        "revision": view.update_revision,
    }


def _outcome(view: ExitView) -> Event:
    return {
        "decided_by": view.decided_by,
        "last_decision": view.decision.name if view.decision else "",
        "result": view.result.name if view.result.value else "",
    }


def _error(error: CallError) -> Event:
    return {"reason": error.reason or error.code.name, "message": error.message, "metadata": error.metadata}
