"""Hosts of other property tests, watched: any list with the changes after it is any later list.

What a command may change is said before it is applied (service/watch/touched.py); here everything there is is listed
after every command, and nothing may differ that was not said.
"""

from __future__ import annotations

from typing import Any

import pytest
from fpstate.v1 import exit_pb2, watch_pb2
from hypothesis import strategies as st
from hypothesis.stateful import rule

from host_agent.commands import Command, CreateVcpu, CreateVm, Tick
from host_agent.machine import HostMachine
from host_agent.migrations import MigrationRecord
from host_agent.service.clock import ManualClock
from host_agent.service.watch.history import Change, History, Watcher
from host_agent.service.watch.resources import Resource, names, resource, uid
from tests.core import profiles
from tests.core.host import SECOND_NS, Host, host_config
from tests.migration_nodes import Node
from tests.test_machine_properties import HostRules
from tests.test_migration_properties import MigrationRules

CREATED, UPDATED, DELETED = (
    watch_pb2.CHANGE_KIND_CREATED,
    watch_pb2.CHANGE_KIND_UPDATED,
    watch_pb2.CHANGE_KIND_DELETED,
)


class Mirror:
    """A watcher that takes every change at once, and compares with everything there is after every command."""

    def __init__(self, machine: HostMachine) -> None:
        self.state = machine.state
        self.history = History(self.state, ManualClock(), changes_max=400)
        self.history.wanted()
        self._watcher = Watcher(self.history, self.history.place_after(self.state.revision))
        self.folded = self.listed()
        self._revision = self.state.revision
        apply = machine.apply

        def watched(command: Command, now_ns: int) -> Any:  # noqa: ANN401 -- each command has its own reply
            before = self.history.before(command, now_ns)
            assert before is not None
            try:
                return apply(command, now_ns)
            finally:
                self.history.after(before, list(self.state.effects))
                self._follow(command)

        machine.apply = watched  # type: ignore[method-assign]

    def listed(self) -> dict[str, Resource]:
        """Everything there is, by its name."""
        found = {name: resource(self.state, name) for name in names(self.state)}
        return {name: _timeless(each) for name, each in found.items() if each is not None}

    def _follow(self, command: Command) -> None:
        """Take what the command changed; with it the list of before is the list of now."""
        while (group := self._watcher.take()) is not None:
            assert group.revision == self.state.revision > self._revision, f"{command} changed things twice"
            self._revision = group.revision
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


class WatchRules(HostRules):
    """The same, watched, with lists that are kept for later."""

    def __init__(self) -> None:
        super().__init__()
        times = {"exit_deadline_ns": 5 * SECOND_NS, "default_lease_ns": 20 * SECOND_NS}
        self.host = Host(host_config(max_outcomes=64, max_resolved_exits=2, **times))
        self.state = self.host.machine.state
        self.mirror = Mirror(self.host.machine)
        #: Lists of the past, by their revision.
        self.lists: dict[int, dict[str, Resource]] = {}

    @rule()
    def list_for_later(self) -> None:
        """Somebody lists, and will watch from there."""
        self.lists[self.state.revision] = dict(self.mirror.folded)

    @rule(nr=st.integers(0, 20))
    def catch_up(self, nr: int) -> None:
        """A list of the past with all changes after it is the list of now, unless it is said to be forgotten."""
        history = self.mirror.history
        for revision in list(self.lists)[nr : nr + 1]:
            found = dict(self.lists[revision])
            if revision < history.since:
                del self.lists[revision]
                continue
            watcher = Watcher(history, history.place_after(revision))
            while (group := watcher.take()) is not None:
                assert group.revision > revision
                for change in group.changes:
                    fold(found, change)
            assert found == self.mirror.listed()


class WatchedNode(Node):
    """A host that is watched, from anew whenever it comes back."""

    def _is(self, machine: HostMachine) -> None:
        super()._is(machine)
        Mirror(machine)


class WatchedMigrationRules(MigrationRules):
    """Hosts that VMs come to and go from, each watched."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [WatchedNode(name) for name in ("one", "two", "three")]


def test_migrations_that_are_forgotten() -> None:
    """Of those that are over the oldest go, and so say the changes; one that is open stays."""
    node = WatchedNode("one", max_migrations=2)
    node.do(CreateVm(vm_id="a"))
    node.do(CreateVcpu(vm="vms/a", index=0))
    for _nr in range(4):
        begun = node.begin("vms/a", "two")
        assert isinstance(begun, MigrationRecord)
        node.abort(begun.name, begun.ownership_epoch, "")
    node.begin("vms/a", "two")
    node.do(Tick(), after_ns=61 * SECOND_NS)
    assert [each.reason for each in node.state.migrations.values()] == ["", "deadline"]


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
TestWatchedMigrations = pytest.mark.timeout(900)(profiles.shorter(WatchedMigrationRules.TestCase))
