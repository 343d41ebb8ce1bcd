"""A time limit around one read cancels the whole call: ``wait_for(call.read(), t)`` leaves a dead stream behind.

Source: grpc/aio/_call.py, _StreamResponseMixin.read() cancels the call where its reader is cancelled; measured on
1.85.1. Guard: one reader a stream, which nobody limits; who waits with a limit waits for a future of ours.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fpstated.testing_host import async_host
from guest_agent.aio import open_async_session
from guest_agent.event import Hlt
from host_agent.state import NS_PER_S, HostConfig
from tests.traps.bare import bare, until

ROOT = Path(__file__).parents[2]
PACKAGES = ("fpstated", "guest_agent", "host_agent", "vmm_controller", "fault_lab")
VCPU = "vms/a/vcpus/0"


@pytest.mark.asyncio
async def test_bare(tmp_path: Path, note: Callable[..., None]) -> None:
    """A read is given up, and so is its call; a read that is left alone goes on."""
    async with bare(tmp_path) as server:
        call = server.stream()
        await call.read()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.read(), 0.01)
        note("a read with a time limit cancels its call", there=call.done())
        call.cancel()
        call = server.stream()
        await call.read()
        reading = asyncio.ensure_future(call.read())
        await asyncio.wait({reading}, timeout=0.01)
        await server.settle()
        assert not call.done()
        call.cancel()


@pytest.mark.asyncio
async def test_a_wait_with_a_limit_leaves_the_stream_alone() -> None:
    """A vCPU parks, and its outcome is waited for a hundred times in vain: one stream, as before, and it goes on."""
    async with async_host(HostConfig(faults=True, exit_deadline_ns=3600 * NS_PER_S)) as host:
        host.make_vcpu(VCPU, permission=True)
        attachments = host._server.agent.attachments
        async with await open_async_session(host.address, vcpus=[VCPU]) as session:
            port = session.vcpu(VCPU)
            await port.hlt()
            (stream,) = attachments._streams
            host.fail_allocation()
            growing = asyncio.ensure_future(port.xsetbv(0x602E7))
            await host.exit_opened()
            await until(lambda: port.pending is not None and port.pending.pending is not None)
            growing.cancel()
            for _ in range(100):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(port.wait_pending(), 0.001)
            assert list(attachments._streams) == [stream]
            await host.controller("retry")
            await until(lambda: port.pending is None)
            await port.submit(Hlt())
            assert list(attachments._streams) == [stream]


def test_nobody_limits_a_read() -> None:
    """In the source: what is waited for with a limit is never the next message of a call."""
    assert [f"{path}:{line}" for path, line in _limited_reads()] == []


def _limited_reads() -> Iterator[tuple[Path, int]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and _name(node.func) == "wait_for" and node.args:
                    inner = node.args[0]
                    if isinstance(inner, ast.Call) and _name(inner.func) in ("read", "anext", "__anext__"):
                        yield path.relative_to(ROOT), node.lineno


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
