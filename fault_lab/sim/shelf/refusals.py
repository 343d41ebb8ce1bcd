"""Refusals: whoever is told that nothing was done can rely on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fault_lab.sim.shelf.book import Book, Fail

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode
    from host_agent.commands import Command
    from host_agent.state import HostState


class RefusalBook(Book):
    """``refused-changes-nothing``: how much there is of everything stays what it was."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        self._was: tuple[int, ...] = ()
        self._revision = 0

    def before(self, host: HostNode, command: Command) -> None:  # noqa: ARG002
        """Count what there is."""
        self._was = _counted(host.machine.state)
        self._revision = host.machine.state.revision

    def after(self, host: HostNode, command: Command, result: object, effects: list[Any]) -> None:  # noqa: ARG002
        """Count again, unless time has changed something before the command."""
        state = host.machine.state
        if isinstance(result, Exception) and state.revision == self._revision and _counted(state) != self._was:
            text = f"{type(command).__name__} was refused, and there is {_counted(state)} where there was {self._was}"
            self._fail("refused-changes-nothing", f"{text} (VMs, vCPUs, sessions, controls, exits, epoch, bytes)")


def _counted(state: HostState) -> tuple[int, ...]:
    vcpus = sum(len(vm.kvm.vcpus) for vm in state.vms.values())
    kept = len(state.sessions), len(state.controls), len(state.exits)
    return len(state.vms), vcpus, *kept, state.epoch, state.allocator.host.used_bytes
