"""Acts of the kernel: its workers, its own use of the FPU, interrupts, and CPUs that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fault_lab.sim.hand import Act, Hand
from host_agent import commands as c
from host_agent import task_commands as t


def _worker(hand: Hand) -> Act:
    if hand.room():
        yield t.CreateWorker(vm=hand.vm, task_id=hand.new_id("w"), user_worker=bool(hand.draws.below(2)))


def _kernel_fpu(hand: Hand) -> Act:
    yield c.KernelFpu(task=hand.task(workers=True))


def _interrupt(hand: Hand) -> Act:
    context = hand.draws.one_of(["softirq", "hardirq"])
    hits = ["task", "kernel-fpu"] if context == "softirq" else ["task", "kernel-fpu", "fpregs-lock"]
    yield t.Interrupt(task=hand.task(workers=True), context=context, hits=hand.draws.one_of(hits))


def _idle(hand: Hand) -> Act:
    yield t.IdleCpu(vm=hand.vm, cpu=hand.cpu())


def _offline(hand: Hand) -> Act:
    yield t.OfflineCpu(vm=hand.vm, cpu=hand.cpu())


def _online(hand: Hand) -> Act:
    down = [cpu.nr for cpu in hand.record.platform.cpus if not cpu.online]
    if down:
        yield t.OnlineCpu(vm=hand.vm, cpu=hand.draws.one_of(down))


def _suspend(hand: Hand) -> Act:
    yield t.SuspendHost(vm=hand.vm)


#: By their names in ``fault_lab.plan.acts``.
PLAYED: Final[dict[str, Callable[[Hand], Act]]] = {
    "worker": _worker,
    "kernel-fpu": _kernel_fpu,
    "interrupt": _interrupt,
    "idle": _idle,
    "offline": _offline,
    "online": _online,
    "suspend": _suspend,
}
