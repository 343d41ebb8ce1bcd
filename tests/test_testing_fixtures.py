"""fpstated.testing as its users have it: ten lines a test, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest
from guest_agent.outcome import Done, Injected
from guest_agent.port import VcpuPort
from host_agent.service.clock import ManualClock

XCR0_WITH_TILES = 0x602E7


def test_a_guest_survives_a_failed_allocation(
    fpstated_vcpu: VcpuPort, fail_allocation: Callable[..., Any], fpstated_controller: Callable[..., Any]
) -> None:
    """Memory is short once, the controller retries, and the guest never notices."""
    (fault,) = fail_allocation(nth=1, errno="ENOMEM")
    fpstated_controller("retry")

    outcome = fpstated_vcpu.xsetbv(XCR0_WITH_TILES)  # blocks, as a vCPU thread does, until it is decided

    assert fault.fired == 1
    assert isinstance(outcome, Done)
    assert outcome.reallocated is not None
    assert outcome.reallocated.new_bytes == 10_752


def test_a_refusal_is_gp(fpstated_host: HostUnderTest) -> None:
    """Without permission the default controller answers #GP, and the container stays as it was."""
    vcpu = fpstated_host.vcpu("vms/poor/vcpus/0", permission=False)
    fpstated_host.controller()
    outcome = vcpu.xsetbv(XCR0_WITH_TILES)
    assert isinstance(outcome, Injected)
    assert outcome.vector == 13
    assert fpstated_host.machine.state.vcpu("vms/poor/vcpus/0").fpstate.size == 2560


def test_the_third_allocation_and_no_other_fails(
    fpstated_host: HostUnderTest, fail_allocation: Callable[..., Any], fpstated_controller: Callable[..., Any]
) -> None:
    """``nth`` counts from now, over every vCPU in scope."""
    (fault,) = fail_allocation(nth=3)
    fpstated_controller("inject-gp")
    outcomes = [fpstated_host.vcpu(f"vms/a/vcpus/{index}").xsetbv(XCR0_WITH_TILES) for index in range(4)]
    assert [isinstance(outcome, Injected) for outcome in outcomes] == [False, False, True, False]
    assert (fault.hits, fault.fired) == (4, 1)


@pytest.mark.asyncio
async def test_time_passes_when_the_test_says_so(
    aio_fpstated_host: AsyncHostUnderTest, fpstated_clock: ManualClock, aio_fail_allocation: Callable[..., Any]
) -> None:
    """On a manual clock the deadline of an exit comes without waiting for it: the vCPU is paused, never guessed for."""
    aio_fail_allocation()
    vcpu = await aio_fpstated_host.vcpu()
    waiting = asyncio.ensure_future(vcpu.xsetbv(XCR0_WITH_TILES))
    record = await aio_fpstated_host.exit_opened()
    assert (record.state.value, fpstated_clock.now_ns()) == ("open", 0)
    aio_fpstated_host.advance(30)
    assert (record.state.value, record.decided_by, waiting.done()) == ("paused", "deadline", False)
    waiting.cancel()
