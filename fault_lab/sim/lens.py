"""What the history says of vCPUs: a record after each command that has changed one, and none where nothing changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from host_agent.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from fault_lab.sim.world import World
    from host_agent.state import HostState

#: State, XFD, XCR0, and bytes of the container's image: masks and sizes as the core has them, 0 where it has none.
_Seen = tuple[str, int, int, int]


class VcpuLens:
    """The vCPUs of one host, as they were recorded last."""

    def __init__(self, world: World, host: str) -> None:
        self._world = world
        self._host = host
        self._seen: dict[tuple[str, int], _Seen] = {}

    def look(self, state: HostState) -> None:
        """Write down what has changed; a vCPU that has gone is ``gone``."""
        now = {(vm.name, index): _seen(vcpu) for vm in state.vms.values() for index, vcpu in vm.kvm.vcpus.items()}
        if now == self._seen:
            return
        last, self._seen = self._seen, now
        for key, seen in now.items():
            if last.get(key) != seen:
                self._record(key, seen)
        for key in [key for key in last if key not in now]:
            self._record(key, ("gone", 0, 0, 0))

    def _record(self, key: tuple[str, int], seen: _Seen) -> None:
        vm, index = key
        state, xfd, xcr0, size = seen
        name = f"{vm}/vcpus/{index}"
        self._world.record("vcpu", node=self._host, vcpu=name, state=state, xfd=xfd, xcr0=xcr0, bytes=size)


def _seen(vcpu: Vcpu) -> _Seen:
    fpstate = vcpu.guest.fpstate
    return vcpu.state.value, fpstate.xfd if fpstate else 0, vcpu.xcr0, fpstate.size if fpstate else 0
