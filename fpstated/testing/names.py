"""What tests import from ``fpstated.testing``: classes and contexts, loaded when somebody wants the first."""

from __future__ import annotations

from fpstated.testing.run import FaultRun, FaultRuns
from fpstated.testing.sim_world import SimWorld
from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest, async_host, host_on_a_thread
from host_agent.service.clock import ManualClock

__all__ = [
    "AsyncHostUnderTest",
    "FaultRun",
    "FaultRuns",
    "HostUnderTest",
    "ManualClock",
    "SimWorld",
    "async_host",
    "host_on_a_thread",
]
