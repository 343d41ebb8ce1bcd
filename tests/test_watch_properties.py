"""The host of tests/test_machine_properties.py, watched: any list with the changes after it is any later list.

What a command may change is said before it is applied (service/watch/touched.py); here everything there is is listed
after every command, and nothing may differ that was not said.
"""

from __future__ import annotations

from typing import Any

import pytest
from fpstate.v1 import exit_pb2, watch_pb2
from hypothesis import strategies as st
from hypothesis.stateful import rule

from host_agent.commands import Command
from host_agent.service.clock import ManualClock
from host_agent.service.watch.history import Change, History, Watcher
from host_agent.service.watch.resources import Resource, names, resource, uid
from tests.core import profiles
from tests.core.host import SECOND_NS, Host, host_config
from tests.test_machine_properties import HostRules

CREATED, UPDATED, DELETED = (
    watch_pb2.CHANGE_KIND_CREATED,
    watch_pb2.CHANGE_KIND_UPDATED,
    watch_pb2.CHANGE_KIND_DELETED,
)


class WatchRules(HostRules):
    """The same, with a history, a watcher that takes every change at once, and lists that are kept for later."""

    def __init__(self) -> None:
        super().__init__()
        times = {"exit_deadline_ns": 5 * SECOND_NS, "default_lease_ns": 20 * SECOND_NS}
        self.host = Host(host_config(max_outcomes=64, max_resolved_exits=2, **times))
        self.state = self.host.machine.state
        self.history = History(self.state, ManualClock(), changes_max=400)
        self.history.wanted()
        self.watcher = Watcher(self.history, 0)
        self.folded = self.listed()
        self.revision = 0
        #: Lists of the past, by their revision.
        self.lists: dict[int, dict[str, Resource]] = {}
        apply = self.host.machine.apply

        def watched(command: Command, now_ns: int) -> Any:  # noqa: ANN401 -- each command has its own reply
            before = self.history.before(command, now_ns)
            assert before is not None
            try:
                return apply(command, now_ns)
            finally:
                self.history.after(before, list(self.state.effects))
                self.follow(command)

        self.host.machine.apply = watched  # type: ignore[method-assign]

    def listed(self) -> dict[str, Resource]:
        """Everything there is, by its name."""
        found = {name: resource(self.state, name) for name in names(self.state)}
        return {name: _timeless(each) for name, each in found.items() if each is not None}

    def follow(self, command: Command) -> None:
        """Take what the command changed; with it the list of before is the list of now."""
        while (group := self.watcher.take()) is not None:
            assert group.revision == self.state.revision > self.revision, f"{command} changed things twice"
            self.revision = group.revision
            for change in group.changes:
                self._fold(change)
        now = self.listed()
        differs = {name for name in now.keys() | self.folded.keys() if now.get(name) != self.folded.get(name)}
        assert not differs, f"{command} changed what nobody was told of"

    def _fold(self, change: Change) -> None:
        old = self.folded.get(change.name)
        assert (old is None) == (change.kind == CREATED), f"{change.name} was {'not ' if old is None else ''}there"
        new = _timeless(change.resource)
        if change.kind == UPDATED:
            assert old is not None
            assert old != new, f"{change.name} did not change"
            assert uid(self.state, old) == change.uid
        fold(self.folded, change)

    @rule()
    def list_for_later(self) -> None:
        """Somebody lists, and will watch from there."""
        self.lists[self.state.revision] = dict(self.folded)

    @rule(nr=st.integers(0, 20))
    def catch_up(self, nr: int) -> None:
        """A list of the past with all changes after it is the list of now, unless it is said to be forgotten."""
        for revision in list(self.lists)[nr : nr + 1]:
            found = dict(self.lists[revision])
            if revision < self.history.since:
                del self.lists[revision]
                continue
            watcher = Watcher(self.history, self.history.place_after(revision))
            while (group := watcher.take()) is not None:
                assert group.revision > revision
                for change in group.changes:
                    fold(found, change)
            assert found == self.listed()


def fold(found: dict[str, Resource], change: Change) -> None:
    """What a client does with a change."""
    if change.kind == DELETED:
        found.pop(change.name, None)
    else:
        found[change.name] = _timeless(change.resource)


def _timeless(found: Resource) -> Resource:
    """A copy without the time that an exit has left, which runs by itself."""
    copy = type(found)()
    copy.CopyFrom(found)  # type: ignore[arg-type]
    if isinstance(copy, exit_pb2.Exit):
        copy.ClearField("expires_in")
    return copy


TestWatch = pytest.mark.timeout(900)(profiles.shorter(WatchRules.TestCase))
