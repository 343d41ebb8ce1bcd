"""The modelled CPUs: interrupts whose code wants the FPU, idle, hotplug, and the machine asleep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.cpu import Cpu
from fpu_core.hotplug import cpu_offline, cpu_online, fpu_idle_fpregs, resume, suspend
from fpu_core.sched import IrqContext, irq_fpu_usable, kernel_fpu_begin, kernel_fpu_end, switch_to
from fpu_core.xfeature import XFEATURE_SSE
from host_agent.errors import invalid
from host_agent.state import HostState
from host_agent.task_commands import IdleCpu, Interrupt, OfflineCpu, OnlineCpu, SuspendHost
from host_agent.tasks import KERNEL_BYTES, run_on_cpu

_CONTEXTS: Final = {"softirq": IrqContext.SOFTIRQ, "hardirq": IrqContext.HARDIRQ}
#: What an interrupt can come in upon.
_HITS: Final = ("task", "kernel-fpu", "fpregs-lock")


@dataclass(frozen=True, slots=True)
class InterruptReply:
    """Whether the interrupt's code used the FPU; otherwise it did its work without (irq_fpu_usable() said no)."""

    usable: bool


def interrupt(state: HostState, command: Interrupt) -> InterruptReply:
    """An interrupt asks, and uses the FPU if it may. Soft ones never come in upon code that holds them off."""
    vm, task = state.task(command.task)
    context = _CONTEXTS.get(command.context)
    if context is None:
        raise invalid("context", f"one of {', '.join(_CONTEXTS)}", command.context)
    if command.hits not in _HITS:
        raise invalid("hits", f"one of {', '.join(_HITS)}", command.hits)
    if context is IrqContext.SOFTIRQ and command.hits == "fpregs-lock":
        raise invalid("hits", "task or kernel-fpu: fpregs_lock() holds soft interrupts off", command.hits)
    run_on_cpu(vm, task)
    cpu = task.fpu.cpu
    assert cpu is not None
    match command.hits:
        case "kernel-fpu":
            kernel_fpu_begin(cpu)
            usable = _use_if_usable(cpu, context)
            kernel_fpu_end(cpu)
        case "fpregs-lock":
            cpu.softirq_count += 1
            usable = _use_if_usable(cpu, context)
            cpu.softirq_count -= 1
        case _:
            usable = _use_if_usable(cpu, context)
    return InterruptReply(usable)


def _use_if_usable(cpu: Cpu, context: IrqContext) -> bool:
    usable = irq_fpu_usable(cpu, context)
    if usable:
        kernel_fpu_begin(cpu, context)
        cpu.write_register(XFEATURE_SSE, 0, KERNEL_BYTES)
        kernel_fpu_end(cpu)
    return usable


def idle(state: HostState, command: IdleCpu) -> Cpu:
    """Nothing runs there any more, and tiles are released so that the core can sleep."""
    cpu = _cpu(state, command.vm, command.cpu)
    _need_online(cpu)
    switch_to(cpu, None)
    fpu_idle_fpregs(cpu)
    return cpu


def offline(state: HostState, command: OfflineCpu) -> Cpu:
    """Its tasks go elsewhere when they next have to run. CPU 0 stays: it cannot be taken down since Linux 6.5."""
    cpu = _cpu(state, command.vm, command.cpu)
    _need_online(cpu)
    if cpu.nr == 0:
        raise invalid("cpu", "another than CPU 0, which cannot be taken down", 0)
    switch_to(cpu, None)
    cpu_offline(cpu)
    return cpu


def online(state: HostState, command: OnlineCpu) -> Cpu:
    """Up again, with registers that nobody owns."""
    cpu = _cpu(state, command.vm, command.cpu)
    if cpu.online:
        raise invalid("cpu", "a CPU that is offline", command.cpu)
    cpu_online(cpu)
    return cpu


def sleep_and_wake(state: HostState, command: SuspendHost) -> None:
    """Every task is frozen but the one on CPU 0, which asked for it; the registers of all CPUs are lost."""
    cpus = state.vm(command.vm).platform.cpus
    for cpu in cpus[1:]:
        if cpu.online:
            switch_to(cpu, None)
    frozen = suspend(cpus)
    resume(cpus[0], frozen)


def _cpu(state: HostState, vm: str, nr: int) -> Cpu:
    cpus = state.vm(vm).platform.cpus
    if not 0 <= nr < len(cpus):
        raise invalid("cpu", f"0..{len(cpus) - 1}", nr)
    return cpus[nr]


def _need_online(cpu: Cpu) -> None:
    if not cpu.online:
        raise invalid("cpu", "a CPU that is online", cpu.nr)
