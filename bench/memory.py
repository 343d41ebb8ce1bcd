"""Memory per vCPU, everything counted: the vCPU, its container with the image, and its place in the VM's books."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

from bench.report import Row, counted
from fpu_core.sched import switch_to
from fpu_core.xfeature import XFEATURE_MASK_XTILE
from host_agent.commands import CreateVcpu, CreateVm, RequestPermission
from host_agent.kvm.intercept import handle_xsetbv
from host_agent.kvm.outcome import Done
from host_agent.kvm.run import vcpu_enter, vcpu_leave
from host_agent.machine import HostMachine
from host_agent.state import HostConfig

COUNT = 20_000


def rows(fraction: int = 1) -> Iterator[Row]:
    """Bytes per default vCPU, and per vCPU whose container has grown for AMX."""
    count = COUNT // fraction
    machine = _machine()
    before = _traced()
    for index in range(1, count + 1):
        machine.apply(CreateVcpu(vm="vms/bench", index=index), 0)
    default = (_traced() - before) / count
    yield counted("memory per default vCPU (Sapphire Rapids)", "bytes", default, at_most=3072)
    for index in range(1, count + 1):
        _grow(machine, index)
    grown = (_traced() - before) / count
    yield counted("memory per vCPU with AMX", "bytes", grown, at_most=11_400)
    tracemalloc.stop()


def _machine() -> HostMachine:
    tracemalloc.start()
    machine = HostMachine(HostConfig())
    machine.apply(CreateVm(vm_id="bench"), 0)
    machine.apply(RequestPermission(vm="vms/bench", feature=18, guest=True), 0)
    machine.apply(CreateVcpu(vm="vms/bench", index=0), 0)
    _grow(machine, 0)
    return machine


def _grow(machine: HostMachine, index: int) -> None:
    """Let the vCPU enable XTILE on the VM's main thread: its container grows in the swap."""
    vm = machine.state.vm("vms/bench")
    vcpu = vm.kvm.vcpus[index]
    main = vm.tasks["main"].fpu
    if main.cpu is None:
        switch_to(vm.platform.cpus[0], main)
    vcpu_enter(vcpu, main)
    result = handle_xsetbv(vcpu, index=0, value=7 | XFEATURE_MASK_XTILE)
    assert isinstance(result, Done)
    assert result.reallocated is not None
    vcpu_leave(vcpu)


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
