"""The points of a run as one of its processes sees them: the table is the runner's, and is asked over its socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc

from fault_lab.injection.action import Action
from fault_lab.wire.action import action_from_proto

_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class AskedPoint:
    """What fired: by which name, at which point."""

    fault: str
    point: str


@dataclass(frozen=True, slots=True)
class AskedFiring:
    """A hit that fires, as ``Firing`` is in the process that has the table."""

    fired: AskedPoint
    action: Action


class AskedFaults:
    """What interceptors need of ``LiveFaults``. A runner that is not there any more has nothing go wrong."""

    def __init__(self, address: str) -> None:
        self._stub = fault_pb2_grpc.FaultServiceStub(grpc.insecure_channel(address))

    def hit(self, point: str, entity: str, trigger: str = "") -> AskedFiring | None:
        """A point was reached."""
        scope = fault_pb2.FaultScope(entity=entity, trigger=trigger)
        try:
            answer = self._stub.Evaluate(fault_pb2.EvaluateRequest(point=point, scope=scope), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return None
        if not answer.fault:
            return None
        return AskedFiring(AskedPoint(answer.fault, point), action_from_proto("action", answer.action))

    def stands(self, fault: str) -> bool:
        """Nobody says when a fault goes: what it holds is held until the call's deadline."""
        return bool(fault)

    def when_changed(self, _listener: Callable[[], None]) -> Callable[[], None]:
        """As ``LiveFaults.when_changed``; there is nothing to hear."""
        return lambda: None
