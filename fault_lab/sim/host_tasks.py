"""The plays of host tasks: each row of `workload.tasks` for each VM it fits, acting on the host by chance.

A play runs beside its host, on the same modelled CPUs as the vCPUs; it begins when the VM is there, rests while the
host is down, and goes on with the act that is next. What it does are commands like everybody's, in the host's log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.draw import subseed
from fault_lab.injection.hit import matches
from fault_lab.plan.acts import ACTS
from fault_lab.sim.acts import PLAYED
from fault_lab.sim.hand import Act, Draws, Hand
from fault_lab.sim.network import latency_ns
from fault_lab.sim.task import Sleep, Task
from fault_lab.sim.workload import part_of
from host_agent.commands import Command
from host_agent.errors import Refused

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode

#: How long a play waits before each act where the plan does not say, and before it looks for its VM again.
_THINK_NS: Final = (10_000, 500_000)
_LOOK_NS: Final = 10_000_000


@dataclass(slots=True)
class TaskPlay:
    """One row for one VM. ``done`` counts acts, over all lives of the host."""

    vm: str
    vcpus: int
    played: frozenset[int]
    acts: tuple[str, ...]
    events: int
    think_ns: tuple[int, int]
    draws: Draws
    done: int = 0

    @property
    def over(self) -> bool:
        """Whether every act was played."""
        return self.done >= self.events

    def play(self, host: HostNode) -> Task:
        """Play what is left, until the host ends."""
        hand = Hand(self.vm, self.draws, lambda: host.machine.state, self.played)
        while not self.over:
            low, high = self.think_ns
            yield Sleep(low + self.draws.below(high - low + 1))
            while not self._is_there(host):
                yield Sleep(_LOOK_NS)
            act = PLAYED[self.draws.one_of(self.acts)](hand)
            _carry_out(host, act)
            self.done += 1

    def _is_there(self, host: HostNode) -> bool:
        vm = host.machine.state.vms.get(self.vm)
        return vm is not None and len(vm.kvm.vcpus) >= self.vcpus and not host.journal.full


def _carry_out(host: HostNode, act: Act) -> None:
    """Give each command of an act to the host, and the act what came of it."""
    reply: object = None
    while True:
        try:
            command = act.send(reply)
        except StopIteration:
            return
        try:
            reply = host.apply(command)
        except Refused as refused:
            reply = refused
        said = f"refused {reply.reason.name}" if isinstance(reply, Refused) else "done"
        host.world.record("task", node=host.name, act=type(command).__name__, of=_whose(command), result=said)


def _whose(command: Command) -> str:
    """The task, vCPU or VM that it names."""
    names = (getattr(command, field, "") for field in ("task", "vcpu", "vm"))
    return next(filter(None, names), "")


def plays_of(plan: plan_pb2.Plan, host: str, seed: int) -> list[TaskPlay]:
    """What the plan has for the VMs of a host."""
    first = plan.topology.hosts[0].name
    return [
        _play(plan, nr, vm, seed)
        for nr, row in enumerate(plan.workload.tasks)
        for vm in plan.topology.vms
        if (vm.host or first) == host and matches(row.vm or "*", f"vms/{vm.name}")
    ]


def _play(plan: plan_pb2.Plan, nr: int, vm: plan_pb2.PlannedVm, seed: int) -> TaskPlay:
    row, vcpus = plan.workload.tasks[nr], vm.vcpus or 1
    own = row.random.seed if row.random.HasField("seed") else subseed(seed, f"tasks/{nr}/{vm.name}")
    return TaskPlay(
        vm=f"vms/{vm.name}",
        vcpus=vcpus,
        played=frozenset(nr for nr in range(vcpus) if part_of(plan, f"vms/{vm.name}/vcpus/{nr}", seed) is not None),
        acts=tuple(row.acts) or tuple(ACTS),
        events=row.random.events,
        think_ns=latency_ns(row.think_time) if row.HasField("think_time") else _THINK_NS,
        draws=Draws(own),
    )
