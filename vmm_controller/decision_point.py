"""The point ``controller.decide`` of docs/faults.md: a decision is made, and nobody has heard of it.

Whoever runs a plan is asked with FaultService.Evaluate what is to become of it: lost, late, sent again under other
request ids, or contradicted by another decision for the same generation. Nobody there, or nobody named: it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc

from vmm_controller.policy import Decision, Defer, ExitView, InjectGp, KillVcpu, Pause, Retry

POINT: Final = "controller.decide"
#: How late a decision is that others overtake, for each of them, in seconds.
_OVERTAKEN_S: Final = 0.01
_TIMEOUT_S: Final = 2.0
_OTHERS: Final[tuple[Decision, ...]] = (InjectGp(), Retry(), Pause(), KillVcpu(), Defer())


@dataclass(frozen=True, slots=True)
class Trouble:
    """What becomes of a decision."""

    lost: bool = False
    late_s: float = 0.0
    copies: int = 0
    contradicted: bool = False

    def besides(self, view: ExitView, decision: Decision) -> Iterator[Decision]:
        """What is sent beside it: copies, or the first other decision that the exit allows."""
        for _copy in range(self.copies):
            yield decision
        if self.contradicted:
            allowed = (each for each in _OTHERS if each.kind in view.allowed_decisions)
            other = next((each for each in allowed if each.kind is not decision.kind), None)
            if other is not None:
                yield other


class DecisionPoint:
    """Asks for one controller; ``address`` is a gRPC target, empty for nobody."""

    def __init__(self, address: str, name: str) -> None:
        self._name = name
        self._stub: fault_pb2_grpc.FaultServiceAsyncStub | None = None
        if address:
            self._stub = fault_pb2_grpc.FaultServiceStub(grpc.aio.insecure_channel(address))

    async def decide(self, decision: Decision) -> Trouble:
        """What is to become of this decision."""
        if self._stub is None:
            return Trouble()
        scope = fault_pb2.FaultScope(entity=self._name, trigger=decision.kind.name)
        try:
            answer = await self._stub.Evaluate(fault_pb2.EvaluateRequest(point=POINT, scope=scope), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return Trouble()
        return _trouble(answer.action)


def _trouble(action: fault_pb2.FaultAction) -> Trouble:
    match action.WhichOneof("kind"):
        case "drop_action":
            return Trouble(lost=True)
        case "delay_action":
            return Trouble(late_s=action.delay_action.min.ToTimedelta().total_seconds())
        case "hold_action":
            return Trouble(late_s=action.hold_action.duration.ToTimedelta().total_seconds())
        case "reorder_action":
            return Trouble(late_s=_OVERTAKEN_S * action.reorder_action.depth)
        case "duplicate_action":
            return Trouble(copies=action.duplicate_action.copies)
        case "corrupt_action":
            return Trouble(contradicted=True)
        case _:
            return Trouble()
