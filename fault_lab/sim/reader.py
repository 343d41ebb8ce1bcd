"""A reader as a node: some clients that look at vCPUs at drawn times, while guests and controllers change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fpstate.fault.v1 import plan_pb2

from fault_lab.injection.draw import draw_between, subseed
from fault_lab.injection.hit import matches
from fault_lab.sim.network import latency_ns
from fault_lab.sim.node import Node
from fault_lab.sim.reads import READS, Read
from fault_lab.sim.task import Call, Sleep, Task

if TYPE_CHECKING:
    from fault_lab.sim.world import World

_CALL_NS: Final = 10_000_000_000
_TIMES: Final = 100
#: GetVcpu says most, so it is asked most.
_METHODS: Final = ("GetVcpu", *READS)


class ReaderNode(Node):
    """One reader with its clients. What it hears is for the history; what is refused it asks again some other time."""

    def __init__(self, world: World, planned: plan_pb2.PlannedReader, vcpus: list[str], seed: int) -> None:
        super().__init__(world, planned.name)
        self._vcpus = [vcpu for vcpu in vcpus if matches(planned.vcpu or "*", vcpu)]
        self.reseed(seed)
        self._think_ns = latency_ns(planned.think_time) if planned.HasField("think_time") else (0, 0)
        #: How often each client still reads: who starts a reader again knows.
        self._left = [planned.reads or _TIMES] * (planned.clients or 1)

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self._seed = subseed(seed, f"reader/{self.name}")

    def boot(self) -> None:
        """Let every client go on."""
        for nr in range(len(self._left) if self._vcpus else 0):
            self.spawn(self._read(nr))

    def _read(self, client: int) -> Task:
        name = f"{self.name}/{client}"
        while self._left[client]:
            nr = self._left[client]
            self._left[client] -= 1
            low, high = self._think_ns
            yield Sleep(draw_between(self._seed, "think", name, nr, low=low, high=high))
            vcpu = self._vcpus[draw_between(self._seed, "vcpu", name, nr, low=0, high=len(self._vcpus) - 1)]
            method = _METHODS[draw_between(self._seed, "method", name, nr, low=0, high=len(_METHODS) - 1)]
            yield Call(method, Read(vcpu), _CALL_NS, name)
