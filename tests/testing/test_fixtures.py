"""The fixtures, as tests use them: a world to step through, a cluster, faults of a host, blocking and asynchronous."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fault_lab.sim.rules import Violation
from fault_lab.sim.run import simulate
from fpstated.testing import FaultRun, SimWorld
from fpstated.testing.faults import HostFaults
from fpstated.testing.records import Records
from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest
from guest_agent.outcome import Done
from tests.testing.suite import STUCK, Suite, suite

pytest_plugins = ["pytester"]
__all__ = ["suite"]

Worlds = Callable[..., SimWorld]
XCR0_WITH_TILES = 0x602E7


@pytest.mark.fpstate_faults("growth-fails-once")
def test_what_led_to_a_record_can_be_asked(fpstate_run: FaultRun, fpstate_history: Records) -> None:
    """The exit of the run was caused by the fault, and that by a guest's call."""
    (opened,) = fpstate_history.of("exit", state="open")
    assert "fault" in [each["type"] for each in fpstate_history.causes(opened)]
    assert [hit.fault for hit in fpstate_run.fired] == ["no-memory"]


# -- worlds ------------------------------------------------------------------------------------------------------------


def test_a_world_is_built_and_disturbed_at_a_moment(fpstate_world: Worlds) -> None:
    """The host is killed while an exit is open; it comes back with the exit, and the guest comes to its end."""
    world = fpstate_world().host().vm(vcpus=1).guest(mix="after-nm")
    world.controller("retry-after:base=0.5,factor=1,tries=9,then=pause")
    world.fault("no-memory", "fpstate.realloc.alloc", attributes={"fail-nth": 1})
    world.until(lambda now: now.exits)
    assert world.fired == ["no-memory"]
    opened_s = world.now_s
    world.until(lambda now: now.now_s > opened_s + 0.01)  # it is on the disk

    world.kill("host", restart_s=1.0)
    assert not world.hosts["host"].up
    world.until(lambda now: now.hosts["host"].up)
    assert list(world.exits) == ["vms/a/vcpus/0/exits/9"]

    world.run()
    assert not world.exits
    assert world.history.of("node", node="host", state="recovered")


def test_a_world_that_is_stepped_through_is_the_run(fpstate_world: Worlds) -> None:
    """To the byte of its history, however it is gone through."""
    world = fpstate_world(STUCK, seed=5)
    world.step()
    assert (world.world.steps, bool(world.next), world.over) == (1, True, False)
    world.until(lambda now: now.now_s > 0.001).run()
    assert world.over
    assert world.world.history.digest == simulate(world.plan, 5).digest


def test_a_violation_is_raised_where_it_happens(fpstate_world: Worlds) -> None:
    """Seed 1 leaves an exit open."""
    with pytest.raises(Violation, match=r"no-stuck-exit: vms/a/vcpus/1/exits/9 is open"):
        fpstate_world(STUCK, seed=1).run()


def test_what_never_comes_about_fails(fpstate_world: Worlds) -> None:
    """A condition that the run does not come to."""
    with pytest.raises(AssertionError, match=r"the run is over after \d+ steps, and it has never been so"):
        fpstate_world(STUCK, seed=5).until(lambda now: now.exits)


def test_a_fault_is_armed_between_two_steps(fpstate_world: Worlds) -> None:
    """From then on: what grows afterwards fails."""
    world = fpstate_world().host().vm().guest(mix="after-nm").controller("retry")
    world.step()
    fault = world.arm("fpstate.realloc.alloc", fail_nth=1)
    world.run()
    assert fault.fired == 1


def test_clocks_and_processes_are_disturbed(fpstate_world: Worlds) -> None:
    """A pause and a jump are in the history; nothing is violated by them."""
    world = fpstate_world("growth-fails-once")
    world.until(lambda now: now.exits)
    world.pause("ctl", 0.5)
    world.put_clock("host", 2.0)
    world.run()
    assert [each["state"] for each in world.history.of("node") if each["state"] in ("paused", "clock")] == [
        "paused",
        "clock",
    ]


def test_mistakes_in_a_world_are_named(fpstate_world: Worlds) -> None:
    """Nodes, points, pieces at the wrong moment, and pieces that make no plan."""
    world = fpstate_world("growth-fails-once")
    with pytest.raises(KeyError, match="expected one of host, ctl, vms/a, got 'hots'"):
        world.kill("hots")
    with pytest.raises(ValueError, match="point: expected one of a host's own"):
        world.arm("link.message", "drop")
    with pytest.raises(RuntimeError, match="vms: expected it before the first step"):
        world.vm("b")
    with pytest.raises(ValueError, match=r"topology\.vms\[0\]\.vcpus: expected a number"):
        fpstate_world().host().vm(vcpus="many").step()


# -- hosts -------------------------------------------------------------------------------------------------------------


def test_faults_in_short_forms(fpstated_host: HostUnderTest, fpstate_faults: HostFaults) -> None:
    """Armed for one vCPU, fired for it, and for no other."""
    fault = fpstate_faults.arm("fpstate.realloc.alloc", "ENOMEM", fail_nth=1, vcpu="vms/a/vcpus/1")
    fpstated_host.controller("retry")
    assert isinstance(fpstated_host.vcpu("vms/a/vcpus/0").xsetbv(XCR0_WITH_TILES), Done)
    assert (fault.hits, fault.fired) == (0, 0)
    assert isinstance(fpstated_host.vcpu("vms/a/vcpus/1").xsetbv(XCR0_WITH_TILES), Done)
    assert fault.fired == 1


@pytest.mark.asyncio
async def test_faults_on_the_loop(aio_fpstated_host: AsyncHostUnderTest, aio_fpstate_faults: HostFaults) -> None:
    """The same for tests that await."""
    fault = aio_fpstate_faults.arm("fpstate.realloc.alloc", fail_nth=1)
    await aio_fpstated_host.controller("retry")
    vcpu = await aio_fpstated_host.vcpu()
    assert isinstance(await vcpu.xsetbv(XCR0_WITH_TILES), Done)
    assert fault.fired == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nowhere",), "point: expected one of fpstate.guest.alloc"),
        (("fpstate.realloc.alloc", "EWHAT"), "action: expected an errno such as ENOMEM"),
        (("rpc.server.reply",), "action: expected one, as rpc.server.reply can fail in several ways"),
    ],
    ids=["point", "action", "no action"],
)
def test_a_fault_that_cannot_be_is_named(
    fpstate_faults: HostFaults, arguments: tuple[str, ...], complaint: str
) -> None:
    """The field, and what was expected."""
    with pytest.raises(ValueError, match=complaint):
        fpstate_faults.arm(*arguments)


def test_a_fault_that_never_fired_fails_its_test(suite: Suite) -> None:
    """Unless the test says that it may not."""
    suite.write("""
def test_nothing_happens(fpstate_faults):
    fpstate_faults.arm("fpstate.realloc.alloc", fail_nth=1)

def test_may_be(fpstate_faults):
    fault = fpstate_faults.arm("fpstate.realloc.alloc", may_not_fire=True)
    fpstate_faults.disarm(fault)
""")
    ran = suite.run()
    ran.assert_outcomes(passed=2, errors=1)
    ran.stdout.fnmatch_lines(["armed, and never fired: * at fpstate.realloc.alloc (0 hits)"])


# -- clusters ----------------------------------------------------------------------------------------------------------


def test_a_plans_cluster_in_this_process(fpstate_cluster: Callable[..., Any]) -> None:
    """Host and controller as the plan has them, over gRPC; its fault is armed, and fires in its scope."""
    cluster = fpstate_cluster("growth-fails-once")
    cluster.arm()
    assert isinstance(cluster.vcpu("vms/a/vcpus/0").xsetbv(XCR0_WITH_TILES), Done)
    (fault,) = cluster.faults["no-memory"]
    assert fault.fired == 1


def test_a_plans_cluster_as_processes(fpstate_cluster: Callable[..., Any]) -> None:
    """Every node a process: started, and ended with the test."""
    cluster = fpstate_cluster("growth-fails-once", processes=True)
    assert sorted(cluster.nodes) == ["ctl", "host", "vms/a"]
    assert all(Path(address.removeprefix("unix:")).exists() for address in cluster.addresses.values())
