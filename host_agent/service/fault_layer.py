"""The layer of a host that is broken on purpose: calls that fail, or take long, before they are carried out or after.

    rpc.server.receive   the call has been admitted and not carried out; a stream: before its first message
    rpc.server.reply     a unary call was carried out, and what it did is durable: the reply is lost, or late

Innermost but for the calls that are not built, so that a fault concerns whoever may call; the release is outside of it.
The calls of FaultService pass, or nobody could disarm what was armed. Where no fault stands at a point, that is all
that is asked.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from fault_lab.injection.action import Delay, FailStatus
from fault_lab.injection.hit import Hit
from host_agent.commands import HitFault
from host_agent.faults import Verdict
from host_agent.service.access.ownership import resources
from host_agent.service.agent import HostAgent
from host_agent.service.layers import Behaviour, Context, Layer, Method

RECEIVE: Final = "rpc.server.receive"
REPLY: Final = "rpc.server.reply"
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class FaultLayer(Layer):
    """Around every method of ``fpstate.v1``."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The behaviour with both points around it."""
        if not method.service.startswith("fpstate.v1."):
            return behaviour
        stream = inspect.isasyncgenfunction(behaviour)
        return self._streaming(behaviour, method) if stream else self._unary(behaviour, method)

    def _unary(self, behaviour: Behaviour, method: Method) -> Behaviour:
        async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401 -- each method has its own types
            await self._reached(RECEIVE, method, request, context)
            reply = await behaviour(request, context)
            await self._reached(REPLY, method, request, context)
            return reply

        return answer

    def _streaming(self, behaviour: Behaviour, method: Method) -> Behaviour:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
            await self._reached(RECEIVE, method, request, context)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return answer

    async def _reached(self, point: str, method: Method, request: object, context: Context) -> None:
        if not self._agent.state.faults.stands_at(point):
            return
        verdict: Verdict = self._agent.submit(HitFault(hit=_hit(point, method, request)))
        match verdict.action:
            case FailStatus(code, message):
                await context.abort(_CODES[code], message or f"{verdict.fault} at {point}")
            case Delay(delay_ns):
                await self._sleep(delay_ns)
            case _:
                pass

    async def _sleep(self, delay_ns: int) -> None:
        """On the host's clock, which a test may hold."""
        over = asyncio.Event()
        timer = self._agent.clock.call_at(self._agent.clock.now_ns() + delay_ns, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()


def _hit(point: str, method: Method, request: object) -> Hit:
    """The VM and the vCPU are those that the request names first."""
    names = list(resources(request)) if isinstance(request, Message) else []
    name = next((name for name in names if name.startswith("vms/")), "")
    return Hit(
        point=point,
        entity=method.path,
        vm="/".join(name.split("/")[:2]),
        vcpu=name if "/vcpus/" in name else "",
        trigger=method.name,
        trace=(point, method.name),
    )
