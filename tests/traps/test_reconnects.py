"""A stream that is begun again and again while its server is down leaks in the client: half a KiB each time.

Source: grpc/grpc#38499. Guard: pauses that double, differ, and have a longest; one channel for all tries; and a
controller begins no stream before a unary call has got through, while a guest's session gives up after ``reconnect_s``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2

from guest_agent.recovery import Patience
from tests.traps.bare import until
from tests.traps.soak import grown_kib
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.policy import Backoff
from vmm_controller.policy.backoff import seeded_draw
from vmm_controller.timeline import Event


def test_bare(note: Callable[..., None]) -> None:
    """Three thousand tries, after as many for warming up."""
    kib = grown_kib("bare-reconnects", 6000)
    note("a stream to a server that is down leaks", there=kib > 300, how=f"{kib} KiB in 3,000")


def test_a_controller_without_its_host_does_not_grow() -> None:
    """A thousand tries cost less than those streams would."""
    assert grown_kib("our-reconnects", 2000) <= 400


@pytest.mark.asyncio
async def test_a_controller_begins_no_stream_while_its_host_is_away(tmp_path: Path) -> None:
    """It asks for control, and then for the list, until it has an answer."""
    events: list[Event] = []
    config = ControllerConfig(reconnect=Backoff(base_s=0.001, max_s=0.001))
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/nobody") as channel:
        controller = Controller(channel, config, events.append)
        begun: list[exit_pb2.WatchExitsRequest] = []
        stub: Any = controller._source._stub
        watch = stub.WatchExits

        def counted(request: exit_pb2.WatchExitsRequest, **more: Any) -> Any:  # noqa: ANN401
            begun.append(request)
            return watch(request, **more)

        stub.WatchExits = counted
        running = asyncio.ensure_future(controller.run())
        await until(lambda: len(events) >= 100)
        controller.stop()
        await running
    assert {event["event"] for event in events} == {"disconnected"}
    assert begun == []


def test_a_guests_tries_of_a_minute_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of at most two seconds and at least one in the end: some forty tries, and then no more of them."""
    now = itertools.count()
    clock = [0.0]
    monkeypatch.setattr("guest_agent.recovery.time.monotonic", lambda: clock[0])
    patience = Patience(total_s=60.0)
    while (pause_s := patience.pause_s()) is not None:
        clock[0] += pause_s
        assert next(now) < 70
    assert clock[0] >= 60.0


def test_two_controllers_do_not_come_back_in_one_moment() -> None:
    """What they wait differs, by their seeds, and stays below the longest."""
    backoff = Backoff()
    waits = [
        [backoff.delay_s("connection/c", failures, seeded_draw(seed)) for failures in range(1, 20)] for seed in (1, 2)
    ]
    assert waits[0] != waits[1]
    assert max(map(max, waits)) <= backoff.max_s
