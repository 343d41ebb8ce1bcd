"""A run: all storms at once for so many minutes, samples all the while, and what is left when they are over."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import grpc

from fault_lab.live.proxy import Proxy
from tests.live.healthy import healthy_outcomes
from tests.live.host import LiveHost
from tests.soak.judge import Sample, Samples
from tests.soak.storms import Storms

#: What the host keeps of the past is bounded by count: small here, so that it is full while the run is young.
_BOUNDS: Final = ("--request-ids", "1000", "--settled-exits", "200", "--sessions", "500", "--snapshot-every", "5000")
_SAMPLE_S: Final = 1.0
_IDLE: Final = {
    'fpstated_calls_under_way{kind="call"}': 0.0,
    'fpstated_calls_under_way{kind="stream"}': 0.0,
    "fpstated_attach_streams": 0.0,
    "fpstated_exit_watchers": 0.0,
    "fpstated_sessions": 0.0,
    "fpstated_exits_open": 0.0,
    "fpstated_vms": 0.0,
}


@dataclass
class Soak:
    """One run. ``wrong`` says what was not as it has to be."""

    seconds: float
    seed: int
    rounds: Counter[str] = field(default_factory=Counter)
    samples: Samples = field(default_factory=Samples)
    failures: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    said: str = ""

    def run(self) -> None:
        """Run it."""
        with tempfile.TemporaryDirectory(prefix="fpstated-soak-") as scratch:
            folder = Path(scratch)
            with LiveHost(folder, *_BOUNDS, "--calls-per-second", "0", check=False) as host:
                reference = healthy_outcomes(host)
                asyncio.run(self._storm(host, folder))
                left = host.settled(_IDLE)
                self.wrong += [f"{name} is {value:g} when all is over" for name, value in left.items()]
                self.wrong += [f"the log: {line[:1000]}" for line in host.complaints()[:5]]
                if healthy_outcomes(host) != reference:
                    self.wrong.append("a healthy guest had other outcomes than before")
            self.said, risen = self.samples.verdict()
            self.wrong += [f"{what} has risen" for what in risen]

    async def _storm(self, host: LiveHost, folder: Path) -> None:
        until = time.monotonic() + self.seconds
        async with Proxy(f"unix:{folder}/proxy.sock", host.address) as proxy:
            storms = Storms(host.address, proxy, Random(self.seed))
            tasks = [asyncio.create_task(self._over_and_over(*each, until)) for each in storms.rounds().items()]
            while not all(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=_SAMPLE_S)
                if not host.alive:
                    self.wrong.append("the process has ended")
                    break
                streams = await asyncio.to_thread(_streams_given_up, host)
                self.samples.samples.append(Sample(host.figures(), streams))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _over_and_over(self, name: str, storm: Callable[[], Awaitable[None]], until: float) -> None:
        while time.monotonic() < until:
            try:
                await storm()
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                self.failures[f"{name}: {error!r}"[:300]] += 1
                await asyncio.sleep(0.05)
            self.rounds[name] += 1


def _streams_given_up(host: LiveHost) -> int:
    """Streams that ended otherwise than well, until now."""
    handled = ((name, count) for name, count in host.metrics().items() if name.startswith("grpc_server_handled_total"))
    return int(sum(count for name, count in handled if "_stream" in name and 'grpc_code="OK"' not in name))
