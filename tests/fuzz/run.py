"""A whole run: blocks on one host until the time is over, a host that drains, a restart on what all that has left."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from guest_agent.outcome import InstructionOutcome
from tests.fuzz.block import Block, Findings
from tests.fuzz.failure import MakeHost, repeat, shrunk, write_failure
from tests.fuzz.inputs import Input, every_field
from tests.fuzz.messages import FieldPath, Messages
from tests.fuzz.methods import DRAIN, request_class
from tests.live.healthy import healthy_outcomes
from tests.live.host import LiveHost
from tests.service.certificates import Certificates

INPUTS_PER_BLOCK: Final = 600
#: From so many blocks on resident memory is judged: half of them warm it up.
_BLOCKS_JUDGED: Final = 40
_RSS_FACTOR: Final = 1.10
#: What a host keeps of the past is bounded by count: small here, so that it is full while a run is young.
BOUNDS: Final = (
    *("--request-ids", "500", "--settled-exits", "200", "--sessions", "500", "--snapshot-every", "5000"),
    *("--exit-deadline", "3600"),
)


@dataclass
class Run:
    """One run. ``seconds`` is how long blocks go on; ``folder`` is where failures are written."""

    seed: int
    seconds: float
    folder: Path
    shrink: bool = True
    inputs: int = 0
    blocks: int = 0
    found: Findings = field(default_factory=Findings)
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    rss_kib: list[int] = field(default_factory=list)
    fields: list[tuple[str, FieldPath]] = field(default_factory=list)
    #: Sessions that may be there without anybody knowing: they live as long as their leases, and so into later blocks.
    lost_opens: int = 0

    def run(self) -> None:
        """Run it; ``found`` says what came of it."""
        with tempfile.TemporaryDirectory(prefix="fpstated-fuzz-") as scratch:
            certificates = Certificates(Path(scratch) / "certs")

            def make_host() -> LiveHost:
                return LiveHost(Path(tempfile.mkdtemp(dir=scratch)), *BOUNDS, certificates=certificates)

            with make_host() as host:
                self._on(host)
            if self.found and self.shrink and self._failed is not None:
                self._shrink(make_host, self._failed)

    _failed: Block | None = None

    def _on(self, host: LiveHost) -> None:
        reference, fds = healthy_outcomes(host), host.figures().fds
        until = time.monotonic() + self.seconds
        while not self.found and (time.monotonic() < until or not self.blocks):
            block = Block(host, f"{self.seed}/{self.blocks}", reference, outsiders=self.blocks % 3 == 2)
            block.lost_opens = self.lost_opens
            self._block(block, fds)
            self.rss_kib.append(host.figures().rss_kib if host.alive else 0)
        if not self.found:
            self._judge_memory()
            self._drain_and_restart(host, reference, fds)

    def _block(self, block: Block, fds: int) -> None:
        rng = Random(f"{self.seed}/{self.blocks}")
        self.blocks += 1
        if not self.fields:
            self.fields = every_field()
            rng.shuffle(self.fields)

        async def send() -> None:
            await block.tour()
            await block.fuzz(rng, INPUTS_PER_BLOCK, self.fields)
            if block.host.alive:
                await block.tidy()

        asyncio.run(send())
        block.check(fds)
        self._take(block)

    def _take(self, block: Block) -> None:
        self.inputs += len(block.sent)
        self.codes += block.codes
        self.lost_opens = block.lost_opens
        if block.findings:
            self.found, self._failed = block.findings, block
            write_failure(self.failure_path, block, block.sent)

    def _judge_memory(self) -> None:
        """The median of the last quarter beside that of the second: what only warms up has done so by then."""
        blocks = len(self.rss_kib)
        if blocks < _BLOCKS_JUDGED:
            return
        second = statistics.median(self.rss_kib[blocks // 4 : blocks // 2])
        last = statistics.median(self.rss_kib[-blocks // 4 :])
        if last > _RSS_FACTOR * second:
            self.found.leaks.append(f"resident memory went from {second:,.0f} to {last:,.0f} KiB")

    def _drain_and_restart(self, host: LiveHost, reference: Sequence[InstructionOutcome], fds: int) -> None:
        """DrainHost with all its fields changed; then the host has to stop in peace, and to go on with its history."""
        block = Block(host, f"{self.seed}/drain", reference, lost_opens=self.lost_opens)
        messages = Messages(Random(f"{self.seed}/drain"), block.vocabulary)

        def drains() -> list[Input]:
            built = (messages.build(request_class(DRAIN).DESCRIPTOR).SerializeToString() for _ in range(20))
            return [Input("operator", DRAIN, (message,)) for message in built]

        asyncio.run(block.replay([*drains(), Input("operator", DRAIN, (b"",))]))
        status = host.stop()
        block.findings.crashes += [f"it stopped with status {status}"] * (status != 0)
        host.start()
        block.check(fds)
        self._take(block)

    @property
    def failure_path(self) -> Path:
        """Where the inputs of a failed block are written."""
        return self.folder / f"failure-{self.seed}-{self.blocks}.json"

    @property
    def smallest_path(self) -> Path:
        """Where the fewest of them that fail as well are written."""
        return self.folder / f"smallest-{self.seed}-{self.blocks}.json"

    def _shrink(self, make_host: MakeHost, block: Block) -> None:
        """The one input that brought a crash first, alone; where that is not enough all of them, ever fewer."""
        ids = list(block.vocabulary.ids)
        smallest = [block.findings.crash] if block.findings.crash is not None else []
        if not smallest or not repeat(make_host, ids, smallest):
            smallest = shrunk(make_host, ids, list(block.sent))
        write_failure(self.smallest_path, block, smallest)
