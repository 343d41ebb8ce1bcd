"""Following a host: its lists, then what changes, over forgotten revisions, broken streams and restarts.

list          what is there
watch         every change after the list
Compacted, another history                  -> list again: what differs is a change like any other
the stream breaks, the host goes away       -> watch again from where it was, as soon as it is back
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from fpstate.v1 import (
    exit_pb2,
    exit_pb2_grpc,
    host_pb2,
    host_pb2_grpc,
    migration_pb2,
    migration_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    watch_pb2,
    watch_pb2_grpc,
)

from fpstated.ctl.connection import Connection
from fpstated.ctl.vcpus import all_vcpus
from guest_agent.error import HostError

VM, VCPU, TASK = watch_pb2.RESOURCE_KIND_VM, watch_pb2.RESOURCE_KIND_VCPU, watch_pb2.RESOURCE_KIND_TASK
SESSION, EXIT, HOST = watch_pb2.RESOURCE_KIND_SESSION, watch_pb2.RESOURCE_KIND_EXIT, watch_pb2.RESOURCE_KIND_HOST
MIGRATION: Final = watch_pb2.RESOURCE_KIND_MIGRATION

#: The field of a ResourceChange that each kind comes in.
_FIELDS: Final = {VM: "vm", VCPU: "vcpu", SESSION: "session", EXIT: "exit", HOST: "host", MIGRATION: "migration"}
_LIST_AGAIN: Final = ("HISTORY_CHANGED", "REVISION_IN_FUTURE")
_DELAYS_S: Final = (0.1, 0.5, 1.0, 2.0)


@dataclass(slots=True)
class Follower:
    """What is known of the host, and up to which revision of whose. ``say`` hears what went wrong meanwhile.

    ``parent`` narrows it to a resource and what lies below it.
    """

    connection: Connection
    kinds: tuple[int, ...]
    parent: str
    say: Callable[[str], None]
    known: dict[str, watch_pb2.ResourceChange] = field(default_factory=dict)
    revision: int = 0
    boot_id: str = ""
    failures: int = 0

    def follow(self) -> Iterator[watch_pb2.ResourceChange]:
        """Yield what is there as created, then every change, for ever. Raises HostError for a refusal."""
        listed = False
        while True:
            try:
                if not listed:
                    yield from self._list()
                    listed = True
                forgotten = yield from self._watch()
                if forgotten:
                    listed = False
                    self.say("changes were forgotten: listing again")
            except HostError as error:
                if error.reason in _LIST_AGAIN:
                    listed = False
                    self.say("the host has another history: listing again")
                elif not _goes_away(error) or not self.boot_id:
                    raise
                else:
                    delay_s = _DELAYS_S[min(self.failures, len(_DELAYS_S) - 1)]
                    if not self.failures:
                        self.say(f"{error.reason or error.refusal.message}: waiting for the host")
                    self.failures += 1
                    time.sleep(delay_s)

    # -- watching ------------------------------------------------------------------------------------------------------

    def _watch(self) -> Generator[watch_pb2.ResourceChange, None, bool]:
        """Yield changes until the stream ends: whether they are forgotten, or it was old and another goes on."""
        request = watch_pb2.WatchRequest(
            from_revision=self.revision,
            boot_id=self.boot_id,
            filters=[watch_pb2.WatchFilter(kinds=self.kinds, parent=self.parent)],  # type: ignore[arg-type]
        )
        stub = watch_pb2_grpc.WatchServiceStub(self.connection.channel)
        for message in self.connection.stream(stub.Watch, request):
            self.failures = 0
            if message.HasField("compacted"):
                return True
            if message.HasField("change"):
                change = message.change
                if change.kind == watch_pb2.CHANGE_KIND_DELETED:
                    self.known.pop(change.name, None)
                else:
                    self.known[change.name] = change
                yield change
            self.revision = message.header.revision
        return False

    # -- listing -------------------------------------------------------------------------------------------------------

    def _list(self) -> Iterator[watch_pb2.ResourceChange]:
        """List everything, and yield how it differs from what was known: gone, there, or different."""
        found: dict[str, watch_pb2.ResourceChange] = {}
        host = host_pb2_grpc.HostServiceStub(self.connection.channel)
        info = self.connection.call(host.GetHostInfo, host_pb2.GetHostInfoRequest())
        revision, boot_id = None, info.header.boot_id
        for kind in self.kinds:
            header, resources = self._listed(kind, info)
            if header is not None and revision is None:
                revision = header.revision
            for name, uid, each in resources:
                if self._wanted(name):
                    change = watch_pb2.ResourceChange(name=name, uid=uid, revision=header.revision)
                    getattr(change, _FIELDS[kind]).CopyFrom(each)  # type: ignore[index]
                    found[name] = change
        self.revision = info.header.revision if revision is None else revision
        self.boot_id = boot_id
        yield from self._differences(found)

    def _differences(self, found: dict[str, watch_pb2.ResourceChange]) -> Iterator[watch_pb2.ResourceChange]:
        before, self.known = self.known, found
        for name, old in reversed(before.items()):
            if name not in found or found[name].uid != old.uid:
                gone = watch_pb2.ResourceChange()
                gone.CopyFrom(old)
                gone.kind, gone.revision = watch_pb2.CHANGE_KIND_DELETED, self.revision
                yield gone
        for name, new in found.items():
            old_one = before.get(name)
            if old_one is None or old_one.uid != new.uid:
                new.kind = watch_pb2.CHANGE_KIND_CREATED
                yield new
            elif _resource(old_one) != _resource(new):
                new.kind = watch_pb2.CHANGE_KIND_UPDATED
                yield new

    def _wanted(self, name: str) -> bool:
        return not self.parent or name == self.parent or name.startswith(f"{self.parent}/")

    def _listed(self, kind: int, info: Any) -> tuple[Any, list[tuple[str, str, Any]]]:  # noqa: ANN401 -- by kind
        """The header of a list and its entries, each with name and uid, as Watch would name them."""
        found = self.connection
        vm = "/".join(self.parent.split("/")[:2]) if self.parent.startswith("vms/") else ""
        if kind == HOST:
            host = host_pb2.Host(name=info.header.host, settings=info.settings, drain_state=info.drain_state)
            return info.header, [("host", info.header.boot_id, host)]
        if kind == VM:
            vms = found.pages(vm_pb2_grpc.VmServiceStub(found.channel).ListVms, vm_pb2.ListVmsRequest())
            return vms.header, [(each.name, each.uid, each) for each in vms.vms]
        if kind == VCPU:
            vcpus = all_vcpus(found, [vm] if vm else None)
            return vcpus.header, [(each.name, each.uid, each) for each in vcpus.vcpus]
        if kind == EXIT:
            stub = exit_pb2_grpc.ExitServiceStub(found.channel)
            exits = found.pages(stub.ListExits, exit_pb2.ListExitsRequest(vm=vm))
            return exits.header, [(each.name, f"{each.vcpu_uid}/exits/{each.seq}", each) for each in exits.exits]
        if kind == SESSION:
            return self._sessions(vm)
        if kind == MIGRATION:
            calls = migration_pb2_grpc.MigrationServiceStub(found.channel)
            moves = found.pages(calls.ListMigrations, migration_pb2.ListMigrationsRequest(parent=vm))
            return moves.header, [(each.name, each.uid, each) for each in moves.migrations]
        return None, []  # tasks are watched alone

    def _sessions(self, vm: str) -> tuple[Any, list[tuple[str, str, Any]]]:
        stub = session_pb2_grpc.GuestSessionServiceStub(self.connection.channel)
        try:
            found = self.connection.pages(stub.ListSessions, session_pb2.ListSessionsRequest(vm=vm))
        except HostError as error:
            if error.reason != "ROLE_NOT_ALLOWED":
                raise
            return None, []  # who may not list them is not shown their changes either
        return found.header, [(each.name, each.name.rpartition("/")[2], each) for each in found.sessions]


def _goes_away(error: HostError) -> bool:
    """Whether the host may come back."""
    if error.reason:
        return error.reason in ("HOST_DRAINING", "STORAGE_FULL", "STORAGE_FAILED", "LIMIT_REACHED", "RATE_LIMITED")
    return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


def _resource(change: watch_pb2.ResourceChange) -> Any:  # noqa: ANN401 -- by kind
    """What changed, without the time that runs by itself."""
    found = getattr(change, str(change.WhichOneof("resource")))
    if not isinstance(found, exit_pb2.Exit):
        return found
    timeless = exit_pb2.Exit()
    timeless.CopyFrom(found)
    timeless.ClearField("expires_in")
    return timeless
