"""Who looks at every command of a host whose plan has host tasks: the scheduler, and the books."""

from __future__ import annotations

from collections.abc import Callable

from fault_lab.sim import vcpu_books
from fault_lab.sim.preemption import Preemption
from fault_lab.sim.task_books import TaskBooks
from host_agent.commands import Command
from host_agent.errors import Reason, Refused
from host_agent.machine import HostMachine


class TaskWatch:
    """Watches one machine from the beginning of its log on. ``fail`` is told of a check that does not hold."""

    def __init__(self, machine: HostMachine, seed: int, preempt_ppm: int, fail: Callable[[str, str], None]) -> None:
        self._machine = machine
        self._fail = fail
        self._preemption = Preemption(machine, seed, preempt_ppm)
        self._books = TaskBooks()

    def begins(self, command: Command) -> None:
        """A command is about to be carried out."""
        self._preemption.begins(command)

    def ended(self, command: Command, result: object) -> None:
        """It was carried out, or refused."""
        self._preemption.ended()
        if isinstance(result, Refused) and result.reason is Reason.INTERNAL_INVARIANT:
            self._fail("invariants", result.text)
        for check, text in self._books.note(self._machine, command, result):
            self._fail(check, text)
        for check, text in vcpu_books.note(self._machine, command, result):
            self._fail(check, text)
