"""Pytest fixtures for tests against a host agent, sync and async.

In a conftest.py or a test module (types to annotate with are in ``fpstated.testing_host``):

    pytest_plugins = ["fpstated.testing"]

| fixture | what it is |
|---|---|
| fpstated_host | a host agent in this process, on a socket of its own, with every invariant checked |
| fpstated_controller | call it with policies to start a controller: ``fpstated_controller("retry")`` |
| fail_allocation | ``fail_allocation(nth=1, errno="ENOMEM")``: an allocation fails, and says that it did |
| fpstated_vcpu | the blocking port of a vCPU that may use AMX |
| fpstated_clock | ask for it too, and the host runs on a clock that stands still until ``advance`` |
| fpstated_config | override it to start the host with another ``HostConfig`` |
| aio_fpstated_host, aio_fpstated_vcpu | the same on the test's event loop |
| aio_fpstated_controller, aio_fail_allocation | and these |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio

from fault_lab.injection.table import ArmedFault
from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest, async_host, host_on_a_thread
from guest_agent.aio_port import AsyncVcpuPort
from guest_agent.port import VcpuPort
from host_agent.service.clock import ManualClock
from host_agent.state import HostConfig
from vmm_controller.controller import Controller

__all__ = [
    "AsyncHostUnderTest",
    "HostUnderTest",
    "ManualClock",
    "aio_fail_allocation",
    "aio_fpstated_controller",
    "aio_fpstated_host",
    "aio_fpstated_vcpu",
    "async_host",
    "fail_allocation",
    "fpstated_clock",
    "fpstated_config",
    "fpstated_controller",
    "fpstated_host",
    "fpstated_vcpu",
    "host_on_a_thread",
]


@pytest.fixture
def fpstated_config() -> HostConfig:
    """How the host is started: faults can be armed, invariants are checked. Override it for anything else."""
    return HostConfig(host="test-host", boot_id="test-boot", faults=True, check_invariants=True)


@pytest.fixture
def fpstated_clock() -> ManualClock:
    """A clock that stands still. A test that asks for it has a host that runs on it."""
    return ManualClock()


def _clock_of(request: pytest.FixtureRequest) -> ManualClock | None:
    return request.getfixturevalue("fpstated_clock") if "fpstated_clock" in request.fixturenames else None


# -- for tests that block ----------------------------------------------------------------------------------------------


@pytest.fixture
def fpstated_host(fpstated_config: HostConfig, request: pytest.FixtureRequest) -> Iterator[HostUnderTest]:
    """A host agent on a thread of this process."""
    with host_on_a_thread(fpstated_config, _clock_of(request)) as host:
        yield host


@pytest.fixture
def fpstated_vcpu(fpstated_host: HostUnderTest) -> VcpuPort:
    """``vms/a/vcpus/0``, whose process may use AMX in guests."""
    return fpstated_host.vcpu()


@pytest.fixture
def fpstated_controller(fpstated_host: HostUnderTest) -> Callable[..., Controller]:
    """Start a controller; with no policy, the default one."""
    return fpstated_host.controller


@pytest.fixture
def fail_allocation(fpstated_host: HostUnderTest) -> Callable[..., list[ArmedFault]]:
    """Let allocations fail; ``fired`` of the returned faults proves that they did."""
    return fpstated_host.fail_allocation


# -- for tests on an event loop ----------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def aio_fpstated_host(
    fpstated_config: HostConfig, request: pytest.FixtureRequest
) -> AsyncIterator[AsyncHostUnderTest]:
    """A host agent on the test's event loop."""
    async with async_host(fpstated_config, _clock_of(request)) as host:
        yield host


@pytest_asyncio.fixture
async def aio_fpstated_vcpu(aio_fpstated_host: AsyncHostUnderTest) -> AsyncVcpuPort:
    """``vms/a/vcpus/0``, whose process may use AMX in guests."""
    return await aio_fpstated_host.vcpu()


@pytest.fixture
def aio_fpstated_controller(aio_fpstated_host: AsyncHostUnderTest) -> Callable[..., Awaitable[Controller]]:
    """Start a controller; with no policy, the default one."""
    return aio_fpstated_host.controller


@pytest.fixture
def aio_fail_allocation(aio_fpstated_host: AsyncHostUnderTest) -> Callable[..., list[ArmedFault]]:
    """Let allocations fail; ``fired`` of the returned faults proves that they did."""
    return aio_fpstated_host.fail_allocation
