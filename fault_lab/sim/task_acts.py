"""Acts of the VMM's threads: their life, and what they do to their registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fault_lab.sim.hand import Act, Hand
from fpu_core.fpu import Fpu
from fpu_core.permission import XcompOp
from fpu_core.xfeature import (
    XFEATURE_FP,
    XFEATURE_PKRU,
    XFEATURE_XTILE_DATA,
    for_each_set_bit,
)
from host_agent import commands as c
from host_agent import task_commands as t
from host_agent.state import TaskRecord


def _create(hand: Hand) -> Act:
    if hand.room():
        yield c.CreateTask(vm=hand.vm, task_id=hand.new_id("t"))


def _clone(hand: Hand) -> Act:
    if hand.room():
        thread = bool(hand.draws.below(2))
        yield c.CloneTask(task=hand.task(), task_id=hand.new_id("t" if thread else "p"), thread=thread)


def _children(hand: Hand) -> list[TaskRecord]:
    """Leaders of processes other than the VMM itself."""
    return [each for each in hand.tasks() if each.fpu.leader is each.fpu and each.fpu is not hand.record.kvm.leader]


def _exec(hand: Hand) -> Act:
    children = _children(hand)
    if children:
        yield c.ExecTask(task=hand.name(hand.draws.one_of(children)))


def _exit(hand: Hand) -> Act:
    task = hand.draws.one_of(hand.tasks(workers=True))
    led: list[Fpu] = [
        each.fpu for each in hand.record.tasks.values() if each.fpu.leader is task.fpu and each is not task
    ]
    if not led:
        yield c.ExitTask(task=hand.name(task))


def _schedule(hand: Hand) -> Act:
    task = hand.draws.one_of(list(hand.record.tasks.values()))
    yield c.ScheduleTask(task=hand.name(task), cpu=hand.cpu())


def _preempt(hand: Hand) -> Act:
    running = [task for task in hand.record.tasks.values() if task.fpu.cpu is not None]
    if running:
        yield c.PreemptTask(task=hand.name(hand.draws.one_of(running)))


# -- registers ---------------------------------------------------------------------------------------------------------


def _component(hand: Hand) -> int:
    config = hand.record.platform.host.config
    there = [nr for nr in for_each_set_bit(config.user.max_features) if nr != XFEATURE_PKRU]
    return hand.draws.one_of(there + [XFEATURE_XTILE_DATA] * 2 if XFEATURE_XTILE_DATA in there else there)


def _use(hand: Hand) -> Act:
    nr = _component(hand)
    size = hand.record.platform.host.config.table.size_bytes(nr)
    if nr == XFEATURE_FP:
        # One 80-bit register: what has no bits of its own does not read back as loaded.
        offset, length = 32 + 16 * hand.draws.below(8), 10
    else:
        offset = hand.draws.below(size)
        length = 1 + hand.draws.below(min(size - offset, 64))
    data = hand.draws.bytes(length)
    yield c.UseFeature(task=hand.task(), feature=nr, offset=offset, data=data, length=length)


def _read(hand: Hand) -> Act:
    nr = _component(hand)
    size = hand.record.platform.host.config.table.size_bytes(nr)
    yield c.UseFeature(task=hand.task(), feature=nr, offset=0, length=size)


def _pkru(hand: Hand) -> Act:
    yield c.UseFeature(task=hand.task(), feature=XFEATURE_PKRU, offset=0, data=hand.draws.bytes(4), length=4)


def _permit(hand: Hand) -> Act:
    yield t.ArchPrctl(task=hand.task(), op=int(XcompOp.REQ_PERM), arg=XFEATURE_XTILE_DATA)


def _altstack(hand: Hand) -> Act:
    yield t.SetAltstack(task=hand.task(), size_bytes=hand.draws.one_of([None, 2048, 8192, 16384]))


def _shadow_stack(hand: Hand) -> Act:
    yield t.EnableShadowStack(task=hand.task(), ssp=0x7000 + 8 * hand.draws.below(64))


#: By their names in ``fault_lab.plan.acts``.
PLAYED: Final[dict[str, Callable[[Hand], Act]]] = {
    "create": _create,
    "clone": _clone,
    "exec": _exec,
    "exit": _exit,
    "schedule": _schedule,
    "preempt": _preempt,
    "use": _use,
    "read": _read,
    "pkru": _pkru,
    "permit": _permit,
    "altstack": _altstack,
    "shadow-stack": _shadow_stack,
}
