"""What a loop costs in memory, in a process of its own: ``python -m tests.traps.soak LOOP TIMES`` prints KiB grown.

Half of the times are for warming up; the growth is that of the other half.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from fpstated.testing_host import async_host
from guest_agent.aio import open_async_session
from host_agent.state import HostConfig
from tests.traps.bare import bare, until
from vmm_controller.config import ControllerConfig
from vmm_controller.controller import Controller
from vmm_controller.policy import Backoff

VCPU = "vms/a/vcpus/0"
Once = Callable[[], Awaitable[None]]


def grown_kib(loop: str, times: int) -> int:
    """Run a loop of this file in a process of its own; by how much its memory grew, in KiB."""
    command = [sys.executable, "-m", "tests.traps.soak", loop, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def _rss_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


async def _measured(once: Once, times: int) -> int:
    for _ in range(times // 2):
        await once()
    gc.collect()
    before = _rss_kib()
    for _ in range(times // 2):
        await once()
    gc.collect()
    return _rss_kib() - before


async def _bare_reads(folder: Path, times: int) -> int:
    """A read that is cancelled, on a call of its own each time."""
    async with bare(folder) as server:

        async def once() -> None:
            call = server.stream()
            await call.read()
            reading = asyncio.ensure_future(call.read())
            await asyncio.sleep(0)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

        return await _measured(once, times)


async def _our_waits(_folder: Path, times: int) -> int:
    """A wait for an outcome that is given up, on one stream."""
    async with async_host(HostConfig(faults=True)) as host:
        host.make_vcpu(VCPU, permission=True)
        async with await open_async_session(host.address, vcpus=[VCPU]) as session:
            port = session.vcpu(VCPU)
            host.fail_allocation()
            growing = asyncio.ensure_future(port.xsetbv(0x602E7))
            await until(lambda: port.pending is not None and port.pending.pending is not None)
            growing.cancel()

            async def once() -> None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(port.wait_pending(), 0.0005)

            return await _measured(once, times)


async def _bare_reconnects(folder: Path, times: int) -> int:
    """A stream to a server that is not there."""
    async with grpc.aio.insecure_channel(f"unix:{folder}/nobody") as channel:

        async def once() -> None:
            hold: Any = channel.unary_stream("/bare/Hold")
            with suppress(grpc.aio.AioRpcError):
                async for _message in hold(b""):
                    pass

        return await _measured(once, times)


async def _our_reconnects(folder: Path, times: int) -> int:
    """A controller whose host is not there; how often it has tried is counted by what it says."""
    tried = asyncio.Semaphore(0)
    config = ControllerConfig(reconnect=Backoff(base_s=0.001, max_s=0.001))
    async with grpc.aio.insecure_channel(f"unix:{folder}/nobody") as channel:
        controller = Controller(channel, config, on_event=lambda _event: tried.release())
        running = asyncio.ensure_future(controller.run())

        async def once() -> None:
            await tried.acquire()

        grown = await _measured(once, times)
        controller.stop()
        await running
        return grown


LOOPS: dict[str, Callable[[Path, int], Awaitable[int]]] = {
    "bare-reads": _bare_reads,
    "our-waits": _our_waits,
    "bare-reconnects": _bare_reconnects,
    "our-reconnects": _our_reconnects,
}


async def _main(loop: str, times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(await LOOPS[loop](Path(folder), times))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
