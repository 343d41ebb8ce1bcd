"""The nodes of a plan for real: in this process on sockets of their own, or as processes."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fpstated.testing.options import given_plan, need_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fpstate.fault.v1 import plan_pb2

    from fault_lab.injection.table import ArmedFault
    from fault_lab.live.cluster import LiveCluster
    from fpstated.testing.plans import Given
    from fpstated.testing_host import HostUnderTest
    from guest_agent.port import VcpuPort


class Cluster:
    """Hosts and controllers of a plan, in this process, over gRPC. Guests are the test: ``cluster.vcpu(NAME)``.

    ``faults`` are those of the plan at points of hosts, armed, by name; ``fired`` of each counts on. What is asked
    outside of hosts (messages, processes, clocks) needs processes, or the simulated world.
    """

    def __init__(self, plan: plan_pb2.Plan, hosts: Mapping[str, HostUnderTest]) -> None:
        self.plan = plan
        self.hosts = hosts
        self.faults: dict[str, list[ArmedFault]] = {}
        first = plan.topology.hosts[0].name
        self._vms = {f"vms/{each.name}": each for each in plan.topology.vms}
        self._host_of = {name: each.host or first for name, each in self._vms.items()}
        for controller in plan.topology.controllers:
            hosts[controller.host or first].controller(*controller.policies)

    def vcpu(self, name: str = "vms/a/vcpus/0") -> VcpuPort:
        """The blocking port of a vCPU of the plan, on the plan's host, with the plan's permission."""
        vm = name.partition("/vcpus/")[0]
        if vm not in self._vms:
            raise KeyError(f"expected a vCPU of {', '.join(self._vms)}, got {name!r}")
        return self.hosts[self._host_of[vm]].vcpu(name, permission=not self._vms[vm].no_permission)

    def arm(self, seed: int | None = None) -> None:
        """Arm the plan's faults, as its phase of chaos has them."""
        from fault_lab.injection.points import FAULT_POINTS, Seat
        from fault_lab.plan.resolve import planned_faults
        from host_agent.commands import ArmFault

        for each in planned_faults(self.plan, self.plan.seed if seed is None else seed):
            fault = each.fault
            if "chaos" not in each.phases or FAULT_POINTS[fault.point].seat is not Seat.HOST:
                continue
            command = ArmFault(
                point=fault.point,
                action=fault.action,
                owner=fault.owner,
                selector=fault.selector,
                attributes=fault.attributes,
                window=fault.window,
                gate_ppm=fault.gate_ppm,
            )
            self.faults[fault.name] = [host.submit(command) for host in self.hosts.values()]


@pytest.fixture
def fpstate_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """``fpstate_cluster(plan)``: its hosts and controllers in this process; ``processes=True``: all, as processes."""
    need_everything()
    with ExitStack() as stack:

        def make(plan: Given, *, processes: bool = False) -> Cluster | LiveCluster:
            from fpstated.testing.plans import read_plan

            option = given_plan(request.config)
            beside = request.config.invocation_params.dir if option else request.path.parent
            found = read_plan(option or plan, beside, "fpstate_cluster").plan
            return _processes(stack, found) if processes else _in_process(stack, found)

        yield make


def _in_process(stack: ExitStack, plan: plan_pb2.Plan) -> Cluster:
    from fault_lab.sim.host import host_config
    from fpstated.testing_host import host_on_a_thread

    hosts = {}
    for each in plan.topology.hosts:
        config = replace(host_config(each), durable=False, check_invariants=True)
        hosts[each.name] = stack.enter_context(host_on_a_thread(config))
    return Cluster(plan, hosts)


def _processes(stack: ExitStack, plan: plan_pb2.Plan) -> LiveCluster:
    """Every node a process, started; ended with the test."""
    from fault_lab.live.cluster import LiveCluster

    # A socket's path is short, and a test's own folder may be deep.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fpstated-"))
    cluster = stack.enter_context(LiveCluster(plan, Path(folder)))
    cluster.start()
    return cluster
