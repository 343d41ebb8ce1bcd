"""The processes of the demonstration, and the one timeline of what they say."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

from rich.console import Console

from fpstated.timeline import TimelineLine, parse_any, render

#: How long a line may be on its way from its process to us: lines are printed in the order of their stamps.
_SETTLE_S = 0.15
_STOP_S = 10.0


class ProcessFailedError(Exception):
    """A process ended, or stayed silent, where it must not. Its standard error is on ours."""


class Feed:
    """Collects lines from every process and prints them in the order of their stamps."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._verbose = verbose
        self._start_ns: int | None = None
        self._wall_offset_ns = time.time_ns() - time.monotonic_ns()
        self._waiting: list[TimelineLine] = []
        self._watch: tuple[str, str] | None = None
        self._seen = asyncio.Event()
        self._printer = asyncio.ensure_future(self._print_forever())

    def take(self, raw: str) -> None:
        """Read a line of a process; what is no line of a timeline is passed over."""
        line = parse_any(raw, wall_offset_ns=self._wall_offset_ns)
        if line is None or (line.lane == "U" and line.tone != "decision"):  # the rest lane H says as well
            return
        if self._watch is not None and line.vcpu == self._watch[0] and self._watch[1] in line.text:
            self._seen.set()
        if self._verbose or not line.text.startswith(("XSAVES", "XRSTORS", "swap")):
            self._waiting.append(line)

    def watch_for(self, vcpu: str, words: str) -> None:
        """From now on look out for a line about ``vcpu`` that has ``words``."""
        self._watch = (vcpu, words)
        self._seen.clear()

    async def seen(self, timeout_s: float) -> None:
        """Wait for the line that is looked out for."""
        try:
            await asyncio.wait_for(self._seen.wait(), timeout_s)
        except TimeoutError:
            raise ProcessFailedError(f"nobody said {self._watch} within {timeout_s} s") from None

    async def drain(self) -> None:
        """Wait until everything that was said is printed."""
        await asyncio.sleep(2 * _SETTLE_S)
        self._print_until(time.monotonic_ns())

    async def close(self) -> None:
        """Print what is left and stop."""
        self._printer.cancel()
        with suppress(asyncio.CancelledError):
            await self._printer
        self._print_until(time.monotonic_ns())

    async def _print_forever(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE_S / 3)
            self._print_until(time.monotonic_ns() - round(_SETTLE_S * 1e9))

    def _print_until(self, until_ns: int) -> None:
        ready = sorted(line for line in self._waiting if line.t_ns <= until_ns)
        self._waiting = [line for line in self._waiting if line.t_ns > until_ns]
        if ready and self._start_ns is None:
            self._start_ns = ready[0].t_ns
        for text in render(ready, start_ns=self._start_ns or 0):
            self._console.print(text, soft_wrap=True)


class DemoProcess:
    """A ``fpstated`` process whose standard output feeds the timeline."""

    def __init__(self, title: str, process: asyncio.subprocess.Process, feed: Feed) -> None:
        self._title = title
        self._process = process
        self._feed = feed
        self._lines: list[str] = []
        self._more = asyncio.Condition()
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    @asynccontextmanager
    async def started(cls, title: str, arguments: Sequence[str], feed: Feed) -> AsyncIterator[Self]:
        """Start it; it is stopped, by SIGTERM and if need be by SIGKILL, when the context ends."""
        command = [sys.executable, "-m", "fpstated", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        running = cls(title, process, feed)
        try:
            yield running
        finally:
            await running._stop()

    async def said(self, wanted: Callable[[str], bool], timeout_s: float) -> None:
        """Wait for a line that is ``wanted``."""

        async def wait() -> None:
            async with self._more:
                while not any(wanted(line) for line in self._lines):
                    if self._reader.done():
                        raise ProcessFailedError(f"{self._title} ended with status {self._process.returncode}")
                    await self._more.wait()

        try:
            await asyncio.wait_for(wait(), timeout_s)
        except TimeoutError:
            raise ProcessFailedError(f"{self._title} was not ready within {timeout_s} s") from None

    async def finished(self, timeout_s: float) -> None:
        """Wait for its end; anything but status 0 is a failure."""
        try:
            status = await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            raise ProcessFailedError(f"{self._title} did not end within {timeout_s} s") from None
        await self._reader
        if status:
            raise ProcessFailedError(f"{self._title} ended with status {status}")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            self._feed.take(line)
            async with self._more:
                self._lines.append(line)
                self._more.notify_all()
        await self._process.wait()
        async with self._more:
            self._more.notify_all()

    async def _stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        self._reader.cancel()
