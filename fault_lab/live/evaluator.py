"""FaultService.Evaluate as whoever runs a plan answers it: what is to go wrong at a point of somebody else's process.

One table for all of them, so that hits are numbered, budgets are kept and phases are entered in one place. It is on a
socket of the run's own; when the runner dies, so does the table, and nothing goes wrong any more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc

from fault_lab.injection.action import FailErrno
from fault_lab.injection.points import FAULT_POINTS, Seat
from fault_lab.live.points import LiveFaults
from fault_lab.wire.action import action_to_proto


class Evaluator(fault_pb2_grpc.FaultServiceServicer):
    """Serves at ``address``, a gRPC target, from ``start`` to ``close``."""

    def __init__(self, faults: LiveFaults, address: str) -> None:
        self.address = address
        self._faults = faults
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="evaluate"))
        fault_pb2_grpc.add_FaultServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(address)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def Evaluate(  # noqa: N802 -- the method's name in the contract
        self, request: fault_pb2.EvaluateRequest, context: grpc.ServicerContext
    ) -> fault_pb2.EvaluateResponse:
        """A point was reached."""
        point = FAULT_POINTS.get(request.point)
        if point is not None and point.seat is not Seat.WORLD:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"point: {request.point} is a host's own")
        firing = self._faults.hit(request.point, request.scope.entity, request.scope.trigger)
        if firing is None:
            return fault_pb2.EvaluateResponse()
        errno_value = firing.action.errno if isinstance(firing.action, FailErrno) else 0
        return fault_pb2.EvaluateResponse(
            errno_value=errno_value, fault=firing.fired.fault, action=action_to_proto(firing.action)
        )
