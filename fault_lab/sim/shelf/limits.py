"""Limits: no account has taken more than it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fault_lab.sim.shelf.book import Book
from host_agent import commands as c
from host_agent.exits import DecisionKind

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode


class LimitBook(Book):
    """``within-limits``, and ``decision-is-done`` of a RAISE_LIMIT.

    Nobody lowers a limit in the simulated world, so there is never more than fits in.
    """

    def after(self, host: HostNode, command: c.Command, result: object, effects: list[Any]) -> None:  # noqa: ARG002
        """Look at every account."""
        state = host.machine.state
        for account in (state.allocator.host, *(vm.kvm.account for vm in state.vms.values())):
            if account.limit_bytes is not None and account.used_bytes > account.limit_bytes:
                text = f"{account.name} has taken {account.used_bytes} bytes of {account.limit_bytes}"
                self._fail("within-limits", text)
        if isinstance(command, c.ResolveExit) and not isinstance(result, Exception):
            self._raised(host, command)

    def _raised(self, host: HostNode, command: c.ResolveExit) -> None:
        decision = command.decision
        if decision.kind is not DecisionKind.RAISE_LIMIT:
            return
        state = host.machine.state
        vm = state.vms[command.exit.partition("/vcpus/")[0]]
        account = state.allocator.host if decision.scope == "host" else vm.kvm.account
        if account.limit_bytes is None or account.limit_bytes < decision.bytes:
            text = (
                f"{command.exit}: RAISE_LIMIT to {decision.bytes} bytes, and {account.name} has {account.limit_bytes}"
            )
            self._fail("decision-is-done", text)
