"""What the interceptors do to real calls: blocking and asynchronous clients and servers, all four kinds of calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from fault_lab.live.interceptors import (
    CallFaults,
    HeaderFaults,
    aio_client_interceptors,
    aio_server_interceptor,
    client_interceptor,
    server_interceptor,
)
from fault_lab.live.points import LiveFaults
from tests.wire.echo import BOTH, DOWNLOAD, UNARY, UPLOAD, Echo, aio_serving, serving, until
from tests.wire.plans import armed

Heard = list[str | bytes]
#: What a client says with each kind of call, and what it hears when nothing fails.
WELL: dict[str, tuple[list[bytes], Heard]] = {
    UNARY: ([b"ab"], [b"ab"]),
    UPLOAD: ([b"a", b"b"], [b"ab"]),
    DOWNLOAD: ([b"ab"], [b"a", b"b"]),
    BOTH: ([b"a", b"b"], [b"a", b"b"]),
}
SEND, RECEIVE = "rpc.client.send", "rpc.client.receive"


def blocking(address: str, calls: CallFaults, method: str, timeout: float, metadata: Any = None) -> Heard:  # noqa: ANN401
    """Make a call: what is heard, with the name of the status where it is not OK."""
    says, heard = WELL[method][0], Heard()
    options = [("grpc.enable_retries", 0)]
    with grpc.insecure_channel(address, options=options) as plain:
        channel = grpc.intercept_channel(plain, client_interceptor(calls))
        makers: dict[str, Callable[[str], Any]] = {
            UNARY: channel.unary_unary,
            UPLOAD: channel.stream_unary,
            DOWNLOAD: channel.unary_stream,
            BOTH: channel.stream_stream,
        }
        call = makers[method](method)
        try:
            answer = call(says[0] if method in (UNARY, DOWNLOAD) else iter(says), timeout=timeout, metadata=metadata)
            for message in [answer] if method in (UNARY, UPLOAD) else answer:
                heard.append(message)
        except grpc.RpcError as error:
            heard.append(error.code().name)
    return heard


async def asynchronous(address: str, calls: CallFaults, method: str, timeout: float, metadata: Any = None) -> Heard:  # noqa: ANN401
    """The same with grpc.aio."""
    says, heard = WELL[method][0], Heard()

    async def requests() -> AsyncIterator[bytes]:
        for each in says:
            yield each

    async with grpc.aio.insecure_channel(
        address, options=[("grpc.enable_retries", 0)], interceptors=aio_client_interceptors(calls)
    ) as channel:
        makers: dict[str, Callable[[str], Any]] = {
            UNARY: channel.unary_unary,
            UPLOAD: channel.stream_unary,
            DOWNLOAD: channel.unary_stream,
            BOTH: channel.stream_stream,
        }
        call = makers[method](method)
        try:
            answer = call(says[0] if method in (UNARY, DOWNLOAD) else requests(), timeout=timeout, metadata=metadata)
            if method in (UNARY, UPLOAD):
                heard.append(await answer)
            else:
                async for message in answer:
                    heard.append(message)
        except grpc.aio.AioRpcError as error:
            heard.append(error.code().name)
    return heard


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Echo, str]]:
    """One server with threads for the tests of clients."""
    with serving(f"unix:{tmp_path_factory.mktemp('echo')}/echo") as (echo, address):
        yield echo, address


async def heard_by_both(
    server: tuple[Echo, str], faults: Callable[[], LiveFaults | None], method: str, timeout: float = 10
) -> tuple[Heard, list[bytes], list[str]]:
    """Call with each kind of client, which must meet the same: what was heard, what had arrived, which points fired."""
    echo, address = server
    met = []
    for make in (asynchronous, lambda *given: asyncio.to_thread(blocking, *given)):
        echo.seen.clear()
        live = faults()
        heard = await make(address, CallFaults(live), method, timeout)
        met.append((heard, list(echo.seen), [each.point for each in live.fired] if live else []))
    # How much of a stream has arrived when it breaks is nobody's promise.
    assert met[0][::2] == met[1][::2]
    return met[0]


def fault(point: str, action: str, nth: int = 1) -> Callable[[], LiveFaults]:
    """One fault, armed anew for each client."""
    return lambda: armed(f"point: {point}, attributes: {{fail-nth: {nth}}}, action: {{{action}}}")


@pytest.mark.asyncio
@pytest.mark.parametrize("method", WELL)
async def test_disarmed_changes_nothing(server: tuple[Echo, str], method: str) -> None:
    """Without faults, and with a plan in which nothing is armed."""
    says, hears = WELL[method]
    for faults in (lambda: None, armed):
        assert await heard_by_both(server, faults, method) == (hears, says, [])


@pytest.mark.asyncio
@pytest.mark.parametrize("method", WELL)
async def test_a_status_before_the_call_sends_nothing(server: tuple[Echo, str], method: str) -> None:
    """The caller has the status, the server has seen nothing."""
    status = fault(SEND, "status: {code: 8}")
    assert await heard_by_both(server, status, method) == (["RESOURCE_EXHAUSTED"], [], [SEND])


@pytest.mark.asyncio
@pytest.mark.parametrize("method", WELL)
async def test_a_status_after_the_call_loses_what_was_done(server: tuple[Echo, str], method: str) -> None:
    """The server has carried it out, the caller hears UNAVAILABLE; of a stream, from that message on."""
    heard, seen, fired = await heard_by_both(server, fault(RECEIVE, "status: {code: 14}"), method)
    assert (heard, fired) == (["UNAVAILABLE"], [RECEIVE])
    assert seen[:1] == WELL[method][0][:1]


@pytest.mark.asyncio
@pytest.mark.parametrize("method", WELL)
@pytest.mark.parametrize("point", [SEND, RECEIVE])
async def test_a_delay_changes_nothing_but_when(server: tuple[Echo, str], method: str, point: str) -> None:
    """Messages of a stream wait behind the one that is late: they stay in order."""
    says, hears = WELL[method]
    assert await heard_by_both(server, fault(point, "delay: {min: 20ms}"), method) == (hears, says, [point])


@pytest.mark.asyncio
@pytest.mark.parametrize("method", [UNARY, DOWNLOAD])
async def test_what_is_lost_is_told_by_the_deadline(server: tuple[Echo, str], method: str) -> None:
    """Of a request nothing has arrived; of an answer, it was carried out."""
    lost = ["DEADLINE_EXCEEDED"]
    assert await heard_by_both(server, fault(SEND, "drop: {}"), method, 0.2) == (lost, [], [SEND])
    assert await heard_by_both(server, fault(RECEIVE, "drop: {}"), method, 0.6) == (lost, [b"ab"], [RECEIVE])


@pytest.mark.asyncio
async def test_a_lost_message_of_a_stream_loses_those_behind_it(server: tuple[Echo, str]) -> None:
    """What came before has arrived; the end of the stream is not told in its place."""
    heard, seen, _ = await heard_by_both(server, fault(SEND, "drop: {}", nth=3), BOTH, 0.6)
    assert (heard, seen) == ([b"a", "DEADLINE_EXCEEDED"], [b"a"])


@pytest.mark.asyncio
async def test_a_doubled_call_arrives_twice(server: tuple[Echo, str]) -> None:
    """The same request, with whatever request id it has; its caller hears one answer."""
    echo, address = server
    for make in (asynchronous, lambda *given: asyncio.to_thread(blocking, *given)):
        echo.seen.clear()
        live = fault(SEND, "duplicate: {}")()
        assert await make(address, CallFaults(live), UNARY, 10) == [b"ab"]
        assert len(live.fired) == 1
        await until(lambda: len(echo.seen) == 2)


@pytest.mark.asyncio
async def test_a_held_call_goes_on_when_the_plan_heals(server: tuple[Echo, str]) -> None:
    """Until then nothing of it has left."""
    echo, address = server
    for make in (asynchronous, lambda *given: asyncio.to_thread(blocking, *given)):
        echo.seen.clear()
        live = fault(SEND, "hold: {}")()
        call = asyncio.ensure_future(make(address, CallFaults(live), UNARY, 10))
        await until(lambda live=live: live.fired)
        assert echo.seen == []
        live.enter("heal")
        assert await call == [b"ab"]


@pytest.mark.asyncio
async def test_no_more_than_so_many_are_broken_at_once(server: tuple[Echo, str]) -> None:
    """While one call is held, the others pass, and their hits are not asked."""
    echo, address = server
    echo.seen.clear()
    live = armed(f"point: {SEND}, action: {{hold: {{}}}}")
    calls = CallFaults(live, max_active=1)
    held = asyncio.create_task(asynchronous(address, calls, UNARY, 10))
    await until(lambda: live.fired)
    assert await asynchronous(address, calls, UNARY, 10) == [b"ab"]
    assert len(live.fired) == 1
    live.enter("")
    assert await held == [b"ab"]


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("aio", [True, False], ids=["asynchronous", "threads"])
@pytest.mark.parametrize("method", WELL)
async def test_a_server_fails_before_the_call_or_after_it(tmp_path: Path, method: str, *, aio: bool) -> None:
    """Before: nothing is carried out. After, where there is one reply: it is, and nobody hears so. Then all is well.

    Heard by a blocking client: grpc.aio's says INTERNAL where its write meets a call that is over, whatever the
    server's status was. Source: grpc/aio/_call.py, _StreamRequestMixin._write().
    """
    status = "action: {status: {code: 10}}"
    live = armed(
        f"point: rpc.server.receive, attributes: {{fail-nth: 1}}, {status}",
        f"point: rpc.server.reply, attributes: {{fail-nth: 1}}, {status}",
    )
    calls, address = CallFaults(live), f"unix:{tmp_path}/echo"

    async def three(echo: Echo) -> list[tuple[Heard, int]]:
        heard = []
        for _ in range(3):
            echo.seen.clear()
            heard.append((await asyncio.to_thread(blocking, address, CallFaults(), method, 10), len(echo.seen)))
        return heard

    if aio:
        async with aio_serving(address, interceptors=(aio_server_interceptor(calls),)) as (echo, _):
            found = await three(echo)
    else:
        with serving(address, interceptors=(server_interceptor(calls),)) as (echo, _):
            found = await three(echo)
    says, hears = WELL[method]
    second = (["ABORTED"] if method in (UNARY, UPLOAD) else hears, len(says))
    assert found == [(["ABORTED"], 0), second, (hears, len(says))]


# -- what callers ask for themselves -----------------------------------------------------------------------------------

ABORT = (("x-envoy-fault-abort-grpc-request", "8"),)
DELAY = (("x-envoy-fault-delay-request", "20"),)


@pytest.mark.asyncio
async def test_headers_are_not_obeyed_unless_that_is_switched_on(tmp_path: Path) -> None:
    """Neither by a client nor by a server, whatever else is armed there."""
    off = CallFaults(armed())
    async with aio_serving(f"unix:{tmp_path}/echo", interceptors=(aio_server_interceptor(off),)) as (_, address):
        assert await asynchronous(address, off, UNARY, 10, ABORT) == [b"ab"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("asks", "most", "heard"),
    [
        pytest.param(ABORT, 100, ["RESOURCE_EXHAUSTED"], id="abort"),
        pytest.param(DELAY, 100, [b"ab"], id="delay"),
        pytest.param((*DELAY, *ABORT), 100, ["RESOURCE_EXHAUSTED"], id="delay, then abort"),
        pytest.param(ABORT, 0, [b"ab"], id="capped by what is configured"),
        pytest.param((*ABORT, ("x-envoy-fault-abort-request-percentage", "0")), 100, [b"ab"], id="0 percent asked for"),
        pytest.param((("x-envoy-fault-abort-grpc-request", "17"),), 100, [b"ab"], id="no such status"),
        pytest.param((("x-envoy-fault-abort-grpc-request", "many"),), 100, [b"ab"], id="no number"),
        pytest.param((("x-envoy-fault-delay-request", "-1"),), 100, [b"ab"], id="a negative delay"),
    ],
)
async def test_headers_where_they_are_obeyed(tmp_path: Path, asks: Any, most: int, heard: Heard) -> None:  # noqa: ANN401
    """By a client before anything is sent, and by a server before anything is carried out."""
    on = CallFaults(headers=HeaderFaults(abort_percent=most, delay_percent=most))
    async with aio_serving(f"unix:{tmp_path}/echo", interceptors=(aio_server_interceptor(on),)) as (echo, address):
        assert await asynchronous(address, CallFaults(), UNARY, 10, asks) == heard
        assert await asynchronous(address, on, UNARY, 10, asks) == heard
        assert await asyncio.to_thread(blocking, address, on, UNARY, 10, asks) == heard
        assert len(echo.seen) == (3 if heard == [b"ab"] else 0)


def test_each_header_has_a_draw_of_its_own() -> None:
    """Of many calls with half and half, about a quarter meet both, and the same ones every time."""
    asks = [*DELAY, *ABORT]
    counts = []
    for _ in range(2):
        headers = HeaderFaults(delay_percent=50, abort_percent=50, seed=3)
        drawn = [len(headers.steps(UNARY, asks)) for _ in range(1000)]
        counts.append([drawn.count(number) for number in range(3)])
    assert counts[0] == counts[1]
    assert all(200 < counts[0][number] < 600 for number in range(3))


def test_numbers_out_of_range_are_named() -> None:
    """With what was expected."""
    with pytest.raises(ValueError, match=r"^delay_percent: expected 0..100, got 101$"):
        HeaderFaults(delay_percent=101)
    with pytest.raises(ValueError, match=r"^max_active: expected 0 or more, got -1$"):
        CallFaults(max_active=-1)
