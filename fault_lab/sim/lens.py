"""What the history says of vCPUs: a record after each command that has changed one, and none where nothing changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from fault_lab.sim.world import World
    from host_agent.state import HostState, VmRecord

#: State, XFD, XCR0, and bytes of the container's image: masks and sizes as the core has them, 0 where it has none.
_Seen = tuple[VcpuState, int, int, int]


class VcpuLens:
    """The vCPUs of one host, as they were recorded last."""

    def __init__(self, world: World, host: str) -> None:
        self._world = world
        self._host = host
        self._seen: dict[str, dict[int, _Seen]] = {}

    def look(self, state: HostState) -> None:
        """Write down what has changed; a vCPU that has gone is ``gone``."""
        for vm in state.vms.values():
            seen = {index: _seen(vcpu) for index, vcpu in vm.kvm.vcpus.items()}
            last = self._seen.get(vm.id)
            if seen != last:
                self._seen[vm.id] = seen
                self._changed(vm, last or {}, seen)
        if len(self._seen) > len(state.vms):
            there = {vm.id for vm in state.vms.values()}
            for gone in [name for name in self._seen if name not in there]:
                for index in self._seen.pop(gone):
                    self._record(f"vms/{gone}/vcpus/{index}", "gone", 0, 0, 0)

    def _changed(self, vm: VmRecord, last: dict[int, _Seen], seen: dict[int, _Seen]) -> None:
        for index, (state, xfd, xcr0, size) in seen.items():
            if last.get(index) != (state, xfd, xcr0, size):
                self._record(f"{vm.name}/vcpus/{index}", state.value, xfd, xcr0, size)
        for index in last:
            if index not in seen:
                self._record(f"{vm.name}/vcpus/{index}", "gone", 0, 0, 0)

    def _record(self, vcpu: str, state: str, xfd: int, xcr0: int, size: int) -> None:
        fields = {"vcpu": vcpu, "state": state, "xfd": xfd, "xcr0": xcr0, "bytes": size}
        self._world.record("vcpu", node=self._host, **fields)


def _seen(vcpu: Vcpu) -> _Seen:
    fpstate = vcpu.guest.fpstate
    return (vcpu.state, fpstate.xfd, vcpu.xcr0, fpstate.size) if fpstate else (vcpu.state, 0, vcpu.xcr0, 0)
