"""An interceptor could keep every stream that went through it.

Source: grpc/grpc#25449, closed. Guard: none but this soak: of two hundred streams both ways that went through all our
layers nothing is left.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from host_agent.service.attach_stream import AttachStream
from tests.service.world import World, read
from tests.traps.bare import until

STREAMS = 200


@pytest.mark.asyncio
async def test_nothing_is_left_of_streams_that_are_over(
    world: World, monkeypatch: pytest.MonkeyPatch, note: Callable[..., None]
) -> None:
    """Neither of those that end well nor of those that are cancelled."""
    made: list[weakref.ref[AttachStream]] = []
    begin = AttachStream.__init__

    def noting(self: AttachStream, *arguments: Any) -> None:  # noqa: ANN401
        begin(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(AttachStream, "__init__", noting)
    guest = await world.guest(lease_s=3600)
    for nr in range(STREAMS):
        stream: Any = world.sessions.Attach()
        await stream.write(guest.hello())
        await read(stream)
        if nr % 2:
            stream.cancel()
        else:
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        del stream
    await until(world.server.agent.attachments.empty.is_set)
    await until(lambda: world.server.limits.under_way(streams=True) == 0)
    assert len(made) == STREAMS

    def left() -> int:
        gc.collect()
        return sum(each() is not None for each in made)

    await until(lambda: left() == 0)
    note("an interceptor keeps streams that are over", there=False)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("attach ")]
