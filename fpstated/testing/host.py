"""A host agent in this process, for tests that block. What the fixtures give is typed in ``fpstated.testing_host``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fpstated.testing.options import need_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fault_lab.injection.table import ArmedFault
    from fpstated.testing_host import HostUnderTest
    from guest_agent.port import VcpuPort
    from host_agent.service.clock import ManualClock
    from host_agent.state import HostConfig
    from vmm_controller.controller import Controller


@pytest.fixture
def fpstated_config() -> HostConfig:
    """How the host is started: faults can be armed, invariants are checked. Override it for anything else."""
    need_everything()
    from host_agent.state import HostConfig

    return HostConfig(host="test-host", boot_id="test-boot", faults=True, check_invariants=True)


@pytest.fixture
def fpstated_clock() -> ManualClock:
    """A clock that stands still. A test that asks for it has a host that runs on it."""
    need_everything()
    from host_agent.service.clock import ManualClock

    return ManualClock()


def clock_of(request: pytest.FixtureRequest) -> ManualClock | None:
    """The manual clock, where the test has asked for it."""
    return request.getfixturevalue("fpstated_clock") if "fpstated_clock" in request.fixturenames else None


@pytest.fixture
def fpstated_host(fpstated_config: HostConfig, request: pytest.FixtureRequest) -> Iterator[HostUnderTest]:
    """A host agent on a thread of this process, on a socket of its own."""
    from fpstated.testing_host import host_on_a_thread

    with host_on_a_thread(fpstated_config, clock_of(request)) as host:
        yield host


@pytest.fixture
def fpstated_vcpu(fpstated_host: HostUnderTest) -> VcpuPort:
    """The blocking port of ``vms/a/vcpus/0``, whose process may use AMX in guests."""
    return fpstated_host.vcpu()


@pytest.fixture
def fpstated_controller(fpstated_host: HostUnderTest) -> Callable[..., Controller]:
    """Call it with policies to start a controller, ``fpstated_controller("retry")``; with none, the default one."""
    return fpstated_host.controller


@pytest.fixture
def fail_allocation(fpstated_host: HostUnderTest) -> Callable[..., list[ArmedFault]]:
    """``fail_allocation(nth=1, errno="ENOMEM")``: an allocation fails; ``fired`` of what it returns proves that."""
    return fpstated_host.fail_allocation
