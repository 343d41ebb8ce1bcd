"""A durable host: batches a second beside a bare file's, and how many commits an acknowledgement waits for."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import grpc

from bench.journal import bodies_of, history
from bench.pairs import Figures
from bench.process import running_host
from bench.report import Row, by_turns_row, counted
from bench.traffic import BATCH, WINDOW, blocks, host_stream, open_guests
from host_agent.journal.directory import make_directory
from host_agent.journal.errors import JournalError
from host_agent.journal.store import Store
from host_agent.journal.writer import Listener, Writer

#: Batches of a block, and pairs of blocks.
BATCHES: Final = 20
PAIRS: Final = 30
#: Records that are appended, and how long after the one before.
RECORDS: Final = 2000
EVERY_S: Final = 0.0005
#: On the disk that the project is on; a directory in memory would sync nothing.
FOLDER: Final = Path("build/bench-durable")


def rows(fraction: int = 1) -> Iterator[Row]:
    """Every figure about a durable host, with one ``fraction``-th of the blocks."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        with running_host(FOLDER, "--state-dir", str(FOLDER / "state")) as host:
            figures = asyncio.run(_streamed(host, max(2, PAIRS // fraction)))
        yield by_turns_row(
            "one stream of 256-event batches packed, durable",
            "events/s",
            figures.pairs(),
            at_least=0.5,
            note="floor: append + fdatasync of the bytes of each batch's record, one after the other; the stream has "
            f"{WINDOW} batches under way, so a commit of the host may hold several.",
        )
        yield _acks(max(100, RECORDS // fraction))
    finally:
        shutil.rmtree(FOLDER)


async def _streamed(host: str, pairs: int) -> Figures:
    machine, commands, replies = history(4)
    body = bodies_of(machine, commands, replies)[-1][1]
    figures = Figures()
    fd = os.open(FOLDER / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        async with grpc.aio.insecure_channel(host) as channel:
            guests = await open_guests(channel, "bench")
            stream = host_stream(channel)
            await stream.open(guests)
            source = blocks(guests, packed=True, batches=BATCHES)

            async def ours() -> float:
                return await stream.run(next(source))

            async def floor() -> float:
                begin_s = time.perf_counter()
                for _ in range(BATCHES):
                    os.write(fd, body)
                    os.fdatasync(fd)
                return BATCHES * BATCH / (time.perf_counter() - begin_s)

            await figures.take(ours, floor, pairs=pairs)
            stream.cancel()
    finally:
        os.close(fd)
    return figures


def _acks(records: int) -> Row:
    """Commits that end from a record's append on, up to the one that has it; records come whoever waits."""
    machine, commands, replies = history(4)
    body = bodies_of(machine, commands, replies)[-1][1]
    make_directory(FOLDER / "acks")
    ends: list[tuple[int, float]] = []  # of each commit: its last record, and when it was told

    def committed(last: int) -> None:
        ends.append((last, time.perf_counter()))

    def failed(error: JournalError) -> None:
        raise AssertionError("the disk of the bench has no room") from error

    begun: list[tuple[int, float]] = []  # of each record: the commits that were over when it was appended, and when
    with Store(FOLDER / "acks", write=True) as store:
        writer = Writer(store, Listener(committed=committed, full=failed, room=lambda: None, failed=failed))
        writer.start()
        for n in range(1, records + 1):
            time.sleep(EVERY_S)
            begun.append((len(ends), time.perf_counter()))
            writer.append(n, body, 0)
        writer.close()
        took_s = writer.commits.durations.seconds / writer.commits.durations.count
    waits, seconds = [], []
    for n, (before, begin_s) in enumerate(begun, 1):
        nr = bisect_left(ends, (n, 0.0))
        waits.append(nr + 1 - before)
        seconds.append(ends[nr][1] - begin_s)
    note = f"a record of {BATCH} events every {EVERY_S * 1e3:g} ms; a commit takes {took_s * 1e3:.2f} ms, the median "
    note += f"acknowledgement {median(seconds) * 1e3:.2f} ms, p99 {_p99(seconds) * 1e3:.2f} ms"
    return counted("commits that an acknowledgement waits for, p99", "commits", _p99(waits), at_most=2, note=note)


def _p99(values: list[float] | list[int]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]
