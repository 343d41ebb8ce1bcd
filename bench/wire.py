"""What the parts that break a wire cost while they break nothing: a unary call with them and without, by turns."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
from fpstate.v1 import vm_pb2

from bench.pairs import Figures
from bench.process import running_echo
from bench.report import Row, by_turns_row
from fault_lab.live.interceptors import CallFaults, aio_client_interceptors
from fault_lab.live.points import LiveFaults
from fault_lab.plan.load import load_plan
from fault_lab.plans import find_plan

#: Calls of a block, one after the other, and pairs of blocks.
CALLS: Final = 200
PAIRS: Final = 20
FOLDER: Final = Path("build/bench-wire")
_METHOD: Final = "/fpstate.v1.VmService/GetVm"
_PLAN: Final = "growth-fails-once"


def rows(fraction: int = 1) -> Iterator[Row]:
    """Every figure about the wire, with one ``fraction``-th of the blocks."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        reply = vm_pb2.GetVmResponse(vm=vm_pb2.Vm(name="vms/a")).SerializeToString()
        with running_echo(FOLDER, {_METHOD: reply}) as echo:
            yield from _rows(echo, max(2, PAIRS // fraction))
    finally:
        shutil.rmtree(FOLDER)


def _rows(echo: str, pairs: int) -> Iterator[Row]:
    plan = load_plan(find_plan(_PLAN).read_text(encoding="utf-8"))
    asked = LiveFaults(plan)
    asked.enter("chaos")
    off = aio_client_interceptors(CallFaults())
    on = aio_client_interceptors(CallFaults(asked))
    note = f"floor: the same call without; median of {CALLS} calls one after the other, {pairs} pairs of blocks."
    yield _row("unary call, interceptor off", _measured(echo, echo, off, pairs), at_most=1.5, note=note)
    yield _row("unary call, interceptor asks and nothing fires", _measured(echo, echo, on, pairs), note=note)
    with _proxy(echo) as through:
        yield _row("unary call through a proxy without a plan", _measured(through, echo, [], pairs), note=note)
    with _proxy(echo, "--plan", _PLAN, "--link", "vms/a->host") as through:
        yield _row("unary call through a proxy that reads messages", _measured(through, echo, [], pairs), note=note)


def _row(name: str, figures: Figures, *, note: str, at_most: float | None = None) -> Row:
    return by_turns_row(name, "us", figures.pairs(), at_most=at_most, note=note)


def _measured(ours: str, floor: str, interceptors: list[Any], pairs: int) -> Figures:
    return asyncio.run(_by_turns(ours, floor, interceptors, pairs))


async def _by_turns(ours: str, floor: str, interceptors: list[Any], pairs: int) -> Figures:
    figures = Figures()
    async with (
        grpc.aio.insecure_channel(ours, interceptors=interceptors) as one,
        grpc.aio.insecure_channel(floor) as other,
    ):
        await figures.take(lambda: _block(one), lambda: _block(other), pairs=pairs)
    return figures


async def _block(channel: grpc.aio.Channel) -> float:
    """The median time of a call, in microseconds."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
    times = []
    for _ in range(CALLS):
        since = time.perf_counter()
        await call(b"", wait_for_ready=True)
        times.append(time.perf_counter() - since)
    return median(times) * 1e6


@contextmanager
def _proxy(target: str, *arguments: str) -> Iterator[str]:
    """``fpstated proxy`` as a process of its own; yields where it listens."""
    address = f"unix:{FOLDER.absolute()}/proxy.sock"
    command = [sys.executable, "-m", "fpstated", "proxy", "--listen", address, "--target", target, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield address
    finally:
        process.terminate()
        process.wait()
