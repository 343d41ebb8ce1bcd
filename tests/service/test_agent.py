"""HostAgent without a socket: its clock, its timer, and the log that replays."""

from __future__ import annotations

import asyncio
import doctest

import pytest
from fpstate.v1 import exit_pb2

from host_agent import log
from host_agent.commands import AcquireControl, Command, CreateVm, OpenSession, RenewControl
from host_agent.errors import Reason, Refused
from host_agent.service import clock as clock_module
from host_agent.service.agent import HostAgent
from host_agent.service.clock import ManualClock, MonotonicClock
from host_agent.state import HostConfig
from tests.service.world import TIMEOUT_S, XCR0_AMX, World

SECOND_NS = 1_000_000_000
RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())


def test_the_manual_clock_does_what_its_docstring_says() -> None:
    """Whatever falls due on the way happens at its own time."""
    assert doctest.testmod(clock_module).failed == 0


def test_the_manual_clock_goes_forwards_only() -> None:
    """A step backwards is refused, and nothing moves."""
    clock = ManualClock(start_ns=5)
    with pytest.raises(ValueError, match="seconds"):
        clock.advance(-1)
    assert clock.now_ns() == 5


def test_a_cancelled_timer_is_silent() -> None:
    """And one set within a callback is reached by the same step."""
    clock = ManualClock()
    heard: list[int] = []
    clock.call_at(1, lambda: heard.append(0)).cancel()

    def again() -> None:
        clock.call_at(3, lambda: heard.append(clock.now_ns()))

    clock.call_at(2, again)
    clock.advance(1)
    assert heard == [3]


@pytest.mark.asyncio
async def test_the_systems_clock_calls_back() -> None:
    """On the loop, when the time has come."""
    clock = MonotonicClock()
    called = asyncio.Event()
    clock.call_at(clock.now_ns() + 1_000_000, called.set)
    await asyncio.wait_for(called.wait(), TIMEOUT_S)


def test_leases_end_when_the_clock_says_so() -> None:
    """Nobody has to send anything; a renewal moves the end."""
    clock = ManualClock()
    agent = HostAgent(HostConfig(check_invariants=True), clock=clock)
    control = agent.submit(AcquireControl(scope="", controller="c", lease_ns=10 * SECOND_NS))
    clock.advance(6)
    agent.submit(RenewControl(control=control.name, epoch=control.epoch))
    clock.advance(9)
    assert control.name in agent.state.controls
    clock.advance(1)
    assert not agent.state.controls
    assert agent.state.now_ns == 16 * SECOND_NS


def test_what_falls_due_on_the_way_has_its_own_time() -> None:
    """One long step is as good as many short ones: two leases end one after the other, not together."""
    clock = ManualClock()
    agent = HostAgent(HostConfig(), clock=clock)
    ended: list[tuple[int, int]] = []
    agent.machine.on_applied = lambda now_ns, _command, _reply: ended.append((now_ns, len(agent.state.controls)))
    agent.submit(CreateVm(vm_id="a"))
    agent.submit(AcquireControl(scope="", controller="c", lease_ns=2 * SECOND_NS))
    agent.submit(AcquireControl(scope="vms/a", controller="c", lease_ns=5 * SECOND_NS))
    clock.advance(60)
    assert ended[-2:] == [(2 * SECOND_NS, 1), (5 * SECOND_NS, 0)]


def test_a_refused_command_is_delivered_too() -> None:
    """What fell due before it has happened, whatever became of the command itself."""
    clock = ManualClock()
    agent = HostAgent(HostConfig(), clock=clock)
    with pytest.raises(Refused) as caught:
        agent.submit(OpenSession(client_name="", vcpus=("vms/x/vcpus/0",)))
    assert caught.value.reason is Reason.VCPU_NOT_FOUND
    assert agent.machine.take_effects() == []


@pytest.mark.asyncio
async def test_the_log_of_a_served_host_replays(world: World) -> None:
    """Every change over the wire, and every passing of time, is a command: replayed, they give the same digest."""
    records: list[tuple[int, Command]] = []
    machine = world.server.agent.machine
    machine.on_applied = lambda now_ns, command, _reply: records.append((now_ns, command))
    guest = await world.guest(lease_s=5)
    await world.fail_next_growth()
    (pending,) = await guest.submit(guest.enable_tiles())
    world.clock.advance(31)
    await world.resolve(await world.control(), pending.pending.exit, RETRY, generation=2)
    assert machine.state.vcpu(guest.vcpu).xcr0 == XCR0_AMX
    assert log.replay(machine.state.config, records).digest() == machine.digest()
