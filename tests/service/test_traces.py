"""One trace through guest, host and controller; logs that have it; and no register content in any of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import event_pb2, host_pb2, session_pb2
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fpstated.link import spans
from fpstated.link.trace import (
    EVENT_TRACEPARENT,
    TraceContext,
    current_trace,
    in_one_trace,
    new_trace,
    parse_traceparent,
    trace_metadata,
    trace_of,
    tracing,
)
from fpstated.logs import set_up_logging
from fpstated.testing_host import async_host, host_on_a_thread
from fpu_core.errors import CoreBug
from guest_agent.aio import open_async_session
from guest_agent.event import RegisterRead, RegisterWrite, Xsave, XsaveInsn, Xsetbv
from guest_agent.port import VcpuPort
from host_agent.state import HostConfig
from tests.service.world import XCR0_AMX, World, read, read_outcomes
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.policy import parse_policies

TRACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
#: Bytes that no log may hold, in any of the ways in which bytes are written.
PATTERN = bytes.fromhex("c0ffeec0ffeec0ffee5ec2e75ec2e7aa")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, as JSON lines."""
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    set_up_logging("json", "debug", stream)
    yield stream
    root.handlers, root.level = before, level


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    """The lines of a host's own logger."""
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if line["logger"] == "fpstated.host"]


# -- the header --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        pytest.param(TRACE.header, True, id="as the recommendation shows it"),
        pytest.param(TRACE.header.replace("00-", "cc-", 1) + "-more", True, id="a later version may say more"),
        pytest.param(TRACE.header + "-more", False, id="version 00 may not"),
        pytest.param(TRACE.header.replace("00-", "ff-", 1), False, id="version ff is none"),
        pytest.param(f"00-{'0' * 32}-b7ad6b7169203331-01", False, id="a trace of zeros"),
        pytest.param(f"00-{TRACE.trace_id}-{'0' * 16}-01", False, id="a span of zeros"),
        pytest.param(TRACE.header.upper(), False, id="capitals"),
        pytest.param(TRACE.header[:-1], False, id="too short"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_header_is_read_as_the_recommendation_says(header: str, found: bool) -> None:
    """What is none is as if it had not come."""
    parsed = parse_traceparent(header)
    assert (parsed is not None) is found
    if parsed is not None:
        assert (parsed.trace_id, parsed.span_id, parsed.sampled) == (TRACE.trace_id, TRACE.span_id, True)


def test_a_trace_is_handed_on() -> None:
    """The same trace, a new span, the state as it came; without one, a new trace each time."""
    with tracing(TraceContext(TRACE.trace_id, TRACE.span_id, sampled=False, state="vendor=1")):
        handed = trace_of(trace_metadata())
    assert handed is not None
    assert (handed.trace_id, handed.sampled, handed.state) == (TRACE.trace_id, False, "vendor=1")
    assert handed.span_id != TRACE.span_id
    assert trace_of(trace_metadata()) != trace_of(trace_metadata())
    assert current_trace() is None
    with in_one_trace() as outer, in_one_trace() as inner:
        assert inner == outer
    assert trace_of((("traceparent", b"bytes"), ("x", "y"))) is None
    assert parse_traceparent(TRACE.header, "x" * 513) == TRACE
    assert parse_traceparent(new_trace().header) is not None


# -- guest, host, controller -------------------------------------------------------------------------------------------


def test_one_trace_goes_through_guest_host_and_controller(log: io.StringIO) -> None:
    """The guest's event, the exit that it leads to and the controller's result name the same trace."""
    results: list[dict[str, object]] = []
    with host_on_a_thread(HostConfig(faults=True)) as host:
        host.fail_allocation(nth=1)
        port: VcpuPort = host.vcpu()
        stop = host.run(_control(host.address, results))
        with tracing(TRACE):
            port.submit(Xsetbv(value=XCR0_AMX))
        host.run(stop.aclose())
    opened, settled = [line for line in lines(log) if "exit" in line]
    assert (opened["state"], settled["state"]) == ("OPEN", "RESOLVED")
    assert opened["trace_id"] == opened["event_trace_id"] == settled["event_trace_id"] == TRACE.trace_id
    assert settled["trace_id"] != TRACE.trace_id  # the controller's own
    assert (settled["decision"], settled["decided_by"], settled["vcpu"]) == ("RETRY", "tester", "vms/a/vcpus/0")
    (result,) = [event for event in results if event["event"] == "result"]
    assert result["event_trace_id"] == TRACE.trace_id
    assert result["trace_id"] == settled["trace_id"]
    assert any(line.get("session") and line["message"].endswith("opened") for line in lines(log))


async def _control(address: str, results: list[dict[str, object]]) -> AsyncGenerator[None, None]:
    """Start a controller that retries; returns what stops it."""
    channel = grpc.aio.insecure_channel(address)
    config = ControllerConfig(name="tester", policies=parse_policies(["retry"]))
    controller = Controller(channel, config, on_event=results.append)
    task = asyncio.ensure_future(controller.run())
    await controller.watching.wait()

    async def until_closed() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            controller.stop()
            await task
            await channel.close()

    stop = until_closed()
    await anext(stop)
    return stop


@pytest.mark.asyncio
async def test_the_decider_is_told_the_events_trace(world: World) -> None:
    """In the trailing metadata of ResolveExit, whatever language it is written in."""
    guest = await world.guest()
    await world.fail_next_growth()
    metadata = (("traceparent", TRACE.header),)
    await world.sessions.SubmitEvents(guest.request(guest.enable_tiles()), metadata=metadata)
    control = await world.control()
    from fpstate.v1 import exit_pb2

    request = exit_pb2.ResolveExitRequest(
        name=await world.open_exit(),
        generation=1,
        control=control.control,
        control_epoch=control.epoch,
        decision=exit_pb2.Decision(retry=exit_pb2.Retry()),
    )
    call = world.exits.ResolveExit(request)
    await call
    trailing = dict(await call.trailing_metadata())
    parsed = parse_traceparent(str(trailing[EVENT_TRACEPARENT]))
    assert parsed is not None
    assert parsed.trace_id == TRACE.trace_id


@pytest.mark.asyncio
async def test_what_a_timer_brings_belongs_to_no_call(log: io.StringIO) -> None:
    """The deadline's default action is logged with the event's trace, and with no call's."""
    async with async_host(HostConfig(faults=True, exit_deadline_ns=50_000_000)) as host:
        host.fail_allocation(nth=1)
        host.make_vcpu("vms/a/vcpus/0", permission=True)
        session = await open_async_session(host.address, vcpus=["vms/a/vcpus/0"])
        with tracing(TRACE):
            submitted = asyncio.ensure_future(session.vcpu("vms/a/vcpus/0").submit(Xsetbv(value=XCR0_AMX)))
            exit_ = await host.exit_opened()
        while exit_.decided_by != "deadline":  # noqa: ASYNC110 -- the machine is pure: it calls nobody
            await asyncio.sleep(0.01)
        submitted.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await submitted
        await session.close()
    (paused,) = [line for line in lines(log) if line.get("state") == "PAUSED"]
    assert paused["decided_by"] == "deadline"
    assert "trace_id" not in paused


@pytest.mark.asyncio
async def test_the_end_of_a_session_is_logged(world: World, log: io.StringIO) -> None:
    """Closed, or expired with its lease; a session that goes on is not."""
    lives = await world.guest(f"{await world.vm('a')}/vcpus/0", lease_s=3600)
    closed = await world.guest(f"{await world.vm('b')}/vcpus/0", lease_s=3600)
    expired = await world.guest(f"{await world.vm('c')}/vcpus/0", lease_s=5)
    await world.sessions.CloseSession(session_pb2.CloseSessionRequest(session=closed.session, epoch=closed.epoch))
    world.clock.advance(6)
    ended = {line["session"]: line["message"] for line in lines(log) if not line["message"].endswith("opened")}
    assert ended == {
        closed.session: f"session {closed.session} closed",
        expired.session: f"session {expired.session} expired",
    }
    assert lives.session in world.server.agent.state.sessions


# -- what is not in a log ----------------------------------------------------------------------------------------------


def _break_down(*_given: object, **_more: object) -> None:
    raise CoreBug("this cannot be")


def test_no_register_content_is_logged(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, read back, refused and met by a bug: the bytes are in no line, however they might be written."""
    with host_on_a_thread(HostConfig(faults=True, check_invariants=True)) as host:
        port = host.vcpu()
        port.submit(Xsetbv(value=XCR0_AMX))
        port.submit(RegisterWrite(feature=18, offset=0, data=PATTERN * 4))
        read_back = port.submit(RegisterRead(feature=18, offset=0, length=64))
        assert PATTERN in bytes(getattr(read_back, "data", b""))
        with contextlib.suppress(Exception):
            port.submit(RegisterWrite(feature=18, offset=8190, data=PATTERN * 4))
        with contextlib.suppress(Exception):
            port.submit(RegisterWrite(feature=9, offset=0, data=PATTERN * 40))
        port.submit(Xsave(insn=XsaveInsn.XRSTOR, rfbm=0x602E7, memory=PATTERN * 1024))
        monkeypatch.setattr("host_agent.kvm.intercept.write_register", _break_down)
        with contextlib.suppress(Exception):
            port.submit(RegisterWrite(feature=18, offset=0, data=PATTERN * 4))
    text = log.getvalue()
    assert "session" in text  # something was logged
    number = int.from_bytes(PATTERN[:8], "little")
    for spelling in (
        PATTERN.hex(),
        PATTERN.hex(" "),
        repr(PATTERN)[2:-1],
        "\\\\xc0\\\\xff",
        str(number),
        f"{number:x}",
    ):
        assert spelling not in text, spelling


def test_lines_for_people_have_the_ids_behind_them() -> None:
    """And a traceback where there is one."""
    stream = io.StringIO()
    logger = logging.getLogger("of.a.test")
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        set_up_logging("text", "info", stream)
        with tracing(TRACE):
            logger.info("hello %s", "you", extra={"vcpu": "vms/a/vcpus/0", "exit": ""})
        logger.error("oh", exc_info=KeyError("x"))
        logger.debug("not this")
    finally:
        root.handlers, root.level = before, level
    first, second, *rest = stream.getvalue().splitlines()
    assert first.endswith(
        f"Z INFO of.a.test: hello you  vcpu=vms/a/vcpus/0 trace_id={TRACE.trace_id} span_id={TRACE.span_id}"
    )
    assert second.endswith("Z ERROR of.a.test: oh")
    assert rest[-1] == "KeyError: 'x'"


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What is exported while a provider is set up."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(otel, "get_tracer", provider.get_tracer)
    return exporter


@pytest.mark.asyncio
async def test_a_call_and_a_batch_are_spans_and_a_stream_is_none(exported: InMemorySpanExporter, world: World) -> None:
    """Each in the caller's trace, below the caller's span."""
    guest = await world.guest()
    exported.clear()
    metadata = (("traceparent", TRACE.header),)
    await world.hosts.GetHostInfo(host_pb2.GetHostInfoRequest(), metadata=metadata)
    stream: Any = world.sessions.Attach(metadata=metadata)
    await stream.write(guest.hello())
    await read(stream)
    for _ in range(2):
        await stream.write(guest.batch(guest.event(rdmsr=event_pb2.Rdmsr(msr=0x1C4))))
        await read_outcomes(stream, 1)
    await stream.done_writing()
    found: list[ReadableSpan] = list(exported.get_finished_spans())
    batch = "fpstate.v1.GuestSessionService/Attach batch"
    assert [each.name for each in found] == ["fpstate.v1.HostService/GetHostInfo", batch, batch]
    assert {f"{each.context.trace_id:032x}" for each in found if each.context} == {TRACE.trace_id}
    parent = found[0].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == TRACE.span_id


@pytest.mark.asyncio
async def test_without_the_packages_the_context_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the base install."""
    monkeypatch.setattr(spans, "otel", None)
    with spans.span("x", TRACE, server=True) as context:
        assert (context.trace_id, current_trace()) == (TRACE.trace_id, context)
    assert current_trace() is None


def test_a_host_that_exports_says_what_it_lacks(tmp_path: Path) -> None:
    """`--trace-export console` writes spans to standard error."""
    import signal
    import subprocess
    import sys

    command = [sys.executable, "-m", "fpstated", "host", "--listen", f"unix:{tmp_path}/s", "--trace-export", "console"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            from fpstate.v1 import host_pb2_grpc

            host_pb2_grpc.HostServiceStub(channel).GetHostInfo(host_pb2.GetHostInfoRequest())
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(30) == 0
    assert '"name": "fpstate.v1.HostService/GetHostInfo"' in said
