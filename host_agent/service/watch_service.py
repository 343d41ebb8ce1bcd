"""WatchService: the history as a stream, from a revision on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from fpstate.v1 import (
    common_pb2,
    exit_pb2,
    host_pb2,
    migration_pb2,
    session_pb2,
    task_pb2,
    vcpu_pb2,
    vm_pb2,
    watch_pb2,
    watch_pb2_grpc,
)

from host_agent.service.access.principal import current_principal
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.layers import Context
from host_agent.service.limits import (
    BOOKMARK_INTERVAL_MAX_S,
    BOOKMARK_INTERVAL_MIN_S,
    BOOKMARK_INTERVAL_S,
)
from host_agent.service.stream_age import StreamAge
from host_agent.service.translate.fields import NS_PER_S, duration_ns, header
from host_agent.service.watch.filters import View, filters_from_proto
from host_agent.service.watch.history import Change, Group, LappedError, Watcher


class WatchService(watch_pb2_grpc.WatchServiceServicer):
    """What changed. ``bookmark_interval_s`` is how long a watcher goes without news that did not say how long."""

    def __init__(self, agent: HostAgent, age: StreamAge, *, bookmark_interval_s: float = BOOKMARK_INTERVAL_S) -> None:
        self._agent = agent
        self._age = age
        self._bookmark_interval_s = bookmark_interval_s

    async def Watch(self, request: watch_pb2.WatchRequest, context: Context) -> AsyncIterator[watch_pb2.WatchResponse]:
        """Every change after a revision, with bookmarks in between; or that it is forgotten."""
        self._check_revision(request)
        view = View(filters_from_proto(request.filters), current_principal.get())
        interval_s = self._interval_s(request)
        history = self._agent.history
        history.wanted()
        now = self._agent.state.revision
        try:
            place = history.place_after(request.from_revision if request.HasField("from_revision") else now)
        except LappedError:
            yield self._compacted()
            return
        watcher = Watcher(history, place)
        history.add(watcher)
        try:
            with self._age.limit(watcher.retire):
                if not request.HasField("from_revision"):
                    yield self._response(now, bookmark=common_pb2.Bookmark())
                async for response in self._responses(watcher, view, interval_s):
                    yield response
        finally:
            history.remove(watcher)

    async def _responses(
        self, watcher: Watcher, view: View, interval_s: float
    ) -> AsyncIterator[watch_pb2.WatchResponse]:
        """What the watcher takes, until it is finished, retired or lapped."""
        clock = asyncio.get_running_loop().time
        quiet_until_s = clock() + interval_s
        try:
            while not watcher.over:
                group = watcher.take()
                if group is not None:
                    for response in self._changes(group, view):
                        yield response
                        quiet_until_s = clock() + interval_s
                elif clock() < quiet_until_s:
                    await watcher.news(quiet_until_s - clock())
                else:
                    yield self._response(self._agent.state.revision, bookmark=common_pb2.Bookmark())
                    quiet_until_s = clock() + interval_s
        except LappedError:
            yield self._compacted()

    def _changes(self, group: Group, view: View) -> Iterator[watch_pb2.WatchResponse]:
        """What the watcher sees of a group. Until the last one is sent, the stream is complete up to the one before."""
        shown = [change for change in group.changes if view.shows(change)]
        for nr, change in enumerate(shown, 1):
            complete = group.revision if nr == len(shown) else group.revision - 1
            yield self._response(complete, change=change_to_proto(change, group.revision))

    def _compacted(self) -> watch_pb2.WatchResponse:
        since = self._agent.history.since
        compacted = watch_pb2.Compacted(compact_revision=since)
        return self._response(self._agent.state.revision, compacted=compacted)

    def _response(
        self,
        revision: int,
        *,
        change: watch_pb2.ResourceChange | None = None,
        bookmark: common_pb2.Bookmark | None = None,
        compacted: watch_pb2.Compacted | None = None,
    ) -> watch_pb2.WatchResponse:
        made = watch_pb2.WatchResponse(
            header=header(self._agent.state), change=change, bookmark=bookmark, compacted=compacted
        )
        made.header.revision = revision
        return made

    def _check_revision(self, request: watch_pb2.WatchRequest) -> None:
        """Refuse a revision that is not one of this history."""
        config, revision = self._agent.state.config, self._agent.state.revision
        if request.boot_id and request.boot_id != config.boot_id:
            text = (
                f"the revision is of the history {request.boot_id!r}, and the host's is {config.boot_id!r}: list again"
            )
            raise Failure.because("HISTORY_CHANGED", text, bootId=request.boot_id, currentBootId=config.boot_id)
        if request.from_revision > revision:
            text = f"revision {request.from_revision} is not reached yet; the host is at {revision}"
            raise Failure.because("REVISION_IN_FUTURE", text, revision=request.from_revision, currentRevision=revision)

    def _interval_s(self, request: watch_pb2.WatchRequest) -> float:
        if not request.HasField("bookmark_interval"):
            return self._bookmark_interval_s
        interval_s = duration_ns("bookmark_interval", request.bookmark_interval) / NS_PER_S
        if not BOOKMARK_INTERVAL_MIN_S <= interval_s <= BOOKMARK_INTERVAL_MAX_S:
            raise field_invalid("bookmark_interval", "100 ms to 1 h", f"{interval_s:g} s")
        return interval_s


def change_to_proto(change: Change, revision: int) -> watch_pb2.ResourceChange:
    """A change as it goes out."""
    made = watch_pb2.ResourceChange(kind=change.kind, revision=revision, name=change.name, uid=change.uid)
    match change.resource:
        case vm_pb2.Vm() as vm:
            made.vm.CopyFrom(vm)
        case vcpu_pb2.Vcpu() as vcpu:
            made.vcpu.CopyFrom(vcpu)
        case task_pb2.Task() as task:
            made.task.CopyFrom(task)
        case session_pb2.Session() as session:
            made.session.CopyFrom(session)
        case exit_pb2.Exit() as exit_:
            made.exit.CopyFrom(exit_)
        case migration_pb2.Migration() as migration:
            made.migration.CopyFrom(migration)
        case host_pb2.Host() as host:
            made.host.CopyFrom(host)
    return made
