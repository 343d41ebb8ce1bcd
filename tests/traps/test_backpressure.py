"""A writer is stopped by bytes alone: some 4 MiB of events are under way before anybody notices that nobody reads.

Source: HTTP/2's windows; measured on 1.85.1 with events of 1 KiB. Guard: credits, by session, which a client stays
within and a host insists on; and a host reads no further where its answers are not read (tests/service/test_limits.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fpstated.testing_host import async_host
from guest_agent.aio import open_async_session
from guest_agent.event import Hlt
from guest_agent.outcome import Done
from host_agent.service import credits as credit_rules
from host_agent.service.credits import CREDITS_MIN, CREDITS_TOTAL, session_credits
from host_agent.service.limits import CREDITS_MAX
from host_agent.state import HostConfig
from tests.service.world import World, error_info, read
from tests.traps.bare import bare

VCPU = "vms/a/vcpus/0"


@pytest.mark.asyncio
async def test_bare(tmp_path: Path, note: Callable[..., None]) -> None:
    """Messages of 1 KiB to a handler that reads none, until the writer is stuck."""
    async with bare(tmp_path) as server:
        deaf: Any = server.channel.stream_stream("/bare/Deaf")
        call, written = deaf(), 0

        async def write() -> None:
            nonlocal written
            while True:
                await call.write(bytes(1024))
                written += 1

        writing = asyncio.ensure_future(write())
        before = -1
        while written != before:
            before = written
            await server.settle()
        note("a writer is stopped by bytes alone", there=written > 1000, how=f"after {written} messages of 1 KiB")
        writing.cancel()
        call.cancel()
        with suppress(asyncio.CancelledError):
            await writing


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        pytest.param(0, CREDITS_MAX, id="nobody yet"),
        pytest.param(1, CREDITS_MAX, id="one"),
        pytest.param(CREDITS_TOTAL // CREDITS_MAX, CREDITS_MAX, id="as many as have all they can"),
        pytest.param(CREDITS_TOTAL // CREDITS_MAX + 1, CREDITS_MAX // 2, id="one more halves it"),
        pytest.param(10_000, CREDITS_MIN, id="as many as a host takes"),
        pytest.param(10**9, CREDITS_MIN, id="more than there can be"),
    ],
)
def test_a_session_has_its_share(sessions: int, expected: int) -> None:
    """A power of two between the limits."""
    assert session_credits(sessions) == expected


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen credits for all, and four for each at least."""
    monkeypatch.setattr(credit_rules, "CREDITS_TOTAL", 16)
    monkeypatch.setattr(credit_rules, "CREDITS_MIN", 4)


@pytest.mark.asyncio
@pytest.mark.usefixtures("few")
async def test_every_stream_hears_of_new_credits(world: World) -> None:
    """They shrink when another session opens and grow when it is over; what goes beyond them is refused by number."""
    guest = await world.guest()
    stream: Any = world.sessions.Attach()
    await stream.write(guest.hello())
    assert (await read(stream)).attached.credits == 16
    other = await world.guest(f"{await world.vm('b')}/vcpus/0")
    assert (await read(stream)).credits.events == 8
    outcomes = await guest.submit(*(guest.event(hlt={}) for _ in range(10)))
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["done"] * 8 + ["rejected"] * 2
    assert dict(error_info(outcomes[-1].rejected).metadata) == {"session": guest.session, "credits": "8"}
    other.world.server.agent.submit(close(other.session, other.epoch))
    while not (message := await read(stream)).HasField("credits"):
        pass  # outcomes of the unary call come on the stream as well
    assert message.credits.events == 16
    stream.cancel()


def close(session: str, epoch: int) -> Any:  # noqa: ANN401
    """The command."""
    from host_agent.commands import CloseSession

    return CloseSession(session=session, epoch=epoch)


@pytest.mark.asyncio
@pytest.mark.usefixtures("few")
async def test_a_client_lives_with_credits_that_change() -> None:
    """Hundreds of events at once while sessions come and go: each happens once, in order, and none is refused."""
    async with async_host(HostConfig()) as host:
        for nr in range(4):
            host.make_vcpu(f"vms/{'abcd'[nr]}/vcpus/0", permission=False)
        async with await open_async_session(host.address, vcpus=[VCPU]) as session:
            port = session.vcpu(VCPU)
            running = asyncio.ensure_future(port.submit_all([Hlt()] * 400))
            rounds = 0
            while not running.done():
                others = [await open_async_session(host.address, vcpus=[f"vms/{vm}/vcpus/0"]) for vm in "bcd"]
                for other in others:
                    await other.close()
                rounds += 1
            assert all(isinstance(outcome, Done) for outcome in await running)
            assert port.next_seq == 401
            assert rounds > 1
