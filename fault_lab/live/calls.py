"""What a client has called and what it was told, as the history has it: an interceptor of its channel.

    channel = recorded(grpc.insecure_channel(address), "vms/a", tell)

Each call is an ``invoke`` and then ``ok``, ``fail`` or ``info``, in the simulator's words: requests and replies become
the values that the simulator has in their place. What gRPC sends again by itself is one call, as it is to its caller.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any, Final

import grpc
from fpstate.v1 import session_pb2, vcpu_pb2, vm_pb2

from fault_lab.sim.brief import brief
from fault_lab.sim.operands import operation, result
from fault_lab.sim.rpc import UNKNOWN
from fault_lab.sim.services import WaitOutcome
from fault_lab.sim.wire import Answer
from guest_agent.error import host_error
from guest_agent.opening import opened_from_proto
from guest_agent.outcome import Refusal
from guest_agent.wire import outcome_from_proto
from host_agent import commands as c
from host_agent.service.translate.batch import batch_from_proto
from host_agent.service.translate.vm import create_vm_from_proto

#: Hears of a record: its type and its fields.
Tell = Callable[..., None]


def recorded(channel: grpc.Channel, node: str, tell: Tell) -> grpc.Channel:
    """The same channel, whose unary calls are told. ``node`` is who calls where the request names no vCPU."""
    return grpc.intercept_channel(channel, _Recorder(node, tell))


class _Recorder(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, node: str, tell: Tell) -> None:
        self._node = node
        self._tell = tell
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: ANN401
        """Tell of the call, let it happen, and tell what came of it, in whatever thread that becomes known."""
        with self._lock:
            number = next(self._numbers)
        method = client_call_details.method.rpartition("/")[2]
        process = _vcpu_of(request) or self._node
        asked = _as_simulated(_REQUESTS, request)
        who = {"process": process, "f": method, "call": number}
        self._tell("invoke", **who, value=brief(asked).removesuffix("Request"), **operation(asked))
        call = continuation(client_call_details, request)
        call.add_done_callback(lambda done: self._over(done, asked, who))
        return call

    def _over(self, call: Any, asked: object, who: dict[str, object]) -> None:  # noqa: ANN401 -- a grpc.Future
        """Tell how a call has ended."""
        if call.cancelled():  # by its caller, who is told by nobody
            self._tell("info", **who, value="CANCELLED")
        elif (error := call.exception()) is not None:
            kind, said = _refusal_brief(host_error(error).refusal)
            self._tell(kind, **who, value=said)
        else:
            reply = _as_simulated(_REPLIES, call.result())
            said = brief(reply) if type(call.result()) in _BRIEF else ""
            self._tell("ok", **who, value=said, **result(asked, reply))


def _refusal_brief(refusal: Refusal) -> tuple[str, str]:
    """The type of the record, ``fail`` or ``info``, and its words."""
    return "info" if refusal.code in UNKNOWN else "fail", f"{refusal.code} {refusal.reason}".strip()


def _as_simulated(known: dict[type, Callable[[Any], object]], message: Any) -> object:  # noqa: ANN401 -- any message
    """The value that says the same in the simulator; the message itself where that has none."""
    make = known.get(type(message))
    return make(message) if make is not None else message


def _vcpu_of(request: Any) -> str:  # noqa: ANN401 -- any message
    match request:
        case session_pb2.SubmitEventsRequest(batch=batch):
            events = batch_from_proto("batch", batch).events
            return events[0].vcpu if events else ""
        case session_pb2.WaitOutcomeRequest(vcpu=vcpu):
            return str(vcpu)
        case _:
            return ""


def _batch(message: session_pb2.SubmitEventsRequest) -> c.SubmitBatch:
    read = batch_from_proto("batch", message.batch)
    return c.SubmitBatch(session=message.session, epoch=message.epoch, events=tuple(read.events))


def _answer(message: session_pb2.SubmitEventsResponse) -> Answer:
    outcome = message.outcomes.outcomes[0]
    return Answer(outcome_from_proto(outcome), outcome.seq)


#: Messages, and the values that say the same in the simulator.
_REQUESTS: Final[dict[type, Callable[[Any], object]]] = {
    vm_pb2.CreateVmRequest: create_vm_from_proto,
    vcpu_pb2.CreateVcpuRequest: lambda message: c.CreateVcpu(
        vm=message.parent, index=message.index, request_id=message.request_id
    ),
    session_pb2.OpenSessionRequest: lambda message: c.OpenSession(client_name="", vcpus=tuple(message.vcpus)),
    session_pb2.KeepAliveRequest: lambda message: c.KeepAlive(session=message.session, epoch=message.epoch),
    session_pb2.SubmitEventsRequest: _batch,
    session_pb2.WaitOutcomeRequest: lambda message: WaitOutcome(
        message.session, message.epoch, message.vcpu, message.seq
    ),
}
_REPLIES: Final[dict[type, Callable[[Any], object]]] = {
    session_pb2.OpenSessionResponse: opened_from_proto,
    session_pb2.SubmitEventsResponse: _answer,
    session_pb2.WaitOutcomeResponse: lambda message: outcome_from_proto(message.outcome),
    vcpu_pb2.CreateVcpuResponse: lambda message: message.vcpu,
}
#: Replies of which the simulator says more than that they came.
_BRIEF: Final = (session_pb2.OpenSessionResponse, session_pb2.SubmitEventsResponse, session_pb2.WaitOutcomeResponse)
