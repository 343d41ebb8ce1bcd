"""Faults of the host under test: armed in their short forms, and proved to have fired when the test is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fpstated.testing.aio import on_the_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fault_lab.injection.table import ArmedFault
    from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest


class HostFaults:
    """The faults that a test has armed. ``fired`` and ``hits`` of what ``arm`` returns count on."""

    def __init__(self, host: HostUnderTest | AsyncHostUnderTest) -> None:
        self._host = host
        self._owed: list[ArmedFault] = []

    def arm(self, point: str, action: str = "", *, may_not_fire: bool = False, **fields: Any) -> ArmedFault:  # noqa: ANN401
        """Arm a fault: ``arm("fpstate.realloc.alloc", fail_nth=1)``, ``arm("rpc.server.reply", "UNAVAILABLE",
        probability="10%", vcpu="vms/a/vcpus/0")``. Raises ``ValueError`` with the name of the field.
        """  # noqa: D205 -- two examples
        from fpstated.testing.arming import arming

        armed: ArmedFault = self._host.submit(arming(point, action, **fields))
        if not may_not_fire:
            self._owed.append(armed)
        return armed

    def disarm(self, fault: ArmedFault) -> None:
        """Take a fault out again; whether it has fired is asked at the end all the same."""
        from host_agent.commands import DisarmFault

        self._host.submit(DisarmFault(name=fault.name))

    def prove(self) -> None:
        """Fail where a fault was armed and nothing came of it: such a test has shown nothing."""
        silent = [f"{each.name} at {each.point} ({each.hits} hits)" for each in self._owed if not each.fired]
        if silent:
            pytest.fail(f"armed, and never fired: {', '.join(silent)}", pytrace=False)


@pytest.fixture
def fpstate_faults(fpstated_host: HostUnderTest) -> Iterator[HostFaults]:
    """Arm faults at ``fpstated_host``: ``fpstate_faults.arm("fpstate.realloc.alloc", fail_nth=1)``."""
    faults = HostFaults(fpstated_host)
    yield faults
    faults.prove()


@on_the_loop
async def aio_fpstate_faults(aio_fpstated_host: AsyncHostUnderTest) -> AsyncIterator[HostFaults]:
    """The same at ``aio_fpstated_host``."""
    faults = HostFaults(aio_fpstated_host)
    yield faults
    faults.prove()
