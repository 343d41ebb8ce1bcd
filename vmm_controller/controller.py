"""The exit loop: hold the scope, follow its exits, decide once per (exit, generation), see what came of it.

    acquire --> list, watch --> exit wanted? --> decide (pure) --> ResolveExit --> the exit after it
       ^            ^                ^                                  |
       |            | host away      | open again, generation + 1       | refused: look again, or leave it
       |            +----------------+----------------------------------+
       | fenced: stop, or acquire again

Each exit has at most one task, and that at most one decision on its way; a slow one holds up no other. A decision that
did not get there is sent again as it was, with the same request id, so that the host does it once. Whatever goes wrong
here, the vCPU stays parked on its exit, and its deadline brings the host's default action.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Final

import grpc.aio
from fpstate.v1 import exit_pb2 as pb
from fpstate.v1 import exit_pb2_grpc as pb_grpc

from fpstated.link.trace import TraceContext, event_trace_of, in_one_trace, trace_metadata
from vmm_controller.config import ControllerConfig
from vmm_controller.control import Control
from vmm_controller.decision_point import DecisionPoint
from vmm_controller.desk import ExitDesk, Key, key_of
from vmm_controller.error import CallError, typed_errors
from vmm_controller.exit_proto import decision_to_proto, exit_from_proto
from vmm_controller.policy import Decision, ExitView, seeded_draw
from vmm_controller.source import ExitSource, Listed
from vmm_controller.timeline import (
    Event,
    OnEvent,
    decision_event,
    disconnected_event,
    exit_event,
    left_event,
    refused_event,
    result_event,
    watching_event,
)

#: The exit is not what it was when it was decided about: look at it again.
_LOOK_AGAIN: Final = frozenset({"EXIT_ALREADY_RESOLVED", "EXIT_STALE_GENERATION", "DECISION_NOT_ALLOWED"})
#: The stream lost us, or we came from another host's revisions: the list knows everything.
_LIST_AGAIN: Final = frozenset({"LIMIT_REACHED", "REVISION_IN_FUTURE"})


def _ignore(_event: Event) -> None:
    pass


class Controller:
    """A userspace VMM's deciding side on one channel. `run` works until `stop`; both belong to one event loop."""

    def __init__(self, channel: grpc.aio.Channel, config: ControllerConfig, on_event: OnEvent = _ignore) -> None:
        """`on_event` is called with each event of the timeline (timeline.py), in order, and must not block."""
        self._config = config
        self._tell = on_event
        self._stub: pb_grpc.ExitServiceAsyncStub = pb_grpc.ExitServiceStub(channel)
        self._draw = seeded_draw(config.seed)
        self._points = DecisionPoint(config.fault_points, config.name)
        self._control = Control(self._stub, config, self._draw, on_event)
        self._source = ExitSource(self._stub, config.scope, call_timeout_s=config.call_timeout_s)
        self._desk = ExitDesk(decide_paused=config.decide_paused)
        self._slots = asyncio.Semaphore(config.decisions_max)
        self._deciding: dict[Key, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._revision = 0
        self._stop = asyncio.Event()
        #: Set while the scope is held and its exits are known and followed.
        self.watching = asyncio.Event()

    def stop(self) -> None:
        """Let `run` end: no new decision, control released."""
        self._stop.set()

    async def run(self) -> None:
        """Decide until `stop`, then release control.

        Raises CallError where the host refuses for good: `lost_control` if another controller has taken the scope and
        the configuration says to stop then. Cancelling is clean too, but waits for the release.
        """
        serving = asyncio.create_task(self._serve())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            for task in (serving, stopping):
                task.cancel()
            await asyncio.gather(serving, stopping, return_exceptions=True)
            await self._control.release()

    # -- holding the scope ---------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            await self._control.acquire()
            self._desk.reconsider()
            try:
                await self._decide_under_control()
            except CallError as error:
                again = error.lost_control and await self._may_acquire_again()
                if error.lost_control:
                    self._control.lost(error)
                if not again:
                    raise

    async def _decide_under_control(self) -> None:
        """Renew, watch and decide; one failure ends all of it, and is raised alone."""
        # A task that is cancelled before its first step never comes to its own `finally`.
        self._deciding.clear()
        try:
            async with asyncio.TaskGroup() as self._group:
                self._group.create_task(self._control.keep(self._renewed))
                self._group.create_task(self._follow())
        except BaseExceptionGroup as group:
            raise _only(group) from group
        finally:
            self.watching.clear()

    async def _may_acquire_again(self) -> bool:
        """Nobody has fenced us where our own lease ran out or the host began anew; otherwise the configuration says."""
        if self._config.on_fenced == "reacquire" or self._control.ran_out:
            return True
        try:
            return await self._source.boot_id() != self._control.boot_id
        except CallError as error:
            if not error.transient:
                raise
            return True

    def _renewed(self) -> None:
        for key in self._desk.reconsider_yielded():
            self._consider(key)

    # -- following exits -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """List, then watch; when the stream ends or breaks, again from the list."""
        failures = 0
        while True:
            try:
                self._take_list(await self._source.list())
                failures = 0
                await self._watch()
                await asyncio.sleep(self._delay_s(1))
            except CallError as error:
                if not error.transient and error.reason not in _LIST_AGAIN:
                    raise
                failures += 1
                self._tell(disconnected_event(error, self._delay_s(failures)))
                await asyncio.sleep(self._delay_s(failures))
            finally:
                self.watching.clear()

    def _take_list(self, listed: Listed) -> None:
        self._revision = listed.revision
        self._desk.keep_only(listed.exits)
        for view in listed.exits:
            self._see(view)
            self._consider(key_of(view))
        self._tell(watching_event(open_exits=len(self._desk), revision=listed.revision))

    async def _watch(self) -> None:
        async with contextlib.aclosing(self._source.changes(from_revision=self._revision)) as changes:
            self.watching.set()
            async for view in changes:
                self._see(view)

    def _see(self, view: ExitView) -> None:
        if self._desk.see(view):
            self._tell(exit_event(view))
            self._consider(key_of(view))

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _consider(self, key: Key) -> None:
        """Give the exit a task if it wants one; one that has a task is looked at by it again."""
        if key in self._deciding or self._desk.wanted(key) is None:
            return
        assert self._group is not None, "exits are considered under control only"
        self._deciding[key] = self._group.create_task(self._decide_while_wanted(key))

    async def _decide_while_wanted(self, key: Key) -> None:
        try:
            while self._desk.wanted(key) is not None:
                async with self._slots:
                    # It may have changed while it waited for its turn.
                    view = self._desk.wanted(key)
                    if view is not None:
                        await self._answer(view)
        finally:
            del self._deciding[key]

    async def _answer(self, view: ExitView) -> None:
        self._desk.decided(view)
        decision = self._choose(view)
        if decision is None:
            return
        trouble = await self._points.decide(decision)
        if trouble.late_s:
            await asyncio.sleep(trouble.late_s)
        assert self._group is not None, "exits are decided about under control only"
        for nr, other in enumerate(trouble.besides(view, decision), 1):
            self._group.create_task(self._send(view, other, f"/{nr}"))
        if not trouble.lost:
            await self._send(view, decision)

    async def _send(self, view: ExitView, decision: Decision, copy: str = "") -> None:
        """Send a decision; ``copy`` makes its request id another one's than the decision's own."""
        self._tell(decision_event(view, decision))
        with in_one_trace() as trace:
            try:
                after, event_trace = await self._resolve(view, decision, copy)
            except CallError as error:
                await self._refused(view, decision, error)
            else:
                event_trace_id = event_trace.trace_id if event_trace is not None else ""
                self._tell(result_event(after, trace_id=trace.trace_id, event_trace_id=event_trace_id))
                self._see(after)

    def _choose(self, view: ExitView) -> Decision | None:
        try:
            decision = self._config.policies.decide(view, self._desk.history(view), self._draw)
        except Exception as error:  # noqa: BLE001 -- a policy may be anybody's code: its bug costs this exit and no other
            self._tell(left_event(view, f"the policy failed: {type(error).__name__}: {error}"))
            return None
        if decision is None:
            self._tell(left_event(view, "the policy has no decision"))
        return decision

    async def _resolve(self, view: ExitView, decision: Decision, copy: str) -> tuple[ExitView, TraceContext | None]:
        """Send the decision until the host has answered; the same request each time.

        Returns the exit after it, and the trace of the guest's event that led to it, where the host knows that.
        """
        request = pb.ResolveExitRequest(
            name=view.name,
            generation=view.generation,
            control=self._control.name,
            control_epoch=self._control.epoch,
            request_id=_request_id(view, self._control) + copy,
            decision=decision_to_proto(decision),
            decided_by=self._config.name,
            reason=f"by policy: {view.cause.name}, attempt {view.attempt}",
        )
        failures = 0
        while True:
            try:
                with typed_errors():
                    call = self._stub.ResolveExit(
                        request, timeout=self._config.call_timeout_s, metadata=trace_metadata()
                    )
                    reply = await call
                return exit_from_proto(reply.exit), event_trace_of(await call.trailing_metadata())
            except CallError as error:
                if not error.transient:
                    raise
                failures += 1
                await asyncio.sleep(max(self._delay_s(failures), error.retry_after_s or 0.0))

    async def _refused(self, view: ExitView, decision: Decision, error: CallError) -> None:
        """The host did not take it: stop where the control is gone, look again where the exit is not what it was."""
        self._tell(refused_event(view, decision, error))
        if error.lost_control:
            raise error
        if error.reason == "CONTROL_OUT_OF_SCOPE":
            self._desk.yielded(view)
        elif error.reason == "EXIT_NOT_FOUND":
            self._desk.forget(key_of(view))
        elif error.reason in _LOOK_AGAIN:
            # Where even that fails the stream will tell, or the deadline decides.
            with contextlib.suppress(CallError):
                self._see(await self._source.get(view.name))

    def _delay_s(self, failures: int) -> float:
        return self._config.reconnect.delay_s(f"connection/{self._config.name}", failures, self._draw)


def _request_id(view: ExitView, control: Control) -> str:
    """The same for the same (exit, generation) under the same control, and no other's: safe to send twice."""
    text = "\0".join([view.vcpu_uid, view.name, str(view.generation), control.name, str(control.epoch)])
    return "resolve-" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one thing that went wrong: a refusal of the host's before its consequences, a bug before a refusal."""
    flat = list(_leaves(group))
    bugs = [error for error in flat if not isinstance(error, CallError)]
    return (bugs or flat)[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
