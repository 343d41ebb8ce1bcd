"""grpc.health.v1 with the call that grpcio's own servicer does not have.

Its generated base answers a call that is not written with an exception, which here would be a bug of the host.
"""

from __future__ import annotations

from typing import Any

from grpc_health.v1 import health, health_pb2

from host_agent.service.layers import Context


class HealthService(health.aio.HealthServicer):
    """Check and Watch as grpcio has them, and List."""

    async def List(self, request: Any, context: Context) -> Any:  # noqa: ANN401 -- the type stubs are behind
        """The status of every service, that of the host as a whole under the empty name."""
        response = health_pb2.HealthCheckResponse
        found: dict[str, Any] = vars(self)["_server_status"]
        statuses = {name: response(status=status) for name, status in found.items()}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]
