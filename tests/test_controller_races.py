"""The exit loop against a host that misbehaves as told: too slow, gone for a while, a step ahead.

The stand-in below speaks ExitService on a real socket and knows nothing of FPU state; what a real host does with
decisions is in test_controller_loop.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fpstate.v1 import common_pb2
from fpstate.v1 import exit_pb2 as pb
from fpstate.v1 import exit_pb2_grpc as pb_grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from vmm_controller.config import ControllerConfig
from vmm_controller.control import Control
from vmm_controller.controller import Controller
from vmm_controller.error import CallError
from vmm_controller.exit_proto import duration_of
from vmm_controller.policy import Backoff, Case, Choice, InjectGp, PolicyBook, parse_policies, seeded_draw
from vmm_controller.timeline import Event

#: Short, so that a test need not wait; nothing is measured by it.
QUICK = Backoff(base_s=0.01, max_s=0.02)
Answer = Callable[[pb.ResolveExitRequest, grpc.aio.ServicerContext[Any, Any]], Any]


async def refuse(context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, reason: str) -> None:
    """End a call as the host does: a status with one ErrorInfo."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="fpstate.dev"))
    status = status_pb2.Status(code=code.value[0], message=reason, details=[detail])
    await context.abort(code, reason, trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),))


class StandIn(pb_grpc.ExitServiceServicer):
    """An ExitService that keeps exits in a dict, and answers ResolveExit as each test says."""

    def __init__(self) -> None:
        self.exits: dict[str, pb.Exit] = {}
        self.revision = 0
        self.boot_id = "boot-1"
        self.epoch = 0
        self.fenced = False
        self.resolves: list[pb.ResolveExitRequest] = []
        self.watchers = 0
        #: Called before a decision is carried out; may wait or refuse.
        self.before: Answer | None = None
        self._news = asyncio.Condition()

    def header(self) -> common_pb2.ResponseHeader:
        """Who answers."""
        return common_pb2.ResponseHeader(host="stand-in", boot_id=self.boot_id, revision=self.revision)

    async def put(self, name: str, **changes: Any) -> pb.Exit:  # noqa: ANN401
        """Raise an exit, or change it; the watchers hear of it."""
        known = self.exits.get(name)
        exit_ = pb.Exit()
        if known is None:
            vcpu = name.partition("/exits/")[0]
            exit_.MergeFrom(pb.Exit(name=name, vcpu=vcpu, vcpu_uid=vcpu, seq=1, generation=1, attempt=1))
            exit_.MergeFrom(pb.Exit(state=pb.EXIT_STATE_OPEN, cause=pb.EXIT_CAUSE_NO_MEMORY, errno_value=12))
            exit_.allowed_decisions.extend([pb.DECISION_KIND_RETRY, pb.DECISION_KIND_INJECT_GP, pb.DECISION_KIND_PAUSE])
        else:
            exit_.CopyFrom(known)
        self.revision += 1
        for field, value in {**changes, "update_revision": self.revision}.items():
            setattr(exit_, field, value)
        self.exits[name] = exit_
        async with self._news:
            self._news.notify_all()
        return exit_

    async def AcquireControl(self, request: Any, context: Any) -> pb.AcquireControlResponse:  # noqa: ANN401
        """Grant it to everybody."""
        self.epoch += 1
        return pb.AcquireControlResponse(
            header=self.header(), control=f"controls/{self.epoch}", epoch=self.epoch, lease=duration_of(60)
        )

    async def ReleaseControl(self, request: Any, context: Any) -> pb.ReleaseControlResponse:  # noqa: ANN401
        """Nothing to do."""
        return pb.ReleaseControlResponse(header=self.header())

    async def ListExits(self, request: pb.ListExitsRequest, context: Any) -> pb.ListExitsResponse:  # noqa: ANN401
        """One exit per page, so that pages are followed."""
        names = sorted(name for name, exit_ in self.exits.items() if exit_.state in request.states)
        start = int(request.page_token or 0)
        token = str(start + 1) if start + 1 < len(names) else ""
        exits = [self.exits[name] for name in names[start : start + 1]]
        return pb.ListExitsResponse(header=self.header(), exits=exits, next_page_token=token)

    async def GetExit(self, request: pb.GetExitRequest, context: Any) -> pb.GetExitResponse:  # noqa: ANN401
        """As it is."""
        return pb.GetExitResponse(header=self.header(), exit=self.exits[request.name])

    async def WatchExits(
        self,
        request: pb.WatchExitsRequest,
        context: Any,  # noqa: ANN401
    ) -> AsyncIterator[pb.WatchExitsResponse]:
        """Every change from the revision on."""
        self.watchers += 1
        sent = request.from_revision
        try:
            while True:
                for exit_ in sorted(self.exits.values(), key=lambda each: each.update_revision):
                    if exit_.update_revision > sent:
                        sent = exit_.update_revision
                        yield pb.WatchExitsResponse(header=self.header(), exit=exit_)
                async with self._news:
                    await self._news.wait_for(lambda: self.revision > sent)  # noqa: B023 -- waited for here
        finally:
            self.watchers -= 1

    async def ResolveExit(
        self, request: pb.ResolveExitRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ResolveExitResponse:
        """Record the request, do as the test says, and resolve the exit."""
        self.resolves.append(request)
        if self.before is not None:
            await self.before(request, context)
        exit_ = await self.put(request.name, state=pb.EXIT_STATE_RESOLVED, result=pb.EXIT_RESULT_INJECTED_GP)
        return pb.ResolveExitResponse(header=self.header(), exit=exit_)


@asynccontextmanager
async def serving(host: StandIn, path: Path) -> AsyncIterator[str]:
    """Serve the stand-in on a unix socket; a later one may use the same path."""
    server = grpc.aio.server()
    pb_grpc.add_ExitServiceServicer_to_server(host, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield f"unix:{path}"
    finally:
        await server.stop(None)


class Watched:
    """A controller's timeline, which a test can wait on."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Event()

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self.events.append(event)
        self._more.set()

    async def until(self, count: int = 1, /, **wanted: object) -> Event:
        """Wait for the `count`-th event that has all of `wanted`."""
        while len(found := self.all(**wanted)) < count:
            self._more.clear()
            await asyncio.wait_for(self._more.wait(), 60)
        return found[count - 1]

    def all(self, **wanted: object) -> list[Event]:
        """The events so far that have all of `wanted`."""
        return [event for event in self.events if wanted.items() <= event.items()]


@asynccontextmanager
async def controlling(target: str, timeline: Watched, **config: Any) -> AsyncIterator[Controller]:  # noqa: ANN401
    """Run a controller until the end of the block, then stop it as a signal would."""
    config.setdefault("policies", parse_policies(["inject-gp"]))
    async with grpc.aio.insecure_channel(
        target, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    ) as channel:
        controller = Controller(channel, ControllerConfig(reconnect=QUICK, **config), timeline)
        running = asyncio.create_task(controller.run())
        try:
            await timeline.until(event="watching")
            yield controller
        finally:
            controller.stop()
            await running


@contextmanager
def no_task_left() -> Iterator[None]:
    """Whatever ran in the block has ended with it."""
    before = asyncio.all_tasks()
    yield
    left = [task for task in asyncio.all_tasks() - before if not task.done() and "controller" in repr(task)]
    assert left == []


E1, E2 = "vms/a/vcpus/0/exits/1", "vms/a/vcpus/1/exits/1"


@pytest.mark.asyncio
async def test_exits_raised_before_and_after_are_decided_once(tmp_path: Path) -> None:
    """Exits that were there already and one that comes later get one decision each; stopping leaves nothing running."""
    host, timeline = StandIn(), Watched()
    await host.put(E1)
    await host.put("vms/a/vcpus/7/exits/1")
    with no_task_left():
        async with serving(host, tmp_path / "s") as target, controlling(target, timeline):
            await timeline.until(event="result", exit=E1)
            await host.put(E2)
            await timeline.until(event="result", exit=E2)
    assert sorted(request.name for request in host.resolves) == [E1, E2, "vms/a/vcpus/7/exits/1"]
    assert timeline.events[-1]["what"] == "released"
    assert host.watchers == 0


@pytest.mark.asyncio
async def test_a_slow_exit_holds_up_no_other(tmp_path: Path) -> None:
    """While the host takes its time with one decision, the next exit is decided."""
    host, timeline, slow = StandIn(), Watched(), asyncio.Event()

    async def wait_for_first(request: pb.ResolveExitRequest, _context: object) -> None:
        if request.name == E1:
            await slow.wait()

    host.before = wait_for_first
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline):
        await host.put(E1)
        await timeline.until(event="decision", exit=E1)
        await host.put(E2)
        await timeline.until(event="result", exit=E2)
        assert timeline.all(event="result", exit=E1) == []
        slow.set()
        await timeline.until(event="result", exit=E1)


@pytest.mark.asyncio
async def test_decisions_under_way_are_bounded(tmp_path: Path) -> None:
    """With one decision allowed at a time, the second exit waits for the first one's answer."""
    host, timeline, slow = StandIn(), Watched(), asyncio.Event()

    async def wait(_request: object, _context: object) -> None:
        await slow.wait()

    host.before = wait
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline, decisions_max=1):
        await host.put(E1)
        await timeline.until(event="decision", exit=E1)
        await host.put(E2)
        await timeline.until(event="exit", exit=E2)
        assert len(host.resolves) <= 1
        slow.set()
        await timeline.until(event="result", exit=E2)


@pytest.mark.asyncio
async def test_a_decision_that_did_not_get_there_is_sent_again_as_it_was(tmp_path: Path) -> None:
    """After UNAVAILABLE the same request goes out, request id included: the host does it once."""
    host, timeline = StandIn(), Watched()

    async def fail_twice(_request: object, context: Any) -> None:  # noqa: ANN401
        if len(host.resolves) <= 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "try again")

    host.before = fail_twice
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline):
        await host.put(E1)
        await timeline.until(event="result", exit=E1)
    first, *others = host.resolves
    assert others == [first, first]
    assert first.request_id
    assert len(timeline.all(event="decision")) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("reason", ["EXIT_STALE_GENERATION", "EXIT_ALREADY_RESOLVED"])
async def test_an_exit_that_moved_on_is_looked_at_again(tmp_path: Path, reason: str) -> None:
    """A refused decision is not repeated; the exit is read again, and its next generation decided."""
    host, timeline = StandIn(), Watched()

    async def be_ahead(request: pb.ResolveExitRequest, context: Any) -> None:  # noqa: ANN401
        if request.generation == 1:
            await host.put(request.name, generation=2)
            await refuse(context, grpc.StatusCode.ABORTED, reason)

    host.before = be_ahead
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline):
        await host.put(E1)
        await timeline.until(event="result", exit=E1)
    assert [request.generation for request in host.resolves] == [1, 2]
    assert len({request.request_id for request in host.resolves}) == 2
    assert [event["reason"] for event in timeline.all(event="refused")] == [reason]


@pytest.mark.asyncio
async def test_a_decision_that_is_not_allowed_is_left_to_the_deadline(tmp_path: Path) -> None:
    """Where host and controller disagree about what is allowed, the controller does not insist."""
    host, timeline = StandIn(), Watched()

    async def forbid(request: pb.ResolveExitRequest, context: Any) -> None:  # noqa: ANN401
        if request.name == E1:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "DECISION_NOT_ALLOWED")

    host.before = forbid
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline):
        await host.put(E1)
        await timeline.until(event="refused", exit=E1)
        await host.put(E2)
        await timeline.until(event="result", exit=E2)
    assert [request.name for request in host.resolves] == [E1, E2]


@pytest.mark.asyncio
async def test_a_policy_that_breaks_costs_its_exit_and_no_other(tmp_path: Path) -> None:
    """A bug in a policy leaves that exit to its deadline, and says so."""

    class Broken:
        """Fails for one vCPU."""

        def choose(self, case: Case) -> Choice:
            """Trip over the first vCPU."""
            if case.exit.vcpu.endswith("/0"):
                raise ZeroDivisionError("by design")
            return InjectGp()

        def spent(self, case: Case) -> int:
            """None."""
            return 0

    host, timeline = StandIn(), Watched()
    book = PolicyBook(Broken())
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline, policies=book):
        await host.put(E1)
        await host.put(E2)
        await timeline.until(event="result", exit=E2)
        left = await timeline.until(event="left", exit=E1)
    assert "ZeroDivisionError: by design" in str(left["why"])
    assert [request.name for request in host.resolves] == [E2]


@pytest.mark.asyncio
async def test_a_host_that_went_away_is_found_again(tmp_path: Path) -> None:
    """The stream breaks, another host starts on the same socket, and what is true now is known from its list."""
    timeline, first, second = Watched(), StandIn(), StandIn()

    async def never(_request: object, _context: object) -> None:
        await asyncio.Event().wait()

    async def fenced(request: pb.ResolveExitRequest, context: Any) -> None:  # noqa: ANN401
        if request.control_epoch != second.epoch:
            await refuse(context, grpc.StatusCode.ABORTED, "CONTROL_FENCED")

    # The new host has never heard of the control, which is no reason to stop: nobody has fenced us.
    second.boot_id, second.epoch, second.before = "boot-2", 10, fenced
    async with serving(first, tmp_path / "s") as target:
        first.before = never
        run = controlling(target, timeline)
        await run.__aenter__()
        await first.put(E1)
        await timeline.until(event="decision", exit=E1)
    await timeline.until(event="disconnected")
    await second.put(E2)
    async with serving(second, tmp_path / "s"):
        await timeline.until(event="result", exit=E2)
        await run.__aexit__(None, None, None)
    assert [request.control_epoch for request in second.resolves if request.name == E2][-1] == 11
    assert [event["what"] for event in timeline.all(event="control")] == ["acquired", "lost", "acquired", "released"]


async def fence_the_first(request: pb.ResolveExitRequest, context: Any) -> None:  # noqa: ANN401
    """Take no decision of the first holder's."""
    if request.control_epoch == 1:
        await refuse(context, grpc.StatusCode.ABORTED, "CONTROL_FENCED")


@pytest.mark.asyncio
async def test_who_was_fenced_stops(tmp_path: Path) -> None:
    """A host that did not restart says that the control is gone: somebody else has it, and the controller ends."""
    host, timeline = StandIn(), Watched()
    host.before = fence_the_first
    await host.put(E1)
    async with serving(host, tmp_path / "s") as target, grpc.aio.insecure_channel(target) as channel:
        config = ControllerConfig(policies=parse_policies(["inject-gp"]))
        with pytest.raises(CallError, match="CONTROL_FENCED") as caught:
            await Controller(channel, config, timeline).run()
    assert caught.value.lost_control
    assert [event["what"] for event in timeline.all(event="control")] == ["acquired", "lost"]
    assert [request.control_epoch for request in host.resolves] == [1]


@pytest.mark.asyncio
async def test_who_was_fenced_asks_again_if_told_so(tmp_path: Path) -> None:
    """With `reacquire` the controller takes the scope back and decides what was refused to it."""
    host, timeline = StandIn(), Watched()
    host.before = fence_the_first
    async with serving(host, tmp_path / "s") as target, controlling(target, timeline, on_fenced="reacquire"):
        await host.put(E1)
        await timeline.until(event="result", exit=E1)
    assert [request.control_epoch for request in host.resolves] == [1, 2]


@pytest.mark.asyncio
async def test_a_controller_that_is_cancelled_gives_control_back(tmp_path: Path) -> None:
    """Cancelling the task of a controller in the middle of a decision leaves no stream, no task and no control."""
    host, timeline = StandIn(), Watched()

    async def never(_request: object, _context: object) -> None:
        await asyncio.Event().wait()

    host.before = never
    with no_task_left():
        async with serving(host, tmp_path / "s") as target, grpc.aio.insecure_channel(target) as channel:
            config = ControllerConfig(policies=parse_policies(["inject-gp"]))
            running = asyncio.create_task(Controller(channel, config, timeline).run())
            await timeline.until(event="watching")
            await host.put(E1)
            await timeline.until(event="decision", exit=E1)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert timeline.events[-1]["what"] == "released"


class _LateStub:
    """Grants a lease at once, and answers when it is over: behind a network that lets nothing back for a while."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s

    async def AcquireControl(self, request: pb.AcquireControlRequest, **_options: Any) -> pb.AcquireControlResponse:  # noqa: ANN401
        """Grant."""
        await asyncio.sleep(self._lease_s)
        return pb.AcquireControlResponse(control="controls/c", epoch=1, lease=duration_of(self._lease_s))


@pytest.mark.asyncio
async def test_a_lease_begins_when_it_was_asked_for() -> None:
    """An answer that comes late brings what is left of it, here nothing: whoever has the scope now fenced nobody."""
    stub: Any = _LateStub(lease_s=0.05)
    config = ControllerConfig(name="late", lease_s=0.05)
    control = Control(stub, config, seeded_draw(0), lambda _event: None)
    await control.acquire()
    assert control.ran_out
