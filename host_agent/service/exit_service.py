"""ExitService: who may decide, what there is to decide, and the decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

from fpstate.v1 import common_pb2, exit_pb2, exit_pb2_grpc

from host_agent.audit import DecisionRecord
from host_agent.commands import AcquireControl, ReleaseControl, RenewControl, ResolveExit
from host_agent.errors import Refused
from host_agent.exits import ExitRecord
from host_agent.service.access.principal import current_principal
from host_agent.service.agent import HostAgent
from host_agent.service.errors import Failure, field_invalid
from host_agent.service.exit_watch import ExitWatcher
from host_agent.service.layers import Context
from host_agent.service.limits import BOOKMARK_INTERVAL_S, LEASE_MIN_NS, REASON_MAX
from host_agent.service.paging import Key, page
from host_agent.service.stream_age import StreamAge
from host_agent.service.translate.decision import decision_from_proto, decision_record_to_proto
from host_agent.service.translate.exit import EXIT_STATES, exit_to_proto
from host_agent.service.translate.fields import (
    control_name,
    duration,
    duration_ns,
    exit_name,
    header,
    request_id,
    text,
    vm_name,
)
from host_agent.state import ControlRecord


class ExitService(exit_pb2_grpc.ExitServiceServicer):
    """Exits and their controllers. ``bookmark_interval_s`` is how long a watcher goes without news."""

    def __init__(self, agent: HostAgent, age: StreamAge, *, bookmark_interval_s: float = BOOKMARK_INTERVAL_S) -> None:
        self._agent = agent
        self._age = age
        self._bookmark_interval_s = bookmark_interval_s

    # -- control -------------------------------------------------------------------------------------------------------

    async def AcquireControl(
        self, request: exit_pb2.AcquireControlRequest, context: Context
    ) -> exit_pb2.AcquireControlResponse:
        """Take control of the host or of one VM."""
        lease_ns = duration_ns("lease", request.lease)
        command = AcquireControl(
            scope=vm_name("scope", request.scope) if request.scope else "",
            controller=text("controller_name", request.controller_name, longest=128, required=True),
            principal=current_principal.get().id,
            lease_ns=max(lease_ns, LEASE_MIN_NS) if lease_ns else 0,
            request_id=request_id(request.request_id),
        )
        control: ControlRecord = self._agent.submit(command)
        return exit_pb2.AcquireControlResponse(
            header=header(self._agent.state),
            control=control.name,
            epoch=control.epoch,
            lease=duration(control.lease_ns),
        )

    async def RenewControl(
        self, request: exit_pb2.RenewControlRequest, context: Context
    ) -> exit_pb2.RenewControlResponse:
        """Start the lease anew."""
        command = RenewControl(control=control_name("control", request.control), epoch=request.epoch)
        control: ControlRecord = self._agent.submit(command)
        return exit_pb2.RenewControlResponse(header=header(self._agent.state), lease=duration(control.lease_ns))

    async def ReleaseControl(
        self, request: exit_pb2.ReleaseControlRequest, context: Context
    ) -> exit_pb2.ReleaseControlResponse:
        """Give control up; a control that is not there any more was given up or has run out."""
        name = control_name("control", request.control)
        command = ReleaseControl(control=name, epoch=request.epoch, request_id=request_id(request.request_id))
        if name in self._agent.state.controls:
            self._agent.submit(command)
        return exit_pb2.ReleaseControlResponse(header=header(self._agent.state))

    # -- decisions -----------------------------------------------------------------------------------------------------

    async def ResolveExit(self, request: exit_pb2.ResolveExitRequest, context: Context) -> exit_pb2.ResolveExitResponse:
        """Decide about an exit. A decision renews the control's lease."""
        command = ResolveExit(
            exit=exit_name("name", request.name),
            generation=request.generation,
            control=control_name("control", request.control),
            control_epoch=request.control_epoch,
            decision=decision_from_proto("decision", request.decision),
            decided_by=text("decided_by", request.decided_by, longest=128),
            principal=current_principal.get().id,
            reason=text("reason", request.reason, longest=REASON_MAX),
            request_id=request_id(request.request_id),
        )
        record: ExitRecord = self._agent.submit(command)
        with suppress(Refused):  # a repetition of what was decided under a control that is lost by now
            self._agent.submit(RenewControl(control=command.control, epoch=command.control_epoch))
        state = self._agent.state
        return exit_pb2.ResolveExitResponse(header=header(state), exit=exit_to_proto(state, record))

    # -- looking -------------------------------------------------------------------------------------------------------

    async def GetExit(self, request: exit_pb2.GetExitRequest, context: Context) -> exit_pb2.GetExitResponse:
        """Return one exit."""
        name = exit_name("name", request.name)
        record = self._agent.exit_record(name)
        if record is None:
            raise Failure.because("EXIT_NOT_FOUND", f"there is no exit {name!r}", exit=name)
        state = self._agent.state
        return exit_pb2.GetExitResponse(header=header(state), exit=self._now(record))

    async def ListExits(self, request: exit_pb2.ListExitsRequest, context: Context) -> exit_pb2.ListExitsResponse:
        """List exits, unresolved and remembered, oldest first."""
        vm = vm_name("vm", request.vm) if request.vm else ""
        wanted = _states(request)
        records = (record for record in self._records(vm) if not wanted or EXIT_STATES[record.state] in wanted)
        exits, token = page(records, _age, size=request.page_size, token=request.page_token)
        self._agent.history.wanted()
        state = self._agent.state
        return exit_pb2.ListExitsResponse(
            header=header(state), exits=[self._now(record) for record in exits], next_page_token=token
        )

    async def ListDecisions(
        self, request: exit_pb2.ListDecisionsRequest, context: Context
    ) -> exit_pb2.ListDecisionsResponse:
        """List what was decided, oldest first."""
        vm = vm_name("vm", request.vm) if request.vm else ""
        exit_ = exit_name("exit", request.exit) if request.exit else ""
        state = self._agent.state
        records = (
            record for record in state.audit.decisions.values() if vm in ("", record.vm) and exit_ in ("", record.exit)
        )
        found, token = page(records, _number, size=request.page_size, token=request.page_token)
        return exit_pb2.ListDecisionsResponse(
            header=header(state),
            decisions=[decision_record_to_proto(record) for record in found],
            next_page_token=token,
        )

    def _records(self, vm: str) -> Iterator[ExitRecord]:
        state = self._agent.state
        for records in (state.exits, state.resolved_exits):
            yield from (record for record in records.values() if vm in ("", record.vm))

    # -- watching ------------------------------------------------------------------------------------------------------

    async def WatchExits(
        self, request: exit_pb2.WatchExitsRequest, context: Context
    ) -> AsyncIterator[exit_pb2.WatchExitsResponse]:
        """Every unresolved exit, the end of that list, then changes as they happen, with bookmarks in between."""
        watcher = ExitWatcher(vm_name("vm", request.vm) if request.vm else "")
        initial = self._initial(watcher.vm, request.from_revision)
        done = self._response(initial_list_done=common_pb2.InitialListDone())
        self._agent.exit_watchers.add(watcher)  # before the first message goes out: what changes meanwhile is queued
        try:
            with self._age.limit(watcher.retire):
                for response in initial:
                    yield response
                yield done
                while not watcher.over:
                    news = await watcher.next(self._bookmark_interval_s)
                    if news is None:
                        yield self._response(bookmark=common_pb2.Bookmark())
                    else:
                        yield self._response(exit=news.exit, revision=news.revision)
        finally:
            self._agent.exit_watchers.remove(watcher)

    def _initial(self, vm: str, from_revision: int) -> list[exit_pb2.WatchExitsResponse]:
        state = self._agent.state
        if from_revision > state.revision:
            text_ = f"revision {from_revision} is not reached yet; the host is at {state.revision}"
            raise Failure.because("REVISION_IN_FUTURE", text_, revision=from_revision, currentRevision=state.revision)
        records = [
            record
            for record in self._records(vm)
            if record.open or (from_revision and record.updated_revision >= from_revision)
        ]
        return [self._response(exit=self._now(record)) for record in sorted(records, key=_age)]

    def _now(self, record: ExitRecord) -> exit_pb2.Exit:
        """An exit as it is shown now: looking is no command, so the machine does not know how late it is."""
        return exit_to_proto(self._agent.state, record, now_ns=self._agent.now_ns())

    def _response(
        self,
        *,
        exit: exit_pb2.Exit | None = None,  # noqa: A002 -- the field's name
        bookmark: common_pb2.Bookmark | None = None,
        initial_list_done: common_pb2.InitialListDone | None = None,
        revision: int | None = None,
    ) -> exit_pb2.WatchExitsResponse:
        made = exit_pb2.WatchExitsResponse(
            header=header(self._agent.state), exit=exit, bookmark=bookmark, initial_list_done=initial_list_done
        )
        if revision is not None:
            made.header.revision = revision
        return made


def _age(record: ExitRecord) -> Key:
    return (record.created_revision, record.name)


def _number(record: DecisionRecord) -> Key:
    return (record.number,)


def _states(request: exit_pb2.ListExitsRequest) -> set[int]:
    for nr, each in enumerate(request.states):
        if each not in EXIT_STATES.values():
            raise field_invalid(f"states[{nr}]", "a state that an exit can be in", each)
    return set(request.states)
