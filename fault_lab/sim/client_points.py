"""The points of a client's own gRPC: what an interceptor would do to a call, as ``fault_lab.live.interceptors`` does.

    rpc.client.send      a call begins, and nothing of it has left
    rpc.client.receive   an answer has arrived, and its caller has not heard of it: a reply, or a message of a stream

A call that is lost here is one whose deadline tells; a stream hears nothing behind a message that is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fault_lab.injection.action import Delay, Drop, Duplicate, FailStatus, Hold
from fault_lab.sim.wire import code_name
from guest_agent.outcome import Refusal

if TYPE_CHECKING:
    from fault_lab.sim.rpc import Exchange

SEND: Final = "rpc.client.send"
RECEIVE: Final = "rpc.client.receive"


def reached(
    point: str,
    exchange: Exchange,
    go_on: Callable[[], None],
    *,
    instead: Callable[[Refusal], None],
    again: Callable[[], None] = lambda: None,
) -> None:
    """Ask at a point: go on, go on later or never, answer with a status instead, or send it once more."""
    client, world = exchange.client, exchange.client.world
    found = world.hit(point, world.path_of(exchange.method), exchange.method)
    if found is None:
        go_on()
        return
    fired = found[0]
    match fired.action:
        case FailStatus(code, message):
            refusal = Refusal(code_name(code), message or f"{fired.fault} at {point}")
            client.after(0, f"{exchange.method} {refusal.code}", lambda: instead(refusal))
        case Delay(min_ns=ns) | Hold(for_ns=ns) if ns or isinstance(fired.action, Delay):
            client.after(ns, f"{exchange.method} goes on", go_on)
        case Hold():
            world.hold(fired.fault, client.of_this_life(go_on))
        case Drop():
            pass
        case Duplicate(copies=copies):
            go_on()
            for _ in range(copies):
                again()
        case _:
            go_on()
