"""Leases: a session, or a control, lasts as long as it was promised after its holder's last word, and no longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fault_lab.sim.shelf.book import Book, Fail
from host_agent import commands as c
from host_agent.sessions import Opened
from host_agent.state import ControlRecord

if TYPE_CHECKING:
    from fault_lab.sim.host import HostNode


class LeaseBook(Book):
    """``leases-kept``."""

    def __init__(self, fail: Fail) -> None:
        super().__init__(fail)
        #: By host and name: when the lease ends, on the host's clock.
        self._sessions: dict[str, dict[str, int]] = {}
        self._controls: dict[str, dict[str, int]] = {}

    def after(self, host: HostNode, command: c.Command, result: object, effects: list[Any]) -> None:  # noqa: ARG002
        """Count each lease anew that was renewed, and look for those that are gone, or should be."""
        state = host.machine.state
        sessions = self._sessions.setdefault(host.name, {})
        controls = self._controls.setdefault(host.name, {})
        if not isinstance(result, Exception):
            self._renewed(host, command, result)
        for name, ends_ns in list(sessions.items()):
            there = name in state.sessions
            if there and ends_ns <= state.now_ns:
                self._fail("leases-kept", f"{name} is there at {state.now_ns}, and its lease ended at {ends_ns}")
            if not there and state.ended_sessions.get(name) and state.now_ns < ends_ns:
                self._fail("leases-kept", f"{name} has expired at {state.now_ns}, and its lease ends at {ends_ns}")
            if not there:
                del sessions[name]
        given_up = isinstance(command, c.AcquireControl | c.ReleaseControl)
        for name, ends_ns in list(controls.items()):
            there = name in state.controls
            if there and ends_ns <= state.now_ns:
                self._fail("leases-kept", f"{name} is held at {state.now_ns}, and its lease ended at {ends_ns}")
            if not there and not given_up and state.now_ns < ends_ns:
                self._fail("leases-kept", f"{name} is lost at {state.now_ns}, and its lease ends at {ends_ns}")
            if not there:
                del controls[name]

    def _renewed(self, host: HostNode, command: c.Command, result: object) -> None:
        state = host.machine.state
        sessions, controls = self._sessions[host.name], self._controls[host.name]
        match command:
            case c.OpenSession() if isinstance(result, Opened) and result.session.name in state.sessions:
                sessions.setdefault(result.session.name, state.now_ns + result.session.lease_ns)
            case c.KeepAlive(session=name) | c.SubmitBatch(session=name) if name in state.sessions:
                sessions[name] = state.now_ns + state.sessions[name].lease_ns
            case c.AcquireControl() | c.RenewControl() if isinstance(result, ControlRecord):
                controls[result.name] = state.now_ns + result.lease_ns
            case _:
                pass

    def recovered(self, host: HostNode) -> None:
        """A lease has left what it had left."""
        state = host.machine.state
        self._sessions[host.name] = {each.name: each.expires_ns for each in state.sessions.values()}
        self._controls[host.name] = {each.name: each.expires_ns for each in state.controls.values()}
