"""The fixtures of ``host`` on the test's event loop, for pytest-asyncio in its strict mode."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from fpstated.testing.host import clock_of
from fpstated.testing.options import need_everything

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from fault_lab.injection.table import ArmedFault
    from fpstated.testing_host import AsyncHostUnderTest
    from guest_agent.aio_port import AsyncVcpuPort
    from host_agent.state import HostConfig
    from vmm_controller.controller import Controller


def on_the_loop(function: Callable[..., Any]) -> Any:  # noqa: ANN401 -- a fixture
    """A fixture of pytest-asyncio; without it, one that says what to install."""
    if find_spec("pytest_asyncio") is not None:
        import pytest_asyncio

        return pytest_asyncio.fixture(function)

    def lacking() -> None:
        need_everything()
        pytest.fail("this needs: pip install pytest-asyncio", pytrace=False)

    return pytest.fixture(lacking, name=function.__name__)


@on_the_loop
async def aio_fpstated_host(
    fpstated_config: HostConfig, request: pytest.FixtureRequest
) -> AsyncIterator[AsyncHostUnderTest]:
    """A host agent on the test's event loop."""
    from fpstated.testing_host import async_host

    async with async_host(fpstated_config, clock_of(request)) as host:
        yield host


@on_the_loop
async def aio_fpstated_vcpu(aio_fpstated_host: AsyncHostUnderTest) -> AsyncVcpuPort:
    """The port of ``vms/a/vcpus/0``, whose process may use AMX in guests."""
    return await aio_fpstated_host.vcpu()


@pytest.fixture
def aio_fpstated_controller(aio_fpstated_host: AsyncHostUnderTest) -> Callable[..., Awaitable[Controller]]:
    """Call it to start a controller; with no policy, the default one."""
    return aio_fpstated_host.controller


@pytest.fixture
def aio_fail_allocation(aio_fpstated_host: AsyncHostUnderTest) -> Callable[..., list[ArmedFault]]:
    """Let allocations fail; ``fired`` of the returned faults proves that they did."""
    return aio_fpstated_host.fail_allocation
