"""Which Attach stream a vCPU's outcomes and directives go to: the newest one that asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from host_agent.events import Directive, Outcome
from host_agent.service.errors import Failure


class Outlet(Protocol):
    """The writing end of an Attach stream."""

    session: str

    def push(self, item: Outcome | Directive) -> None:
        """Write this when its turn comes."""

    def drain(self, grace_s: float, resume_target: str) -> None:
        """Tell the client that the host is about to go away."""

    def grant(self, credits: int) -> None:  # noqa: A002 -- the wire's word
        """Tell the client how many events its session may have under way."""

    def finish(self, failure: Failure | None) -> None:
        """Write what is left and end the stream: well, or with a failure."""

    def abandon(self, failure: Failure) -> None:
        """End the stream and write nothing that is left."""


class Attachments:
    """The open streams, and the outlet of each vCPU by its name."""

    def __init__(self) -> None:
        self._streams: dict[Outlet, None] = {}
        self._outlets: dict[str, Outlet] = {}
        #: Set while no stream is open.
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._streams)

    def attach(self, stream: Outlet, vcpus: Iterable[str]) -> None:
        """Give ``vcpus`` to ``stream``; an older stream keeps those of its others."""
        self._streams[stream] = None
        self.empty.clear()
        self._outlets.update(dict.fromkeys(vcpus, stream))

    def detach(self, stream: Outlet) -> None:
        """The stream is gone; what it had goes nowhere until somebody attaches again."""
        self._streams.pop(stream, None)
        for vcpu in [vcpu for vcpu, outlet in self._outlets.items() if outlet is stream]:
            del self._outlets[vcpu]
        if not self._streams:
            self.empty.set()

    def outlet(self, vcpu: str) -> Outlet | None:
        """The newest attachment of a vCPU, whatever session it is of."""
        return self._outlets.get(vcpu)

    def attached(self, stream: Outlet) -> list[str]:
        """The vCPUs whose newest attachment ``stream`` is."""
        return [vcpu for vcpu, outlet in self._outlets.items() if outlet is stream]

    def sessions(self) -> set[str]:
        """The sessions with an open stream."""
        return {stream.session for stream in self._streams}

    def finish_session(self, session: str, failure: Failure | None) -> None:
        """End the streams of a session that is over."""
        for stream in [stream for stream in self._streams if stream.session == session]:
            stream.finish(failure)

    def grant(self, credits: int) -> None:  # noqa: A002 -- the wire's word
        """Send CREDITS on every stream whose client knows another number."""
        for stream in self._streams:
            stream.grant(credits)

    def drain(self, grace_s: float, resume_target: str) -> None:
        """Send DRAINING on every stream."""
        for stream in self._streams:
            stream.drain(grace_s, resume_target)

    def abandon(self, failure: Failure) -> None:
        """End every stream at once: what they have queued has not happened."""
        for stream in list(self._streams):
            stream.abandon(failure)

    def finish(self, failure: Failure) -> None:
        """End every stream."""
        for stream in list(self._streams):
            stream.finish(failure)
