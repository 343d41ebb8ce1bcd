"""Points of a process that are somebody else's to decide: whoever runs a plan is asked, with FaultService.Evaluate.

A host's own points are decided in its machine, so that its log replays with what fired. The disk under its journal is
no part of that: what it does is asked for where the plan's other faults are. Nobody there: nothing goes wrong.
"""

from __future__ import annotations

from typing import Final

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc

#: Longer than a busy machine takes, shorter than what makes a client impatient.
_TIMEOUT_S: Final = 2.0


class FaultPoints:
    """The points of one node, for blocking callers on any thread. ``address`` is a gRPC target."""

    def __init__(self, address: str, node: str) -> None:
        self._stub = fault_pb2_grpc.FaultServiceStub(grpc.insecure_channel(address))
        self._node = node

    def errno(self, point: str) -> int:
        """With which errno the point is to fail now; 0 for not at all."""
        scope = fault_pb2.FaultScope(entity=self._node)
        request = fault_pb2.EvaluateRequest(point=point, scope=scope)
        try:
            return self._stub.Evaluate(request, timeout=_TIMEOUT_S).errno_value
        except grpc.RpcError:
            return 0
