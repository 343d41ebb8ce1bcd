"""MigrationService: CheckCompat. The calls that move a VM are not in this release (``unbuilt.UNBUILT``)."""

from __future__ import annotations

from fpstate.v1 import migration_pb2, migration_pb2_grpc

from host_agent.compat import check_compat
from host_agent.service.agent import HostAgent
from host_agent.service.layers import Context
from host_agent.service.translate.compat import incompatibility_to_proto, requirements_from_proto
from host_agent.service.translate.fields import header


class MigrationService(migration_pb2_grpc.MigrationServiceServicer):
    """Moving VMs between hosts."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent

    async def CheckCompat(
        self, request: migration_pb2.CheckCompatRequest, context: Context
    ) -> migration_pb2.CheckCompatResponse:
        """Whether this host could hold and run such a VM, and all that stands against it."""
        state = self._agent.state
        found = check_compat(state, requirements_from_proto(request.requirements))
        return migration_pb2.CheckCompatResponse(
            header=header(state),
            compatible=not found,
            incompatibilities=[incompatibility_to_proto(each) for each in found],
        )
