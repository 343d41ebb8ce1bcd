"""Sessions."""

from __future__ import annotations

from fpstate.v1 import session_pb2

from host_agent.service.translate.fields import duration
from host_agent.state import SessionRecord


def session_to_proto(session: SessionRecord) -> session_pb2.Session:
    """A session as it is now."""
    return session_pb2.Session(
        name=session.name,
        epoch=session.epoch,
        client_name=session.client_name,
        vcpus=session.vcpus,
        lease=duration(session.lease_ns),
        run_mode=session_pb2.RUN_MODE_EXPLICIT if session.explicit else session_pb2.RUN_MODE_IMPLICIT,
    )
