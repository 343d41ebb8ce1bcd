"""The scheduler of a simulated host: another task runs where the kernel can be preempted in the middle of its work.

Whether and who is drawn from the seed, the time, the revision and how often this moment has come so far, and from
nothing else: the log of a host, replayed, is preempted at the same places by the same tasks.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from fault_lab.injection.draw import draw64, draw_ppm
from fpu_core.cpu import Cpu
from fpu_core.fpu import Fpu
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, switch_fpu_return, switch_to
from fpu_core.xfeature import XFEATURE_SSE
from host_agent.commands import Command
from host_agent.errors import Refused
from host_agent.machine import HostMachine
from host_agent.state import Platform
from host_agent.tasks import KERNEL_BYTES

#: A command that passes more such places does not end: the longest there is passes one for each page of a frame.
_PLACES_MAX: Final = 1_000


class EndlessError(Exception):
    """The kernel goes round in a circle."""


class Preemption:
    """Watches one machine. ``ppm``: how often somebody else runs, of the places where that can be."""

    def __init__(self, machine: HostMachine, seed: int, ppm: int) -> None:
        self._machine = machine
        self._seed = seed
        self._ppm = ppm
        self._command: Command | None = None
        self._places = 0

    def begins(self, command: Command) -> None:
        """A command is about to be carried out."""
        self._command, self._places = command, 0

    def ended(self) -> None:
        """It is over; processors that it brought are watched from now on."""
        for platform in self._machine.state.platforms.values():
            if platform.host.preemptible is None:
                platform.host.preemptible = partial(self._passes, platform)

    def _passes(self, platform: Platform, where: str) -> None:
        self._places += 1
        if self._places > _PLACES_MAX:
            raise EndlessError(f"{type(self._command).__name__} comes to {where!r} again and again")
        fpu = self._executing()
        if fpu is None or fpu.cpu is None:
            return
        state = self._machine.state
        moment = f"{state.now_ns}/{state.revision}"
        if draw_ppm(self._seed, where, moment, self._places) < self._ppm:
            self._somebody_runs(platform, fpu, fpu.cpu, draw64(self._seed, "who", moment, self._places))

    def _executing(self) -> Fpu | None:
        """Whose work it is: the task that the command names, or the thread in whose KVM_RUN the vCPU is."""
        state, task = self._machine.state, getattr(self._command, "task", "")
        try:
            return state.task(task)[1].fpu if task else state.vcpu(state.acting_vcpu).fpu
        except Refused:
            return None

    def _somebody_runs(self, platform: Platform, fpu: Fpu, cpu: Cpu, drawn: int) -> None:
        """The kernel, whose registers the CPU still holds, or anybody; then the task goes on, perhaps elsewhere."""
        vms = [vm for vm in self._machine.state.vms.values() if vm.platform is platform]
        there = [task.fpu for vm in vms for task in vm.tasks.values()]
        others: list[Fpu | None] = [each for each in there if each is not fpu]
        if cpu.owner in others:
            others += [cpu.owner] * len(others)
        others.append(None)
        other = others[drawn % len(others)]
        switch_to(cpu, other)
        if other is None:
            kernel_fpu_begin(cpu)
            cpu.write_register(XFEATURE_SSE, 0, KERNEL_BYTES)
            kernel_fpu_end(cpu)
        elif not other.is_worker:
            switch_fpu_return(other)
        online = [each for each in platform.cpus if each.online]
        switch_to(cpu if drawn >> 32 & 1 else online[(drawn >> 33) % len(online)], fpu)
