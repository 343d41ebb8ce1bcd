"""``task``: what the VMM's own threads do on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fpu_core.xfeature import XFEATURE_NAMES
from host_agent.commands import (
    CloneTask,
    CreateTask,
    ExecTask,
    ExitTask,
    KernelFpu,
    PreemptTask,
    ScheduleTask,
    UseFeature,
)
from host_agent.state import TaskRecord
from host_agent.tasks import FeatureUse
from tests.scenarios.block import ScenarioError
from tests.scenarios.life_commands import LIFE_DEEDS
from tests.scenarios.operands import Words, feature, number, span
from tests.scenarios.world import World


def task(world: World, words: Words) -> None:
    """``task NAME DEED``."""
    label = words.take("a task")
    deed = words.take(f"one of {', '.join(DEEDS)}")
    if deed not in DEEDS:
        raise ScenarioError(f"task: expected one of {', '.join(DEEDS)}, got {deed!r}")
    DEEDS[deed](world, label, words)


def _create(world: World, label: str, words: Words) -> None:
    words.end()
    vm_id, _, task_id = label.rpartition("/")
    _vm, record = world.apply(CreateTask(vm=world.vm(vm_id).name, task_id=task_id))
    world.lanes.host(f"{label} created", _home(record))


def _schedule(world: World, label: str, words: Words) -> None:
    cpu = number(words.take("a CPU"))
    words.end()
    world.lanes.host(f"{label} runs on cpu {cpu}")
    world.apply(ScheduleTask(task=world.task_name(label), cpu=cpu))


def _preempt(world: World, label: str, words: Words) -> None:
    words.end()
    world.lanes.host(f"{label} preempted")
    world.apply(PreemptTask(task=world.task_name(label)))


def _load(world: World, label: str, words: Words) -> None:
    nr, pattern = feature(words.take("a feature")), words.take("a pattern")
    words.end()
    offset, length = _span(world, nr)
    data = world.patterns.bytes_of(pattern, length)
    command = UseFeature(task=world.task_name(label), feature=nr, offset=offset, data=data)
    _use(world, label, f"load {XFEATURE_NAMES[nr]} {pattern}", command)


def _read(world: World, label: str, words: Words) -> None:
    nr = feature(words.take("a feature"))
    words.end()
    offset, length = _span(world, nr)
    command = UseFeature(task=world.task_name(label), feature=nr, offset=offset, length=length)
    _use(world, label, f"read {XFEATURE_NAMES[nr]}", command)


def _use(world: World, label: str, text: str, command: UseFeature) -> None:
    world.acting_task = world.task(label)
    world.lanes.user(f"{label}: {text}")
    line = world.lanes.count
    used: FeatureUse = world.apply(command)
    found = bytes(command.offset) + used.data  # as the component has it
    says = used.signal or (f"= {world.patterns.describe(command.feature, found)}" if used.data else "done")
    if used.growth is not None:
        says += f"; #NM grew fpstate {used.growth.old_bytes} -> {used.growth.new_bytes} B"
    if world.lanes.count == line:
        world.lanes.append(says)
    else:
        world.lanes.user("  ...", says)


def _span(world: World, nr: int) -> tuple[int, int]:
    component = world.vm().platform.host.config.table.components.get(nr)
    return span(nr, component.size_bytes) if component is not None else (0, 1)


def _kernel_fpu(world: World, label: str, words: Words) -> None:
    words.end()
    world.lanes.host(f"kernel_fpu section while {label} runs")
    world.apply(KernelFpu(task=world.task_name(label)))


def _clone(world: World, label: str, words: Words) -> None:
    child, kind = words.take("a name"), words.take("thread or process")
    ssp = number(words.key("ssp", "0"))
    words.end()
    if kind not in ("thread", "process"):
        raise ScenarioError(f"clone: expected thread or process, got {kind!r}")
    world.lanes.host(f"{label} clones {child}, a {kind}")
    world.apply(CloneTask(task=world.task_name(label), task_id=child, thread=kind == "thread", ssp=ssp))


def _exec(world: World, label: str, words: Words) -> None:
    words.end()
    world.lanes.host(f"{label} execs")
    world.apply(ExecTask(task=world.task_name(label)))


def _exit(world: World, label: str, words: Words) -> None:
    words.end()
    world.lanes.host(f"{label} exits")
    world.apply(ExitTask(task=world.task_name(label)))


def take_turns(world: World, words: Words) -> None:
    """``take-turns FEATURE TASK... [rounds=N] [cpu=N]``: all load bytes; then each finds its own, loads others."""
    nr, rounds, cpu = feature(words.take("a feature")), number(words.key("rounds", "10")), number(words.key("cpu", "0"))
    labels = []
    while words.peek():
        labels.append(words.take("a task"))
    words.end()
    before: dict[str, bytes] = {}
    for turn, label in [(turn, label) for turn in range(rounds + 1) for label in labels]:
        new = world.patterns.bytes_of(f"{label}-{turn}", _span(world, nr)[1])
        found = _one_turn(world, label, nr, cpu, new)
        if turn and found != before[label]:
            raise ScenarioError(f"take-turns: {label} lost its {XFEATURE_NAMES[nr]} in round {turn}")
        before[label] = new
    what, times = f"{rounds} rounds of {XFEATURE_NAMES[nr]} on cpu {cpu}", rounds * len(labels)
    world.lanes.user(f"{', '.join(labels)}: {what}", f"{times} of {times} found their own")


def _one_turn(world: World, label: str, nr: int, cpu: int, new: bytes) -> bytes:
    """The task's turn on the CPU; what it found."""
    world.acting_task = world.task(label)
    name, offset = world.task_name(label), _span(world, nr)[0]
    world.apply(ScheduleTask(task=name, cpu=cpu))
    found: FeatureUse = world.apply(UseFeature(task=name, feature=nr, offset=offset, length=len(new)))
    loaded: FeatureUse = world.apply(UseFeature(task=name, feature=nr, offset=offset, data=new))
    if found.signal or loaded.signal:
        raise ScenarioError(f"take-turns: {label} got {found.signal or loaded.signal}")
    return found.data


def _home(record: TaskRecord) -> str:
    return f"home cpu {record.home_cpu}"


#: Everything a task can do, by its word.
DEEDS: Final[dict[str, Callable[[World, str, Words], None]]] = {
    "create": _create,
    "schedule": _schedule,
    "preempt": _preempt,
    "load": _load,
    "read": _read,
    "kernel-fpu": _kernel_fpu,
    "clone": _clone,
    "exec": _exec,
    "exit": _exit,
    **LIFE_DEEDS,
}
