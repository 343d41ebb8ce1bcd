"""Who acts for a VM in a simulated run: numbers drawn one by one, and a choice among what is there."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fault_lab.injection.draw import draw64
from host_agent import commands as c
from host_agent.state import HostState, TaskRecord, VmRecord

T = TypeVar("T")
#: What an act is: it yields commands and is sent the reply of each, or the ``Refused``.
Act = Generator[c.Command, Any, None]
#: More tasks than these are not made, so that a run stays small.
_TASKS_MAX: Final = 7
_U64: Final = struct.Struct("<Q")


class Draws:
    """Numbers of one player, each drawn once: a function of its seed and of how many came before."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn = 0

    def below(self, many: int) -> int:
        """One of 0..many-1."""
        self._drawn += 1
        return draw64(self._seed, "act", "", self._drawn) % many

    def one_of(self, choice: Sequence[T]) -> T:
        """One of some."""
        return choice[self.below(len(choice))]

    def bytes(self, length: int) -> bytes:
        """Bytes that look like nothing else, and never like the init state."""
        raw = hashlib.shake_128(_U64.pack(self.below(1 << 60))).digest(length)
        return bytes(each or 1 for each in raw)


@dataclass(slots=True)
class Hand:
    """Who acts: for one VM, by its draws, on what the host's state is now."""

    vm: str
    draws: Draws
    state: Callable[[], HostState]
    #: Indices of the vCPUs that guests play on: their state is theirs.
    played: frozenset[int]
    made: int = 0

    @property
    def record(self) -> VmRecord:
        """The VM."""
        return self.state().vms[self.vm]

    def name(self, task: TaskRecord) -> str:
        """A task as commands name it."""
        return f"{self.vm}/tasks/{task.id}"

    def new_id(self, kind: str) -> str:
        """An id that no task of the VM has."""
        while f"{kind}{self.made}" in self.record.tasks:
            self.made += 1
        return f"{kind}{self.made}"

    def tasks(self, *, workers: bool = False) -> list[TaskRecord]:
        """The VM's tasks, those in KVM_RUN left out; never none, since the main thread is in none of its own."""
        found = [task for task in self.record.tasks.values() if task.vcpu is None]
        return [task for task in found if workers or not task.fpu.is_worker]

    def task(self, *, workers: bool = False) -> str:
        """One of them."""
        found = self.tasks(workers=workers)
        return self.name(self.draws.one_of(found)) if found else f"{self.vm}/tasks/none"

    def handler(self) -> TaskRecord | None:
        """A task that handles a signal."""
        found = [task for task in self.tasks() if task.frames]
        return self.draws.one_of(found) if found else None

    def vcpu(self) -> str | None:
        """One of the VM's vCPUs that no guest plays on; None where there is none."""
        idle = [index for index in self.record.kvm.vcpus if index not in self.played]
        return f"{self.vm}/vcpus/{self.draws.one_of(idle)}" if idle else None

    def cpu(self) -> int:
        """One of the CPUs that the VM runs on."""
        return self.draws.below(len(self.record.platform.cpus))

    def room(self) -> bool:
        """Whether one task more is not too many."""
        return len(self.record.tasks) < _TASKS_MAX
