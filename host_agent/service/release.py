"""The one place where things leave the host: nothing that knows of a command leaves before its record is durable.

A reply, a refusal or a message of a stream may know of all that was applied before it was made. So each waits here
until all of that is committed, whatever call it is of: commands, reads, watches. No servicer has to think of it.

    servicer   applies, reads, makes a message        (the machine is ahead of the disk)
    release    waits for the journal
    wire       the message                            (the disk is ahead of everybody else)

When the disk was full meanwhile and the host went back to what is durable, calls that began before that are refused:
what they saw has not happened.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from host_agent.journal.journal import Journal, NoJournal
from host_agent.service.layers import Behaviour, Context, Layer, Method


class ReleaseLayer(Layer):
    """Around the methods of the ``fpstate.`` packages. Health and reflection know nothing of commands, and pass.

    On an ephemeral host everything passes: nothing is waited for.

    Outside of the layers that ask who calls: they look into the machine as well, and what they refuse says so.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def wrap(self, behaviour: Behaviour, method: Method) -> Behaviour:
        """The behaviour with the wait behind everything that comes out of it."""
        if not method.service.startswith("fpstate.") or isinstance(self._journal, NoJournal):
            return behaviour
        if inspect.isasyncgenfunction(behaviour):
            return _stream(behaviour, self._journal)
        return _coroutine(behaviour, self._journal)


def _coroutine(call: Behaviour, journal: Journal) -> Behaviour:
    async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401 -- each method has its own types
        generation = journal.generation
        try:
            reply = await call(request, context)
        except Exception:
            await journal.settled(generation)
            raise
        await journal.settled(generation)
        return reply

    return answer


def _stream(call: Behaviour, journal: Journal) -> Behaviour:
    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
        generation = journal.generation
        try:
            # Closing the inner generator here, not whenever it is collected, is what detaches a stream in time.
            async with aclosing(call(request, context)) as responses:
                async for response in responses:
                    await journal.settled(generation)
                    yield response
        except Exception:
            await journal.settled(generation)
            raise
        await journal.settled(generation)

    return answer
